"""Polyphase sampling: subsampling that is equivariant, because the map itself decides which phase is kept.

Subsampling by ``s`` along each axis keeps one of ``s * s`` phases of the map. Plain stride always keeps the first; a shift of the
image by one position then puts another phase in its place. If a rule that is independent of positions chooses the phase, a
circular shift of the map also shifts the choice, and the output is the same up to a shift.

One choice may be applied to several maps: branches that meet again (a residual shortcut) must keep the same phase to stay
aligned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.layers.resampling import Filter, binomial, centred_margins, filtered, is_rewritten

__all__ = [
    "AdaptivePolyphaseSampling",
    "AlignPhase",
    "LearnedPolyphaseSampling",
    "NormChoice",
    "PhaseLogits",
    "PolyphaseSampling",
    "TakePhase",
    "phases",
]

#: Scores this close, relative to the largest, are ties: rounding depends on the order of summation, which depends on the shift.
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def phases(
    maps: Float[Tensor, "image channel height width"], stride: tuple[int, int]
) -> Float[Tensor, "image phase channel tall wide"]:
    """Return the polyphase components of maps: phase ``i * stride[1] + j`` is ``x[stride[0] y + i, stride[1] x + j]``.

    Raises:
        InputError: height or width is not a multiple of the stride.
    """
    if maps.ndim != 4:
        raise InputError(f"`maps` must be [image, channel, height, width], got shape {tuple(maps.shape)}.")
    images, channels, height, width = maps.shape
    down, right = stride
    if not torch.compiler.is_compiling() and (height % down or width % right):
        raise InputError(
            f"`maps` must have sides that are multiples of the stride {stride} of polyphase sampling, got {height}x{width}.",
            "Use another image size, or pad the layers before it so that they keep their maps' sides.",
        )
    split = maps.reshape(images, channels, height // down, down, width // right, right)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(images, down * right, channels, height // down, width // right)


class TakePhase(nn.Module):
    """Subsample maps by a given choice: a phase index for each image, or weights over all phases."""

    def __init__(self, stride: int | Sequence[int] = 2, filter_size: int = 1) -> None:
        super().__init__()
        self.stride = _pair(stride)
        self.filter = _blur(filter_size)

    def forward(
        self, maps: Float[Tensor, "image channel height width"], choice: Shaped[Tensor, image * phase]
    ) -> Float[Tensor, "image channel tall wide"]:
        """Filter the maps and return each image's chosen phase."""
        found = phases(filtered(maps, self.filter), self.stride)
        if choice.ndim == 1:
            index = choice.reshape(-1, 1, 1, 1, 1).expand(-1, 1, *found.shape[2:])
            return found.gather(1, index)[:, 0]
        return (found * choice[:, :, None, None, None].to(found.dtype)).sum(dim=1)

    def extra_repr(self) -> str:
        """Return the settings that ``print`` shows."""
        return f"stride={self.stride}, filter_size={len(self.filter.taps[0])}"


class NormChoice(nn.Module):
    """Choose the phase of the largest Euclidean norm.

    Norms that differ by no more than rounding are ties, broken by sums of absolute values, of values, of fourth powers, of
    products of neighbours at several distances, and of what the whole phase looks like from each position, all independent of
    positions. If phases agree in all of them, the first is taken. This happens on constant maps and maps that repeat with the
    stride, whose phases are equal. It could happen to different phases, though none are known. Only there can a shift change the
    choice. Other maps that take the same phase break ties in the same way, such as those of a map that a ReLU has set to zero.
    """

    def __init__(self, stride: int | Sequence[int] = 2, filter_size: int = 1) -> None:
        super().__init__()
        self.stride = _pair(stride)
        self.filter = _blur(filter_size)

    def forward(self, maps: Float[Tensor, "image channel height width"], *others: Tensor) -> Shaped[Tensor, " image"]:
        """Return each image's phase; ``others`` of the same height and width break ties."""
        with torch.no_grad():
            return _best(_scores_of(maps, *others, by=self))

    def extra_repr(self) -> str:
        """Return the settings that ``print`` shows."""
        return f"stride={self.stride}, filter_size={len(self.filter.taps[0])}"


class AlignPhase(nn.Module):
    """Roll each image's map so that its chosen phase comes first, or back.

    Any following operator of the same stride (a strided layer, a slice, space to depth) then takes the chosen phase. Rolled back
    after an upsampling by the same stride, positions lie where they lay before the subsampling.

    Args:
        stride: positions from one output to the next.
        scale: positions to roll the map by per step of the phase; above 1 for a finer map than the phase was chosen on.
        back: roll in the other direction.
    """

    def __init__(self, stride: int | Sequence[int] = 2, *, scale: int | Sequence[int] = 1, back: bool = False) -> None:
        super().__init__()
        self.stride, self.scale, self.back = _pair(stride), _pair(scale), back

    def forward(
        self, maps: Float[Tensor, "image channel height width"], choice: Shaped[Tensor, image * phase]
    ) -> Float[Tensor, "image channel height width"]:
        """Return the rolled maps."""
        index = choice if choice.ndim == 1 else choice.argmax(1)
        for axis, phase in ((2, index // self.stride[1]), (3, index % self.stride[1])):
            steps = phase * self.scale[axis - 2] * (-1 if self.back else 1)
            places = (torch.arange(maps.shape[axis], device=maps.device) + steps[:, None]) % maps.shape[axis]
            shape = [maps.shape[0], 1, 1, 1]
            shape[axis] = maps.shape[axis]
            maps = maps.gather(axis, places.reshape(shape).expand_as(maps))
        return maps

    def extra_repr(self) -> str:
        """Return the settings that ``print`` shows."""
        return f"stride={self.stride}, scale={self.scale}, back={self.back}"


class PhaseLogits(nn.Module):
    """Choose the phase with the largest logit of a small network that is shared by all phases.

    The network is two circular convolutions with a ReLU between them and a mean over positions, so that it is independent of
    where a phase begins. In training the choice is soft (weights drawn by the Gumbel softmax), in evaluation the largest logit.
    Equal logits (a network whose hidden values are all zero) are ties, broken as in :class:`NormChoice`.

    Args:
        channels: of the maps.
        stride: positions from one output to the next.
        hidden: channels between the two convolutions; half of ``channels`` by default.
        temperature: of the softmax in training.
        filter_size: of a binomial filter before the choice; 1 does not filter.
    """

    def __init__(
        self,
        channels: int,
        stride: int | Sequence[int] = 2,
        *,
        hidden: int | None = None,
        temperature: float = 1.0,
        filter_size: int = 1,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise InputError(f"`temperature` must be positive, got {temperature}.")
        self.stride, self.temperature = _pair(stride), temperature
        self.filter = _blur(filter_size)
        width = hidden or max(1, channels // 2)
        self.score = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1, padding_mode="circular"),
        )

    def forward(self, maps: Float[Tensor, "image channel height width"], *others: Tensor) -> Shaped[Tensor, image * phase]:
        """Return each image's phase in evaluation, weights over phases in training; ``others`` break ties in evaluation."""
        found = phases(filtered(maps, self.filter), self.stride)
        images, count = found.shape[:2]
        logits = self.score(found.flatten(0, 1)).mean(dim=(1, 2, 3)).reshape(images, count)
        if self.training:
            weights: Tensor = nn.functional.gumbel_softmax(logits, tau=self.temperature)
            return weights
        with torch.no_grad():
            rounding = ROUNDING.get(logits.dtype, 1e-5) * logits.abs()
            return _best(chain([(logits, rounding)], _scores_of(maps, *others, by=self)))


class PolyphaseSampling(nn.Module):
    """Base of both kinds: a choice of phase, and a module that takes the chosen phase."""

    def __init__(self, choose: nn.Module, take: TakePhase) -> None:
        super().__init__()
        self.choose, self.take = choose, take

    def forward(self, maps: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel tall wide"]:
        """Return each image's chosen phase."""
        taken: Tensor = self.take(maps, self.choose(maps))
        return taken


class AdaptivePolyphaseSampling(PolyphaseSampling):
    """Keep the phase of the largest norm (APS): subsampling that is equivariant under circular shifts.

    Args:
        stride: positions from one output to the next, one number or one for each axis.
        filter_size: of a binomial filter before, with circular border; 1 does not filter.

    Shape:
        [image, channel, height, width] -> [image, channel, height / stride, width / stride]; both sides must be multiples.

    Raises:
        InputError: a side is not a multiple of the stride, or `filter_size` is out of range.

    Source: Chaman and Dokmanic, "Truly shift-invariant convolutional neural networks", CVPR 2021. Theirs supports stride 2 only
    and keeps the first of equal norms; ours supports any stride and breaks ties independently of positions (:class:`NormChoice`).

    >>> pool = AdaptivePolyphaseSampling(stride=2)
    >>> pool(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])).item(), pool(torch.tensor([[[[3.0, 2.0], [1.0, 0.0]]]])).item()
    (3.0, 3.0)
    """

    def __init__(self, stride: int | Sequence[int] = 2, *, filter_size: int = 1) -> None:
        super().__init__(NormChoice(stride, filter_size), TakePhase(stride, filter_size))


class LearnedPolyphaseSampling(PolyphaseSampling):
    """Keep the phase that a small learned network chooses (LPS).

    Args:
        channels: of the maps.
        stride: positions from one output to the next, one number or one for each axis.
        hidden: channels inside the small network; half of ``channels`` by default.
        temperature: of the Gumbel softmax, which makes the choice soft in training; must be positive.
        filter_size: of a binomial filter before, with circular border; 1 does not filter.

    Shape:
        [image, channel, height, width] -> [image, channel, height / stride, width / stride]; both sides must be multiples.

    Raises:
        InputError: a side is not a multiple of the stride, or a setting is out of range.

    Source: Rojas-Gomez, Lim, Schwing, Do and Yeh, "Learnable polyphase sampling for shift invariant and equivariant convolutional
    networks", NeurIPS 2022. Theirs anneals the temperature during training; ours is fixed.
    """

    def __init__(
        self,
        channels: int,
        stride: int | Sequence[int] = 2,
        *,
        hidden: int | None = None,
        temperature: float = 1.0,
        filter_size: int = 1,
    ) -> None:
        choose = PhaseLogits(channels, stride, hidden=hidden, temperature=temperature, filter_size=filter_size)
        super().__init__(choose, TakePhase(stride, filter_size))


Score = tuple[Float[Tensor, "image phase"], Float[Tensor, "image phase"]]


def _scores_of(maps: Tensor, *others: Tensor, by: NormChoice | PhaseLogits) -> Iterator[Score]:
    """Yield scores of the phases of maps, then those of others of their size."""
    for each in (maps, *others):
        if each.shape[2:] == maps.shape[2:]:
            yield from _norms(phases(filtered(each, by.filter), by.stride))


def _norms(found: Float[Tensor, "image phase channel tall wide"]) -> Iterator[Score]:
    """Yield scores of phases that are independent of positions, each with its rounding, computed lazily.

    Phases of a smooth map may agree in all of them up to the rounding of single precision. Then the scores are compared once more
    up to that of the sums alone, which are computed in double precision: enough where only the order of addition has changed.
    """
    maps = found if found.dtype == torch.float64 else found.float()
    for rounding in dict.fromkeys((ROUNDING[maps.dtype], 1e-12)):
        yield from ((score, rounding * scale) for score, scale in _scores(maps))


def _scores(maps: Float[Tensor, "image phase channel tall wide"]) -> Iterator[Score]:
    """Yield scores of phases, each with its scale: the same sum over absolute values."""
    values = maps.flatten(2)
    size = _total(values.abs())
    for score in (_total(values.square()), size):
        yield score, score
    yield _total(values), size
    fourth = _total(values.pow(4))
    yield fourth, fourth
    for steps in NEIGHBOURS:
        yield _neighbours(maps, *steps)
    yield _views(maps)


def _total(values: Float[Tensor, "image phase value"]) -> Float[Tensor, "image phase"]:
    """Return sums in double precision: in single precision the order of addition, which shifts change, decides close calls."""
    return values.sum(-1, dtype=torch.float32 if values.is_mps else torch.float64)


#: (down, right) of two neighbours; the second makes the product differ from its mirror image's.
NEIGHBOURS = (
    ((0, 1), (0, 0)),
    ((1, 0), (0, 0)),
    ((1, 1), (0, 0)),
    ((1, -1), (0, 0)),
    ((0, 1), (0, 3)),
    ((1, 0), (3, 0)),
    ((0, 1), (1, 0)),
    ((0, 1), (-1, 0)),
    ((0, -1), (1, 0)),
    ((0, -1), (-1, 0)),
    ((1, 2), (2, 1)),
    ((2, 1), (0, 3)),
)


def _neighbours(found: Tensor, one: tuple[int, int], other: tuple[int, int]) -> Score:
    """Return the sum over each phase, as a torus, of every value times its two neighbours at these distances, and its scale."""
    product = found * found.roll(one, (3, 4)) * found.roll(other, (3, 4))
    return _total(product.flatten(2)), _total(product.abs().flatten(2))


def _views(found: Tensor) -> Score:
    """Return the sum over all positions of a number that describes the whole phase as seen from there, and its scale.

    It tells mirror images apart however far apart their parts are. Each step combines what is seen from two places, which counts
    spans of 1, 2, 4 ... positions along each axis. The sine keeps numbers small, and what is almost equal almost equal.
    """
    exact = found if found.is_mps else found.double()
    largest = exact.abs().amax((1, 2, 3, 4), keepdim=True)
    seen = exact / largest.where(largest > 0, 1)
    order = torch.arange(1, found.shape[2] + 1, dtype=seen.dtype, device=seen.device)
    seen = (3 * seen + order[:, None, None]).sin().sum(2)
    for axis in (3, 2):
        span = 1
        while span < seen.shape[axis]:
            seen = (1.3 * seen + 0.7 * seen.roll(-span, axis) + 0.5).sin()
            span *= 2
    return _total(seen.flatten(2)), _total(seen.flatten(2).abs())


def _best(scores: Iterable[Score]) -> Shaped[Tensor, " image"]:
    """Return the phase of the largest first score; of ties, of the largest second, and so on; finally the first."""
    tied = torch.ones((), dtype=torch.bool)
    for score, rounding in scores:
        tied = tied.to(score.device).expand(score.shape)
        best = score.masked_fill(~tied, float("-inf")).amax(1, keepdim=True)
        tied = tied & (score >= best - rounding.amax(1, keepdim=True))
        if not is_rewritten() and bool((tied.sum(1) == 1).all()):
            break  # later scores only break ties
    return tied.to(torch.uint8).argmax(1)


def _blur(size: int) -> Filter:
    """Return a circular binomial filter at stride 1."""
    return Filter((binomial(size),) * 2, (1, 1), (centred_margins(size),) * 2, "circular")


def _pair(stride: Any) -> tuple[int, int]:
    down, right = (stride, stride) if isinstance(stride, int) else stride
    if down < 1 or right < 1:
        raise InputError(f"`stride` must be 1 or more positions, got {(down, right)}.")
    return down, right
