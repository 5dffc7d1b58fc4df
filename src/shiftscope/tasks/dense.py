"""Maps with a value for each pixel: what both of two views see of one image, moved onto each other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from shiftscope.tasks.placing import Placing
from shiftscope.tasks.task import View

__all__ = ["aligned", "mean_map", "of_size", "seen"]


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
        view: how the second lies relative to the first; fractions of pixels are rounded.
    """
    down, right = (round(step) for step in view.shift)
    if view.circular:
        return before, torch.roll(after, (-down, -right), dims=(-2, -1))
    top, left = (round(step) for step in view.start)
    rows, moved_rows = seen(view.size[0], top, down)
    columns, moved_columns = seen(view.size[1], left, right)
    return before[..., rows, columns], after[..., moved_rows, moved_columns]


def of_size(maps: Tensor, size: tuple[int, int], *, wraps: bool = False) -> Tensor:
    """Return maps of the size of the model's input, enlarged bilinearly where they are not.

    Args:
        maps: [image, channel, height, width].
        size: (height, width) of the input.
        wraps: whether maps are circular; a circular shift by whole positions is then one of the enlarged map, bit for bit.

    >>> coarse = torch.rand(1, 1, 4, 4)
    >>> large = of_size(coarse, (8, 8), wraps=True)
    >>> torch.equal(of_size(coarse.roll(1, 3), (8, 8), wraps=True), large.roll(2, 3))
    True
    """
    if tuple(maps.shape[2:]) == size:
        return maps
    if wraps:
        return _enlarged_along(_enlarged_along(maps, size[0], 2), size[1], 3)
    return nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def _enlarged_along(maps: Tensor, size: int, axis: int) -> Tensor:
    """Return circular maps with another number of positions along an axis, linearly between the two nearest ones."""
    own = maps.shape[axis]
    # Position i lies at (2 i + 1) own / (2 size) - 1/2 of the maps: in whole numbers, so that fractions repeat exactly.
    doubled = (2 * torch.arange(size, device=maps.device) + 1) * own - size
    low, share = doubled.div(2 * size, rounding_mode="floor"), doubled.remainder(2 * size) / (2 * size)
    share = share.to(maps).reshape([-1 if place == axis else 1 for place in range(maps.ndim)])
    one, other = maps.index_select(axis, low % own), maps.index_select(axis, (low + 1) % own)
    return one * (1 - share) + other * share


def mean_map(views: Iterable[tuple[Tensor, Placing]]) -> Tensor:
    """Return the mean of maps of views, each moved back; a pixel counts the views that show it.

    Args:
        views: maps [image, channel, height, width] of the size of the model's input, and where each lies in the images. One view
            at least shows all of them.
    """
    total, count = torch.zeros(()), torch.zeros(())
    for maps, placing in views:
        there = placing.inside().to(maps)
        total, count = total.to(maps) + placing.maps_back(maps) * there, count.to(maps) + there
    return total / count
