"""Judged detections as rows of numbers, and from the rows of all images the average precision over shifts, with intervals.

A row is a detection (class, confidence, bits), an object (class, bits), or the mark that a view was there at all. An interval is
that of a jackknife: groups of images are left out in turn.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8

from shiftscope.estimates import ALIKE, Estimate, interval_of_equals, student_t
from shiftscope.tasks.objects import SIZES
from shiftscope.tasks.packed import DETECTION, MARK, OBJECT, PackedViews, unpacked
from shiftscope.tasks.precision import Judged, Verdicts, average_precision
from shiftscope.tasks.task import Totals

__all__ = ["judged_views", "precisions", "to_rows", "total_differences", "totals_of"]

#: Groups of images of the jackknife.
GROUPS = 10
#: Average precision at each shift, by the names of measures.
Precisions = dict[str, np.ndarray]
#: Places of thresholds of overlap: 0.5 and 0.75.
HALF, THREE_QUARTERS = 0, 5


def to_rows(verdicts: Verdicts) -> list[Float[np.ndarray, "row 5"]]:
    """Return judged detections of each view as rows: kind, class, confidence, and two columns of bits below 2^40."""
    found, objects, (views, boxes) = verdicts.found, verdicts.objects, verdicts.found.there.shape
    rows = np.zeros((views, boxes + objects.there.shape[1] + 1, 5))
    rows[:, :boxes] = np.stack(
        [np.full((views, boxes), DETECTION), found.labels, found.scores, verdicts.matched, verdicts.ignored], axis=-1
    )
    rows[:, boxes:-1, 0], rows[:, boxes:-1, 1], rows[:, boxes:-1, 3] = OBJECT, objects.labels, verdicts.counts
    rows[:, -1, 0] = MARK
    there = np.concatenate([found.there, objects.there, np.ones((views, 1), dtype=bool)], axis=1)
    return np.split(rows[there], np.cumsum(there.sum(axis=1))[:-1])


def judged_views(views: PackedViews) -> tuple[Judged, Float[np.ndarray, "case 2"] | None, int]:
    """Return what views hold as average precision judges it.

    Returns:
        the detections and objects; the shifts by number, None if images have shifts of their own; and the number of shifts of an
        image.
    """
    shifts, place = np.unique(views.shifts, axis=0, return_inverse=True)
    images, image = np.unique(views.images, return_inverse=True)
    shared = len(place) == len(images) * len(shifts)
    # Of images with shifts of their own, the first shifts of all count as one, then the second ones.
    case = (place.reshape(-1) if shared else _rank(image, place.reshape(-1))).astype(np.int32)
    image = image.astype(np.int32)
    of_detections, of_objects = (np.repeat(np.arange(len(case)), each) for each in (views.detections, views.objects))
    judged = Judged(
        case=case[of_detections],
        image=image[of_detections],
        label=views.labels[views.found],
        score=views.scores,
        matched=views.bits[views.found, 0],
        ignored=views.bits[views.found, 1],
        object_case=case[of_objects],
        object_image=image[of_objects],
        object_label=views.labels[views.there],
        object_counts=views.bits[views.there, 0],
    )
    return judged, shifts if shared else None, int(case.max()) + 1 if len(case) else 0


def _rank(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the number of each view's shift among those of its image, in the order of shifts."""
    order = np.lexsort((shift, image))
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.arange(len(order)) - np.searchsorted(image[order], image[order], side="left")
    return found


def precisions(judged: Judged, cases: int, sizes: tuple[str, ...] = tuple(SIZES)) -> dict[str, Float[np.ndarray, " case"]]:
    """Return the average precision at each shift, by the names of measures; NaN without an object."""
    found = average_precision(judged, cases=cases, sizes=sizes)
    named = {"ap" if name == "all" else f"ap_{name}": found[:, place].mean(axis=1) for place, name in enumerate(sizes)}
    return {"ap": named.pop("ap"), "ap50": found[:, 0, HALF], "ap75": found[:, 0, THREE_QUARTERS], **named}


def totals_of(packed: UInt8[np.ndarray, " byte"]) -> Totals:
    """Return the average precision over all images and shifts, and at each shift that all images share, with intervals.

    Args:
        packed: rows of :func:`shiftscope.tasks.packed.pack_rows`, block after block.
    """
    whole, parts, shifts, cases, images = _jackknifed(packed)
    found, left_out = _summary(whole, shared=shifts is not None), [_summary(each, shared=shifts is not None) for each in parts]
    estimates = {
        name: _estimate(value, np.array([each[name] for each in left_out]), images)
        for name, value in found.items()
        if np.isfinite(value)
    }
    if shifts is None or cases < 2:
        return Totals(estimates)
    ends = {name: _intervals(values, np.stack([each[name] for each in parts]), images) for name, values in whole.items()}
    at_shifts = {name: torch.from_numpy(values) for name, values in whole.items() if np.isfinite(values).all()}
    return Totals(estimates, torch.from_numpy(shifts), at_shifts, {name: torch.from_numpy(ends[name]) for name in at_shifts})


def total_differences(before: UInt8[np.ndarray, " byte"], after: UInt8[np.ndarray, " other"]) -> dict[str, Estimate]:
    """Return the average precision of one detector less that of another on the same images and shifts, with intervals.

    The same groups of images are left out of both, so that what images have in common does not widen the intervals.

    Args:
        before: packed rows of one detector, as of :func:`totals_of`.
        after: those of the other one.
    """
    (one, ones, shifts, _, images), (other, others, *_) = _jackknifed(before), _jackknifed(after)
    sides = [
        [_summary(each, shared=shifts is not None) for each in (whole, *parts)] for whole, parts in ((one, ones), (other, others))
    ]
    names = [name for name in sides[0][0] if name in sides[1][0]]
    table = {name: np.array([b[name] - a[name] for a, b in zip(*sides, strict=True)]) for name in names}
    return {name: _difference(each[0], each[1:], images) for name, each in table.items() if np.isfinite(each[0])}


def _difference(value: float, left_out: Float[np.ndarray, " group"], images: int) -> Estimate:
    """Return a difference with the jackknife's interval; 0 alone where nothing differs whatever is left out."""
    known = left_out[np.isfinite(left_out)]
    if len(known) and max(abs(value), np.abs(known).max()) <= ALIKE:
        return Estimate(0.0, 0.0, 0.0, count=images)
    if images < 3 or len(known) < 2:
        return Estimate(float(value), -1.0, 1.0, count=images)
    if np.ptp(known) <= ALIKE:
        return Estimate(float(value), *interval_of_equals(float(value), images, (-1.0, 1.0)), count=images)
    error = ((len(known) - 1) / len(known) * np.square(known - known.mean()).sum()) ** 0.5
    reach = student_t(len(known)) * float(error)
    return Estimate(float(value), max(value - reach, -1.0), min(value + reach, 1.0), count=images)


def _jackknifed(packed: UInt8[np.ndarray, " byte"]) -> tuple[Precisions, list[Precisions], np.ndarray | None, int, int]:
    """Return precisions at each shift of all images and without each group of them.

    Also the shifts, None if images have shifts of their own; and the numbers of shifts and of images.
    """
    views = unpacked(packed)
    judged, shifts, cases = judged_views(views)
    images = len(np.unique(views.images))
    groups = [np.arange(images) % GROUPS == group for group in range(min(GROUPS, images))]
    return precisions(judged, cases), [precisions(judged.without(group), cases) for group in groups], shifts, cases, images


def _summary(found: dict[str, Float[np.ndarray, " case"]], *, shared: bool) -> dict[str, float]:
    """Return means over shifts; of shifts that all images share also the worst and the range."""
    means = {name: _mean(values) for name, values in found.items()}
    known = found["ap"][np.isfinite(found["ap"])]
    if not shared or len(known) < 2:
        return means
    return {"ap": means.pop("ap"), "ap_worst": float(known.min()), "ap_range": float(np.ptp(known)), **means}


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _estimate(value: float, left_out: Float[np.ndarray, " group"], images: int) -> Estimate:
    low, high = _intervals(np.array([value]), left_out[:, None], images)[0].tolist()
    return Estimate(value, low, high, count=images)


def _intervals(
    values: Float[np.ndarray, " case"], left_out: Float[np.ndarray, "group case"], images: int
) -> Float[np.ndarray, "case 2"]:
    """Return the jackknife's interval of each value, from the values without each group of images."""
    known = np.isfinite(left_out)
    count = known.sum(axis=0)
    filled = np.where(known, left_out, 0.0)
    apart = np.where(known, filled - filled.sum(axis=0) / np.maximum(count, 1), 0.0)
    reach = np.array([student_t(each) if each > 1 else 0.0 for each in count.tolist()])
    reach = reach * np.sqrt((count - 1) / np.maximum(count, 1) * np.square(apart).sum(axis=0).clip(min=0))
    ends = np.stack([np.maximum(values - reach, 0.0), np.minimum(values + reach, 1.0)], axis=1)
    spread = np.where(known, left_out, -np.inf).max(axis=0) - np.where(known, left_out, np.inf).min(axis=0)
    for place in np.flatnonzero(spread <= ALIKE):
        ends[place] = interval_of_equals(float(values[place]), images, (0.0, 1.0))
    ends[(count < 2) | (images < 3)] = (0.0, 1.0)
    return ends
