"""Boxes of many views at once: arrays [view, box, ...], filled up with zeros, and a mask of the boxes that are there.

A view has few boxes, and a call of NumPy costs more than what it computes on them; many views share the call.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from shiftscope.tasks.detections import Detections

__all__ = ["DetectionStack", "filled", "stacked"]


def stacked(views: Sequence[Sized], *names: str) -> list[np.ndarray]:
    """Return arrays of all views, each [view, box, ...], and last a mask of the boxes that are there.

    Args:
        views: as many boxes as each is long.
        names: of the attributes that hold the arrays [box, ...] of a view.
    """
    counts = np.array([len(each) for each in views], dtype=np.int64)
    there = np.arange(counts.max(initial=0)) < counts[:, None]
    return [*(filled([getattr(each, name) for each in views], there) for name in names), there]


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
        return DetectionStack(*stacked(views, "boxes", "scores", "labels"))

    def ranked(self) -> DetectionStack:
        """Return the detections of each view with the most confident first; equals keep their order."""
        order = np.argsort(np.where(self.there, -self.scores, np.inf), axis=1, kind="stable")
        boxes = np.take_along_axis(self.boxes, order[..., None], axis=1)
        scores, labels = (np.take_along_axis(each, order, axis=1) for each in (self.scores, self.labels))
        return DetectionStack(boxes, scores, labels, self.there)
