"""From the sheet to one vector for each window: global average pooling, and flatten with a fully connected layer."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor
from torch.nn import functional

from shiftscope.engine.sheets import Flat, Layout, Pair, Sheet, Vectors, region, turned

__all__ = ["Spectra", "correlate", "global_average"]

#: Weights and their transform, by the weights' identity, the transform's lengths, and the sheet's factor and size.
Spectra = dict[tuple[int, Pair, Pair, Pair], tuple[Tensor, Tensor]]

#: Multiply-adds that a Fourier transform costs for each point and level, as measured against a convolution's.
FOURIER_COST = 6.0


def global_average(sheet: Sheet, layout: Layout) -> Vectors:
    """The mean of each window's map: products with a matrix of ones where a window reads."""
    rows, columns = (_readers(sheet, layout, axis) for axis in (0, 1))
    sums = torch.einsum("oh,bchw,pw->bopc", rows, sheet.maps, columns)
    return Vectors(sums / (sheet.size[0] * sheet.size[1]) + sheet.background, kept=2)


def correlate(flat: Flat, layout: Layout, weight: Tensor, bias: Tensor | None, spectra: Spectra) -> Vectors:
    """A fully connected layer on flattened maps: one correlation with its weights, the sheet's factor apart."""
    sheet = flat.sheet
    kernel = weight.reshape(len(weight), -1, *sheet.size)
    constant = (kernel.sum(dim=(2, 3)) @ sheet.background) + (0 if bias is None else bias)
    if _fourier_pays(sheet, layout, kernel):
        return Vectors(_by_fourier(sheet, layout, kernel, _spectrum(weight, kernel, sheet, layout, spectra)) + constant)
    return Vectors(_by_convolution(sheet, layout, kernel) + constant)


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
    starts = (layout.rows[-1] - layout.rows[0] + 1) * (layout.columns[-1] - layout.columns[0] + 1)
    direct = starts * classes * channels * sheet.size[0] * sheet.size[1]
    area = _length(sheet, layout, 0) * _length(sheet, layout, 1)
    return area * (FOURIER_COST * (channels + classes) * log2(area + 1) / 2 + 2 * channels * classes) < direct


def _length(sheet: Sheet, layout: Layout, axis: int) -> int:
    """Positions that a transform must hold: the torus, or all that any window reads."""
    if layout.torus:
        return layout.torus[axis]
    starts = layout.starts[axis]
    return _fast_length(starts[-1] - starts[0] + sheet.factor[axis] * (sheet.size[axis] - 1) + 1)


def _by_fourier(sheet: Sheet, layout: Layout, kernel: Tensor, weights: Tensor) -> Tensor:
    """Correlation with the kernel, its taps a factor apart: at each frequency a product of spectra.

    Transforms run over the middle axes, with channels last, as the maps lie in memory; complex products are real ones of
    twice the width. So no map is copied into another order.
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
    """The transformed weights, kept from block to block (with the weights themselves, so that no others take their identity)."""
    lengths = (_length(sheet, layout, 0), _length(sheet, layout, 1))
    key = (id(weight), lengths, sheet.factor, sheet.size)
    if key not in spectra:
        spectra[key] = weight, _transformed(kernel, sheet, layout, lengths)
    return spectra[key][1]


def _transformed(kernel: Tensor, sheet: Sheet, layout: Layout, lengths: Pair) -> Tensor:
    """[frequency, (channel, part), (class, part)]: the conjugate spectrum of the weights, as a real matrix a frequency."""
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
    """Correlation with the kernel, its taps a factor apart, from the first start to the last."""
    reach = tuple(factor * (size - 1) for factor, size in zip(sheet.factor, sheet.size, strict=True))
    first = tuple(starts[0] + origin for starts, origin in zip(layout.starts, sheet.origin, strict=True))
    lengths = tuple(starts[-1] - starts[0] + 1 + more for starts, more in zip(layout.starts, reach, strict=True))
    if layout.torus:
        maps = turned(sheet.maps, (first[0], first[1]), (lengths[0], lengths[1]))
    else:
        maps = region(sheet, (first[0], first[1]), (lengths[0], lengths[1]))
    found = functional.conv2d(maps, kernel, dilation=sheet.factor)
    rows, columns = (torch.tensor(starts, device=maps.device) - starts[0] for starts in layout.starts)
    picked: Tensor = found[:, :, rows[:, None], columns].permute(0, 2, 3, 1)
    return picked


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
