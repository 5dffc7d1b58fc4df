"""Average precision equals that of pycocotools, at every shift and however images are split."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from shiftscope.tasks.detections import Detections
from shiftscope.tasks.objects import SIZES, Objects, ObjectStack
from shiftscope.tasks.packed import pack_rows, unpacked
from shiftscope.tasks.precision import Judged, average_precision, judge, judge_together
from shiftscope.tasks.records import to_rows, totals_of

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


def drawn_rows(
    generator: np.random.Generator, images: range, shifts: list[tuple[float, float]], detections: int, *, short: bool
) -> np.ndarray:
    """Return judged rows of some images, each after its image's index and its shift, confidences in single precision or not."""
    found = []
    for image in images:
        objects = drawn_objects(generator, int(generator.integers(0, 5)))
        for shift in shifts:
            boxes = drawn_detections(generator, objects, int(generator.integers(0, detections + 1)))
            scores = generator.random(len(boxes)).astype(np.float32 if short else np.float64).astype(float)
            verdicts = judge_together([Detections(boxes.boxes, scores, boxes.labels)], ObjectStack.of([objects]))
            rows = to_rows(verdicts)[0]
            found.append(np.concatenate([np.tile([[image, *shift]], (len(rows), 1)), rows], axis=1))
    return np.concatenate(found)


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("detections", [0, 9])
def test_packed_rows_are_the_rows(short: bool, detections: int) -> None:
    """Of two blocks one after the other; a shift by parts of a pixel is kept too."""
    generator = np.random.default_rng(detections)
    shifts = [(0.0, 0.0), (-3.0, 2.0), (0.25, -0.5)]
    blocks = [drawn_rows(generator, images, shifts, detections, short=short) for images in (range(4), range(4, 7))]
    views = unpacked(np.concatenate([pack_rows(each) for each in blocks]))
    rows = np.concatenate(blocks)
    detected, there, ends = (rows[rows[:, 3] == kind] for kind in (0.0, 1.0, 2.0))
    assert np.array_equal(np.column_stack([views.images, views.shifts]), ends[:, :3])
    for counts, numbers, known in ((views.detections, views.found, detected), (views.objects, views.there, there)):
        assert np.array_equal(np.repeat(views.images, counts), known[:, 0])
        assert np.array_equal(np.column_stack([views.labels[numbers], views.bits[numbers]]), known[:, [4, 6, 7]])
    assert np.array_equal(views.scores.astype(float), detected[:, 5])


def test_packed_detection_takes_a_few_bytes() -> None:
    rows = drawn_rows(np.random.default_rng(0), range(20), [(0.0, 0.0)], 200, short=True)
    assert len(pack_rows(rows)) < 8 * (rows[:, 3] == 0).sum()


def test_map_of_average_precision_has_each_shift_s_own() -> None:
    shifts = [(float(down), float(right)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    rows = drawn_rows(np.random.default_rng(5), range(12), shifts, 9, short=True)
    totals = totals_of(pack_rows(rows))
    assert totals.shifts is not None and [tuple(each) for each in totals.shifts.tolist()] == shifts
    for place, shift in enumerate(shifts):
        alone = totals_of(pack_rows(rows[(rows[:, 1:3] == shift).all(axis=1)]))
        for measure in ("ap", "ap50"):
            estimate, ends = alone.estimates[measure], totals.intervals[measure][place].tolist()
            assert float(totals.maps[measure][place]) == pytest.approx(estimate.value, abs=1e-12)
            assert ends == pytest.approx([estimate.low, estimate.high], abs=1e-12)
    assert float(totals.maps["ap"].mean()) == pytest.approx(totals.estimates["ap"].value)
    assert float(totals.maps["ap"].min()) == totals.estimates["ap_worst"].value
