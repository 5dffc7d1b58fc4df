"""One small trained study for all tests of pages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from small import Finished


@pytest.fixture(scope="session")
def study(trained: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(trained.out, tmp_path_factory.mktemp("report") / "study"))
