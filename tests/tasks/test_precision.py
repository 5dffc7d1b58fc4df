"""Average precision equals that of pycocotools, at every shift and however images are split."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from shiftscope.tasks.detections import Detections
from shiftscope.tasks.objects import SIZES, Objects
from shiftscope.tasks.precision import Judged, average_precision, judge

SIDE, CLASSES = 256, 3


def drawn_objects(generator: np.random.Generator, count: int, *, crowds: float = 0.15) -> Objects:
    """Return objects with corners at whole pixels, some of them crowds, of areas that may be smaller than their boxes."""
    sides = 2 ** generator.integers(3, 8, (count, 2)) - generator.integers(0, 4, (count, 2))
    corners = generator.integers(0, SIDE, (count, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(float)
    areas = sides.prod(axis=1) * generator.choice([1.0, 0.75], count)
    return Objects(boxes, generator.integers(0, CLASSES, count), areas, generator.random(count) < crowds)


def drawn_detections(generator: np.random.Generator, objects: Objects, count: int) -> Detections:
    """Return detections near objects and elsewhere, with ties among their scores and some boxes that repeat."""
    boxes = drawn_objects(generator, count).boxes
    labels = generator.integers(0, CLASSES, count)
    if len(objects):
        near = generator.random(count) < 0.7
        chosen = generator.integers(0, len(objects), count)
        boxes[near] = objects.boxes[chosen[near]]
        labels[near] = np.where(generator.random(near.sum()) < 0.9, objects.labels[chosen[near]], labels[near])
        boxes[:, :2] -= generator.integers(0, 5, (count, 2)) * (near[:, None])
        boxes[:, 2:] += generator.integers(0, 5, (count, 2)) * (near[:, None])
    return Detections(boxes, generator.integers(1, 20, count) / 20.0, labels)


def of_pycocotools(found: list[Detections], objects: list[Objects]) -> np.ndarray:
    """Return AP per size and threshold."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    annotations, results = [], []
    for image, (detections, truth) in enumerate(zip(found, objects, strict=True), start=1):
        for box, label, area, crowd in zip(truth.boxes, truth.labels, truth.areas, truth.ignored, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label) + 1,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                | {"bbox": [*box[:2], *(box[2:] - box[:2])]}
            )
        for box, label, score in zip(detections.boxes, detections.labels, detections.scores, strict=True):
            results.append({"image_id": image, "category_id": int(label) + 1, "score": score})
            results[-1]["bbox"] = [*box[:2], *(box[2:] - box[:2])]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_file = coco.COCO()
        truth_file.dataset = {
            "images": [{"id": image} for image in range(1, len(objects) + 1)],
            "categories": [{"id": label} for label in range(1, CLASSES + 1)],
            "annotations": annotations,
        }
        truth_file.createIndex()
        evaluated = cocoeval.COCOeval(truth_file, truth_file.loadRes(results), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
    precision = evaluated.eval["precision"][..., 2]  # [threshold, recall, class, size], at most 100 detections
    known = np.where(precision > -1, precision, np.nan).mean(axis=1)
    with np.errstate(invalid="ignore"):
        present = ~np.isnan(known)
        return (np.where(present, known, 0).sum(axis=1) / np.where(present.sum(axis=1), present.sum(axis=1), np.nan)).T


def drawn_case(seed: int) -> tuple[list[Detections], list[Objects]]:
    generator = np.random.default_rng(seed)
    images = int(generator.integers(1, 8))
    objects = [drawn_objects(generator, int(generator.integers(0, 7))) for _ in range(images)]
    most = 150 if seed % 10 == 0 else 12
    found = [drawn_detections(generator, each, int(generator.integers(0, most))) for each in objects]
    found[0] = drawn_detections(generator, objects[0], most)  # pycocotools needs a detection
    return found, objects


def judged(found: list[Detections], objects: list[Objects]) -> Judged:
    pairs = zip(found, objects, strict=True)
    return Judged.joined([judge(each, truth, image=image) for image, (each, truth) in enumerate(pairs)])


@pytest.mark.parametrize("seed", range(50))
def test_average_precision_equals_pycocotools(seed: int) -> None:
    found, objects = drawn_case(seed)
    expected = of_pycocotools(found, objects)
    assert average_precision(judged(found, objects), cases=1)[0] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_every_shift_together_equals_each_alone() -> None:
    generator = np.random.default_rng(3)
    objects = [drawn_objects(generator, 4) for _ in range(5)]
    found = [[drawn_detections(generator, each, int(generator.integers(0, 9))) for _ in range(7)] for each in objects]
    together = Judged.joined(
        [
            judge(each, truth, image=image, case=case)
            for image, (shifts, truth) in enumerate(zip(found, objects, strict=True))
            for case, each in enumerate(shifts)
        ]
    )
    each_alone = [average_precision(judged([shifts[case] for shifts in found], objects), cases=1)[0] for case in range(7)]
    assert np.array_equal(average_precision(together, cases=7), np.stack(each_alone), equal_nan=True)


def test_leaving_images_out_equals_never_having_them() -> None:
    found, objects = drawn_case(7)
    some = judged(found, objects).without(np.arange(len(found)) == 0)
    assert np.array_equal(
        average_precision(some, cases=1), average_precision(judged(found[1:], objects[1:]), cases=1), equal_nan=True
    )


def test_perfect_detections_have_precision_one() -> None:
    objects = drawn_objects(np.random.default_rng(0), 6, crowds=0.0)
    found = Detections(objects.boxes, np.full(len(objects), 0.9), objects.labels)
    ap = average_precision(judged([found], [objects]), cases=1)[0]
    assert ap[0].tolist() == [1.0] * 10


@pytest.mark.parametrize("objects", [0, 3])
def test_no_detection_has_precision_zero_where_objects_are(objects: int) -> None:
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int))
    truth = drawn_objects(np.random.default_rng(0), objects, crowds=0.0)
    ap = average_precision(judged([nothing], [truth]), cases=1, sizes=["all"])[0, 0]
    assert np.array_equal(ap, np.full(10, 0.0 if objects else np.nan), equal_nan=True)


def test_sizes_are_coco_s() -> None:
    assert {name: high**0.5 for name, (_, high) in SIZES.items()} == {"all": 1e5, "small": 32, "medium": 96, "large": 1e5}
