"""What becomes of detections after a shift, for many views at once: each survives, switches its label, fades, dies or is born."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from shiftscope.tasks.matching import areas, match_together, overlaps
from shiftscope.tasks.objects import SIZES, Objects, ObjectStack, inside, shifted_together, size_of
from shiftscope.tasks.padded_boxes import DetectionStack
from shiftscope.tasks.task import Pair, View

__all__ = ["CHANGES", "Frame", "batches", "changes", "confidence_left", "objects_of", "share_found"]

CHANGES = (
    *("box_survival", "confidence_change", "worst_confidence_change", "box_iou", "box_jitter"),
    *("label_switches", "box_deaths", "box_births", "boxes_cut"),
    *("confidence_change_small", "confidence_change_medium", "confidence_change_large"),
)
#: Overlaps that are computed at once.
OVERLAPS = 1 << 16


def batches(pairs: Sequence[Pair], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of pairs to compare together: on the same borders, and few enough for their boxes.

    Args:
        pairs: detections to compare.
        sizes: the most boxes of any set of each pair.
    """
    groups: dict[tuple[bool, tuple[int, int], float], list[int]] = {}
    for number, pair in enumerate(pairs):
        groups.setdefault((pair.view.circular, pair.view.size, pair.view.reach), []).append(number)
    for numbers in groups.values():
        step = max(1, OVERLAPS // max(1, max(sizes[number] for number in numbers)) ** 2)
        for start in range(0, len(numbers), step):
            yield numbers[start : start + step]


@dataclass(frozen=True)
class Frame:
    """How the second views of some pairs lie relative to the first ones; all on the same borders.

    Attributes:
        steps: (dx, dy) from the first view to the second, pixels.
        starts: (dx, dy) of the first view against the unshifted image, pixels.
        size: (width, height) of the model's input, pixels.
        circular: whether content that leaves on one side enters on the other.
    """

    steps: Float[np.ndarray, "view 2"]
    starts: Float[np.ndarray, "view 2"]
    size: Float[np.ndarray, " axis"]
    circular: bool

    @staticmethod
    def of(views: Sequence[View]) -> Frame:
        """Return the frame of views."""
        height, width = views[0].size
        steps, starts = (np.array(each, dtype=float)[:, ::-1] for each in zip(*((v.shift, v.start) for v in views), strict=True))
        return Frame(steps, starts, np.array([width, height], dtype=float), views[0].circular)

    def back(self, boxes: Float[np.ndarray, "view box 4"]) -> Float[np.ndarray, "view box 4"]:
        """Return boxes of the second views in the frames of the first ones."""
        moved = boxes + np.tile(-self.steps, 2)[:, None]
        return self._unwrapped(moved) if self.circular else moved

    def whole(
        self, before: Float[np.ndarray, "view box 4"], after: Float[np.ndarray, "view other 4"]
    ) -> tuple[Bool[np.ndarray, "view box"], Bool[np.ndarray, "view other"]]:
        """Return which boxes of each view no border cuts in either view."""
        step, start = self.steps[:, None], self.starts[:, None]
        if self.circular:
            return self._clear(before, step), self._clear(after, -step)
        low = np.maximum(np.maximum(0, start), -step)
        high = np.minimum(np.minimum(self.size, self.size + start), self.size - step)
        return inside(before, low, high), inside(after, low + step, high + step)

    def _unwrapped(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes moved by whole images, so that their centres lie in the image."""
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        found: np.ndarray = boxes - np.tile(np.floor(centre / self.size) * self.size, 2)
        return found

    def _clear(self, boxes: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Return which boxes neither touch a border nor do so after a circular step."""
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + step
        moved = boxes + np.tile(step, 2) - np.tile(np.floor(centre / self.size) * self.size, 2)
        corner = np.zeros(2)
        found: np.ndarray = inside(boxes, corner, self.size) & inside(moved, corner, self.size)
        return found


def changes(
    before: DetectionStack, after: DetectionStack, frame: Frame, *, threshold: float, overlap: float
) -> Float[np.ndarray, "measure view"]:
    """Return the measures :data:`CHANGES` of each pair of views.

    Args:
        before: detections of the first views.
        after: those of the second ones, where they were found.
        frame: how the second views lie.
        threshold: least confidence of a detection that counts.
        overlap: least IoU of two boxes of the same object.
    """
    back = frame.back(after.boxes)
    seen, seen_after = frame.whole(before.boxes, after.boxes)
    shared = overlaps(before.boxes, back)
    strong, strong_after = (each.there & (each.scores >= threshold) for each in (before, after))
    kept, switched, left, born = _fates(before, after, shared, (strong, strong_after), overlap)
    counted = strong & seen
    number, cut = counted.sum(axis=1), strong.sum(axis=1) - counted.sum(axis=1)
    view, one, other = np.nonzero(kept & counted[..., None])
    survived = np.bincount(view, minlength=len(kept))
    lost = (switched.any(axis=2) & counted).sum(axis=1)
    change = np.abs(before.scores - left)
    worst = np.where(counted, change, -np.inf).max(axis=1, initial=-np.inf)
    return np.stack(
        [
            _share(survived, number),
            _mean(change, counted),
            np.where(number > 0, worst, np.nan),
            _share(np.bincount(view, shared[view, one, other], len(kept)), survived),
            _share(np.bincount(view, np.abs(before.boxes[view, one] - back[view, other]).mean(axis=1), len(kept)), survived),
            _share(lost, number),
            _share(number - survived - lost, number),
            (born & seen_after).sum(axis=1).astype(float),
            _share(cut, strong.sum(axis=1)),
            *_by_size(change, counted, areas(before.boxes)),
        ]
    )


def confidence_left(
    before: DetectionStack, after: DetectionStack, frame: Frame, *, threshold: float, overlap: float, reach: float
) -> Float[np.ndarray, " view"]:
    """Return the least confidence among what detections survive as, those that no shift cuts; 0 if one of them does not survive.

    NaN where no detection counts.

    Args:
        before: detections of the unshifted images.
        after: those of the second views.
        frame: how the second views lie.
        threshold: least confidence of a detection that counts.
        overlap: least IoU of two boxes of the same object.
        reach: the largest shift along an axis, pixels.
    """
    strong, strong_after = (each.there & (each.scores >= threshold) for each in (before, after))
    counted = strong & inside(before.boxes, np.full(2, reach), frame.size - reach)
    shared = overlaps(before.boxes, frame.back(after.boxes))
    kept, _, _, _ = _fates(before, after, shared, (strong, strong_after), overlap)
    left = np.where(kept, after.scores[:, None], 0.0).max(axis=2, initial=0.0)
    least = np.where(counted, left, np.inf).min(axis=1, initial=np.inf)
    found: np.ndarray = np.where(counted.any(axis=1), least, np.nan)
    return found


def _fates(
    before: DetectionStack,
    after: DetectionStack,
    shared: Float[np.ndarray, "view one other"],
    strong: tuple[Bool[np.ndarray, "view one"], Bool[np.ndarray, "view other"]],
    least: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what becomes of each detection.

    Returns:
        which detection survives as which, [view, one, other]; which has which other label afterwards; the confidence of its class
        at its place after the shift, 0 where nothing is left, [view, one]; and what was not there before, [view, other].
    """
    there = (before.there, after.there)
    same = before.labels[..., None] == after.labels[:, None]
    kept = match_together(shared, same & strong[0][..., None] & strong[1][:, None], *there, least=least)
    rest, new = strong[0] & ~kept.any(axis=2), strong[1] & ~kept.any(axis=1)
    switched = match_together(shared, ~same & rest[..., None] & new[:, None], *there, least=least)
    faded = match_together(shared, same & rest[..., None] & (after.there & ~strong[1])[:, None], *there, least=least)
    left = np.where(kept | faded, after.scores[:, None], 0.0).max(axis=2, initial=0.0)
    return kept, switched, left, new & ~switched.any(axis=1)


def _by_size(change: np.ndarray, counted: np.ndarray, own: np.ndarray) -> list[np.ndarray]:
    """Return the mean change of confidence of small, medium and large detections."""
    sizes = np.array(size_of(own[counted]), dtype=object)
    places = np.zeros((len(SIZES) - 1, *counted.shape), dtype=bool)
    for place, name in enumerate(each for each in SIZES if each != "all"):
        places[place][counted] = sizes == name
    return [_mean(change, chosen) for chosen in places]


def objects_of(pairs: Sequence[Pair], unknown: Objects) -> ObjectStack:
    """Return the objects in the second view of each pair.

    Args:
        pairs: whose views have the same borders.
        unknown: the objects of an image without ground truth.
    """
    view = pairs[0].view
    steps = np.array([[first + step for first, step in zip(p.view.start, p.view.shift, strict=True)] for p in pairs], dtype=float)
    truths = [unknown if pair.truth is None else pair.truth for pair in pairs]
    return shifted_together(truths, steps[:, ::-1], view.size, view.reach, circular=view.circular)


def share_found(found: DetectionStack, objects: ObjectStack, *, threshold: float, overlap: float) -> Float[np.ndarray, " view"]:
    """Return the share of objects that count which are found."""
    counted = objects.there & ~objects.ignored
    strong = found.there & (found.scores >= threshold)
    allowed = counted[..., None] & (objects.labels[..., None] == found.labels[:, None]) & strong[:, None]
    pairs = match_together(overlaps(objects.boxes, found.boxes), allowed, counted, found.there, least=overlap)
    return _share(pairs.sum(axis=(1, 2)), counted.sum(axis=1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, NaN of nothing."""
    found: np.ndarray = np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
    return found


def _mean(values: Float[np.ndarray, "view box"], chosen: Bool[np.ndarray, "view box"]) -> Float[np.ndarray, " view"]:
    """Return the mean of each view's chosen values, added up in their order, whatever fills the stack up."""
    view = np.nonzero(chosen)[0]
    return _share(np.bincount(view, values[chosen], len(values)), np.bincount(view, minlength=len(values)))
