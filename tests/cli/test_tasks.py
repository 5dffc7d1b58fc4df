"""Commands on tasks: what --task and --truth measure, files and pages of it, gates and baselines, and what they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shiftscope as ss
from cli.conftest import Command
from shiftscope.audits.comparison import compare_audits
from shiftscope.audits.folder import merge_audit
from shiftscope.audits.gate import judge_comparison
from shiftscope.audits.pictures import read_pictures
from shiftscope.audits.reading import read_audit

MODELS = """
import torch
from torch import nn

class Depth(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, images):
        kept = images.mean(1, keepdim=True)[..., :: self.step, :: self.step]
        return kept.repeat_interleave(self.step, 2).repeat_interleave(self.step, 3) + 0.25

class Classes(nn.Module):
    def forward(self, images):
        grey = images.mean(1, keepdim=True)
        return {"out": torch.cat([grey, 1 - grey], 1), "aux": grey}

class Bright(nn.Module):
    def forward(self, images):
        return 20 * (images[..., :8].mean((1, 2, 3)) - images[..., 8:].mean((1, 2, 3)))

class Volumes(nn.Module):
    def forward(self, images):
        return images[:, :1, None, None]

class Boxes(nn.Module):
    def forward(self, images):
        box, score, label = torch.tensor([[2.0, 2, 9, 9]]), torch.ones(1), torch.ones(1, dtype=torch.long)
        return [{"boxes": box, "scores": score, "labels": label} for _ in images]

def boxes(): return Boxes()
def exact(): return Depth(1)
def coarse(): return Depth(4)
def classes(): return Classes()
def bright(): return Bright()
def volumes(): return Volumes()
"""
SIZE = 16


@pytest.fixture
def command(shiftscope: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Commands in a folder that holds models of tasks, photos, and the truth of what `classes` and `exact` return."""
    (tmp_path / "my_tasks.py").write_text(MODELS)
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)
    generator = torch.Generator().manual_seed(0)
    for folder in ("photos", "labels", "depths"):
        (tmp_path / folder).mkdir()
    for number in range(5):
        coarse = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        pixels = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
        grey = pixels.astype(np.float32).mean(axis=2) / 255
        Image.fromarray((grey < 0.5).astype(np.uint8)).save(tmp_path / "labels" / f"{number}.png")
        np.save(tmp_path / "depths" / f"{number}.npy", grey + 0.25)
    (tmp_path / "sides.json").write_text(json.dumps({f"{number}.png": number % 2 for number in range(5)}))
    return shiftscope


def audited(name: str, *options: str, size: int = SIZE) -> tuple[str, ...]:
    return ("audit", f"my_tasks:{name}", "--data", "photos", "--images", "5", "--size", str(size), *options)


def test_depth_is_recognised_and_an_exact_model_has_no_error(command: Command) -> None:
    done = command(*audited("exact", "--protocol", "chaman2021-circular", "--json"))
    found = json.loads(done.out)
    assert done.code == 0, done.err
    assert found["task"] == "depth"
    assert {row["measure"]: row["estimate"]["value"] for row in found["rows"]} == {
        "depth_error": 0,
        "depth_change": 0,
        "depth_shape_error": 0,
    }


@pytest.mark.parametrize(
    ("name", "task", "truth", "measure", "best"),
    [
        ("classes", "segmentation", "labels", "truth_iou", 1),
        ("classes", "segmentation", "labels", "truth_pixels", 1),
        ("exact", "depth", "depths", "truth_depth_error", 0),
    ],
)
def test_truth_in_files_is_placed_like_the_images(
    command: Command, name: str, task: str, truth: str, measure: str, best: float
) -> None:
    """Also at another size, and with a margin of crops."""
    for size, near in ((16, 1e-3), (12, 0.2)):
        options = ("--task", task, "--truth", truth, "--max-shift", "2", "--protocol", "mouton2020", "--json")
        done = command(*audited(name, *options, size=size))
        assert done.code == 0, done.err
        rows = [row for row in json.loads(done.out)["rows"] if row["protocol"] == "unshifted"]
        assert {row["measure"]: row["estimate"]["value"] for row in rows}[measure] == pytest.approx(best, abs=near)


def test_truth_of_images_of_another_shape_is_refused(command: Command) -> None:
    """Maps that were cut, and sizes of COCO as stored where EXIF turns the photo upright; another scale is no other shape."""
    options = ("--max-shift", "2", "--protocol", "mouton2020")
    taller = Image.fromarray(np.zeros((20, 16), np.uint8))
    taller.save("labels/2.png")
    done = command(*audited("classes", "--task", "segmentation", "--truth", "labels", *options))
    cut = "labels/2.png has 16x20 pixels for 2.png, whose upright image has 16x16 (width x height)"
    assert (done.code, cut in " ".join(done.err.split())) == (2, True), done.err
    Image.fromarray(np.zeros((32, 32), np.uint8)).save("labels/2.png")
    assert command(*audited("classes", "--task", "segmentation", "--truth", "labels", *options, size=12)).code == 0
    exif = Image.Exif()
    exif[0x0112] = 6
    Path("turned").mkdir()
    Image.new("RGB", (40, 30)).save("turned/a.jpg", exif=exif)
    images = [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    Path("coco.json").write_text(json.dumps(content))
    boxes = ("audit", "my_tasks:boxes", "--data", "turned", "--size", "16", "--task", "boxes", "--truth", "coco.json", *options)
    done = command(*boxes)
    turned = "coco.json has 40x30 pixels for a.jpg, whose upright image has 30x40 (width x height)"
    assert (done.code, turned in " ".join(done.err.split())) == (2, True), done.err
    images[0].update(height=80, width=60)
    Path("coco.json").write_text(json.dumps(content))
    assert command(*boxes).code == 0


def test_truth_by_name_is_that_of_a_binary_model(command: Command) -> None:
    done = command(*audited("bright", "--truth", "sides.json", "--protocol", "mouton2020", "--json"))
    assert done.code == 0, done.err
    rows = {(row["protocol"], row["measure"]): row["estimate"]["value"] for row in json.loads(done.out)["rows"]}
    images = torch.stack([torch.from_numpy(np.asarray(Image.open(f"photos/{number}.png")).copy()) for number in range(5)])
    right = (images[:, :, :8].float().mean((1, 2, 3)) >= images[:, :, 8:].float().mean((1, 2, 3))) == (torch.arange(5) % 2).bool()
    assert rows["unshifted", "labels_right"] == pytest.approx(float(right.float().mean()))


@pytest.mark.parametrize("classes", [2, 3])
def test_classes_of_a_folder_are_the_truth_of_yes_or_no_only_if_there_are_two(command: Command, classes: int) -> None:
    for number in range(5):
        folder = Path(f"folders/{number % classes}")
        folder.mkdir(parents=True, exist_ok=True)
        Path(f"photos/{number}.png").rename(folder / f"{number}.png")
    options = ("--data", "folders", "--size", str(SIZE), "--max-shift", "1", "--json")
    done = command("audit", "my_tasks:bright", "--protocol", "mouton2020", *options)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    measured = {row["measure"] for row in found["rows"]}
    ignored = any(f"the data have {classes} classes" in note for note in found["notes"])
    assert ("labels_right" in measured, ignored) == (classes == 2, classes != 2)
    assert classes == 2 or command("explain", "my_tasks:bright", *options).code == 0


@pytest.mark.slow
def test_shards_give_the_files_of_one_run(command: Command, tmp_path: Path) -> None:
    options = ("--task", "segmentation", "--truth", "labels", "--protocol", "every-shift", "--max-shift", "1")
    assert command(*audited("classes", *options, "--out", "one")).code == 0
    for shard in ("2/2", "1/2"):
        assert command(*audited("classes", *options, "--out", "two", "--shard", shard)).code == 0
    assert (tmp_path / "one" / "table.csv").read_bytes() == (tmp_path / "two" / "table.csv").read_bytes()
    assert merge_audit(tmp_path / "two").task == "segmentation"
    assert read_audit(tmp_path / "one").changed[0].measure == "mASSC"
    assert (tmp_path / "one" / "maps.safetensors").read_bytes() == (tmp_path / "two" / "maps.safetensors").read_bytes()


def test_page_draws_answers_before_and_after(command: Command, tmp_path: Path) -> None:
    done = command(*audited("coarse", "--protocol", "every-shift", "--max-shift", "2", "--out", "found"))
    assert done.code == 0, done.err
    assert "depth changes by" in done.out
    assert "explain" not in done.out
    pictures = read_pictures(tmp_path / "found")
    assert len(pictures) == 5
    assert all(each.before.drawn and each.after.drawn and each.measure == "depth_error" for each in pictures)
    page = (tmp_path / "found" / "report.html").read_text()
    for text in (
        "the answer after, moved back",
        "Sensitivity map</h2>",
        "Depth error at every shift",
        "Depth error against distance",
    ):
        assert text in page
    assert command("report", "found").code == 0


def test_gate_and_baseline_judge_a_task(command: Command, tmp_path: Path) -> None:
    protocols = ("--protocol", "chaman2021-circular", "--protocol", "azulay2018")
    failed = command(*audited("coarse", *protocols, "--fail-if", "depth error > 0.001", "--strict"))
    assert (failed.code, "Gate fails: depth error (chaman2021-circular)" in failed.out) == (1, True)
    for condition in ("depth error > 0.001", "flicker of azulay2018 > 0.5"):
        assert command(*audited("exact", *protocols, "--fail-if", condition, "--strict")).code == 0
    (tmp_path / "exact.json").write_text(command(*audited("exact", *protocols, "--json")).out)
    assert command("check", "exact.json", "--trust").code == 0
    worse = command("check", "exact.json", "my_tasks:coarse", "--strict")
    assert (worse.code, "Gate fails" in worse.out) == (1, True)


def test_measure_without_a_value_for_some_images_is_compared_on_the_others() -> None:
    """Images whose truth is unknown have no error; a baseline and a later audit are compared on the others."""
    images = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    truth = images.mean(dim=1) + 0.5
    truth[:2] = torch.nan
    better, worse = (
        ss.audit(lambda batch, off=off: batch.mean(1) + 0.5 + off, images, truth=truth, protocols=["mouton2020"])
        for off in (0, 0.1)
    )
    compared = compare_audits(better, worse)
    measure = next(each for each in compared.measures if each.row.measure == "truth_depth_error")
    assert measure.difference.count == 4
    assert measure.outcome == "worse"
    assert judge_comparison(compared, strict=True).outcome == "fails"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("volumes", (), "name its task (`audit --task NAME`)"),
        ("exact", ("--task", "dept"), "there is no task 'dept'. Did you mean 'depth'?"),
        ("exact", ("--task", "binary"), "task 'binary' needs [image, 1] for 1 image, got shape (1, 1, 16, 16)"),
        ("exact", ("--truth", "nowhere"), "`truth` nowhere does not exist"),
        ("exact", ("--truth", "photos"), "must be a map [height, width], got shape (16, 16, 3)"),
        ("exact", ("--truth", "sides.json"), "`truth` must be a folder with a map for each image"),
        ("bright", ("--truth", "my_tasks.py"), "my_tasks.py is damaged, or is not JSON"),
        ("classes", ("--task", "segmentation", "--truth", "depths"), "`truth` of task 'segmentation' must be whole numbers"),
        ("exact", ("--protocol", "gruver2023"), "gruver2023 cannot be measured for task 'depth'"),
        ("exact", ("--fail-if", "depth eror > 1"), "Did you mean 'depth error'"),
        ("exact", ("--fail-if", "label flips > 0.5"), "matches no number of the audit"),
    ],
)
def test_bad_input_is_one_sentence(command: Command, name: str, options: tuple[str, ...], message: str) -> None:
    done = command(*audited(name, *options))
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err
