"""Sheets: one map that holds the maps of all windows, its geometry, and how a head reads one vector per window from it.

Two heads have exact rules: global average pooling, and flatten followed by a fully connected layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import log2
from typing import Any

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional

__all__ = [
    "BatchSize",
    "Flat",
    "Layout",
    "NotDenseError",
    "Pair",
    "Sheet",
    "Spectra",
    "Vectors",
    "size_after",
    "combined",
    "largest",
    "wrapped",
    "correlate",
    "global_average",
    "pair",
    "region",
    "multiplied",
    "torus_region",
    "weighted",
]

Pair = tuple[int, int]


#: Weights and their transform, by the weights' id, the transform's lengths, and the sheet's factor and size.
Spectra = dict[tuple[int, Pair, Pair, Pair], tuple[Tensor, Tensor]]

#: The most transforms that are kept.
MOST_SPECTRA = 8

#: Multiply-adds that a Fourier transform costs for each point and level, measured relative to a convolution's.
FOURIER_COST = 6.0


class NotDenseError(Exception):
    """The dense method is not known to be exact for this model; the message is the reason."""


@dataclass(frozen=True)
class Layout:
    """Where the windows of all shifts lie. Every pair is (height, width).

    Attributes:
        size: of the model's input.
        rows: the distinct starts o of the windows along the height, ascending; in P or on the torus.
        columns: the distinct starts along the width.
        torus: the size of the torus under circular shifts; None under zero-fill shifts.
    """

    size: Pair
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    torus: Pair | None

    @property
    def starts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the starts along the height and along the width."""
        return self.rows, self.columns


@dataclass(frozen=True)
class Sheet:
    """One map that holds the maps of all windows.

    Attributes:
        maps: [image, channel, height, width], values less the background, on the box that holds all that differs from it.
        background: [channel], the value outside the box.
        corner: where the box begins in the sheet.
        factor: steps in the sheet from one position of a window's map to the next: the product of the strides so far.
        size: (height, width) of a window's map.
        origin: where a window's map begins, relative to the window; circular padding moves it up and left.
    """

    maps: Tensor
    background: Tensor
    corner: Pair
    factor: Pair
    size: Pair
    origin: Pair

    @property
    def values(self) -> Tensor:
        """Return the values on the box, the background included."""
        return self.maps + self.background[:, None, None]


@dataclass(frozen=True)
class Flat:
    """A sheet whose windows' maps are flattened, as input of a fully connected layer."""

    sheet: Sheet


@dataclass(frozen=True)
class Vectors:
    """One vector for each start of a window.

    Attributes:
        values: [image, row, column, feature].
        trailing: axes of size 1 that follow the features in the model's own output.
    """

    values: Tensor
    trailing: int = 0


class BatchSize:
    """A stand-in for the number of images, which traced models read to reshape."""


def region(sheet: Sheet, first: Pair, lengths: Pair) -> Tensor:
    """Return the sheet from position ``first`` on, of size ``lengths``; zeros (the background) outside its box."""
    maps, margins = sheet.maps, []
    for axis in (1, 0):
        begin, end = sheet.corner[axis], sheet.corner[axis] + sheet.maps.shape[2 + axis]
        low, high = max(first[axis], begin), min(first[axis] + lengths[axis], end)
        if high <= low:
            return maps.new_zeros(*maps.shape[:2], *lengths)
        maps = maps.narrow(2 + axis, low - begin, high - low)
        margins += [low - first[axis], first[axis] + lengths[axis] - high]
    return functional.pad(maps, margins) if any(margins) else maps


def wrapped(maps: Tensor, reach: Pair) -> Tensor:
    """Return a torus continued circularly by ``reach`` positions below and to the right."""
    if reach == (0, 0):
        return maps
    if reach[0] < maps.shape[2] and reach[1] < maps.shape[3]:
        return functional.pad(maps, (0, reach[1], 0, reach[0]), mode="circular")
    return torus_region(maps, (0, 0), (maps.shape[2] + reach[0], maps.shape[3] + reach[1]))


def torus_region(maps: Tensor, first: Pair, lengths: Pair) -> Tensor:
    """Return a torus from position ``first`` on, of size ``lengths``, which may wrap around more than once."""
    rows = (torch.arange(lengths[0], device=maps.device) + first[0]) % maps.shape[2]
    columns = (torch.arange(lengths[1], device=maps.device) + first[1]) % maps.shape[3]
    return maps.index_select(2, rows).index_select(3, columns)


def size_after(size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Pair:
    """Return the size of a window's map after an operator without padding."""
    height, width = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True))
    return height, width


def multiplied(left: Pair, right: Pair) -> Pair:
    """Return the products along height and width."""
    return left[0] * right[0], left[1] * right[1]


def pair(value: Any) -> Pair:
    """Return (height, width) from one number for both axes or one for each."""
    if isinstance(value, int):
        return value, value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise NotDenseError(f"a size of {value!r} has no exact rule")
    return int(value[0]), int(value[1])


def combined(maps: Tensor, kernel: Pair, steps: Pair, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine the positions of each window, ``steps`` apart, along its rows, then along its columns, without padding."""
    for axis in (3, 2):
        count, step = kernel[axis - 2], steps[axis - 2]
        length = maps.shape[axis] - step * (count - 1)
        maps = reduce(combine, (maps.narrow(axis, step * tap, length) for tap in range(count)))
    return maps


def largest(one: Tensor, other: Tensor) -> Tensor:
    """Return the larger value at each position.

    The gradient goes to the first of equal values; as :func:`combined` takes rows first, that is the first in reading order, as
    in ``nn.MaxPool2d``. ``torch.maximum`` would halve it between them.
    """
    return torch.where(other > one, other, one) if torch.is_grad_enabled() else torch.maximum(one, other)


def weighted(maps: Tensor, weights: Sequence[Sequence[float]], steps: Pair) -> Tensor:
    """Return the weighted sum of each window's positions, ``steps`` apart, along one axis, then along the other."""
    for axis, (row, step) in enumerate(zip(weights, steps, strict=True), start=2):
        length = maps.shape[axis] - step * (len(row) - 1)
        total = maps.narrow(axis, 0, length) * row[0]
        for tap, weight in enumerate(row[1:], start=1):
            total.add_(maps.narrow(axis, step * tap, length), alpha=weight)
        maps = total
    return maps


def global_average(sheet: Sheet, layout: Layout) -> Vectors:
    """Return the mean of each window's map, as two products with matrices that count where a window reads."""
    rows, columns = (_readers(sheet, layout, axis) for axis in (0, 1))
    sums = torch.einsum("oh,bchw,pw->bopc", rows, sheet.maps, columns)
    return Vectors(sums / (sheet.size[0] * sheet.size[1]) + sheet.background, trailing=2)


def correlate(flat: Flat, layout: Layout, weight: Tensor, bias: Tensor | None, spectra: Spectra) -> Vectors:
    """Apply a fully connected layer to flattened maps: one correlation with its weights, the sheet's factor apart."""
    sheet = flat.sheet
    kernel = weight.reshape(len(weight), -1, *sheet.size)
    constant = (kernel.sum(dim=(2, 3)) @ sheet.background) + (0 if bias is None else bias)
    if _fourier_pays(sheet, layout, kernel):
        return Vectors(_by_fourier(sheet, layout, kernel, _spectrum(weight, kernel, sheet, layout, spectra)) + constant)
    return Vectors(_by_convolution(sheet, layout, kernel) + constant)


def _readers(sheet: Sheet, layout: Layout, axis: int) -> Tensor:
    """Return [start, position of the box]: how often a window's map reads a position along one axis."""
    starts, length = layout.starts[axis], sheet.maps.shape[2 + axis]
    steps = torch.arange(sheet.size[axis]) * sheet.factor[axis] + sheet.origin[axis] - sheet.corner[axis]
    places = torch.tensor(starts)[:, None] + steps
    counts = torch.zeros(len(starts), length)
    if layout.torus:
        counts.scatter_add_(1, places % length, torch.ones(places.shape))
    else:
        inside = (places >= 0) & (places < length)
        counts.scatter_add_(1, places.clamp(0, length - 1), inside.float())
    return counts.to(sheet.maps)


def _fourier_pays(sheet: Sheet, layout: Layout, kernel: Tensor) -> bool:
    """Return whether a Fourier transform needs fewer multiply-adds than a convolution."""
    classes, channels = kernel.shape[:2]
    starts = (layout.rows[-1] - layout.rows[0] + 1) * (layout.columns[-1] - layout.columns[0] + 1)
    direct = starts * classes * channels * sheet.size[0] * sheet.size[1]
    area = _length(sheet, layout, 0) * _length(sheet, layout, 1)
    return area * (FOURIER_COST * (channels + classes) * log2(area + 1) / 2 + 2 * channels * classes) < direct


def _length(sheet: Sheet, layout: Layout, axis: int) -> int:
    """Return the positions that a transform must hold: the torus, or all that any window reads."""
    if layout.torus:
        return layout.torus[axis]
    starts = layout.starts[axis]
    length = starts[-1] - starts[0] + sheet.factor[axis] * (sheet.size[axis] - 1) + 1
    return 2 * int(next_fast_len((length + 1) // 2, real=True))  # even, as a real transform is quickest


def _by_fourier(sheet: Sheet, layout: Layout, kernel: Tensor, weights: Tensor) -> Tensor:
    """Correlate with the kernel, its taps the factor apart, by a product of spectra at each frequency.

    Transforms run over the middle axes of channels-last maps, and complex products are real ones of twice the width, so that
    no map is copied into another memory order.
    """
    lengths = (_length(sheet, layout, 0), _length(sheet, layout, 1))
    first = (0, 0) if layout.torus else (layout.rows[0], layout.columns[0])
    maps = sheet.maps if layout.torus else region(sheet, first, lengths)
    spectrum = torch.fft.rfft2(maps.permute(0, 2, 3, 1), s=lengths, dim=(1, 2))
    frequencies = torch.view_as_real(spectrum).flatten(3).flatten(1, 2)  # [image, frequency, (channel, part)]
    products = torch.bmm(frequencies.transpose(0, 1), weights).transpose(0, 1)
    shape = (len(maps), lengths[0], lengths[1] // 2 + 1, len(kernel), 2)
    found = torch.fft.irfft2(torch.view_as_complex(products.reshape(shape)), s=lengths, dim=(1, 2))
    rows, columns = (
        torch.tensor([(start - first[axis] + sheet.origin[axis]) % lengths[axis] for start in starts], device=found.device)
        for axis, starts in enumerate(layout.starts)
    )
    picked: Tensor = found[:, rows[:, None], columns]
    return picked


def _spectrum(weight: Tensor, kernel: Tensor, sheet: Sheet, layout: Layout, spectra: Spectra) -> Tensor:
    """Return the transformed weights, cached from block to block with the weights themselves, so that their id stays theirs.

    Parametrized weights are new in each block: the oldest entries are dropped. They are not cached while gradients are recorded,
    because weights that are trained change from one block to the next.
    """
    lengths = (_length(sheet, layout, 0), _length(sheet, layout, 1))
    if torch.is_grad_enabled():
        return _transformed(kernel, sheet, layout, lengths)
    key = (id(weight), lengths, sheet.factor, sheet.size)
    if key not in spectra:
        if len(spectra) >= MOST_SPECTRA:
            del spectra[next(iter(spectra))]
        spectra[key] = weight, _transformed(kernel, sheet, layout, lengths)
    return spectra[key][1]


def _transformed(kernel: Tensor, sheet: Sheet, layout: Layout, lengths: Pair) -> Tensor:
    """Return [frequency, (channel, part), (class, part)]: the weights' conjugate spectrum, as one real matrix per frequency."""
    spread = [factor * (size - 1) + 1 for factor, size in zip(sheet.factor, sheet.size, strict=True)]
    apart = kernel.new_zeros(*kernel.shape[:2], *spread)
    apart[:, :, :: sheet.factor[0], :: sheet.factor[1]] = kernel
    if layout.torus:
        apart = _folded(apart, lengths)
    spectrum = torch.fft.rfft2(apart, s=lengths).conj().flatten(2).permute(2, 1, 0)
    real, imaginary = spectrum.real, spectrum.imag
    rows = torch.stack([torch.stack([real, imaginary], dim=-1), torch.stack([-imaginary, real], dim=-1)], dim=2)
    return rows.reshape(len(spectrum), 2 * kernel.shape[1], 2 * len(kernel)).contiguous()


def _by_convolution(sheet: Sheet, layout: Layout, kernel: Tensor) -> Tensor:
    """Correlate with the kernel, its taps the factor apart, from the first start to the last."""
    reach = tuple(factor * (size - 1) for factor, size in zip(sheet.factor, sheet.size, strict=True))
    first = tuple(starts[0] + origin for starts, origin in zip(layout.starts, sheet.origin, strict=True))
    lengths = tuple(starts[-1] - starts[0] + 1 + more for starts, more in zip(layout.starts, reach, strict=True))
    if layout.torus:
        maps = torus_region(sheet.maps, (first[0], first[1]), (lengths[0], lengths[1]))
    else:
        maps = region(sheet, (first[0], first[1]), (lengths[0], lengths[1]))
    found = functional.conv2d(maps, kernel, dilation=sheet.factor)
    rows, columns = (torch.tensor(starts, device=maps.device) - starts[0] for starts in layout.starts)
    picked: Tensor = found[:, :, rows[:, None], columns].permute(0, 2, 3, 1)
    return picked


def _folded(kernel: Tensor, lengths: Pair) -> Tensor:
    """Return a kernel wrapped around a torus of size ``lengths``."""
    folded = kernel.new_zeros(*kernel.shape[:2], *lengths)
    rows = torch.arange(kernel.shape[2], device=kernel.device) % lengths[0]
    columns = torch.arange(kernel.shape[3], device=kernel.device) % lengths[1]
    flat = (rows[:, None] * lengths[1] + columns).flatten()
    return folded.flatten(2).index_add_(2, flat, kernel.flatten(2)).reshape(folded.shape)
