"""A maximum at every position followed by a filter, in one piece of memory at a time.

The maximum over a box is a maximum along each axis in turn. Forward, maxima and products run over a few images at a time, so
that what lies between them stays in the processor's cache and is never held whole. Backward, the maxima are made again from
the input: nothing is kept between the two but the input itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from shiftscope.layers.resampling import (
    Filter,
    empty_like,
    filtered,
    is_channels_last,
    is_rewritten,
    matrices,
    output_size,
    pieces,
    products,
)

__all__ = ["max_filtered"]

#: Bytes of the map that are worked on at once on a CPU.
BYTES_AT_ONCE = 1 << 20


def max_filtered(maps: Tensor, kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int], by: Filter) -> Tensor:
    """Maxima over boxes at stride 1, then filtered and subsampled.

    Args:
        maps: [image, channel, *position].
        kernel: positions of a box along each axis.
        padding: of the maximum, with minus infinity.
        dilation: positions from one of a box to the next.
        by: the filter.
    """
    windows = tuple(zip(kernel, padding, dilation, strict=True))
    if is_rewritten():
        pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(windows) - 1]
        return filtered(pool(maps, tuple(kernel), 1, tuple(padding), tuple(dilation)), by)
    by.check(_sizes(maps, windows))
    if torch.is_grad_enabled() and maps.requires_grad:
        result: Tensor = _MaxFiltered.apply(maps, windows, by)
        return result
    return _forward(maps, windows, by)


Windows = tuple[tuple[int, int, int], ...]


class _MaxFiltered(torch.autograd.Function):
    """The gradient made from the input alone."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, windows: Windows, by: Filter) -> Tensor:
        ctx.save_for_backward(maps)
        ctx.windows, ctx.by = windows, by
        return _forward(maps, windows, by)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (maps,) = ctx.saved_tensors
        windows, by = ctx.windows, ctx.by
        maps = _dense(maps)
        if is_channels_last(maps):
            gradient = gradient.movedim(1, -1).contiguous().movedim(-1, 1)
        found = torch.empty_like(maps)
        with torch.autocast(maps.device.type, enabled=False):
            back = [factor.t().contiguous() for factor in matrices(by, _sizes(maps, windows), maps)]
            for part in _in_cache(maps):
                _routed(maps[part], products(gradient[part], back), windows, found[part])
        return found, None, None


def _forward(maps: Tensor, windows: Windows, by: Filter) -> Tensor:
    maps = _dense(maps)
    sizes = _sizes(maps, windows)
    axes = zip(sizes, by.taps, by.stride, by.margins, strict=True)
    after = [output_size(size, len(taps), step, margins) for size, taps, step, margins in axes]
    found = empty_like(maps, after, channels_last=is_channels_last(maps))
    with torch.autocast(maps.device.type, enabled=False):
        factors = matrices(by, sizes, maps)
        for part in _in_cache(maps):
            products(_maxima(maps[part], windows), factors, out=found[part])
    return found


def _maxima(maps: Tensor, windows: Windows) -> Tensor:
    for axis in _order(windows):
        maps = _running(_taps(maps, 2 + axis, windows[axis]))[-1]
    return maps


def _order(windows: Windows) -> range:
    """The last axis first, so that of equal values the first in reading order wins, as in torch's own pools."""
    return range(len(windows) - 1, -1, -1)


def _running(taps: list[Tensor]) -> list[Tensor]:
    """The maximum over the first, the first two, ... of a window's positions."""
    found = [taps[0]]
    for tap in taps[1:]:
        found.append(torch.maximum(found[-1], tap))
    return found


def _taps(maps: Tensor, axis: int, window: tuple[int, int, int]) -> list[Tensor]:
    """For each of a window's positions, the map as the window sees it there."""
    count, pad, step = window
    if pad:
        ends = [0, 0] * (maps.ndim - 1 - axis) + [pad, pad]
        maps = functional.pad(maps, ends, value=float("-inf"))
    length = maps.shape[axis] - step * (count - 1)
    return [maps.narrow(axis, step * tap, length) for tap in range(count)]


def _routed(maps: Tensor, gradient: Tensor, windows: Windows, out: Tensor) -> None:
    """The gradient of the maxima, given to the first of each window's largest values, axis by axis."""
    levels = [(maps, out)]
    order = _order(windows)
    for axis in order[:-1]:
        level = _running(_taps(levels[-1][0], 2 + axis, windows[axis]))[-1]
        levels.append((level, torch.empty_like(level)))
    for axis, (level, target) in zip(reversed(order), reversed(levels), strict=True):
        _along_axis(level, gradient, 2 + axis, windows[axis], target)
        gradient = target


def _along_axis(maps: Tensor, gradient: Tensor, axis: int, window: tuple[int, int, int], out: Tensor) -> None:
    """One axis: a later value takes the gradient only where it exceeds all before it. ``gradient`` is used up.

    Where a position of a window lies beyond the border it is minus infinity, and a gradient is given to one that is not.
    """
    count, pad, step = window
    taps = _taps(maps, axis, window)
    running = _running(taps[:-1]) if count > 1 else []
    fresh = True
    for tap in reversed(range(count)):
        first, last = max(0, pad - step * tap), min(gradient.shape[axis], maps.shape[axis] + pad - step * tap)
        if last <= first:
            continue
        place, inside = out.narrow(axis, first + step * tap - pad, last - first), (axis, first, last - first)
        given = gradient.narrow(*inside)
        if tap:
            # A comparison into floating point is vectorised; into booleans it is not.
            won = torch.gt(taps[tap].narrow(*inside), running[tap - 1].narrow(*inside), out=torch.empty_like(given))
            won = torch.mul(won, given, out=place if fresh else won)
            given.sub_(won)
        else:
            won = given
        if not fresh:
            place.add_(won)
            continue
        fresh = False
        out.narrow(axis, 0, first + step * tap - pad).zero_()
        out.narrow(axis, last + step * tap - pad, out.shape[axis] - (last + step * tap - pad)).zero_()
        if won is not place:
            place.copy_(won)


def _sizes(maps: Tensor, windows: Windows) -> list[int]:
    return [size + 2 * pad - step * (count - 1) for size, (count, pad, step) in zip(maps.shape[2:], windows, strict=True)]


def _dense(maps: Tensor) -> Tensor:
    """Contiguous or channels-last, whichever the map already is."""
    return maps if is_channels_last(maps) else maps.contiguous()


def _in_cache(maps: Tensor) -> Iterator[slice]:
    """A few images at a time."""
    return pieces(maps, BYTES_AT_ONCE * max(len(maps), 1) // max(maps.nbytes, 1))
