"""Grey images of 16 bits, masks of one channel and fixed files keep what they are in every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.conftest import Command, Finished
from shiftscope import certify
from shiftscope.models import load_model

MODELS = """
import torch
from torch import nn

class Standardised(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.Flatten(), nn.Linear(8 * 25, 3))

    def forward(self, images):
        spread = images.std((1, 2, 3), keepdim=True)
        return self.layers((images - images.mean((1, 2, 3), keepdim=True)) / spread)

class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv2d(1, 8, 3, 2), nn.Linear(8 * 121, 3)

    def forward(self, images):
        found = self.first(images)
        return self.head((found if float(found.mean()) > -1e9 else -found).relu().flatten(1))

def standardised(): return Standardised().eval(), {"size": 24}
def by_value(): return ByValue().eval(), {"size": 24}
def masks():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Sigmoid()).eval(), {"size": 24}
"""


@pytest.fixture
def scans(shiftscope: Command, tmp_path: Path) -> Command:
    """Models, and grey images of 16 bits that use 300 of their levels."""
    (tmp_path / "scan_models.py").write_text(MODELS)
    generator = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for number in range(12):
        values = generator.integers(1000, 1300, (24, 24)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "scans" / f"{number:02}.png")
    return shiftscope


def flat(done: Finished) -> str:
    """Return what a command printed, without line breaks."""
    return " ".join((done.out + " " + done.err).split())


def test_radii_of_16_bit_images_are_those_of_their_own_levels(scans: Command, tmp_path: Path) -> None:
    done = scans("certify", "scan_models:standardised", "--data", "scans", "--radius", "2", "--mode", "circular", "--json")
    assert done.code == 0, done.err
    values = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "scans").iterdir())]
    images = torch.from_numpy(np.stack(values).astype(np.float32))[:, None] / 65535
    expected = certify(load_model("scan_models:standardised").model, images, radius=2, mode="circular")
    assert [row["radius"] for row in json.loads(done.out)["images"]] == expected.radii.tolist()
    said = flat(scans("certify", "scan_models:standardised", "--data", "scans", "--radius", "2"))
    assert "grey of 16 bits divided by 65535" in said
    assert "No value of the images is above 0.0198" in said


def test_canonical_that_explain_ranks_is_the_one_that_fix_applies(scans: Command) -> None:
    same = ("scan_models:standardised", "--data", "scans", "--max-shift", "2")
    rows = json.loads(scans("explain", *same, "--json").out)["fixes"]["rows"]
    (tried,) = (row for row in rows if row["fix"] == "canonical")
    changes, compared = json.loads(scans("fix", *same, "--with", "canonical", "--json").out)["tables"]
    after = next(row for row in compared["rows"] if row["model"] == "after")
    assert "content" in changes["rows"][0]["becomes"]
    assert "crop" not in changes["rows"][0]["becomes"]
    assert after["shifts"] == "zero"
    assert tried["promise"] in (None, changes["rows"][0]["why"])


def test_command_after_a_saved_model_of_masks_reads_them_as_before(scans: Command) -> None:
    task = "segmentation:given=probabilities"
    done = scans(
        "fix", "scan_models:masks", "--data", "scans", "--task", task, "--with", "circular", "--out", "fixed.safetensors"
    )
    assert done.code == 0, done.err
    again = scans("audit", "fixed.safetensors", "--trust", "--data", "scans", "--max-shift", "1", "--protocol", "every-shift")
    assert f"--task {task}" in flat(again)
    assert "read as logits" not in flat(again)
    further = scans("fix", "fixed.safetensors", "--trust", "--data", "scans", "--with", "canonical")
    assert f"--task {task}" in flat(further)


def test_fixed_copy_of_a_model_without_a_graph_is_loaded_again(scans: Command) -> None:
    same = ("--data", "scans", "--max-shift", "1")
    done = scans("fix", "scan_models:by_value", *same, "--with", "blur", "--out", "fixed.safetensors")
    assert done.code == 0, done.err
    again = scans("audit", "fixed.safetensors", "--trust", *same, "--quick")
    assert again.code == 0, again.err


def test_weights_of_a_fixed_copy_are_not_loaded_into_the_model_without_the_fix(scans: Command) -> None:
    scans(
        "fix", "scan_models:standardised", "--data", "scans", "--max-shift", "1", "--with", "blur", "--out", "fixed.safetensors"
    )
    done = scans("audit", "scan_models:standardised", "--weights", "fixed.safetensors", "--data", "scans", "--quick")
    assert done.code == 2
    assert "`weights` fixed.safetensors is a fixed copy (blur), and its weights alone give the model without the fix" in flat(
        done
    )
    assert "Give fixed.safetensors as the model itself" in flat(done)


def test_page_of_an_audit_saved_from_python_is_refused_with_the_reason(shiftscope: Command, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "audit.json").write_text("{}")
    done = shiftscope("report", "saved")
    assert done.code == 2
    assert "saved holds an audit that `save` wrote from Python, without what a page shows" in flat(done)
