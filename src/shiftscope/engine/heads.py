"""From the sheet to one vector for each window: global average pooling, and flatten with a fully connected layer."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor

from shiftscope.engine.sheets import Flat, Layout, Pair, Sheet, Vectors, region

__all__ = ["Spectra", "correlate", "global_average"]

#: Transformed weights, by the layer's name, the transform's lengths and the factor.
Spectra = dict[tuple[str, Pair, Pair], Tensor]

#: Multiply-adds that a Fourier transform costs for each point and level, as measured against a convolution's.
FOURIER_COST = 6.0


def global_average(sheet: Sheet, layout: Layout) -> Vectors:
    """The mean of each window's map: products with a matrix of ones where a window reads."""
    rows, columns = (_readers(sheet, layout, axis) for axis in (0, 1))
    sums = torch.einsum("oh,bchw,pw->bopc", rows, sheet.maps, columns)
    return Vectors(sums / (sheet.size[0] * sheet.size[1]) + sheet.background, kept=2)


def correlate(name: str, flat: Flat, layout: Layout, weight: Tensor, bias: Tensor | None, spectra: Spectra) -> Vectors:
    """A fully connected layer on flattened maps: one correlation with its weights, the sheet's factor apart."""
    sheet = flat.sheet
    kernel = weight.reshape(len(weight), -1, *sheet.size)
    constant = (kernel.sum(dim=(2, 3)) @ sheet.background) + (0 if bias is None else bias)
    if _fourier_pays(sheet, layout, kernel):
        return Vectors(_by_fourier(name, sheet, layout, kernel, spectra) + constant)
    return Vectors(_by_windows(sheet, layout, kernel) + constant)


def _readers(sheet: Sheet, layout: Layout, axis: int) -> Tensor:
    """[start, position of the box]: how often a window's map reads a position."""
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
    """Whether multiply-adds are saved by transforming."""
    classes, channels = kernel.shape[:2]
    starts = len(layout.rows) * len(layout.columns)
    direct = starts * classes * channels * sheet.size[0] * sheet.size[1]
    area = _length(sheet, layout, 0) * _length(sheet, layout, 1)
    return area * (FOURIER_COST * (channels + classes) * log2(area + 1) / 2 + 2 * channels * classes) < direct


def _length(sheet: Sheet, layout: Layout, axis: int) -> int:
    """Positions that a transform must hold: the torus, or all that any window reads."""
    if layout.torus:
        return layout.torus[axis]
    starts = layout.starts[axis]
    return _fast_length(starts[-1] - starts[0] + sheet.factor[axis] * (sheet.size[axis] - 1) + 1)


def _by_fourier(name: str, sheet: Sheet, layout: Layout, kernel: Tensor, spectra: Spectra) -> Tensor:
    """Correlation with the kernel, its taps a factor apart: a product of spectra, channel by channel."""
    lengths = (_length(sheet, layout, 0), _length(sheet, layout, 1))
    key = (name, lengths, sheet.factor)
    if key not in spectra:
        apart = torch.zeros(*kernel.shape[:2], *(f * (n - 1) + 1 for f, n in zip(sheet.factor, sheet.size, strict=True)))
        apart = apart.to(kernel)
        apart[:, :, :: sheet.factor[0], :: sheet.factor[1]] = kernel
        if layout.torus:
            apart = _folded(apart, lengths)
        # [frequency, channel, class]
        spectra[key] = torch.fft.rfft2(apart, s=lengths).conj().flatten(2).permute(2, 1, 0).contiguous()
    first = (0, 0) if layout.torus else (layout.rows[0], layout.columns[0])
    maps = sheet.maps if layout.torus else region(sheet, first, lengths)
    spectrum = torch.fft.rfft2(maps.contiguous(), s=lengths)
    products = torch.bmm(spectrum.flatten(2).permute(2, 0, 1), spectra[key])
    shape = (len(maps), kernel.shape[0], lengths[0], lengths[1] // 2 + 1)
    found = torch.fft.irfft2(products.permute(1, 2, 0).reshape(shape), s=lengths)
    rows, columns = (
        torch.tensor([(start - first[axis] + sheet.origin[axis]) % lengths[axis] for start in starts], device=found.device)
        for axis, starts in enumerate(layout.starts)
    )
    picked: Tensor = found[:, :, rows[:, None], columns].permute(0, 2, 3, 1)
    return picked


def _by_windows(sheet: Sheet, layout: Layout, kernel: Tensor) -> Tensor:
    """Each window's map is gathered and multiplied by the weights."""
    rows, columns = (
        torch.tensor(starts)[:, None] + torch.arange(sheet.size[axis]) * sheet.factor[axis] + sheet.origin[axis]
        for axis, starts in enumerate(layout.starts)
    )
    if layout.torus:
        whole, low = sheet.maps, (0, 0)
        rows, columns = rows % whole.shape[2], columns % whole.shape[3]
    else:
        low = (layout.rows[0], layout.columns[0])
        lengths = (int(rows.max()) - low[0] + 1, int(columns.max()) - low[1] + 1)
        whole = region(sheet, low, lengths)
    rows, columns = (rows - low[0]).to(whole.device), (columns - low[1]).to(whole.device)
    # [image, channel, start row, row, start column, column]
    windows = whole[:, :, rows[:, :, None, None], columns]
    return torch.einsum("bcoipj,kcij->bopk", windows, kernel)


def _folded(kernel: Tensor, lengths: Pair) -> Tensor:
    """A kernel longer than the torus, wrapped around it."""
    folded = kernel.new_zeros(*kernel.shape[:2], *lengths)
    rows = torch.arange(kernel.shape[2], device=kernel.device) % lengths[0]
    columns = torch.arange(kernel.shape[3], device=kernel.device) % lengths[1]
    flat = (rows[:, None] * lengths[1] + columns).flatten()
    return folded.flatten(2).index_add_(2, flat, kernel.flatten(2)).reshape(folded.shape)


def _fast_length(length: int) -> int:
    """The next length whose only prime factors are 2, 3 and 5, and which is even: transforms of it are quick."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and length % 2 == 0:
            return length
        length += 1
