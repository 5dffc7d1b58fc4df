"""Maps with a value for each pixel: what both of two views see of one image, moved onto each other."""

from __future__ import annotations

import torch
from torch import Tensor

from shiftscope.tasks.task import View

__all__ = ["aligned", "seen"]


def seen(size: int, start: int, step: int) -> tuple[slice, slice]:
    """Return what both views see of the unshifted image along an axis: a slice of the first view, and one of the second.

    Args:
        size: of the axis, pixels.
        start: shift of the first view, pixels.
        step: from the first view to the second, pixels.

    >>> seen(10, 0, 3)
    (slice(0, 7, None), slice(3, 10, None))
    """
    low = max(0, -start, -start - step)
    high = max(low, min(size, size - start, size - start - step))
    return slice(low + start, high + start), slice(low + start + step, high + start + step)


def aligned(before: Tensor, after: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Return the second map moved back by the shift beside the first, both cut to the pixels of the image that both views see.

    Args:
        before: [..., height, width].
        after: [..., height, width].
        view: how the second lies relative to the first; parts of pixels are rounded.
    """
    down, right = (round(step) for step in view.shift)
    if view.circular:
        return before, torch.roll(after, (-down, -right), dims=(-2, -1))
    top, left = (round(step) for step in view.start)
    rows, moved_rows = seen(view.size[0], top, down)
    columns, moved_columns = seen(view.size[1], left, right)
    return before[..., rows, columns], after[..., moved_rows, moved_columns]
