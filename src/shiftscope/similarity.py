"""Similarity, movement and homogeneity of many maps at once: :mod:`shiftscope.signals` for batches of channels.

The definitions are those of :func:`shiftscope.signals.respond` and :func:`shiftscope.signals.homogeneity`, in double precision,
with the same answers for zero maps, constants and ties. Here a whole batch goes through one Fourier transform, some maps at a
time, so that memory does not grow with the batch. This module knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from scipy.fft import next_fast_len
from torch import Tensor

from shiftscope.signals import TIE

__all__ = ["Responses", "homogeneities", "responses"]

#: Values that one transform may hold, so that it stays near the processor: more at once is up to 2.5 times slower.
VALUES = 500_000

Maps = Float[Tensor, "image channel height width"]
#: Sums of squares of the maps before and after.
Powers = tuple[Float[Tensor, " image"], Float[Tensor, " image"]]


@dataclass(frozen=True)
class Responses:
    """What shifts did to maps.

    Attributes:
        similarity: max over u of c(u).
        displacement: argmax over u of c(u), (down, right) in the map's positions; of equal peaks the nearest to 0.
        in_place: c(0).
    """

    similarity: Float[Tensor, "shift image"]
    displacement: Int[Tensor, "shift image 2"]
    in_place: Float[Tensor, "shift image"]


def responses(before: Maps, after: Float[Tensor, "shift image channel height width"]) -> Responses:
    """Signal similarity and movement of each map under each shift: c(u) = <A, T_-u B> / (|A| |B|), over every whole u.

    Args:
        before: A, the maps of the unshifted images.
        after: B, those of the shifted images.

    Returns:
        the responses, in double precision. Two zero maps are alike (similarity 1, movement 0), a zero map is like no other (0).

    >>> from shiftscope.shifts import translate
    >>> maps = torch.tensor([[[[0.0, 1.0, 2.0, 0.0, 0.0]]]])
    >>> found = responses(maps, translate(maps, torch.tensor([[0, 2]]))[None])
    >>> round(found.similarity.item(), 9), found.displacement.tolist()
    (1.0, [[[0, 2]]])
    """
    shifts, images, channels, height, width = after.shape
    similarity, in_place = torch.empty(shifts, images, dtype=torch.float64), torch.empty(shifts, images, dtype=torch.float64)
    displacement = torch.empty(shifts, images, 2, dtype=torch.int64)
    some = max(1, VALUES // (4 * channels * height * width))
    for start in range(0, images, some):
        part = slice(start, start + some)
        one = before[part].double()
        spectrum, power = _transformed(one), _product(one, one)
        for number in range(shifts):
            other = after[number, part].double()
            powers = (power, _product(other, other))
            products = _cross_products(spectrum, _transformed(other), (height, width))
            found, displacement[number, part] = _peaks(_relative(products, powers))
            similarity[number, part] = _both_zero(found, powers).clamp(max=1)
            in_place[number, part] = _cosines(_product(one, other), powers)
    return Responses(similarity, displacement, in_place)


def homogeneities(maps: Maps, stride: tuple[int, int]) -> Float[Tensor, " image"]:
    """Local homogeneity of each map at a subsampling stride: the mean over t in {0 .. s - 1}^2, 0 left out, of cos(S x, S T_t x).

    Args:
        maps: in front of the subsampling.
        stride: s, along height and width.

    Returns:
        one value a map, in double precision; 1 at stride 1. Two zero vectors are alike, a zero vector is like no other.

    >>> homogeneities(torch.tensor([[[[2.0, 2.0, 3.0, 3.0]]]]), (1, 2)).tolist()
    [0.8320502943378437]
    """
    down, right = stride
    maps = maps.double()
    kept = maps[:, :, ::down, ::right]
    padded = torch.nn.functional.pad(maps, (right - 1, 0, down - 1, 0))
    steps = [step for step in product(range(down), range(right)) if any(step)]
    cosines, power = [], _product(kept, kept)
    for dy, dx in steps:
        moved = padded[:, :, down - 1 - dy :: down, right - 1 - dx :: right][:, :, : kept.shape[2], : kept.shape[3]]
        cosines.append(_cosines(_product(kept, moved), (power, _product(moved, moved))))
    return torch.stack(cosines).mean(dim=0).cpu() if cosines else torch.ones(len(maps), dtype=torch.float64)


def _transformed(maps: Maps) -> Tensor:
    """The maps' spectra, on a size that keeps both ends apart and is quick to transform."""
    sizes = [next_fast_len(2 * size - 1, real=True) for size in maps.shape[2:]]
    spectra: Tensor = torch.fft.rfft2(maps, s=sizes)
    return spectra


def _cross_products(one: Tensor, other: Tensor, size: tuple[int, int]) -> Float[Tensor, "image down right"]:
    """<A, T_-u B> for every u; u = 0 is in the centre."""
    sizes = [next_fast_len(2 * each - 1, real=True) for each in size]
    products: Tensor = torch.fft.irfft2(torch.linalg.vecdot(one, other, dim=1), s=sizes)
    for axis, each in zip((1, 2), size, strict=True):
        full = products.shape[axis]
        negative = products.narrow(axis, full - each + 1, each - 1)
        products = torch.cat([negative, products.narrow(axis, 0, each)], dim=axis)
    return products


def _relative(products: Float[Tensor, "image down right"], powers: Powers) -> Float[Tensor, "image down right"]:
    """Products of maps over their norms; 0 where a map is zero."""
    norms = (powers[0] * powers[1]).sqrt()[:, None, None]
    return torch.where(norms > 0, products / norms, torch.zeros_like(products))


def _both_zero(values: Float[Tensor, " image"], powers: Powers) -> Float[Tensor, " image"]:
    """The values, but 1 where both maps are zero."""
    return torch.where((powers[0] == 0) & (powers[1] == 0), torch.ones_like(values), values)


def _cosines(products: Float[Tensor, " image"], powers: Powers) -> Float[Tensor, " image"]:
    return _both_zero(_relative(products[:, None, None], powers)[:, 0, 0], powers).clamp(-1, 1)


def _peaks(similarities: Float[Tensor, "image down right"]) -> tuple[Float[Tensor, " image"], Int[Tensor, "image 2"]]:
    """The largest value of each image, and the displacement nearest to 0 where it is reached; of equally near ones the first."""
    images, down, right = similarities.shape
    highest = similarities.flatten(1).amax(1)
    rows, columns = (torch.arange(size, device=similarities.device) - size // 2 for size in (down, right))
    lengths = rows[:, None].square() + columns.square()
    order = (lengths * down * right + torch.arange(down * right, device=lengths.device).reshape(down, right)).expand(
        images, -1, -1
    )
    peaks = similarities >= highest[:, None, None] - TIE
    nearest = torch.where(peaks, order, torch.iinfo(order.dtype).max).flatten(1).argmin(1)
    return highest, torch.stack([rows[nearest // right], columns[nearest % right]], dim=1)


def _product(one: Maps, other: Maps) -> Float[Tensor, " image"]:
    return (one * other).flatten(1).sum(1)
