"""Average precision (AP) by COCO's definition, at every shift at once, and added up over shards without loss.

A detection is judged within its image: which object it finds at each threshold of overlap, and whether it counts for each range
of sizes. What is judged is stored, one row a detection, so that rows of any shards together give the same AP as one run. The
definition is that of ``pycocotools``, whose numbers ours equal: IoU 0.5 to 0.95 in steps of 0.05, precision at 101 recalls, at
most 100 detections of a class in an image, objects of other sizes and crowds ignored, a mean over the classes that have objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from shiftscope.tasks.detections import Detections
from shiftscope.tasks.matching import areas, intersections
from shiftscope.tasks.objects import SIZES, Objects, ObjectStack
from shiftscope.tasks.padded_boxes import DetectionStack

__all__ = ["Judged", "Verdicts", "average_precision", "judge", "judge_together"]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
#: The most detections of a class in an image.
MOST = 100
#: Detections whose precision is computed at once.
ROWS = 4096
#: What pycocotools subtracts from an overlap of 1.
JUST_BELOW = 1e-10


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
    verdicts = judge_together([found], ObjectStack.of([objects]))
    ranked, there = verdicts.found, verdicts.objects.there
    return Judged(
        case=np.full(int(ranked.there.sum()), case),
        image=np.full(int(ranked.there.sum()), image),
        label=ranked.labels[ranked.there],
        score=ranked.scores[ranked.there],
        matched=verdicts.matched[ranked.there],
        ignored=verdicts.ignored[ranked.there],
        object_case=np.full(len(objects), case),
        object_image=np.full(len(objects), image),
        object_label=objects.labels,
        object_counts=verdicts.counts[there],
    )


@dataclass(frozen=True)
class Verdicts:
    """Detections of some views as they are judged; bits as of :class:`Judged`.

    Attributes:
        found: the detections, the most confident of each view first.
        objects: the objects.
        matched: whether each finds an object.
        ignored: whether each does not count.
        counts: at which sizes each object counts.
    """

    found: DetectionStack
    objects: ObjectStack
    matched: Int[np.ndarray, "view box"]
    ignored: Int[np.ndarray, "view box"]
    counts: Int[np.ndarray, "view object"]


def judge_together(found: Sequence[Detections], objects: ObjectStack) -> Verdicts:
    """Judge what a detector finds in some views, against the objects in each."""
    ranked = DetectionStack.of([_limited(each) for each in found]).ranked()
    matched, ignored = _judged(ranked, objects)
    counts = (~_ignored(objects)).astype(np.int64) << np.arange(len(SIZES))[:, None]
    return Verdicts(ranked, objects, matched, ignored, counts.sum(axis=1))


def _limited(found: Detections) -> Detections:
    """Return detections, and of each class at most the ``MOST`` most confident."""
    if len(found) <= MOST:
        return found
    order = np.argsort(-found.scores, kind="stable")
    labels = found.labels[order]
    places = np.concatenate([np.flatnonzero(labels == label)[:MOST] for label in np.unique(labels)])
    return found.at(order[np.sort(places)])


def _ignored(objects: ObjectStack) -> Bool[np.ndarray, "view size object"]:
    low, high = np.array(list(SIZES.values())).T[:, :, None]
    own = objects.areas[:, None]
    outside: np.ndarray = objects.ignored[:, None] | (own < low) | (own > high)
    return outside


def _judged(found: DetectionStack, objects: ObjectStack) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits of each detection: whether it finds an object, and whether it does not count."""
    overlap = _overlaps(found.boxes, objects)
    fits = (found.labels[..., None] == objects.labels[:, None]) & found.there[..., None] & objects.there[:, None]
    overlap[~fits] = -1.0
    own = areas(found.boxes)[..., None]
    low, high = np.array(list(SIZES.values())).T
    outside, skip = (own < low) | (own > high), _ignored(objects)
    free = np.ones((len(overlap), len(SIZES), len(THRESHOLDS), overlap.shape[2]), dtype=bool)
    bits = np.zeros((2, *found.there.shape, *free.shape[1:3]), dtype=bool)
    bits[1] = outside[..., None]
    possible = (overlap >= THRESHOLDS[0]).any(axis=2)
    for place in np.flatnonzero(possible.any(axis=0)):  # the most confident detection chooses first
        views = np.flatnonzero(possible[:, place])
        left = free[views]
        matched, chosen = _choose(overlap[views, place], left, objects.ignored[views], skip[views])
        free[views] = left
        bits[0, views, place] = matched
        ignored = np.take_along_axis(skip[views], chosen, axis=2)
        bits[1, views, place] = np.where(matched, ignored, outside[views, place][..., None])
    return _packed(bits[0]), _packed(bits[1])


def _overlaps(boxes: Float[np.ndarray, "view box 4"], objects: ObjectStack) -> Float[np.ndarray, "view box object"]:
    """Return IoU; with a crowd, the share of the detection that lies in it."""
    shared = intersections(boxes, objects.boxes)
    own = areas(boxes)[..., None]
    union = np.where(objects.ignored[:, None], own, own + areas(objects.boxes)[:, None] - shared)
    found: np.ndarray = np.where(shared > 0, shared / np.where(shared > 0, union, 1.0), 0.0)
    return found


def _choose(
    overlap: Float[np.ndarray, "view object"],
    free: Bool[np.ndarray, "view size threshold object"],
    crowd: Bool[np.ndarray, "view object"],
    skip: Bool[np.ndarray, "view size object"],
) -> tuple[Bool[np.ndarray, "view size threshold"], Int[np.ndarray, "view size threshold"]]:
    """Give one detection of each view its object, and mark that object as taken in ``free``.

    It takes the free object of largest overlap, the last one of equals; one that does not count only where none else is left.

    Returns:
        whether it finds an object, and which.
    """
    near = overlap[:, None, None]
    possible = (free | crowd[:, None, None]) & (near >= np.minimum(THRESHOLDS, 1 - JUST_BELOW)[:, None])
    counting = possible & ~skip[:, :, None]
    possible = np.where(counting.any(axis=-1, keepdims=True), counting, possible)
    chosen = free.shape[3] - 1 - np.where(possible, near, -1.0)[..., ::-1].argmax(axis=-1)
    matched: np.ndarray = possible.any(axis=-1)
    free[(*np.nonzero(matched), chosen[matched])] = False
    return matched, chosen


def _packed(bits: Bool[np.ndarray, "view box size threshold"]) -> Int[np.ndarray, "view box"]:
    flat = bits.reshape(*bits.shape[:2], bits.shape[2] * bits.shape[3])
    packed: np.ndarray = flat @ (1 << np.arange(flat.shape[2]))
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
    for rows in _grouped(judged, labels):
        case, kind = judged.case[rows[0]], np.searchsorted(labels, judged.label[rows[0]])
        nobody = np.where(rows < 0, -1, 0)  # a row that is not there does not count
        matched, ignored = (_unpacked(bits[rows] | nobody, places) for bits in (judged.matched, judged.ignored))
        total = totals[case, kind]
        means = _precision(matched, ignored, np.maximum(total, 1).T[:, None])
        found[case, kind] = np.where(total[..., None] > 0, means.transpose(2, 0, 1), np.nan)
    return _mean_over_classes(found)


def _grouped(judged: Judged, labels: Int[np.ndarray, " class"]) -> Iterator[Int[np.ndarray, "row group"]]:
    """Yield the detections of each shift and class, the most confident first, of equals the earlier image; -1 for no detection.

    Groups of about the same length come together, at most about ``ROWS`` rows; classes without an object are left out.
    """
    order = np.lexsort((-judged.score, judged.label, judged.case))
    order = order[np.isin(judged.label[order], labels)]
    keys = np.stack([judged.case[order], judged.label[order]])
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(order), 1), bool), (keys[:, 1:] != keys[:, :-1]).any(axis=0)]))
    lengths = np.diff(np.append(starts, len(order)))
    longest = np.argsort(-lengths, kind="stable")
    while len(longest):
        most = int(lengths[longest[0]])
        chosen, longest = np.split(longest, [max(1, ROWS // most)])
        places = np.arange(most)[:, None]
        rows = order[np.minimum(starts[chosen] + places, len(order) - 1)]
        yield np.where(places < lengths[chosen], rows, -1)


def _unpacked(
    bits: Int[np.ndarray, "detection group"], places: Sequence[int]
) -> Bool[np.ndarray, "detection size threshold group"]:
    shifts = np.array(places)[:, None] * len(THRESHOLDS) + np.arange(len(THRESHOLDS))
    found: np.ndarray = (bits[:, None, None] >> shifts[:, :, None] & 1).astype(bool)
    return found


def _precision(
    matched: Bool[np.ndarray, "detection size threshold group"],
    ignored: Bool[np.ndarray, "detection size threshold group"],
    total: Int[np.ndarray, "size 1 group"],
) -> Float[np.ndarray, "size threshold group"]:
    """Return the mean over recalls of the largest precision at that recall or more, 0 at recalls that are not reached.

    Args:
        matched: whether each detection finds an object, the most confident first.
        ignored: whether it does not count.
        total: number of objects, 1 or more.
    """
    right = np.cumsum(matched & ~ignored, axis=0).astype(float)
    wrong = np.cumsum(~matched & ~ignored, axis=0).astype(float)
    precision = right / np.maximum(right + wrong, 1)  # exactly 1 where nothing is wrong
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    reached = np.searchsorted(RECALLS, right / total, side="right")  # how many recalls
    means: np.ndarray = (np.diff(reached, axis=0, prepend=0) * envelope).sum(axis=0) / len(RECALLS)
    return means


def _mean_over_classes(found: Float[np.ndarray, "case class size threshold"]) -> Float[np.ndarray, "case size threshold"]:
    known = ~np.isnan(found)
    count = known.sum(axis=1)
    means: np.ndarray = np.where(known, found, 0.0).sum(axis=1) / np.where(count, count, np.nan)
    return means
