"""The objects of an image, as ground truth has them, and where they are once the image has moved.

An object that a border cuts at some shift of an audit is left out at every shift, so that every shift is asked for the same
objects: detections of it count neither for nor against the model, as with COCO's crowds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from shiftscope.tasks.matching import areas

__all__ = ["EDGE", "SIZES", "Objects", "inside", "size_of"]

#: Ranges of an object's area, square pixels: all, and COCO's three sizes.
SIZES: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
#: A box that comes so near to a border, pixels, may be cut by it.
EDGE = 1.0


@dataclass(frozen=True)
class Objects:
    """The objects that an image shows.

    Attributes:
        boxes: (x1, y1, x2, y2), pixels of the model's input.
        labels: class of each.
        areas: of each, square pixels; of its outline where that is known, else of its box.
        ignored: whether detections of it count neither for nor against the model: crowds, and what a border cuts.
    """

    boxes: Float[np.ndarray, "object 4"]
    labels: Int[np.ndarray, " object"]
    areas: Float[np.ndarray, " object"]
    ignored: Bool[np.ndarray, " object"]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, chosen: np.ndarray) -> Objects:
        """Return some of them: by a mask, or by their numbers in the order to return."""
        return Objects(self.boxes[chosen], self.labels[chosen], self.areas[chosen], self.ignored[chosen])

    def cut(self, size: tuple[int, int], reach: float) -> Bool[np.ndarray, " object"]:
        """Return which of them a border cuts at some shift.

        Args:
            size: (height, width) of the model's input, pixels.
            reach: the largest shift along an axis, pixels.
        """
        height, width = size
        return ~inside(self.boxes, np.array([reach, reach]), np.array([width - reach, height - reach]))

    def shifted(self, by: tuple[int | float, int | float], size: tuple[int, int], reach: float, *, circular: bool) -> Objects:
        """Return where they are after a shift, what is in sight of each; those that a border cuts at some shift are ignored.

        Args:
            by: (dy, dx), pixels.
            size: (height, width) of the model's input, pixels.
            reach: the largest shift along an axis, pixels.
            circular: whether what leaves on one side enters on the other.
        """
        cut = self.cut(size, reach)
        moved = replace(self, boxes=self.boxes + np.array([by[1], by[0], by[1], by[0]]), ignored=self.ignored | cut)
        whole, parts = moved.at(~cut), [moved.at(cut)]
        if circular:
            height, width = size
            parts = [
                replace(parts[0], boxes=parts[0].boxes + np.array([x, y, x, y]))
                for y in (-height, 0, height)
                for x in (-width, 0, width)
            ]
        return _joined([whole, *(_clipped(each, size) for each in parts)])


def inside(
    boxes: Float[np.ndarray, "box 4"], low: Float[np.ndarray, " axis"], high: Float[np.ndarray, " axis"]
) -> Bool[np.ndarray, " box"]:
    """Return which boxes lie between two corners (x, y), at least ``EDGE`` pixels from both."""
    found: np.ndarray = np.all((boxes[:, :2] >= low + EDGE) & (boxes[:, 2:] <= high - EDGE), axis=1)
    return found


def size_of(areas: Float[np.ndarray, " box"]) -> list[str]:
    """Return COCO's size of each box: ``small``, ``medium`` or ``large``.

    >>> size_of(np.array([100.0, 2000.0, 10000.0]))
    ['small', 'medium', 'large']
    """
    names = [name for name in SIZES if name != "all"]
    return [names[place] for place in np.digitize(areas, [SIZES[name][1] for name in names[:-1]])]


def _clipped(objects: Objects, size: tuple[int, int]) -> Objects:
    """Return the parts of objects within the image."""
    boxes = objects.boxes.clip(0, np.array([size[1], size[0]] * 2))
    return replace(objects, boxes=boxes).at(np.flatnonzero(areas(boxes) > 0))


def _joined(parts: list[Objects]) -> Objects:
    return Objects(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "labels", "areas", "ignored")))
