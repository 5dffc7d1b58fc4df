"""The objects of an image, as ground truth has them, and where they are once the image has moved.

An object that a border cuts at some shift of an audit is left out at every shift, so that every shift is asked for the same
objects: detections of it count neither for nor against the model, as with COCO's crowds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from shiftscope.tasks.matching import areas
from shiftscope.tasks.padded_boxes import filled, stacked

__all__ = ["EDGE", "SIZES", "ObjectStack", "Objects", "inside", "shifted_together", "size_of"]

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
        steps = np.array([[by[1], by[0]]], dtype=float)
        return shifted_together([self], steps, size, reach, circular=circular).view(0)


@dataclass(frozen=True)
class ObjectStack:
    """The objects of some views: arrays as of :class:`Objects`, filled up with zeros, and a mask of what is there."""

    boxes: Float[np.ndarray, "view object 4"]
    labels: Int[np.ndarray, "view object"]
    areas: Float[np.ndarray, "view object"]
    ignored: Bool[np.ndarray, "view object"]
    there: Bool[np.ndarray, "view object"]

    @staticmethod
    def of(views: Sequence[Objects]) -> ObjectStack:
        """Return the objects of each view, in order."""
        return ObjectStack(*stacked(views, "boxes", "labels", "areas", "ignored"))

    def view(self, number: int) -> Objects:
        """Return the objects of one view."""
        return Objects(*(each[number, self.there[number]] for each in (self.boxes, self.labels, self.areas, self.ignored)))


def shifted_together(
    images: Sequence[Objects], steps: Float[np.ndarray, "view 2"], size: tuple[int, int], reach: float, *, circular: bool
) -> ObjectStack:
    """Return what :meth:`Objects.shifted` does for many views.

    Args:
        images: the objects of each view's image, unshifted.
        steps: (dx, dy) of each view, pixels.
        size: (height, width) of the model's input, pixels.
        reach: the largest shift along an axis, pixels.
        circular: whether what leaves on one side enters on the other.
    """
    distinct = {id(each): each for each in images}  # an image has many views
    laid = {key: _laid_out(each, size, reach, circular=circular) for key, each in distinct.items()}
    parts = [laid[id(each)] for each in images]
    stack = ObjectStack.of([objects for objects, _, _ in parts])
    cut, offsets = filled([each for _, each, _ in parts], stack.there), filled([each for _, _, each in parts], stack.there)
    boxes = stack.boxes + np.tile(steps, 2)[:, None] + offsets
    seen = boxes.clip(0, np.array([size[1], size[0]] * 2))
    there = stack.there & (~cut | (areas(seen) > 0))
    return replace(stack, boxes=np.where(cut[..., None], seen, boxes), ignored=stack.ignored | cut, there=there)


def _laid_out(
    objects: Objects, size: tuple[int, int], reach: float, *, circular: bool
) -> tuple[Objects, Bool[np.ndarray, " object"], Float[np.ndarray, "object 4"]]:
    """Return the objects that no border cuts, then the others, of which a circular shift may show copies.

    Returns:
        the objects; whether a border cuts each; and what to add to the box of each copy.
    """
    cut, (height, width) = objects.cut(size, reach), size
    copies = [[x, y, x, y] for y in (-height, 0, height) for x in (-width, 0, width)] if circular else [[0, 0, 0, 0]]
    whole, parts = np.flatnonzero(~cut), np.flatnonzero(cut)
    offsets = np.concatenate([np.zeros((len(whole), 4)), np.repeat(np.array(copies, dtype=float), len(parts), axis=0)])
    order = np.concatenate([whole, np.tile(parts, len(copies))])
    return objects.at(order), np.arange(len(order)) >= len(whole), offsets


def inside(
    boxes: Float[np.ndarray, "*box 4"], low: Float[np.ndarray, "*#box 2"], high: Float[np.ndarray, "*#box 2"]
) -> Bool[np.ndarray, "*box"]:
    """Return which boxes lie between two corners (x, y), at least ``EDGE`` pixels from both."""
    found: np.ndarray = np.all((boxes[..., :2] >= low + EDGE) & (boxes[..., 2:] <= high - EDGE), axis=-1)
    return found


def size_of(areas: Float[np.ndarray, " box"]) -> list[str]:
    """Return COCO's size of each box: ``small``, ``medium`` or ``large``.

    >>> size_of(np.array([100.0, 2000.0, 10000.0]))
    ['small', 'medium', 'large']
    """
    names = [name for name in SIZES if name != "all"]
    return [names[place] for place in np.digitize(areas, [SIZES[name][1] for name in names[:-1]])]
