"""Boxes of many views at once: arrays [view, box, ...], filled up with zeros, and a mask of the boxes that are there.

A view has few boxes, and a call of NumPy costs more than what it computes on them; many views share the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from shiftscope.tasks.detections import Detections

__all__ = ["DetectionStack", "filled", "places_of"]


def places_of(counts: Sequence[int]) -> Bool[np.ndarray, "view box"]:
    """Return which places of a stack hold something, from how many boxes each view has."""
    found: np.ndarray = np.arange(max(counts, default=0)) < np.array(counts, dtype=np.int64)[:, None]
    return found


def filled(parts: Sequence[np.ndarray], there: Bool[np.ndarray, "view box"]) -> np.ndarray:
    """Return the rows of each view one after the other, zeros where none is there: [view, box, ...]."""
    found: np.ndarray = np.zeros((*there.shape, *parts[0].shape[1:]), dtype=parts[0].dtype)
    found[there] = np.concatenate(parts)
    return found


@dataclass(frozen=True)
class DetectionStack:
    """The detections of some views.

    Attributes:
        boxes: (x1, y1, x2, y2), pixels of the model's input.
        scores: confidence in [0, 1].
        labels: class of each.
        there: whether there is one.
    """

    boxes: Float[np.ndarray, "view box 4"]
    scores: Float[np.ndarray, "view box"]
    labels: Int[np.ndarray, "view box"]
    there: Bool[np.ndarray, "view box"]

    @staticmethod
    def of(views: Sequence[Detections]) -> DetectionStack:
        """Return the detections of each view, in order."""
        there = places_of([len(each) for each in views])
        boxes = filled([each.boxes for each in views], there)
        scores, labels = filled([each.scores for each in views], there), filled([each.labels for each in views], there)
        return DetectionStack(boxes, scores, labels, there)

    def ranked(self) -> DetectionStack:
        """Return the detections of each view with the most confident first; equals keep their order."""
        order = np.argsort(np.where(self.there, -self.scores, np.inf), axis=1, kind="stable")
        boxes = np.take_along_axis(self.boxes, order[..., None], axis=1)
        scores, labels = (np.take_along_axis(each, order, axis=1) for each in (self.scores, self.labels))
        return DetectionStack(boxes, scores, labels, self.there)
