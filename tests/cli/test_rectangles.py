"""Models whose input is not square go through every command, and the numbers are those of Python on the same images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.conftest import Command, Finished
from shiftscope import audit
from shiftscope.audits.subject import SubjectSpec, open_subject
from shiftscope.models import load_model

MODELS = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, padding=1), nn.ReLU())
        self.head = nn.Linear(4 * 12 * 20, 2)

    def forward(self, images):
        if images.shape[2:] != (24, 40):
            raise ValueError(f"24x40 only, not {tuple(images.shape)}")
        return self.head(self.features(images).flatten(1))

def wide():
    torch.manual_seed(0)
    return Wide(), {"size": (24, 40), "mean": [0.5] * 3, "std": [0.25] * 3}

def plain():
    return wide()[0]
"""


@pytest.fixture
def models(shiftscope: Command, tmp_path: Path) -> Command:
    """Models of 24x40 pixels, and photos of several shapes in two classes."""
    (tmp_path / "models.py").write_text(MODELS)
    generator = np.random.default_rng(0)
    for number in range(8):
        folder = tmp_path / "photos" / ("ant" if number % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        shape = [(60, 100), (90, 50), (24, 40), (70, 70)][number % 4]
        Image.fromarray(generator.integers(0, 255, (*shape, 3), np.uint8)).save(folder / f"{number}.png")
    return shiftscope


def flat(done: Finished) -> str:
    """Return what a command printed, without line breaks."""
    return " ".join((done.out + " " + done.err).split())


def test_audit_is_that_of_python(models: Command) -> None:
    done = models("audit", "models.py:wide", "--data", "photos", "--max-shift", "3", "--out", "audit", "--json")
    assert done.code == 0
    assert "input 3x24x40" in flat(done)
    assert "scaled to cover 30x50 (bilinear), centre of 24x40, margin 3" in flat(done)
    subject = open_subject(SubjectSpec(model="models.py:wide", data="photos", max_shift=3))
    images, labels = subject.read()[0].images, subject.read()[0].labels
    assert images.shape == (8, 3, 30, 46)
    found = audit(subject.model, images, labels, size=(24, 40), max_shift=3)
    rows = json.loads(done.out)["rows"]
    assert len(rows) > 6
    for row, ours in zip(rows, found.to_json()["rows"], strict=True):
        assert (row["protocol"], row["measure"], row["border"]) == (ours["protocol"], ours["measure"], ours["border"])
        assert row["estimate"]["value"] == pytest.approx(ours["estimate"]["value"], abs=1e-6)


def test_size_is_an_option(models: Command) -> None:
    given = models("audit", "models.py:plain", "--size", "24x40", "--data", "photos", "--quick")
    assert given.code == 0
    assert "--size 24x40" in given.out
    missing = models("audit", "models.py:plain", "--data", "photos")
    assert missing.code == 2
    turned = models("audit", "models.py:wide", "--size", "40x24", "--data", "photos")
    assert turned.code == 2 and "24x40 only" in turned.err
    nonsense = models("audit", "models.py:plain", "--size", "24*40", "--data", "photos")
    assert nonsense.code == 2 and "a height and a width such as 256x128, got '24*40'" in nonsense.err


def test_fix_is_written_and_loaded_at_its_size(models: Command) -> None:
    done = models(
        "fix", "models.py:plain", "--size", "24x40", "--data", "photos", "--with", "average", "--out", "fixed.safetensors"
    )
    assert done.code == 0, done.err
    loaded = load_model("fixed.safetensors", trust=True)
    assert loaded.image == (3, 24, 40)
    again = models("audit", "fixed.safetensors", "--trust", "--data", "photos", "--quick")
    assert again.code == 0 and "input 3x24x40" in flat(again)
    assert loaded.model(torch.rand(2, 3, 24, 40)).shape == (2, 2)


@pytest.mark.parametrize("command", ["explain", "certify"])
def test_other_commands_take_it(models: Command, command: str) -> None:
    done = models(command, "models.py:wide", "--data", "photos", "--max-shift", "1")
    assert done.code == 0, done.err
    assert "input 3x24x40" in flat(done)


def test_report_and_film_show_it(models: Command, tmp_path: Path) -> None:
    assert models("audit", "models.py:wide", "--data", "photos", "--max-shift", "2", "--out", "audit").code == 0
    assert models("report", "audit").code == 0
    assert '"canvas":[24,40]' in (tmp_path / "audit" / "report.html").read_text()  # dragged images leave it where the model's do
    assert models("audit", "models.py:wide", "--data", "photos", "--pan", "0.5,0.5", "--steps", "4", "--out", "pan").code == 0
    film = json.loads((tmp_path / "pan" / "film.json").read_text())
    assert film["strips"]
