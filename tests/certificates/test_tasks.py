"""Radii of tasks equal those of brute force by each task's own rule, cost less, and say what they hold for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors import rectangles, scenes, snapping
from shiftscope import InputError, certify
from shiftscope.tasks import TASKS, Task

SIZE = 16
#: Keeps(before, after, (dy, dx), largest shift, circular): the rule of a task, written again.
Keeps = Callable[[Any, Any, tuple[int, int], int, bool], bool]


def shifted(image: Tensor, step: tuple[int, int], reach: int, mode: str) -> Tensor:
    """Return an image moved, [1, channel, height, width], without the project's code."""
    down, right = step
    if mode == "circular":
        return image.roll((down, right), (2, 3))
    side = reach if mode == "crop" else 0
    padded = image if mode == "crop" else functional.pad(image, (reach,) * 4)
    top, left = reach - down, reach - right
    return (
        padded[:, :, top : padded.shape[2] - reach - down, left : padded.shape[3] - reach - right]
        if side == 0
        else (padded[:, :, top : top + padded.shape[2] - 2 * reach, left : left + padded.shape[3] - 2 * reach])
    )


def brute_force(model: Callable[[Tensor], Any], images: Tensor, reach: int, mode: str, keeps: Keeps) -> list[int]:
    """Return the largest radius at which every shift keeps each image's answer; -1 where that by zero does not."""
    radii = []
    for image in images.split(1):
        answer = {step: model(shifted(image, step, reach, mode)) for step in product(range(-reach, reach + 1), repeat=2)}
        kept = {step: keeps(answer[0, 0], answer[step], step, reach, mode == "circular") for step in answer}
        rings = [all(held for step, held in kept.items() if max(map(abs, step)) <= r) for r in range(reach + 1)]
        radii.append(sum(rings) - 1)
    return radii


def seen(maps: Tensor, step: tuple[int, int], *, moved: bool, circular: bool) -> Tensor:
    """Return the part of a map [..., height, width] that both views see; of the moved one moved back."""
    if circular:
        return maps.roll((-step[0], -step[1]), (-2, -1)) if moved else maps
    for axis, by in ((-2, step[0]), (-1, step[1])):
        size = maps.shape[axis]
        low, high = (max(0, by), min(size, size + by)) if moved else (max(0, -by), min(size, size - by))
        maps = maps.narrow(axis, low, high - low)
    return maps


def overlap(one: list[float], other: list[float]) -> float:
    wide, tall = (max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return wide * tall / (sum(area) - wide * tall)


def survives(before: Any, after: Any, step: tuple[int, int], reach: int, circular: bool) -> bool:
    """Return whether each strong detection that lies whole at every shift finds a partner of its own."""
    down, right = step
    inner = [
        (box, label)
        for box, score, label in zip(*(before[0][name].tolist() for name in ("boxes", "scores", "labels")), strict=True)
        if score >= 0.5 and min(box[:2]) >= reach + 1 and max(box[2:]) <= SIDE - reach - 1
    ]
    found = [
        ([box[0] - right, box[1] - down, box[2] - right, box[3] - down], label)
        for box, score, label in zip(*(after[0][name].tolist() for name in ("boxes", "scores", "labels")), strict=True)
        if score >= 0.5
    ]
    return any(
        all(one[1] == other[1] and overlap(one[0], other[0]) >= 0.5 for one, other in zip(inner, chosen, strict=True))
        for chosen in permutations(found, len(inner))
    )


def smooth(seed: int, count: int = 5) -> Tensor:
    """Return images without sharp edges, whose answers change after some pixels."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, (SIZE + 4, SIZE + 4), mode="bilinear", align_corners=True)


def pooled(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    features = nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*features, nn.LazyLinear(classes)).eval()


def mapped(channels: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, channels, 3, padding=1)
    ).eval()


def in_words(model: nn.Module) -> Callable[[Tensor], list[str]]:
    """Return a model that answers with a text."""
    return lambda images: [f"about {each:.1f}" for each in model(images)[:, 0].tolist()]


def side(before: Tensor, after: Tensor) -> bool:
    return bool(((before > 0) == (after > 0)).all())


def agrees(before: Tensor, after: Tensor, step: tuple[int, int], circular: bool, least: float) -> bool:
    one = seen(before.argmax(1), step, moved=False, circular=circular)
    other = seen(after.argmax(1), step, moved=True, circular=circular)
    return float((one == other).double().mean()) >= least


def depth_kept(before: Tensor, after: Tensor, step: tuple[int, int], circular: bool, most: float) -> bool:
    one, other = seen(before, step, moved=False, circular=circular), seen(after, step, moved=True, circular=circular)
    return float((one - other).abs().mean() / one.abs().mean()) <= most


#: Task, model of a seed, and its rule.
CASES: dict[str, tuple[str, Callable[[int], Callable[[Tensor], Any]], Keeps]] = {
    "binary": ("binary", lambda seed: pooled(1, seed), lambda before, after, *_: side(before, after)),
    "multilabel": ("multilabel", lambda seed: pooled(2, seed), lambda before, after, *_: side(before, after)),
    "embedding": (
        "embedding:kept=0.97",
        lambda seed: pooled(8, seed),
        lambda before, after, *_: float(functional.cosine_similarity(before.double(), after.double())) >= 0.97,
    ),
    "segmentation": (
        "segmentation:kept=0.9",
        lambda seed: mapped(3, seed),
        lambda before, after, step, reach, circular: agrees(before, after, step, circular, 0.9),
    ),
    "depth": (
        "depth:kept=0.25",
        lambda seed: mapped(1, seed),
        lambda before, after, step, reach, circular: depth_kept(before, after, step, circular, 0.25),
    ),
    "answers": (
        "answers",
        lambda seed: in_words(pooled(1, seed)),
        lambda before, after, *_: before == after,
    ),
}


@pytest.mark.parametrize("mode", ["zero", "circular", "crop"])
@pytest.mark.parametrize("name", CASES)
def test_radii_equal_brute_force(name: str, mode: str) -> None:
    task, model_of, keeps = CASES[name]
    found, expected = [], []
    for seed in range(2):
        images = smooth(seed)
        images = images if mode == "crop" else images[:, :, 2:-2, 2:-2]
        model = model_of(seed)
        with torch.inference_mode():
            model(images[:1, :, :SIZE, :SIZE])  # gives a lazy layer its size
            expected += brute_force(model, images, 2, mode, keeps)
        options = {"size": SIZE} if mode == "crop" else {}
        found += certify(model, images, radius=2, mode=mode, task=task, **options).radii.tolist()
    assert found == expected
    assert len(set(expected)) > 1  # images differ in how far they go


SIDE = 64


def fading(step: int) -> Callable[[Tensor], Any]:
    """Return a detector whose confidence falls by a third off a lattice, so that weak detections die there."""
    inner = snapping(step)

    def detect(images: Tensor) -> Any:
        return [{**each, "scores": 1.4 * (each["scores"] - 0.25)} for each in inner(images)]

    return detect


@pytest.mark.parametrize("mode", ["zero", "circular"])
@pytest.mark.parametrize("detector", ["rectangles", "snapping", "fading"])
def test_radii_of_detections_equal_brute_force(detector: str, mode: str) -> None:
    model = {"rectangles": rectangles, "snapping": snapping(8), "fading": fading(4)}[detector]
    images, _ = scenes(4, seed=1)
    found = certify(model, images, radius=3, mode=mode, task="boxes")
    assert found.radii.tolist() == brute_force(model, images, 3, mode, survives)
    if detector == "rectangles":
        assert found.radii.tolist() == [3] * 4


def corner(images: Tensor) -> Any:
    """Detect nothing but a bright corner."""
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    there = images[:, 0, 0, 0] > 0.5
    return [
        {"boxes": box[: int(each)], "scores": torch.ones(int(each)), "labels": torch.ones(int(each)).long()} for each in there
    ]


def test_objects_that_a_shift_cuts_are_left_out() -> None:
    images = torch.zeros(3, 1, 32, 32)
    images[0, 0, 0, 0] = 1  # found at the border, so that shifts cut it
    images[1:, 0, 10:20, 10:20] = 0.9
    whole = certify(rectangles, images, radius=4)
    assert whole.radii.tolist() == [-2, 4, 4]
    assert (whole.unchanged(4).value, whole.unchanged(4).count) == (1, 2)
    assert any(note == "1 image has nothing to keep, and shares leave that out." for note in whole.summary().notes)
    assert certify(corner, images[:1], radius=2).radii.tolist() == [-2]
    assert certify(corner, images[:1], radius=2).words().startswith("No image has an answer to keep")


def test_doubts_of_a_task_are_said_before_the_radii() -> None:
    """Outputs that look like probabilities but are read as logits, and equal answers."""
    images = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))

    def sure(batch: Tensor) -> Tensor:
        return batch.mean((1, 2, 3)).sub(0.5).mul(20).sigmoid()

    found = certify(sure, images.split(3), radius=1, task="binary")
    assert found.words().startswith("All outputs lie between 0 and 1, and are read as logits")
    assert "All 5 images that were compared with the next one get the same answer as it" in found.words()
    together = certify(sure, images, radius=1, task="binary")
    assert "All 8 images get the same answer, so their stability says nothing" in together.words()
    right = certify(sure, images, radius=1, task="binary:given=probabilities")
    assert not right.warnings


def test_values_on_their_limit_are_no_answer() -> None:
    def half(images: Tensor) -> Tensor:
        return torch.zeros(len(images))

    found = certify(half, torch.rand(2, 1, 8, 8), radius=1)
    assert found.radii.tolist() == [-1, -1]
    assert any("lies on its limit" in note for note in found.summary().notes)


def test_rule_is_in_sentence_table_and_json() -> None:
    images, _ = scenes(2)
    found = certify(rectangles, images, radius=2)
    rule = TASKS["boxes"].rule(2)
    assert "no shift of up to 2 pixels cuts" in rule
    assert rule in found.words()
    assert found.to_json()["rule"] == rule
    assert any(rule in note for note in found.table().notes)
    assert found.provenance["task"] == "boxes"
    assert rule in found.table().to_markdown()
    assert found.image_table().columns == ("image", "radius")


def test_detections_that_fail_early_cost_little() -> None:
    calls = []

    def detect(images: Tensor) -> Any:
        calls.append(len(images))
        return snapping(8)(images)

    images, _ = scenes(8)
    strict = replace(TASKS["boxes"], overlap=0.95)
    found = certify(detect, images, radius=8, task=strict)
    assert int(found.radii.max()) < 4
    assert sum(calls) <= found.part.views + 5  # one to see what it returns, four to see that batches do not matter
    assert found.part.views < 0.2 * len(images) * 17**2


class Unruled(Task):
    """A task of a user that does not define when an answer is kept."""

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Any]:
        return list(output)

    def compare(self, before: Any, after: Any, view: Any, truth: Any) -> dict[str, float]:
        return {"mcs": 1.0 - float((before - after).abs().mean())}


def test_task_of_a_user_is_certified_by_its_leading_measure() -> None:
    def bright(images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))

    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 2, 2] = 1  # leaves the image at a shift of three
    with pytest.raises(InputError, match="does not define when an answer is kept"):
        certify(bright, image, radius=3, task=Unruled("mean", ("mcs",)))
    found = certify(bright, image, radius=3, task=Unruled("mean", ("mcs",), kept=0.999))
    assert found.radii.tolist() == [2]
    assert found.rule == "mean cosine similarity at least 0.999, the answer moved back"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"parts": 2}, "`parts` must be 1 for task 'boxes'"),
        ({"task": "boxs"}, "there is no task 'boxs'"),
        ({"task": "segmentation"}, "the model returns no tensor"),
    ],
)
def test_impossible_certificate_of_a_task_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        certify(rectangles, scenes(1)[0], radius=2, **options)
