"""Keypoints are moved back and compared: exact models have no error, a snapping one its period, and numbers are those by hand."""

from __future__ import annotations

from math import exp, nan
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors import rectangles, scenes
from shiftscope import InputError, audit
from shiftscope.audits.periods import periods
from shiftscope.tasks import View, find_task
from shiftscope.tasks.keypoints import COCO_SIGMAS, Keypoints, Poses, similarities

VIEW = View((0, 0), (100, 100), circular=False)
POINTS = 5


def corners(images: Tensor, step: int = 0) -> list[dict[str, Tensor]]:
    """Return the corners and the centre of each bright rectangle, on a grid of so many pixels if it is not 0."""
    found: list[dict[str, Tensor]] = rectangles(images)
    for each in found:
        x1, y1, x2, y2 = each["boxes"].T
        points = [(x1, y1), (x2, y1), (x1, y2), (x2, y2), ((x1 + x2) / 2, (y1 + y2) / 2)]
        places = torch.stack([torch.stack(point, dim=1) for point in points], dim=1)
        places = (places / step).floor() * step if step else places
        each["keypoints"] = torch.cat([places, torch.ones(*places.shape[:2], 1)], dim=2)
        each["keypoints_scores"] = torch.ones(places.shape[:2])
    return found


def test_exact_model_of_several_instances_has_no_error() -> None:
    images, _ = scenes(3)
    found = audit(corners, images, protocols=["mouton2020", "chaman2021-circular", "every-shift", "azulay2018"], max_shift=2)
    assert found.task == "keypoints"
    values = {(row.protocol, row.measure): row.estimate.value for row in found.rows}
    best = {"keypoints_kept": 1, "keypoint_distance": 0, "visibility_flips": 0, "pose_survival": 1, "flicker": 0}
    assert {key: value for key, value in values.items() if value != pytest.approx(best[key[1]], abs=1e-5)} == {}
    assert {measure for _, measure in values} == set(best)  # without OKS: these are not COCO's 17 points
    given = audit(corners, images, protocols=["mouton2020"], max_shift=2, task="keypoints:sigma=0.05")
    assert given.estimate("keypoint_oks", "mouton2020").value == pytest.approx(1)


def test_snapping_to_a_grid_of_eight_is_caught_with_period_eight() -> None:
    images, _ = scenes(1)
    found = audit(lambda batch: corners(batch, 8), images, protocols=["every-shift"], max_shift=8)
    named = periods(found.surveys["zero 8"])["keypoint_distance"]
    assert (named.pixels, named.lattice) == (8, 0)
    assert named.off_lattice is not None and named.off_lattice > 1


@pytest.mark.parametrize("form", [2, 3])
def test_tensor_of_one_instance_is_read_as_such(form: int) -> None:
    images, _ = scenes(2)

    def model(batch: Tensor) -> Tensor:
        return torch.stack([each["keypoints"].flatten(0, 1)[:POINTS, :form] for each in corners(batch)])

    found = audit(model, images, task="keypoints", protocols=["chaman2021-circular"], max_shift=2)
    values = {row.measure: row.estimate.value for row in found.rows}
    assert values["keypoint_distance"] == pytest.approx(0, abs=1e-5)
    assert ("visibility_flips" in values) == (form == 3)


def poses(points: list[list[float]], confidence: float = nan, box: list[float] | None = None) -> Poses:
    places = np.array([points], dtype=float)
    return Poses(places, np.full(places.shape[:2], confidence), np.ones(1), None if box is None else np.array([box], dtype=float))


def test_measures_are_those_by_hand() -> None:
    """Points 3 and 5 pixels away, in a box of 40x20 pixels; the first becomes invisible."""
    before = poses([[20, 20], [30, 20]], 1.0, [10, 10, 50, 30])
    after = poses([[23, 22], [33, 26]], 1.0, [10, 12, 50, 32])
    after.confidence[0, 0] = 0.1
    found = Keypoints(sigma=0.1).compare(before, after, View((2, 0), (100, 100), circular=False), None)
    assert found == {
        "pose_survival": 1,
        "keypoints_kept": 0.5,  # a tenth of 40 pixels is 4
        "keypoint_distance": pytest.approx(4),
        "keypoint_oks": pytest.approx((exp(-9 / (2 * 800 * 0.04)) + exp(-25 / (2 * 800 * 0.04))) / 2),
        "visibility_flips": 0.5,
    }


def test_similarity_is_coco_s() -> None:
    """As pycocotools computes it: e = d^2 / (2 sigma)^2 / (area + eps) / 2, mean of exp(-e)."""
    generator = np.random.default_rng(0)
    apart, own = generator.random((3, 17)) * 20, generator.random(3) * 5000 + 100
    expected = np.exp(-(apart**2) / (np.array(COCO_SIGMAS) * 2) ** 2 / (own[:, None] + np.spacing(1)) / 2)
    assert similarities(apart, own) == pytest.approx(expected)


def test_points_beyond_what_both_views_show_are_left_out() -> None:
    """Moved 10 down, the point at 95 leaves the frame, whatever the model says of it."""
    before, after = poses([[20, 20], [20, 95]]), poses([[20, 30], [70, 99]])
    found = Keypoints().compare(before, after, View((10, 0), (100, 100), circular=False), None)
    assert found["keypoint_distance"] == 0
    wrapped = Keypoints().compare(poses([[20, 95]]), poses([[20, 5]]), View((10, 0), (100, 100), circular=True), None)
    assert wrapped["keypoint_distance"] == 0


@pytest.mark.parametrize("after", [[200.0, 200.0, 240.0, 220.0], None])
def test_instance_that_is_not_found_again_does_not_survive(after: list[float] | None) -> None:
    before = poses([[20, 20]], 1.0, [10, 10, 50, 30])
    other = before.at(np.zeros(1, dtype=bool)) if after is None else poses([[220, 210]], 1.0, after)
    found = Keypoints().compare(before, other, View((0, 0), (300, 300), circular=False), None)
    assert found["pose_survival"] == 0
    assert np.isnan(found["keypoints_kept"])
    nothing = Keypoints().compare(before.at(np.zeros(1, dtype=bool)), before, VIEW, None)
    assert all(np.isnan(each) for each in nothing.values())


def test_results_of_ultralytics_are_recognised() -> None:
    inner = SimpleNamespace(xy=torch.rand(1, 4, 2) * 9, conf=torch.rand(1, 4))
    boxes = SimpleNamespace(xyxy=torch.tensor([[0.0, 0.0, 9.0, 9.0]]), conf=torch.ones(1), cls=torch.zeros(1))
    results = [SimpleNamespace(keypoints=inner, boxes=boxes)]
    assert Keypoints().shows(results, 1, (9, 9))
    assert Keypoints().read(results, 1, (9, 9))[0].confidence.shape == (1, 4)
    assert not Keypoints().shows([SimpleNamespace(keypoints=None, boxes=boxes)], 1, (9, 9))


@pytest.mark.parametrize(
    ("task", "output", "message"),
    [
        ("keypoints", torch.zeros(1, 5), "needs keypoints for each image, 1 of them, got shape"),
        ("keypoints", torch.zeros(1, 5, 4), "2 or 3"),
        ("keypoints", [{"boxes": torch.zeros(1, 4)}], "without keypoints"),
        ("keypoints", [{"keypoints": torch.zeros(2, 5, 3), "scores": torch.ones(1)}], "must have one entry per instance"),
        ("keypoints", torch.full((1, 5, 2), nan), "NaN or infinity"),
        ("keypoints:near=0", torch.zeros(1, 5, 2), "`near` of task 'keypoints' must be above 0"),
    ],
)
def test_what_is_no_keypoints_is_refused(task: str, output: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_task(task).read(output, 1, (20, 20))


def test_points_are_drawn_where_they_are() -> None:
    picture = torch.zeros(3, 40, 40)
    drawn = Keypoints().draw(picture, poses([[10, 20]]), View((0, 0), (40, 40), circular=False))
    assert drawn[:, 19:22, 9:12].sum() > 0
    assert drawn[:, 30:].sum() == 0
