"""What tests of several files start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small trained network."""
    out = tmp_path_factory.mktemp("study")
    file = out / "tiny.toml"
    file.write_text(
        'title = "x"\nseeds = 1\n[data]\nimage_size = 10\ncanvas = 20\nvalidation_images = 60\ntrain_images = 200\n'
        'test_images = 40\n[network]\nchannels = [4, 6]\npadding = "same"\n[training]\nmax_epochs = 1\n'
        "[grid]\nnetwork.factor = [4]\n[measure]\nmax_shift = 5\n"
    )
    run_study(load_study(str(file)), out=out / "study")
    return next((out / "study" / "runs").iterdir())
