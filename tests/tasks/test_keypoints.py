"""Keypoints are moved back and compared: exact models have no error, a snapping one its period, and numbers are those by hand."""

from __future__ import annotations

import json
from math import exp, nan
from pathlib import Path
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
from shiftscope.tasks.keypoint_truth import coco_keypoints
from shiftscope.tasks.keypoints import COCO_SIGMAS, Keypoints, Poses, similarities
from shiftscope.tasks.truth_files import Placement
from shiftscope.videos import frames_flicker

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
    best = {"keypoints_kept": 1, "keypoint_distance": 0, "pose_survival": 1, "flicker": 0}
    assert {key: value for key, value in values.items() if value != pytest.approx(best[key[1]], abs=1e-5)} == {}
    # Without OKS: these are not COCO's 17 points. Without visibility: torchvision's third number says nothing about it.
    assert {measure for _, measure in values} == set(best)
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
    """Points 3 and 5 pixels away, in a box of 40x20 pixels; a third becomes invisible, and a fourth was never visible."""
    before = poses([[20, 20], [30, 20], [40, 20], [0, 0]], 1.0, [10, 10, 50, 30])
    after = poses([[23, 22], [33, 26], [0, 0], [0, 0]], 1.0, [10, 12, 50, 32])
    before.confidence[0, 3] = after.confidence[0, 2] = after.confidence[0, 3] = 0.1
    found = Keypoints(sigma=0.1).compare(before, after, View((2, 0), (100, 100), circular=False), None)
    assert found == {
        "pose_survival": 1,
        "keypoints_kept": pytest.approx(1 / 3),  # a tenth of 40 pixels is 4; of the three that were visible
        "keypoint_distance": pytest.approx(4),
        "keypoint_oks": pytest.approx((exp(-9 / (2 * 800 * 0.04)) + exp(-25 / (2 * 800 * 0.04))) / 2),
        "visibility_flips": 0.25,
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
    assert found["keypoints_kept"] == 0  # its points are gone with it
    assert np.isnan(found["keypoint_distance"])
    nothing = Keypoints().compare(before.at(np.zeros(1, dtype=bool)), before, VIEW, None)
    assert all(np.isnan(each) for each in nothing.values())


@pytest.mark.parametrize("boxed", [True, False])
def test_several_instances_are_paired_whatever_their_order(boxed: bool) -> None:
    points = np.array([[[10, 10], [30, 30]], [[60, 60], [90, 90]]], dtype=float)
    boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1) if boxed else None
    before = Poses(points, np.full((2, 2), nan), np.array([0.9, 0.8]), boxes)
    turned = before.at(np.array([1, 0]))
    expected = {"pose_survival": 1, "keypoints_kept": 1, "keypoint_distance": 0}
    found = Keypoints().compare(before, turned, VIEW, None)
    assert {name: found[name] for name in expected} == expected
    lost = Keypoints().compare(before, before.at(np.array([False, True])), VIEW, None)
    assert (lost["pose_survival"], lost["keypoints_kept"], lost["keypoint_distance"]) == (0.5, 0.5, 0)


def test_several_single_points_without_boxes_are_refused() -> None:
    two = Poses(np.array([[[10.0, 10]], [[60, 60]]]), np.full((2, 1), nan), np.ones(2), None)
    with pytest.raises(InputError, match="several instances of one point have no size to pair them by"):
        Keypoints().compare(two, two, VIEW, None)


@pytest.mark.parametrize("gone", [1, 2])
def test_flicker_counts_instances_that_vanish(gone: int) -> None:
    """Of two instances in a still scene, some are missing in every second frame."""
    frames = torch.tensor([0.0, 1] * 3)[:, None, None, None].expand(6, 1, 40, 40)
    places = torch.tensor([[[5.0, 5], [15, 15]], [[20, 20], [35, 35]]])

    def model(batch: Tensor) -> list[dict[str, Tensor]]:
        kept = [places[: len(places) - gone * int(frame.mean())] for frame in batch]
        boxes = (torch.cat([each.amin(dim=1), each.amax(dim=1)], dim=1) for each in kept)
        return [{"keypoints": each, "boxes": box, "scores": torch.ones(len(each))} for each, box in zip(kept, boxes, strict=True)]

    found = frames_flicker(model, frames, task="keypoints")
    assert found.changes[0].tolist() == pytest.approx([0.5, 0, 0.5, 0, 0.5] if gone == 1 else [1, nan, 1, nan, 1], nan_ok=True)


def test_shares_of_the_image_become_pixels_and_are_suspected() -> None:
    images, _ = scenes(2)

    def model(batch: Tensor, shares: bool = True) -> Tensor:
        places = torch.stack([each["keypoints"].flatten(0, 1)[:POINTS, :2] for each in corners(batch)])
        return places / torch.tensor([batch.shape[3], batch.shape[2]]) if shares else places

    options: Any = {"protocols": ["chaman2021-circular"], "max_shift": 2}
    right, wrong = (audit(model, images, task=task, **options) for task in ("keypoints:given=shares", "keypoints"))
    pixels = audit(lambda batch: model(batch, shares=False), images, task="keypoints", **options)
    assert right.estimate("keypoint_distance").value == pytest.approx(0, abs=1e-5)
    assert wrong.estimate("keypoint_distance").value > 0.5
    assert any("keypoints:given=shares" in each for each in wrong.warnings)
    assert not any("given=shares" in each for found in (right, pixels) for each in found.warnings)


def test_truth_that_the_model_repeats_is_found_at_every_shift() -> None:
    images, _ = scenes(3)
    truth = [{name: each[name] for name in ("keypoints", "boxes")} for each in corners(images)]
    options: Any = {"protocols": ["every-shift"], "max_shift": 2, "task": "keypoints:sigma=0.05"}
    found = audit(corners, images, truth=truth, **options)
    best = {"truth_keypoints": 1, "truth_keypoint_distance": 0, "truth_keypoint_oks": 1}
    for protocol in ("unshifted", "every-shift"):
        assert {name: found.estimate(name, protocol).value for name in best} == pytest.approx(best, abs=1e-5)
    off = audit(
        corners, images, truth=[{**each, "keypoints": each["keypoints"] + torch.tensor([3.0, 4, 0])} for each in truth], **options
    )
    assert off.estimate("truth_keypoint_distance", "unshifted").value == pytest.approx(5, abs=1e-4)
    assert off.estimate("keypoint_distance", "every-shift").value == pytest.approx(0, abs=1e-5)


def test_truth_measures_are_those_by_hand() -> None:
    """In a box of 40x20 pixels: points 3 and 5 pixels away, and one that is not labelled. A second instance is not found."""
    truth = np.array([[[20, 20, 2], [30, 20, 1], [0, 0, 0]], [[70, 70, 2], [80, 80, 2], [75, 70, 2]]])
    boxes = np.array([[10, 10, 50, 30], [65, 65, 95, 85]])
    answer = poses([[23, 20], [33, 24], [5, 5]], 0.1, [10, 10, 50, 30])
    read = Keypoints().read_truth({"keypoints": truth, "boxes": boxes}, (100, 100))
    found = Keypoints().compare(answer, answer, VIEW, read)
    assert (found["truth_keypoints"], found["truth_keypoint_distance"]) == (pytest.approx(1 / 5), pytest.approx(4))
    alone = Keypoints().read_truth(truth[0], (100, 100))
    assert alone.extents(0.5).tolist() == [[20, 20, 30, 20]]  # around the labelled points
    with pytest.raises(InputError, match="has 3 points an instance, and the model returns 2"):
        Keypoints().compare(poses([[23, 20], [33, 24]]), poses([[23, 20], [33, 24]]), VIEW, alone)
    with pytest.raises(InputError, match=r"must be \[instance, point, 2 or 3\] for each image, got shape \(4,\)"):
        Keypoints().read_truth(torch.zeros(4), (100, 100))


def coco(**changes: Any) -> dict[str, Any]:
    """Return a file of one image of 80x60 pixels with a labelled person, a crowd and a person without labelled points."""
    person = {"id": 1, "image_id": 7, "bbox": [20, 10, 40, 30], "keypoints": [30, 20, 2, 40, 30, 1, 0, 0, 0]}
    crowd, empty = {**person, "id": 2, "iscrowd": 1}, {**person, "id": 3, "keypoints": [0] * 9}
    images = [{"id": 7, "file_name": "a.png", "width": 80, "height": 60}]
    return {"images": images, "annotations": [{**person, **changes}, crowd, empty]}


def test_persons_of_coco_are_placed_as_their_image(tmp_path: Path) -> None:
    """The image is halved to 40x30, and the middle 30x30 are the input: 5 pixels of width lie beyond its left."""
    file = tmp_path / "person_keypoints.json"
    file.write_text(json.dumps(coco()))
    found, other = coco_keypoints(file, ["a.png", "b.png"], Placement((30, 30), (30, 30)))
    assert other is None
    assert found is not None
    assert found["keypoints"].tolist() == [[[10, 10, 2], [15, 15, 1], [-5, 0, 0]]]
    assert found["boxes"].tolist() == [[5, 5, 25, 20]]
    read = Keypoints().read_truth(found, (30, 30))
    assert read.shown(0.5).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": [1, 2]}, "annotation 1 has no keypoints of three numbers each"),
        ({"bbox": None}, "or no bbox of four"),
        ({"image_id": 8}, "annotation 1 is of image 8, which is not listed"),
        ({"bbox": [0, 0, -1, 1]}, "a bbox of less than nothing"),
        ({"keypoints": [1, 2, 2], "iscrowd": 0}, "lists none of the 1 images|different numbers"),
    ],
)
def test_damaged_persons_of_coco_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(coco(**changes)))
    with pytest.raises(InputError, match=message):
        coco_keypoints(file, ["b.png"], Placement((30, 30), (30, 30)))


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
        ("keypoints", torch.zeros(1, 5, 8, 8), "Of heatmaps, return the places of their maxima"),
        ("keypoints:given=metres", torch.zeros(1, 5, 2), "`given` of task 'keypoints' must be 'pixels' or 'shares'"),
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
