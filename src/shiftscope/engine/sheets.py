"""Maps that hold the maps of all windows, and the geometry they share. Nothing here knows an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "BatchSize",
    "Flat",
    "Layout",
    "NotDenseError",
    "Pair",
    "Sheet",
    "Vectors",
    "after",
    "combined",
    "continued",
    "pair",
    "region",
    "times",
    "turned",
    "weighted",
]

Pair = tuple[int, int]


class NotDenseError(Exception):
    """The dense way is not known to be exact for this model; the message says why."""


@dataclass(frozen=True)
class Layout:
    """Where the windows of all shifts lie, along height and width.

    Attributes:
        size: of the image a model is given.
        rows: the distinct starts o of the windows along the height, ascending; in P, or on the torus.
        columns: along the width.
        torus: the size of the torus under circular shifts; None where P ends.
    """

    size: Pair
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    torus: Pair | None

    @property
    def starts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows and columns."""
        return self.rows, self.columns


@dataclass(frozen=True)
class Sheet:
    """One map that holds the maps of all windows.

    Attributes:
        maps: [image, channel, height, width], values less the background, on the box.
        background: [channel], the value outside the box.
        corner: where the box begins in the sheet.
        factor: steps in the sheet from one position of a window's map to the next.
        size: of a window's map.
        origin: where a window's map begins, relative to the window (circular padding moves it to the left).
    """

    maps: Tensor
    background: Tensor
    corner: Pair
    factor: Pair
    size: Pair
    origin: Pair

    @property
    def values(self) -> Tensor:
        """The box with its background."""
        return self.maps + self.background[:, None, None]


@dataclass(frozen=True)
class Flat:
    """A sheet whose windows' maps were flattened, on their way into a fully connected layer."""

    sheet: Sheet


@dataclass(frozen=True)
class Vectors:
    """[image, row, column, feature]: one vector for each start of a window. ``kept`` counts axes of size one after it."""

    values: Tensor
    kept: int = 0


class BatchSize:
    """The number of images, as a traced model asks for it to reshape."""


def region(sheet: Sheet, first: Pair, lengths: Pair) -> Tensor:
    """A part of the sheet from a position on, so long; zeros (the background) outside its box."""
    maps, margins = sheet.maps, []
    for axis in (1, 0):
        begin, end = sheet.corner[axis], sheet.corner[axis] + sheet.maps.shape[2 + axis]
        low, high = max(first[axis], begin), min(first[axis] + lengths[axis], end)
        if high <= low:
            return maps.new_zeros(*maps.shape[:2], *lengths)
        maps = maps.narrow(2 + axis, low - begin, high - low)
        margins += [low - first[axis], first[axis] + lengths[axis] - high]
    return functional.pad(maps, margins) if any(margins) else maps


def continued(maps: Tensor, reach: Pair) -> Tensor:
    """A torus, continued by so much to the right and below."""
    if reach == (0, 0):
        return maps
    if reach[0] < maps.shape[2] and reach[1] < maps.shape[3]:
        return functional.pad(maps, (0, reach[1], 0, reach[0]), mode="circular")
    return turned(maps, (0, 0), (maps.shape[2] + reach[0], maps.shape[3] + reach[1]))


def turned(maps: Tensor, first: Pair, lengths: Pair) -> Tensor:
    """A torus from a position on, so long, around it more than once if need be."""
    rows = (torch.arange(lengths[0], device=maps.device) + first[0]) % maps.shape[2]
    columns = (torch.arange(lengths[1], device=maps.device) + first[1]) % maps.shape[3]
    return maps.index_select(2, rows).index_select(3, columns)


def after(size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Pair:
    """The size of a window's map after an operator without padding."""
    height, width = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True))
    return height, width


def times(left: Pair, right: Pair) -> Pair:
    """Products along height and width."""
    return left[0] * right[0], left[1] * right[1]


def pair(value: Any) -> Pair:
    """One number for both axes, or one for each."""
    if isinstance(value, int):
        return value, value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise NotDenseError(f"a size of {value!r} has no exact rule")
    return int(value[0]), int(value[1])


def combined(maps: Tensor, kernel: Pair, steps: Pair, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The positions of each window, ``steps`` apart, combined: along one axis, then along the other, without padding."""
    for axis, (count, step) in enumerate(zip(kernel, steps, strict=True), start=2):
        length = maps.shape[axis] - step * (count - 1)
        maps = reduce(combine, (maps.narrow(axis, step * tap, length) for tap in range(count)))
    return maps


def weighted(maps: Tensor, weights: Sequence[Sequence[float]], steps: Pair) -> Tensor:
    """The weighted sum of each window's positions, likewise."""
    for axis, (row, step) in enumerate(zip(weights, steps, strict=True), start=2):
        length = maps.shape[axis] - step * (len(row) - 1)
        total = maps.narrow(axis, 0, length) * row[0]
        for tap, weight in enumerate(row[1:], start=1):
            total.add_(maps.narrow(axis, step * tap, length), alpha=weight)
        maps = total
    return maps
