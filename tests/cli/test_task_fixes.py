"""`fix` and `explain` on tasks: what --task and --truth measure, what is saved and printed, and what they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli.conftest import Command

MODELS = """
import torch
from torch import nn

class Depth(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        kept = images.mean(1, keepdim=True)[..., ::4, ::4] * self.scale
        return {"depth": kept.repeat_interleave(4, 2).repeat_interleave(4, 3) + 0.25}

class Boxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        boxes = torch.tensor([[2.0, 2, 9, 9]])
        return [{"boxes": boxes, "scores": each.amax().reshape(1), "labels": torch.ones(1)} for each in images]

def depth(): return Depth()
def boxes(): return Boxes()
def maps():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, 3, 1, 1)).eval()
def classes(): return nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten()).eval()
"""
IMAGES = ("--data", "photos", "--images", "4", "--size", "16", "--max-shift", "1")


@pytest.fixture
def command(shiftscope: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Commands in a folder that holds models of tasks, photos, and true depths."""
    (tmp_path / "task_models.py").write_text(MODELS)
    monkeypatch.delitem(sys.modules, "task_models", raising=False)
    generator = np.random.default_rng(0)
    for folder in ("photos", "depths"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        np.save(tmp_path / "depths" / f"{number}.npy", pixels.astype(np.float32).mean(axis=2) / 255 + 0.25)
    return shiftscope


def cells(content: dict[str, Any], table: int) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["shifts"], row["measure"]): row for row in content["tables"][table]["rows"]}


def test_fix_of_a_depth_model_is_measured_saved_and_read_again(command: Command) -> None:
    options = ("--task", "depth", "--truth", "depths", "--output", "depth", "--mode", "circular")
    done = command("fix", "task_models:depth", *IMAGES, *options, "--with", "canonical", "--out", "fixed.safetensors", "--json")
    assert done.code == 0, done.err
    rows = cells(json.loads(done.out), 1)
    assert rows["circular", "depth_error"]["after"]["value"] == 0
    assert rows["circular", "depth_error"]["before"]["value"] > 0.1
    assert rows["none", "truth_depth_error"]["difference"]["count"] == 4
    again = command(
        "audit", "fixed.safetensors", "--data", "photos", "--images", "4", "--trust", "--task", "depth",
        "--protocol", "chaman2021-circular", "--json",
    )  # fmt: skip
    assert again.code == 0, again.err
    assert {row["estimate"]["value"] for row in json.loads(again.out)["rows"] if row["measure"] == "depth_error"} == {0}


def test_fix_names_the_audit_of_the_saved_copy(command: Command) -> None:
    done = command("fix", "task_models:maps", *IMAGES, "--with", "canonical", "--out", "fixed.safetensors")
    assert done.code == 0, done.err
    assert "of pixels when images move by up to 1 pixel" in " ".join(done.out.split())
    assert "--task segmentation" in done.out.rpartition("Next:")[2]


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        ("maps", ("--with", "blur", "--task", "segmentaton"), "there is no task 'segmentaton'"),
        ("maps", ("--with", "blur", "--task", "depth"), "task 'depth' needs [image, 1, height, width]"),
        ("maps", ("--with", "gap"), "`gap` averages over positions, which task 'segmentation' needs"),
        ("maps", ("--with", "blur", "--train", "photos"), "`--train` trains classifiers"),
        ("depth", ("--with", "blur", "--output", "deep"), "`output` is 'deep'"),
        ("depth", ("--with", "canonical", "--truth", "missing"), "`truth` missing does not exist"),
        ("classes", ("--with", "blur", "--truth", "depths"), "the output does not tell which"),
        ("boxes", ("--with", "average", "--reach", "1"), "boxes at several shifts have no mean"),
        ("boxes", ("--with", "canonical", "--task", "boxes:threshold=2"), "`threshold` of task 'boxes'"),
        ("boxes", ("--with", "canonical", "--truth", "depths"), "depths"),
    ],
)
def test_wrong_input_of_fix_ends_in_a_sentence(command: Command, model: str, options: tuple[str, ...], problem: str) -> None:
    done = command("fix", f"task_models:{model}", *IMAGES, *options)
    assert done.code == 2
    assert problem in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_explain_of_maps_is_printed_and_written(command: Command, tmp_path: Path) -> None:
    options = ("--mode", "circular", "--out", "why")
    done = command("explain", "task_models:maps", *IMAGES, *options)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "of pixels when images move by up to 1 pixel, circularly." in said
    assert "--task segmentation" in done.out or "Next:" not in done.out
    written = json.loads((tmp_path / "why" / "explanation.json").read_text())
    assert written["task"] == "segmentation"
    assert written["factor"] == [2, 2]
    assert [row["cause"] for row in written["causes"]["rows"]] == ["borders", "aliasing", "other", "total"]
    assert sorted(path.stem for path in (tmp_path / "why").glob("*.csv")) == ["causes", "fixes", "lattice", "layers"]
    assert "Change at each shift" in (tmp_path / "why" / "report.html").read_text()
    assert "Saved in why." in said


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        ("maps", ("--task", "segmentaton"), "there is no task 'segmentaton'"),
        ("maps", ("--task", "depth"), "task 'depth' needs [image, 1, height, width]"),
        ("depth", ("--output", "deep"), "`output` is 'deep'"),
        ("depth", ("--output", "depth", "--truth", "missing"), "`truth` missing does not exist"),
        ("classes", ("--truth", "depths"), "the output does not tell which"),
        ("boxes", ("--task", "boxes:threshold=2"), "`threshold` of task 'boxes'"),
    ],
)
def test_wrong_input_of_explain_ends_in_a_sentence(command: Command, model: str, options: tuple[str, ...], problem: str) -> None:
    done = command("explain", f"task_models:{model}", *IMAGES, *options)
    assert done.code == 2
    assert problem in " ".join(done.err.split())
    assert "Traceback" not in done.err
