"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study
from small import SMALL, TINY, Finished, one_thread


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small trained network."""
    out = tmp_path_factory.mktemp("study")
    file = out / "tiny.toml"
    file.write_text(TINY)
    run_study(load_study(str(file)), out=out / "study")
    return next((out / "study" / "runs").iterdir())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return the small study, trained with one thread; tests only read its folder."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.toml").write_text(SMALL)
    study = load_study(str(folder / "small.toml"))
    with one_thread():
        return Finished(study, folder / "out", run_study(study, out=folder / "out"))
