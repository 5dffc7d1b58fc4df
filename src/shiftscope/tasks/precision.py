"""Average precision (AP) by COCO's definition, at every shift at once, and added up over shards without loss.

A detection is judged within its image: which object it finds at each threshold of overlap, and whether it counts for each range
of sizes. What is judged is stored, one row a detection, so that rows of any shards together give the same AP as one run. The
definition is that of ``pycocotools``, whose numbers ours equal: IoU 0.5 to 0.95 in steps of 0.05, precision at 101 recalls, at
most 100 detections of a class in an image, objects of other sizes and crowds ignored, a mean over the classes that have objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from shiftscope.tasks.detections import Detections
from shiftscope.tasks.matching import areas, intersections
from shiftscope.tasks.objects import SIZES, Objects

__all__ = ["Judged", "average_precision", "judge"]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
#: The most detections of a class in an image.
MOST = 100
#: What pycocotools adds to a denominator, and what it subtracts from an overlap of 1.
LEAST, JUST_BELOW = float(np.spacing(1)), 1e-10


@dataclass(frozen=True)
class Judged:
    """Detections as they are judged, and the objects there are; rows in the order of the images.

    Attributes:
        case: [detection], at which shift, by its number.
        image: [detection], in which image.
        label: [detection], its class.
        score: [detection], its confidence.
        matched: [detection], in bit 10 s + t whether it finds an object, at the size numbered s and the threshold numbered t.
        ignored: [detection], in the same bits whether it does not count.
        object_case: [object], at which shift.
        object_image: [object], in which image.
        object_label: [object], its class.
        object_counts: [object], in bit s whether it counts at the size numbered s.
    """

    case: Int[np.ndarray, " detection"]
    image: Int[np.ndarray, " detection"]
    label: Int[np.ndarray, " detection"]
    score: Float[np.ndarray, " detection"]
    matched: Int[np.ndarray, " detection"]
    ignored: Int[np.ndarray, " detection"]
    object_case: Int[np.ndarray, " object"]
    object_image: Int[np.ndarray, " object"]
    object_label: Int[np.ndarray, " object"]
    object_counts: Int[np.ndarray, " object"]

    @staticmethod
    def joined(parts: Sequence[Judged]) -> Judged:
        """Return those of successive images as one."""
        return Judged(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Judged)))

    def without(self, images: Bool[np.ndarray, " image"]) -> Judged:
        """Return the rows of all images but some, given by a mask over the numbers of images."""
        rows, objects = ~images[self.image], ~images[self.object_image]
        return Judged(
            *(getattr(self, each.name)[objects if each.name.startswith("object_") else rows] for each in fields(Judged))
        )


def judge(found: Detections, objects: Objects, *, image: int = 0, case: int = 0) -> Judged:
    """Judge what a detector finds in one image at one shift, against the objects there.

    Args:
        found: the detections.
        objects: the objects, where they are at this shift.
        image: its number.
        case: the shift's number.
    """
    found = _ranked(found)
    matched, ignored = _judged(found, objects)
    counts = (~_ignored(objects)).astype(np.int64)
    return Judged(
        case=np.full(len(found), case),
        image=np.full(len(found), image),
        label=found.labels,
        score=found.scores,
        matched=matched,
        ignored=ignored,
        object_case=np.full(len(objects), case),
        object_image=np.full(len(objects), image),
        object_label=objects.labels,
        object_counts=(counts << np.arange(len(SIZES))[:, None]).sum(axis=0),
    )


def _ranked(found: Detections) -> Detections:
    """Return detections, the most confident first, and of each class at most ``MOST``."""
    order = np.argsort(-found.scores, kind="stable")
    if len(order) > MOST:
        labels = found.labels[order]
        places = np.concatenate([np.flatnonzero(labels == label)[:MOST] for label in np.unique(labels)])
        order = order[np.sort(places)]
    return found.at(order)


def _ignored(objects: Objects) -> Bool[np.ndarray, "size object"]:
    low, high = np.array(list(SIZES.values())).T[:, :, None]
    outside: np.ndarray = objects.ignored | (objects.areas < low) | (objects.areas > high)
    return outside


def _judged(found: Detections, objects: Objects) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits of each detection: whether it finds an object, and whether it does not count."""
    overlap = _overlaps(found.boxes, objects)
    overlap[found.labels[:, None] != objects.labels] = -1.0
    own = areas(found.boxes)[:, None]
    low, high = np.array(list(SIZES.values())).T
    outside, skip = (own < low) | (own > high), _ignored(objects)
    free = np.ones((len(SIZES), len(THRESHOLDS), len(objects)), dtype=bool)
    bits = np.zeros((2, len(found), *free.shape[:2]), dtype=bool)
    bits[1] = outside[:, :, None]
    possible = (overlap >= THRESHOLDS[0]).any(axis=1) if len(objects) else np.zeros(len(found), dtype=bool)
    for place in np.flatnonzero(possible):  # the most confident detection chooses first
        bits[0, place], bits[1, place] = _choose(overlap[place], free, objects.ignored, skip, outside[place])
    return _packed(bits[0]), _packed(bits[1])


def _overlaps(boxes: Float[np.ndarray, "box 4"], objects: Objects) -> Float[np.ndarray, "box object"]:
    """Return IoU; with a crowd, the share of the detection that lies in it."""
    shared = intersections(boxes, objects.boxes)
    own = areas(boxes)[:, None]
    union = np.where(objects.ignored, own, own + areas(objects.boxes) - shared)
    found: np.ndarray = np.where(shared > 0, shared / np.where(shared > 0, union, 1.0), 0.0)
    return found


def _choose(
    overlap: Float[np.ndarray, " object"],
    free: Bool[np.ndarray, "size threshold object"],
    crowd: Bool[np.ndarray, " object"],
    skip: Bool[np.ndarray, "size object"],
    outside: Bool[np.ndarray, " size"],
) -> tuple[Bool[np.ndarray, "size threshold"], Bool[np.ndarray, "size threshold"]]:
    """Give a detection its object, and mark that object as taken in ``free``.

    It takes the free object of largest overlap, the last one of equals; one that does not count only where none else is left.

    Returns:
        whether it finds an object, and whether it does not count.
    """
    possible = (free | crowd) & (overlap >= np.minimum(THRESHOLDS, 1 - JUST_BELOW)[:, None])
    counting = possible & ~skip[:, None, :]
    possible = np.where(counting.any(axis=-1, keepdims=True), counting, possible)
    worth = np.where(possible, overlap, -1.0)
    chosen = free.shape[2] - 1 - worth[..., ::-1].argmax(axis=-1)
    matched: np.ndarray = possible.any(axis=-1)
    size, threshold = np.nonzero(matched)
    free[size, threshold, chosen[matched]] = False
    return matched, np.where(matched, skip[np.arange(len(skip))[:, None], chosen], outside[:, None])


def _packed(bits: Bool[np.ndarray, "row size threshold"]) -> Int[np.ndarray, " row"]:
    flat = bits.reshape(len(bits), bits.shape[1] * bits.shape[2]).astype(np.int64)
    packed: np.ndarray = (flat << np.arange(flat.shape[1])).sum(axis=1)
    return packed


def average_precision(
    judged: Judged, *, cases: int, sizes: Sequence[str] = tuple(SIZES)
) -> Float[np.ndarray, "case size threshold"]:
    """Return the average precision at each shift, for each range of sizes and threshold of overlap; NaN without an object.

    COCO's ``AP`` is the mean over thresholds at the size ``all``, ``AP50`` the first threshold's value.

    Args:
        judged: of all images.
        cases: number of shifts.
        sizes: names of :data:`SIZES`.
    """
    places = [list(SIZES).index(name) for name in sizes]
    labels, group = np.unique(judged.object_label, return_inverse=True)
    totals = np.zeros((cases, len(labels), len(places)), dtype=np.int64)
    np.add.at(totals, (judged.object_case, group), judged.object_counts[:, None] >> np.array(places) & 1)
    found = np.where(totals > 0, 0.0, np.nan)[..., None].repeat(len(THRESHOLDS), axis=-1)
    for rows in _grouped(judged):
        case, label = judged.case[rows[0]], int(np.searchsorted(labels, judged.label[rows[0]]))
        if label < len(labels) and labels[label] == judged.label[rows[0]]:
            matched, ignored = (_unpacked(bits[rows], places) for bits in (judged.matched, judged.ignored))
            for place in np.flatnonzero(totals[case, label]):
                found[case, label, place] = _precision(matched[place], ignored[place], int(totals[case, label, place]))
    return _mean_over_classes(found)


def _grouped(judged: Judged) -> list[Int[np.ndarray, " row"]]:
    """Return the detections of each shift and class, the most confident first, of equals the earlier image."""
    if len(judged.case) == 0:
        return []
    order = np.lexsort((-judged.score, judged.label, judged.case))
    keys = np.stack([judged.case[order], judged.label[order]])
    return np.split(order, np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1)


def _unpacked(bits: Int[np.ndarray, " detection"], places: Sequence[int]) -> Bool[np.ndarray, "size threshold detection"]:
    shifts = np.array(places)[:, None] * len(THRESHOLDS) + np.arange(len(THRESHOLDS))
    found: np.ndarray = (bits >> shifts[:, :, None] & 1).astype(bool)
    return found


def _precision(
    matched: Bool[np.ndarray, "threshold detection"], ignored: Bool[np.ndarray, "threshold detection"], total: int
) -> Float[np.ndarray, " threshold"]:
    """Return the mean over recalls of the largest precision at that recall or more."""
    right = np.cumsum(matched & ~ignored, axis=1).astype(float)
    wrong = np.cumsum(~matched & ~ignored, axis=1).astype(float)
    precision = right / (right + wrong + LEAST)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)  # recalls that are not reached
    places = np.stack([np.searchsorted(row, RECALLS, side="left") for row in right / total])
    means: np.ndarray = np.take_along_axis(envelope, places, axis=1).mean(axis=1)
    return means


def _mean_over_classes(found: Float[np.ndarray, "case class size threshold"]) -> Float[np.ndarray, "case size threshold"]:
    known = ~np.isnan(found)
    count = known.sum(axis=1)
    means: np.ndarray = np.where(known, found, 0.0).sum(axis=1) / np.where(count, count, np.nan)
    return means
