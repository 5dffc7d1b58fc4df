"""Judged detections as rows of numbers, and from the rows of all images the average precision over shifts, with intervals.

A row is a detection (class, confidence, bits), an object (class, bits), or the mark that a view was there at all. An interval is
that of a jackknife: groups of images are left out in turn.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from shiftscope.estimates import ALIKE, Estimate, interval_of_equals, student_t
from shiftscope.tasks.objects import SIZES
from shiftscope.tasks.precision import Judged, Verdicts, average_precision

__all__ = ["judged_rows", "precisions", "to_rows", "totals_of"]

DETECTION, OBJECT, MARK = 0.0, 1.0, 2.0
#: Groups of images of the jackknife.
GROUPS = 10
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


def judged_rows(rows: Float[np.ndarray, "row 8"]) -> tuple[Judged, Float[np.ndarray, "case 2"] | None, int]:
    """Return what rows hold, each after its image's index and its shift (dy, dx).

    Returns:
        the detections; the shifts by number, None if images have shifts of their own; and the number of shifts of an image.
    """
    shifts, place = np.unique(rows[:, 1:3], axis=0, return_inverse=True)
    images, image = np.unique(rows[:, 0], return_inverse=True)
    pairs = np.unique(np.stack([image, place.reshape(-1)], axis=1), axis=0)
    shared = len(pairs) == len(images) * len(shifts)
    # Of images with shifts of their own, the first shifts of all count as one, then the second ones.
    case = place.reshape(-1) if shared else _rank(pairs)[_places(pairs, image, place.reshape(-1))]
    one, other = rows[:, 3] == DETECTION, rows[:, 3] == OBJECT
    whole = rows.astype(np.int64)
    judged = Judged(
        case=case[one],
        image=image[one],
        label=whole[one, 4],
        score=rows[one, 5],
        matched=whole[one, 6],
        ignored=whole[one, 7],
        object_case=case[other],
        object_image=image[other],
        object_label=whole[other, 4],
        object_counts=whole[other, 6],
    )
    return judged, shifts if shared else None, int(case.max()) + 1 if len(case) else 0


def _rank(pairs: np.ndarray) -> np.ndarray:
    """Return the number of each (image, shift), sorted, among those of its image."""
    first = np.searchsorted(pairs[:, 0], pairs[:, 0], side="left")
    found: np.ndarray = np.arange(len(pairs)) - first
    return found


def _places(pairs: np.ndarray, image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    width = int(pairs[:, 1].max()) + 1 if len(pairs) else 1
    found: np.ndarray = np.searchsorted(pairs[:, 0] * width + pairs[:, 1], image * width + shift)
    return found


def precisions(judged: Judged, cases: int, sizes: tuple[str, ...] = tuple(SIZES)) -> dict[str, Float[np.ndarray, " case"]]:
    """Return the average precision at each shift, by the names of measures; NaN without an object."""
    found = average_precision(judged, cases=cases, sizes=sizes)
    named = {"ap" if name == "all" else f"ap_{name}": found[:, place].mean(axis=1) for place, name in enumerate(sizes)}
    return {"ap": named.pop("ap"), "ap50": found[:, 0, HALF], "ap75": found[:, 0, THREE_QUARTERS], **named}


def totals_of(rows: Float[np.ndarray, "row 8"]) -> dict[str, Estimate]:
    """Return the average precision over all images and shifts, with intervals over images.

    Args:
        rows: as of :func:`judged_rows`.
    """
    judged, shifts, cases = judged_rows(rows)
    images = len(np.unique(rows[:, 0]))
    found = _summary(precisions(judged, cases), shared=shifts is not None)
    groups = [np.arange(images) % GROUPS == group for group in range(min(GROUPS, images))]
    left_out = [_summary(precisions(judged.without(group), cases), shared=shifts is not None) for group in groups]
    return {
        name: _estimate(value, np.array([each[name] for each in left_out]), images)
        for name, value in found.items()
        if np.isfinite(value)
    }


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
    known = left_out[np.isfinite(left_out)]
    if images < 3 or len(known) < 2:
        return Estimate(value, 0.0, 1.0, count=images)
    if np.ptp(known) <= ALIKE:
        return Estimate(value, *interval_of_equals(value, images, (0.0, 1.0)), count=images)
    error = ((len(known) - 1) / len(known) * np.square(known - known.mean()).sum()) ** 0.5
    reach = student_t(len(known)) * float(error)
    return Estimate(value, max(value - reach, 0.0), min(value + reach, 1.0), count=images)
