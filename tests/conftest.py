"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study
from small import TINY


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small trained network."""
    out = tmp_path_factory.mktemp("study")
    file = out / "tiny.toml"
    file.write_text(TINY)
    run_study(load_study(str(file)), out=out / "study")
    return next((out / "study" / "runs").iterdir())
