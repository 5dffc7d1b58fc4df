"""Fixes of models whose outputs are maps, boxes, vectors or yes and no: exact where they promise it, measured by the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.detectors import rectangles, scenes, snapping
from torch import Tensor, nn

from shiftscope import InputError, audit, fix
from shiftscope.engine.task_trials import TaskTrial
from shiftscope.shifts import grid
from shiftscope.surgery import Average, Canonical
from shiftscope.surgery.task_compare import task_verdict
from shiftscope.tasks import Task, find_task


class Calls(nn.Module):
    """A module around a function, with a weight, so that it can be copied and converted."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def coarse(images: Tensor) -> Tensor:
    """Return a map at a quarter of the resolution, which keeps every fourth pixel."""
    return images.mean(dim=1, keepdim=True)[:, :, ::4, ::4] + 0.25


MODELS: dict[str, Callable[[Tensor], Any]] = {
    "boxes": snapping(8),
    "segmentation": lambda images: torch.cat([coarse(images), 0.9 - coarse(images)], dim=1),
    "depth": coarse,
    "flow": lambda images: torch.cat([coarse(images), -coarse(images)], dim=1),
    "embedding": lambda images: coarse(images).flatten(1),
    "binary": lambda images: 9 * (coarse(images)[:, 0, 3, 3] - 0.6),
    "multilabel": lambda images: 9 * (coarse(images)[:, 0, 3] - 0.6),
    "answers": lambda images: [str(round(float(each[0, 20, 20]), 3)) for each in images],
}


def content(count: int = 3, size: int = 40) -> Tensor:
    """Return rectangles of noise on a black canvas, with room for shifts of 8 pixels."""
    images = torch.zeros(count, 1, size, size)
    images[:, :, 11:30, 9:31] = 0.3 + 0.7 * torch.rand(count, 1, 19, 22, generator=torch.Generator().manual_seed(1))
    return images


def worst(task: Task, model: Callable[[Tensor], Any], images: Tensor, mode: Any) -> dict[str, list[float]]:
    """Return the least and the largest value of each measure over images and every shift of up to 8 pixels."""
    steps = grid(8)[::37].expand(len(images), -1, -1)
    found = TaskTrial(task, images, steps, (images.shape[2], images.shape[3]), mode).measure(model, "")
    values = {name: each[each.isfinite()] for name, each in found.values.items()}
    return {name: [float(each.min()), float(each.max())] for name, each in values.items() if len(each)}


EXACT = {
    "boxes": {"box_survival": 1.0, "confidence_change": 0.0, "box_iou": 1.0, "box_jitter": 0.0, "box_births": 0.0},
    "segmentation": {"mASSC": 1.0, "mean_iou": 1.0, "boundary_agreement": 1.0},
    "depth": {"depth_error": 0.0, "depth_change": 0.0, "depth_shape_error": 0.0},
    "flow": {"endpoint_error": 0.0, "flow_error": 0.0},
    "embedding": {"mcs": 1.0, "retrieval": 1.0},
    "binary": {"label_flips": 0.0, "label_probability_change": 0.0},
    "multilabel": {"label_flips": 0.0, "label_probability_change": 0.0},
    "answers": {"same_answer": 1.0},
}


@pytest.mark.parametrize("mode", ["zero", "circular"])
@pytest.mark.parametrize("name", EXACT)
def test_canonical_is_exact_at_every_shift_that_keeps_content_whole(name: str, mode: Any) -> None:
    task, images = find_task(name), scenes(3)[0] if name == "boxes" else content()
    before = worst(task, MODELS[name], images, mode)
    after = worst(task, Canonical(MODELS[name], border=mode, task=task), images, mode)
    for measure, value in EXACT[name].items():
        assert after[measure] == pytest.approx([value, value], abs=1e-12)
    lead = task.measures[0]
    assert before[lead] != pytest.approx(after[lead], abs=1e-3)


@pytest.mark.parametrize("name", ["boxes", "segmentation", "depth"])
def test_canonical_of_an_exact_model_changes_no_answer(name: str) -> None:
    exact: dict[str, Callable[[Tensor], Any]] = {
        "boxes": rectangles,
        "segmentation": lambda images: torch.cat([images, 0.5 - images], dim=1),
        "depth": lambda images: images + 1,
    }
    images, task = scenes(3)[0] if name == "boxes" else content(), find_task(name)
    size = (images.shape[2], images.shape[3])
    plain = task.read(exact[name](images), 3, size)
    placed = task.read(Canonical(exact[name], task=task)(images), 3, size)
    for one, other in zip(plain, placed, strict=True):
        if name == "boxes":
            order = [each.boxes[:, 0].argsort() for each in (one, other)]
            assert (one.boxes[order[0]] == other.boxes[order[1]]).all()
        else:
            assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("name", ["boxes", "depth"])
def test_photo_canonical_moves_answers_along_while_the_crop_is_kept(name: str) -> None:
    photo = torch.rand(1, 1, 60, 60, generator=torch.Generator().manual_seed(3))
    task = find_task(name)
    models: dict[str, Callable[[Tensor], Any]] = {
        "boxes": lambda images: [
            {"boxes": torch.tensor([[4.0, 6, 30, 20]]), "scores": each[0, 20, 20][None], "labels": torch.ones(1)}
            for each in images
        ],
        "depth": coarse,
    }
    model = Canonical(models[name], border="crop", reach=4, task=task)
    size, kept = (40, 40), 0
    crop = lambda down, right: photo[:, :, 10 - down : 50 - down, 10 - right : 50 - right]  # noqa: E731
    before = task.read(model(crop(0, 0)), 1, size)[0]
    for down, right in [(1, 0), (-2, 1), (2, 2), (0, -3)]:
        if model.keeps_crop(crop(0, 0), crop(down, right), torch.tensor([[down, right]])):
            kept += 1
            after = task.read(model(crop(down, right)), 1, size)[0]
            if name == "boxes":
                assert (after.boxes - before.boxes).round(9).tolist() == [[right, down, right, down]]
            else:
                rows, columns = ((max(step, 0), 40 + min(step, 0)) for step in (down, right))
                moved = after[:, rows[0] : rows[1], columns[0] : columns[1]]
                still = before[:, rows[0] - down : rows[1] - down, columns[0] - right : columns[1] - right]
                assert torch.equal(moved, still)
    assert kept


def averaged(name: str, images: Tensor, border: str) -> Tensor:
    """Return the mean over 9 shifts by its definition, image by image and pixel by pixel."""
    size, task = images.shape[2], find_task(name)
    total, count = torch.zeros(()), torch.zeros(())
    for down, right in grid(1).tolist():
        if border == "circular":
            view = images.roll((down, right), (2, 3))
        else:
            view = torch.zeros_like(images)
            rows, columns = (range(max(step, 0), size + min(step, 0)) for step in (down, right))
            for row in rows:
                view[:, :, row, columns[0] : columns[-1] + 1] = images[
                    :, :, row - down, columns[0] - right : columns[-1] + 1 - right
                ]
        raw = MODELS[name](view)
        if name in ("binary", "multilabel"):
            total = total + raw.double().sigmoid() / 9
        elif name == "embedding":
            total = total + raw / 9
        else:
            maps = nn.functional.interpolate(raw, (size, size), mode="bilinear", align_corners=False)
            maps = maps.softmax(dim=1) if name == "segmentation" else maps
            there = torch.ones_like(maps[:, :1])
            if border == "zero":
                there = torch.zeros_like(there)
                there[:, :, max(down, 0) : size + min(down, 0), max(right, 0) : size + min(right, 0)] = 1
            total = total + (maps * there).roll((-down, -right), (2, 3))
            count = count + there.roll((-down, -right), (2, 3))
    return total / count if task.moves else total


@pytest.mark.parametrize("border", ["zero", "circular"])
@pytest.mark.parametrize("name", ["segmentation", "depth", "flow", "embedding", "binary", "multilabel"])
def test_average_is_the_mean_of_answers_that_are_moved_back(name: str, border: Any) -> None:
    images, task = content(2), find_task(name)
    found = Average(MODELS[name], border=border, task=task)(images)
    expected = averaged(name, images, border)
    if name == "segmentation":
        found = found.exp()
    if name in ("binary", "multilabel"):
        found = found.sigmoid().reshape(expected.shape)
    torch.testing.assert_close(found.to(expected), expected, atol=1e-6, rtol=1e-6)
    task.read(Average(MODELS[name], border=border, task=task)(images), 2, (40, 40))


def test_average_of_certain_logits_stays_finite() -> None:
    sure = Average(lambda images: torch.full((len(images), 1), 80.0), task=find_task("binary"))
    assert float(sure(content(1))) == pytest.approx(80.0)


class Counts(Task):
    """A task that does not say how its answers move."""

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Any]:
        return output.sum(dim=(1, 2, 3)).tolist()

    def compare(self, before: Any, after: Any, view: Any, truth: Any) -> dict[str, float]:
        return {"same_answer": float(before == after)}


@pytest.mark.parametrize(
    ("kind", "name", "problem"),
    [
        ("average", "boxes", "boxes at several shifts have no mean"),
        ("average", "answers", "answers of task 'answers' have no mean"),
        ("gap", "segmentation", "`gap` averages over positions"),
        ("canonical", "counts", "does not say how its answers move"),
        ("average", "counts", "answers of task 'counts' have no mean"),
    ],
)
def test_fix_that_makes_no_sense_for_a_task_is_refused(kind: Any, name: str, problem: str) -> None:
    task = Counts("counts", ("same_answer",)) if name == "counts" else find_task(name)
    model = Calls(MODELS.get(name, lambda images: images))
    images = scenes(2)[0] if name == "boxes" else content(2)
    with pytest.raises(InputError, match=problem):
        fix(model, images, kinds=[kind], task=task, max_shift=2, mode="zero")


def test_fix_compares_a_detector_with_its_truth_in_pairs() -> None:
    images, truth = scenes(4)
    found = fix(Calls(snapping(8)), images, kinds=["canonical"], truth=truth, max_shift=1, mode="zero").before_and_after
    rows = {(row["shifts"], row["measure"]): row for row in found.rows}
    lead = rows["zero", "box_survival"]
    assert lead["after"].value == 1.0
    assert lead["difference"].value == pytest.approx(1.0 - lead["before"].value)
    assert rows["zero", "box_jitter"]["effect"] == "better"
    for shifts in ("none", "zero"):
        ap = rows[shifts, "ap"]
        assert ap["difference"].value == pytest.approx(ap["after"].value - ap["before"].value)
    assert rows["zero", "ap_range"]["after"].value == 0.0
    words = task_verdict(found, find_task("boxes"))
    assert words.startswith("The detector finds ")
    assert "with the fix, without training, 100 %" in words
    assert "Without a shift: average precision" in words


def test_fix_of_a_perfect_detector_gains_nothing_and_four_images_say_little_of_others() -> None:
    images, truth = scenes(4)
    found = fix(Calls(rectangles), images, kinds=["canonical"], truth=truth, max_shift=1, mode="zero").before_and_after
    assert {row["difference"].value for row in found.rows} == {0.0}
    assert {row["measure"]: row["effect"] for row in found.rows if row["shifts"] == "zero"}["box_survival"] == "uncertain"
    assert {row["effect"] for row in found.rows} <= {"none", "uncertain", ""}


def test_before_equals_the_audit() -> None:
    images = content(2)
    survey = audit(coarse, images, protocols=["every-shift"], max_shift=2, mode="zero").maps()["zero 2/depth_error"]
    found = fix(Calls(coarse), images, kinds=["canonical"], max_shift=2, mode="zero").before_and_after
    before = next(row["before"] for row in found.rows if row["measure"] == "depth_error")
    assert before.value == pytest.approx(float(survey.sum() / 24), abs=1e-6)
    assert before.value > 0.01


class Segmenter(nn.Module):
    """A small network whose output is one of several, as torchvision's are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.head(self.body(images))
        return {"out": nn.functional.interpolate(maps, images.shape[2:], mode="bilinear"), "aux": maps}


@pytest.mark.parametrize("kind", ["blur", "aps", "circular", "canonical", "average"])
def test_every_fix_is_measured_on_maps(kind: Any) -> None:
    images = content(2)[:, :, 8:32, 8:32]
    truth = (images[:, 0] > 0.5).long()
    found = fix(Segmenter().eval(), images, kinds=[kind], task="segmentation", truth=truth, max_shift=1)
    rows = [row for row in found.before_and_after.rows if row["measure"] in ("mASSC", "truth_iou")]
    assert [(row["shifts"], row["measure"]) for row in rows] == [
        ("none", "truth_iou"),
        ("zero", "mASSC"),
        ("zero", "truth_iou"),
        ("circular", "mASSC"),
        ("circular", "truth_iou"),
    ]
    assert found.model.training is False


def test_output_of_several_is_chosen_and_stays_chosen() -> None:
    images = content(2)
    found = fix(Segmenter().eval(), images, kinds=["canonical"], task="segmentation", output="aux", max_shift=1, mode="zero")
    assert list(found.model(images)) == ["aux"]
    agreement = next(row["after"] for row in found.before_and_after.rows if row["measure"] == "mASSC")
    assert agreement.value == 1.0
