"""Measure how alike feature maps and vectors are: cosine, similarity, displacement and local homogeneity, in batches.

The definitions are those of :func:`shiftscope.theory.respond` and :func:`shiftscope.theory.homogeneity`, with the same results
for zero maps, constant maps and ties. Everything is computed in double precision, a few maps at a time, so that memory does not
grow with the batch. Displacements that cannot hold the peak are not computed. This module depends on no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product

import torch
from jaxtyping import Float, Int, Shaped
from scipy.fft import next_fast_len
from torch import Tensor

__all__ = ["TIE", "Responses", "cosine", "homogeneities", "largest_difference", "responses"]

#: Peaks of the cross-similarity that differ by less than this count as equal: the Fourier transform rounds to about 1e-15.
TIE = 1e-9
#: Values that one transform may hold, so that it fits the processor's cache: more at once is up to 2.5 times slower.
VALUES = 500_000

#: From this number of values in a map on, guessing the peak first saves more time than it costs.
GUESSED = 100_000
#: Up to this many products are computed directly; for more, Fourier transforms are cheaper.
FEW = 9
#: How far the bound at a displacement must lie below a value reached elsewhere; more than single-precision rounding.
SLACK = 1e-4

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

    Two zero vectors have cosine 1; a zero vector and any other have cosine 0. It is NaN where a vector is not finite.

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
    return torch.where(norms == 0, both_zero.double(), similar)


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinite where one is not finite."""
    if not (one.isfinite().all() and other.isfinite().all()):
        return float("inf")
    if not one.numel():
        return 0.0
    if not (one.is_floating_point() or one.is_complex()):
        return float(bool((one != other).any()))
    return float((one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-300))


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
    if before.element_size() < 4:  # transforms need single precision
        before, after = before.float(), after.float()
    _, images, channels, height, width = after.shape
    at_once = max(1, VALUES // (4 * channels * height * width))
    parts = [slice(start, start + at_once) for start in range(0, images, at_once)]
    found = [_responses(_Pairs.of(before[part], after[:, part])) for part in parts]
    return Responses(*(torch.cat([getattr(each, name.name) for each in found], dim=1) for name in fields(Responses)))


def homogeneities(maps: Maps, stride: tuple[int, int]) -> Float[Tensor, " image"]:
    """Measure the local homogeneity of each map at a stride.

    The mean over t in {0 .. s - 1}^2, t = 0 left out, of ``cos(S x, S T_t x)``: S keeps every s-th position, T_t is the
    zero-fill shift.

    Args:
        maps: the maps before subsampling.
        stride: s, along height and width.

    Returns:
        one value per map, in double precision, on the CPU; 1 at stride 1.

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


@dataclass(frozen=True)
class _Pairs:
    """Maps A of a few images, their counterparts B under each shift, and what the complete maps have in common.

    Attributes:
        before: A.
        after: B.
        one: A, in double precision.
        others: B, in double precision.
        norms: |A| |B|, in double precision.
        in_place: c(0), in double precision.
    """

    before: Maps
    after: Float[Tensor, "shift image channel height width"]
    one: Maps
    others: list[Maps]
    norms: Float[Tensor, "shift image"]
    in_place: Float[Tensor, "shift image"]

    @classmethod
    def of(cls, before: Maps, after: Float[Tensor, "shift image channel height width"]) -> _Pairs:
        one, others = before.double(), [other.double() for other in after]
        squares = _dots(one, one), torch.stack([_dots(other, other) for other in others])
        norms = (squares[0] * squares[1]).sqrt()
        in_place = (torch.stack([_dots(one, other) for other in others]) / norms).clamp(-1, 1)
        if not bool((norms > 0).all()):
            in_place = torch.stack([cosine(one.flatten(1), other.flatten(1)) for other in others])
        return cls(before, after, one, others, norms, in_place)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return self.one.shape[2], self.one.shape[3]

    @cached_property
    def squares(self) -> list[Tensor]:
        """Squared length of the vectors at each position of A and of B, in the maps' own precision."""
        return [maps.square().sum(dim=-3) for maps in (self.before, self.after)]

    def product(self, shift: int, image: int, displacement: tuple[int, int]) -> Float[Tensor, ""]:
        """Return c(u), by its definition."""
        if displacement == (0, 0):
            return self.in_place[shift, image]
        (top, left), (below, beyond) = ([max(0, sign * each) for each in displacement] for sign in (-1, 1))
        height, width = (size - abs(each) for size, each in zip(self.size, displacement, strict=True))
        one = self.one[image, :, top : top + height, left : left + width]
        other = self.others[shift][image, :, below : below + height, beyond : beyond + width]
        return torch.dot(one.flatten(), other.flatten()) / self.norms[shift, image]


def _dots(one: Maps, other: Maps) -> Float[Tensor, " image"]:
    """Return <A, B> of each image. BLAS is quicker than a sum of products, except on small maps."""
    if one[0].numel() < 4096:
        dots: Tensor = torch.linalg.vecdot(one.flatten(1), other.flatten(1))
        return dots
    return torch.stack([torch.dot(*each) for each in zip(one.flatten(1), other.flatten(1), strict=True)])


def _responses(pairs: _Pairs) -> Responses:
    """Return the responses of a few pairs of maps."""
    reach = _reach(pairs, pairs.in_place)
    if any(4 * far > size for far, size in zip(reach, pairs.size, strict=True)) and pairs.before[0].numel() >= GUESSED:
        reach = _reach(pairs, pairs.in_place.maximum(_guessed(pairs)))
    few = (2 * reach[0] + 1) * (2 * reach[1] + 1) <= FEW
    found = [_peaks(products) for products in (_one_by_one(pairs, reach) if few else _by_fourier(pairs, reach))]
    peaks, displacement = (torch.stack(each) for each in zip(*found, strict=True))
    # A zero map's products are all zero; `in_place` already follows the convention for zero maps.
    similarity = torch.where(pairs.norms > 0, peaks.clamp(max=1), pairs.in_place)
    return Responses(similarity.cpu(), displacement.cpu(), pairs.in_place.cpu())


def _one_by_one(pairs: _Pairs, reach: tuple[int, int]) -> Iterator[Float[Tensor, "image down right"]]:
    """Yield c(u) of each shift for every u of up to ``reach``, by its definition; u = 0 is in the centre."""
    for shift in range(len(pairs.others)):
        found = torch.zeros_like(pairs.norms[shift])[:, None, None].repeat(1, 2 * reach[0] + 1, 2 * reach[1] + 1)
        for image, (row, column) in product(range(len(found)), product(*map(range, found.shape[1:]))):
            if pairs.norms[shift, image] > 0:
                found[image, row, column] = pairs.product(shift, image, (row - reach[0], column - reach[1]))
        yield found


def _by_fourier(pairs: _Pairs, reach: tuple[int, int]) -> Iterator[Float[Tensor, "image down right"]]:
    """Yield c(u) of each shift for every u of up to ``reach``, by Fourier transforms; u = 0 is in the centre."""
    spectrum = _spectrum(pairs.one, reach)
    norms = pairs.norms.where(pairs.norms > 0, torch.inf)[..., None, None]
    for shift, other in enumerate(pairs.others):
        yield _cross_products(spectrum, _spectrum(other, reach), pairs.size, reach) / norms[shift]


def _reach(pairs: _Pairs, reached: Float[Tensor, "shift image"]) -> tuple[int, int]:
    """Return the largest displacement along each axis at which the peak of any pair can lie.

    Only the overlap counts: ``|c(u)| <= |A on the overlap| |B on the overlap| / (|A| |B|)``, by Cauchy and Schwarz. This bound
    falls with the displacement along each axis. Where it is below a value that c reaches elsewhere, c(u) is not a peak.
    """
    found = []
    for axis in (-1, -2):
        (head, tail), (other_head, other_tail) = (_ends(each.double().sum(dim=axis)) for each in pairs.squares)
        bounds = (head * other_tail).maximum(tail * other_head).sqrt() / pairs.norms[..., None]
        # Squares that overflow or underflow in single precision give no bound.
        sound = (bounds[..., :1] - 1).abs() < SLACK
        beaten = (bounds[..., 1:] < reached[..., None] - SLACK) & sound | (pairs.norms == 0)[..., None]
        found.append(int((~beaten).sum(dim=-1).amax()))
    return found[0], found[1]


def _ends(squares: Float[Tensor, "*map position"]) -> tuple[Tensor, Tensor]:
    """Return the sums without the last k positions, and without the first k, for k = 0, 1, ..."""
    return squares.cumsum(-1).flip(-1), squares.flip(-1).cumsum(-1).flip(-1)


def _guessed(pairs: _Pairs) -> Float[Tensor, "shift image"]:
    """Return c(u) at a guess of its peak: how far the lengths of the vectors at each position move."""
    # Subtract their mean, which would pull the guess to 0.
    one, others = (each.sqrt() - each.sqrt().mean(dim=(-2, -1), keepdim=True) for each in pairs.squares)
    full = (pairs.size[0] - 1, pairs.size[1] - 1)
    spectrum, values = _spectrum(one[:, None], full), torch.zeros_like(pairs.in_place)
    for shift, other in enumerate(others):
        _, guesses = _peaks(_cross_products(spectrum, _spectrum(other[:, None], full), pairs.size, full))
        for image, (down, right) in enumerate(guesses.tolist()):
            values[shift, image] = pairs.product(shift, image, (down, right))
    return values


def _lengths(size: tuple[int, int], reach: tuple[int, int]) -> list[int]:
    """Return lengths that are quick to transform and large enough that opposite borders do not meet within the reach."""
    return [next_fast_len(each + far, real=True) for each, far in zip(size, reach, strict=True)]


def _spectrum(maps: Maps, reach: tuple[int, int]) -> Tensor:
    spectra: Tensor = torch.fft.rfft2(maps, s=_lengths((maps.shape[2], maps.shape[3]), reach))
    return spectra


def _cross_products(
    one: Tensor, other: Tensor, size: tuple[int, int], reach: tuple[int, int]
) -> Float[Tensor, "image down right"]:
    """Return <A, T_-u B> for every u of up to ``reach`` from the maps' spectra; u = 0 is in the centre."""
    products: Tensor = torch.fft.irfft2(torch.linalg.vecdot(one, other, dim=1), s=_lengths(size, reach))
    for axis, far in zip((1, 2), reach, strict=True):
        negative = products.narrow(axis, products.shape[axis] - far, far)
        products = torch.cat([negative, products.narrow(axis, 0, far + 1)], dim=axis)
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
