"""One small trained study for all tests of pages."""

from __future__ import annotations

from pathlib import Path

import pytest

import pages


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pages.trained(tmp_path_factory.mktemp("report"))
