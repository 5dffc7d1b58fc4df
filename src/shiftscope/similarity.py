"""How alike feature maps and vectors are: cosine, similarity, displacement and local homogeneity, for batches.

The definitions are those of :func:`shiftscope.theory.respond` and :func:`shiftscope.theory.homogeneity`, with the same results
for zero maps, constant maps and ties. Everything is computed in double precision. A batch goes through the Fourier transform
a few maps at a time, so that memory does not grow with the batch. This module knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int, Shaped
from scipy.fft import next_fast_len
from torch import Tensor

__all__ = ["TIE", "Responses", "cosine", "homogeneities", "responses"]

#: Peaks of the cross-similarity that differ by less than this count as equal: the Fourier transform rounds to about 1e-15.
TIE = 1e-9
#: Values that one transform may hold, so that it fits the processor's cache: more at once is up to 2.5 times slower.
VALUES = 500_000

Maps = Float[Tensor, "image channel height width"]


@dataclass(frozen=True)
class Responses:
    """How feature maps responded to shifts of the input.

    Attributes:
        similarity: max over u of c(u), in [-1, 1].
        displacement: argmax over u of c(u), (down, right) in the map's positions; of equal peaks the nearest to 0.
        in_place: c(0), in [-1, 1].
    """

    similarity: Float[Tensor, "shift image"]
    displacement: Int[Tensor, "shift image 2"]
    in_place: Float[Tensor, "shift image"]


def cosine(one: Shaped[Tensor, "*each class"], other: Shaped[Tensor, "*others class"]) -> Float[Tensor, "*both"]:
    """Return <a, b> / (|a| |b|) along the last axis, in double precision.

    Two zero vectors have cosine 1; a zero vector and any other have cosine 0.

    Args:
        one: vectors along the last axis, of any dtype.
        other: vectors of the same length; the other axes broadcast.

    >>> cosine(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([0.0, 0.0])).tolist()
    [0.0, 1.0]
    """
    one, other = one.double(), other.double()
    norms = (one.square().sum(-1) * other.square().sum(-1)).sqrt()
    similar = ((one * other).sum(-1) / norms).clamp(-1, 1)
    both_zero = (one == 0).all(-1) & (other == 0).all(-1)
    return torch.where(norms > 0, similar, both_zero.double())


def responses(before: Maps, after: Float[Tensor, "shift image channel height width"]) -> Responses:
    """Measure how similar each map is to its shifted counterpart, and where it moved.

    ``c(u) = <A, T_-u B> / (|A| |B|)`` over every whole displacement u, both maps extended by zeros.

    Args:
        before: A, the maps of the unshifted images.
        after: B, the maps of the shifted images.

    Returns:
        the responses, in double precision, on the CPU. Two zero maps have similarity 1 and displacement 0; a zero map and any
        other have similarity 0.

    >>> from shiftscope.shifts import translate
    >>> maps = torch.tensor([[[[0.0, 1.0, 2.0, 0.0, 0.0]]]])
    >>> found = responses(maps, translate(maps, torch.tensor([[0, 2]]))[None])
    >>> round(found.similarity.item(), 9), found.displacement.tolist()
    (1.0, [[[0, 2]]])
    """
    shifts, images, channels, height, width = after.shape
    similarity, in_place = torch.empty(shifts, images, dtype=torch.float64), torch.empty(shifts, images, dtype=torch.float64)
    displacement = torch.empty(shifts, images, 2, dtype=torch.int64)
    at_once = max(1, VALUES // (4 * channels * height * width))
    for start in range(0, images, at_once):
        part = slice(start, start + at_once)
        one = before[part].double()
        spectrum, power = _spectrum(one), one.square().flatten(1).sum(1)
        for number in range(shifts):
            other = after[number, part].double()
            norms = (power * other.square().flatten(1).sum(1)).sqrt()
            products = _cross_products(spectrum, _spectrum(other), (height, width))
            in_place[number, part] = cosine(one.flatten(1), other.flatten(1))
            peaks, displacement[number, part] = _peaks(products / norms.where(norms > 0, torch.inf)[:, None, None])
            # Of a zero map every product is zero, and the cosine in place knows the convention.
            similarity[number, part] = torch.where(norms.cpu() > 0, peaks.clamp(max=1).cpu(), in_place[number, part])
    return Responses(similarity, displacement, in_place)


def homogeneities(maps: Maps, stride: tuple[int, int]) -> Float[Tensor, " image"]:
    """Measure the local homogeneity of each map at a stride.

    The mean over t in {0 .. s - 1}^2, t = 0 left out, of ``cos(S x, S T_t x)``: S keeps every s-th position, T_t is the
    zero-fill shift.

    Args:
        maps: the maps before subsampling.
        stride: s, along height and width.

    Returns:
        one value a map, in double precision, on the CPU; 1 at stride 1.

    >>> round(homogeneities(torch.tensor([[[[2.0, 2.0, 3.0, 3.0]]]]), (1, 2)).item(), 6)
    0.83205
    """
    down, right = stride
    maps = maps.double()
    subsampled = maps[:, :, ::down, ::right]
    padded = torch.nn.functional.pad(maps, (right - 1, 0, down - 1, 0))
    cosines = []
    for dy, dx in product(range(down), range(right)):
        if (dy, dx) != (0, 0):
            moved = padded[:, :, down - 1 - dy :: down, right - 1 - dx :: right]
            moved = moved[:, :, : subsampled.shape[2], : subsampled.shape[3]]
            cosines.append(cosine(subsampled.flatten(1), moved.flatten(1)))
    return torch.stack(cosines).mean(dim=0).cpu() if cosines else torch.ones(len(maps), dtype=torch.float64)


def _fast_sizes(size: tuple[int, ...]) -> list[int]:
    """Return sizes that are quick to transform and large enough that opposite borders do not meet."""
    return [next_fast_len(2 * each - 1, real=True) for each in size]


def _spectrum(maps: Maps) -> Tensor:
    spectra: Tensor = torch.fft.rfft2(maps, s=_fast_sizes(maps.shape[2:]))
    return spectra


def _cross_products(one: Tensor, other: Tensor, size: tuple[int, int]) -> Float[Tensor, "image down right"]:
    """Return <A, T_-u B> for every u from the maps' spectra; u = 0 is in the centre."""
    products: Tensor = torch.fft.irfft2(torch.linalg.vecdot(one, other, dim=1), s=_fast_sizes(size))
    for axis, each in zip((1, 2), size, strict=True):
        full = products.shape[axis]
        negative = products.narrow(axis, full - each + 1, each - 1)
        products = torch.cat([negative, products.narrow(axis, 0, each)], dim=axis)
    return products


def _peaks(similarities: Float[Tensor, "image down right"]) -> tuple[Float[Tensor, " image"], Int[Tensor, "image 2"]]:
    """Return each image's largest value and the displacement nearest to 0 that reaches it; of equally near ones the first."""
    down, right = similarities.shape[1:]
    highest = similarities.flatten(1).amax(1)
    rows, columns = (torch.arange(size, device=similarities.device) - size // 2 for size in (down, right))
    lengths = rows[:, None].square() + columns.square()
    order = lengths * down * right + torch.arange(down * right, device=lengths.device).reshape(down, right)
    peaks = similarities >= highest[:, None, None] - TIE
    nearest = torch.where(peaks, order, torch.iinfo(order.dtype).max).flatten(1).argmin(1)
    return highest, torch.stack([rows[nearest // right], columns[nearest % right]], dim=1)
