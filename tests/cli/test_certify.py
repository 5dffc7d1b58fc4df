"""``shiftscope certify`` prints the curve, writes what can be signed, and resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cli.conftest import Command
from shiftscope import certify
from shiftscope.certificates.certifying import Certifier
from shiftscope.runtime.files import write_checked_tensors

#: A model whose outputs are probabilities, and below 0.5 for every digit.
SURE = """
from torch import nn

class Sure(nn.Module):
    def forward(self, images):
        return images.mean((1, 2, 3)).sub(0.5).mul(20).sigmoid()
"""


def test_certify_prints_the_curve_and_writes_it(shiftscope: Command, run: Path, tmp_path: Path) -> None:
    done = shiftscope("certify", str(run), "--radius", "2", "--images", "70", "--out", "c")
    assert done.code == 0, done.err
    assert "of images keep their answer at every shift of up to 2 pixels" in done.out
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "plan.json",
        "parts",
        "certificate.json",
        "certificate.md",
        "certificate.csv",
        "images.csv",
        "report.html",
    }
    content = json.loads((tmp_path / "c" / "certificate.json").read_text())
    signed = {"model", "model_sha256", "data", "data_sha256", "border", "largest radius", "date", "shiftscope", "images"}
    assert signed <= set(content["provenance"])
    assert [row["radius"] for row in content["curve"]] == [0, 1, 2]
    assert (tmp_path / "c" / "images.csv").read_text().startswith("image,answer,label,radius\n0,")
    other = shiftscope("certify", str(run), "--radius", "1", "--images", "70", "--out", "c")
    assert other.code == 2
    assert "holds another certificate" in other.err


def test_stopped_certify_prints_what_is_known_and_resumes(
    shiftscope: Command, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("certify", str(run), "--radius", "1", "--images", "40", "--json")
    whole = json.loads(shiftscope(*given).out)
    monkeypatch.setattr("shiftscope.certificates.job.block_size", lambda _: 16)
    original, calls = Certifier.part, []

    def stopping(self: Certifier, *args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    monkeypatch.setattr(Certifier, "part", stopping)
    stopped = shiftscope(*given, "--out", "c")
    assert stopped.code == 130
    assert len(json.loads(stopped.out)["images"]) == 16
    resumed = shiftscope(*given, "--out", "c")
    assert resumed.code == 0, resumed.err
    assert len(calls) == 4  # the first block was not certified again
    assert json.loads(resumed.out)["images"] == whole["images"]


def test_doubts_are_those_of_parts_that_are_read_again(shiftscope: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three blocks of images has its part."""
    Path("sure.py").write_text(SURE)
    monkeypatch.setattr("shiftscope.certificates.job.block_size", lambda _: 4)
    given = ("certify", "sure:Sure", "--data", "digits", "--size", "20", "--images", "12", "--radius", "1", "--task", "binary")
    first = shiftscope(*given, "--out", "c", "--json")
    assert first.code == 0, first.err
    told = json.loads(first.out)["summary"]
    assert told.startswith("All outputs lie between 0 and 1, and are read as logits")
    assert "All 9 images that were compared with the next one" in told
    monkeypatch.setattr(Certifier, "part", None)  # nothing is certified again
    assert json.loads(shiftscope(*given, "--out", "c", "--json").out)["summary"] == told


@pytest.mark.parametrize(
    "damage",
    [
        lambda part: {**part, "radii": part["radii"] + 5},
        lambda part: {**part, "numbers": part["numbers"] + 16},
        lambda part: {**part, "radii": part["radii"].double()},
        lambda part: {**part, "tops": part["tops"][:-1]},
        lambda part: {name: values for name, values in part.items() if name != "cost"},
    ],
    ids=["radii beyond", "other images", "no integers", "too few", "without cost"],
)
@pytest.mark.filterwarnings("always:.* is damaged")
def test_damaged_part_is_certified_again(
    damage: Callable[[dict[str, Tensor]], dict[str, Tensor]], shiftscope: Command, run: Path
) -> None:
    given = ("certify", str(run), "--radius", "1", "--images", "8", "--json", "--out", "c")
    whole = json.loads(shiftscope(*given).out)
    file = Path("c/parts/000000.safetensors")
    write_checked_tensors(file, damage(load_file(file)))
    again = shiftscope(*given)
    assert again.code == 0, again.err
    assert "000000.safetensors is damaged; its images are certified again" in again.err
    assert json.loads(again.out)["images"] == whole["images"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("nothing",), "there is no model"),
        (("my_models:small", "--size", "20", "--radius", "3", "--max-shift", "2"), "mean the same, but differ"),
        (("my_models:small", "--size", "20", "--embedding"), "a certificate needs classes"),
        (("my_models:small", "--size", "20", "--radius", "11"), "must be 1 to 10 pixels"),
    ],
)
def test_impossible_certificate_exits_with_2(shiftscope: Command, arguments: tuple[str, ...], problem: str) -> None:
    done = shiftscope("certify", *arguments)
    assert done.code == 2
    assert problem in done.err


def test_page_shows_the_curve_and_is_written_again(shiftscope: Command, run: Path, tmp_path: Path) -> None:
    done = shiftscope("certify", str(run), "--radius", "2", "--images", "20", "--out", "c")
    assert done.code == 0, done.err
    page = tmp_path / "c" / "report.html"
    text = page.read_text()
    assert "How far every shift keeps the answer" in text
    assert "are answered right" in text
    assert "model sha256" in text
    page.unlink()
    again = shiftscope("report", "c")
    assert again.code == 0, again.err
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content["images"][0].update(radius=9), "a radius is beyond those that were tried"),
        (lambda content: content["images"].pop(), "the curve is not that of the images"),
        (lambda content: content.update(schema_version=99), "later version"),
        (lambda content: content.pop("border"), "border"),
    ],
    ids=["beyond", "fewer images", "later", "no border"],
)
def test_page_of_a_damaged_certificate_is_refused(
    change: Callable[[dict[str, Any]], object], problem: str, shiftscope: Command, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
    content = certify(model, torch.rand(7, 1, 8, 8), torch.arange(7) % 3, radius=2).to_json()
    change(content)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "certificate.json").write_text(json.dumps(content))
    (tmp_path / "c" / "plan.json").write_text("{}")
    done = shiftscope("report", "c")
    assert done.code == 2
    assert problem in done.err
