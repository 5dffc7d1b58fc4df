"""Answers to placed images are moved back to where the images are, by a slow reference pixel by pixel and box by box."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shiftscope.tasks import Placing, find_task
from shiftscope.tasks.detections import read_detections

SIZE = (6, 8)


def placing(corner: tuple[int, int], *, seen: tuple[int, int] = SIZE, circular: bool = False) -> Placing:
    return Placing(torch.tensor([corner]), seen, SIZE, circular)


def slowly(maps: Tensor, corner: tuple[int, int], seen: tuple[int, int], *, circular: bool) -> Tensor:
    """Return a map moved back, pixel by pixel."""
    small = functional.interpolate(maps[None], seen, mode="bilinear", align_corners=False)[0] if seen != SIZE else maps
    found = torch.empty(len(maps), *SIZE)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            y, x = row - corner[0], column - corner[1]
            y, x = (y % SIZE[0], x % SIZE[1]) if circular else (min(max(y, 0), seen[0] - 1), min(max(x, 0), seen[1] - 1))
            found[:, row, column] = small[:, y, x]
    return found


@pytest.mark.parametrize(
    ("corner", "seen", "circular"),
    [((0, 0), SIZE, False), ((2, -3), SIZE, False), ((-7, 9), SIZE, False), ((2, -3), SIZE, True), ((1, 2), (4, 6), False)],
)
def test_map_is_moved_back_as_pixel_by_pixel(corner: tuple[int, int], seen: tuple[int, int], circular: bool) -> None:
    maps = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0))
    found = placing(corner, seen=seen, circular=circular).maps_back(maps[None])[0]
    assert torch.equal(found, slowly(maps, corner, seen, circular=circular))


def test_inside_is_what_the_model_saw() -> None:
    seen = placing((2, -3)).inside()[0, 0]
    assert seen[2:, :5].all()
    assert int(seen.sum()) == 4 * 5
    assert placing((2, -3), circular=True).inside().all()


BOXES = torch.tensor([[1.25, 0.5, 3.0, 2.0], [4.0, 1.0, 7.5, 5.0]])
SCORES, LABELS = torch.tensor([0.75, 0.5]), torch.tensor([3, 1])


def forms() -> dict[str, Any]:
    """Return the same detections in every form that the task reads."""
    scale = torch.tensor([8.0, 6.0, 8.0, 6.0])
    centred = torch.cat([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], dim=1) / scale
    logits = torch.full((2, 5), -20.0)
    logits[[0, 1], LABELS] = 0.0
    logits[:, 4] = (1 / SCORES - 1).log()
    return {
        "torchvision": [{"boxes": BOXES, "scores": SCORES, "labels": LABELS, "masks": torch.ones(2, 1, *SIZE)}],
        "hugging face": SimpleNamespace(logits=logits[None], pred_boxes=centred[None]),
        "ultralytics": [SimpleNamespace(boxes=SimpleNamespace(xyxy=BOXES, conf=SCORES, cls=LABELS.float()))],
        "triple": (BOXES[None], SCORES[None], LABELS[None]),
        "tensor": torch.cat([BOXES, SCORES[:, None], LABELS[:, None]], dim=1)[None],
        "nothing": [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}],
    }


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize(("corner", "circular"), [((2, -3), False), ((2, -3), True), ((0, 0), False)])
def test_boxes_of_every_form_are_moved_back(form: str, corner: tuple[int, int], circular: bool) -> None:
    task = find_task("boxes:no_object=last")
    before = read_detections(forms()[form], 1, SIZE, no_object="last")[0]
    after = task.read(task.place_back(forms()[form], placing(corner, circular=circular)), 1, SIZE)[0]
    wrapped = np.array([[8.0, 0, 8, 0], [0, 0, 0, 0]]) if circular else np.zeros((2, 4))
    expected = before.boxes + np.array([corner[1], corner[0]] * 2) + wrapped[: len(before)]
    np.testing.assert_allclose(after.boxes, expected, atol=1e-6)
    np.testing.assert_allclose(after.scores, before.scores, atol=1e-6)
    assert (after.labels == before.labels).all()


def test_boxes_of_a_crop_are_made_smaller() -> None:
    place = placing((1, 2), seen=(3, 4))
    assert place.boxes_back(torch.tensor([[0.0, 0, 8, 6]]), 0).tolist() == [[2.0, 1, 6, 4]]
