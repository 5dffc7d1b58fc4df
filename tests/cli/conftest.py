"""What the command line's tests share: a small study, a file of models, and commands run in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from shiftscope.cli import main
from small import SMALL

#: One run of the small study.
STUDY = SMALL.partition("[source]")[0].replace("seeds = 2", "seeds = 1").replace("[1, 4]", "[4]")

MODELS = """
import torch
from torch import nn

class Dark(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) / 0

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10))

def dark():
    return Dark()
"""


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Finished]


@pytest.fixture
def shiftscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run a command in an empty folder that holds a study and models."""
    (tmp_path / "tiny.toml").write_text(STUDY)
    (tmp_path / "my_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)

    def run(*arguments: str) -> Finished:
        capfd.readouterr()
        code = main(list(arguments))
        printed = capfd.readouterr()
        return Finished(code, printed.out, printed.err)

    return run
