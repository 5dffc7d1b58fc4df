"""Weights with a value for each token, as position embeddings have: find them, move them along with the image, average them.

Such weights are found by their shapes and confirmed on the model: if they move along with a circular shift by whole patches, the
outputs must stay the same. What does not pass is not accepted. A shape can be read in several ways (of 16 tokens with 16
channels, which axis holds the tokens?), so that readings are tried one after the other.

Relative positions are the values or indices for each pair of tokens: they have two axes of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from math import isqrt

import torch
from torch import Tensor, nn

from shiftscope.graphs.sites import Pair
from shiftscope.graphs.tokens import TokenReading

__all__ = ["PositionWeight", "averaged", "is_mixing", "moved", "position_weights"]

#: Layers whose weights mix channels; only mixers have one row of them for each token.
MIXING = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.MultiheadAttention)
#: At most so many weights are also tried one by one.
SINGLE = 8


@dataclass(frozen=True)
class TokenAxis:
    """An axis along which tokens lie.

    Attributes:
        axis: its number.
        prefix: number of tokens before those of the map.
        grid: height and width of the map, positions.
        pixels: of the image, from one position to the next.
    """

    axis: int
    prefix: int
    grid: Pair
    pixels: Pair


@dataclass(frozen=True)
class PositionWeight:
    """A parameter or buffer with a value for each token, or for each pair of tokens.

    Attributes:
        name: in the model.
        shape: as which the value is read.
        axes: along which tokens lie.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[TokenAxis, ...]

    @property
    def is_relative(self) -> bool:
        """Whether it has a value for each pair of tokens."""
        return len(self.axes) == 2


def position_weights(model: nn.Module, reading: TokenReading) -> Iterator[tuple[PositionWeight, ...]]:
    """Yield sets of weights that may hold a value for each token, the likeliest first; none is confirmed yet.

    Args:
        model: the model.
        reading: how its tokens lie on the image.
    """
    values = {name: each for name, value in _values(model) if (each := _readings(name, value, reading))}
    plain = [name for name in values if not is_mixing(model, name)]
    kept = [name for name in plain if dict(_values(model))[name].is_floating_point()]
    weak = {name for name, value in _values(model) if _is_channels(model, name, value)}
    seen = set[tuple[PositionWeight, ...]]()
    for names, choice, drop in product((kept, plain, [*values]), (0, 1, 2), (weak, set[str]())):
        chosen = tuple(values[name][min(choice, len(values[name]) - 1)] for name in names if name not in drop)
        if chosen and chosen not in seen:
            seen.add(chosen)
            yield chosen
    for single in (each for name in plain[:SINGLE] for each in values[name]):
        if (single,) not in seen:
            yield (single,)


def is_mixing(model: nn.Module, name: str) -> bool:
    """Return whether a weight is that of a layer that mixes channels."""
    return isinstance(model.get_submodule(name.rpartition(".")[0]), MIXING)


def moved(model: nn.Module, weights: tuple[PositionWeight, ...], step: Pair) -> nn.Module:
    """Return a copy whose position weights are rolled down and right by a number of pixels, a multiple of the patches."""
    return _changed(model, weights, lambda value, weight: _rolled(value, weight, step))


def averaged(model: nn.Module, weights: tuple[PositionWeight, ...]) -> nn.Module | None:
    """Return a copy whose position weights do not tell positions apart; None where that is impossible.

    A value for each token becomes its mean over all positions. Of pairs of tokens, values become their mean over all pairs with
    the same displacement on a torus, and indices become those of the token in the middle of the map.
    """
    values = dict(_values(model))
    if any(not values[weight.name].is_floating_point() and not weight.is_relative for weight in weights):
        return None
    return _changed(model, weights, lambda value, weight: (_mean if value.is_floating_point() else _around)(value, weight))


def _changed(
    model: nn.Module, weights: tuple[PositionWeight, ...], change: Callable[[Tensor, PositionWeight], Tensor]
) -> nn.Module:
    """Return a copy in which the position weights are changed."""
    copy = deepcopy(model)
    values = dict(_values(copy))
    with torch.no_grad():
        for weight in weights:
            value = values[weight.name]
            value.copy_(change(value.reshape(weight.shape), weight).reshape(value.shape))
            _forget(copy.get_submodule(weight.name.rpartition(".")[0]))
    return copy


def _forget(owner: nn.Module) -> None:
    """Empty the dictionaries in which a layer keeps what it computed from its weights."""
    for name, kept in vars(owner).items():
        if isinstance(kept, dict) and not name.startswith("_") and all(isinstance(each, Tensor) for each in kept.values()):
            kept.clear()


def _values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _is_channels(model: nn.Module, name: str, value: Tensor) -> bool:
    """Return whether a weight has one axis only, which is rather that of channels; a mixer's bias is not meant."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return value.is_floating_point() and sum(size > 1 for size in value.shape) < 2 and not isinstance(owner, nn.Linear)


def _readings(name: str, value: Tensor, reading: TokenReading) -> list[PositionWeight]:
    """Return the ways in which a value's axes may hold tokens, the likeliest first."""
    shape, floating = tuple(value.shape), value.is_floating_point()
    for axis in range(len(shape) - 2, -1, -1) if floating and len(shape) > 2 else ():
        merged = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
        if (found := _axis(axis, merged[axis], reading, shape[axis : axis + 2])) is not None:
            return [PositionWeight(name, merged, (found,))]
    axes = [found for axis, size in enumerate(shape) if (found := _axis(axis, size, reading)) is not None]
    single, pairs = [PositionWeight(name, shape, (each,)) for each in axes], list[PositionWeight]()
    if len(axes) > 1:
        pairs = [PositionWeight(name, shape, (axes[-2], axes[-1]))]
    elif len(shape) == 1 and not floating and (side := isqrt(shape[0])) ** 2 == shape[0]:  # pairs along one axis
        found, other = (_axis(axis, side, reading) for axis in (0, 1))
        pairs = [PositionWeight(name, (side, side), (found, other))] if found is not None and other is not None else []
    return [*single[:1], *pairs, *single[1:]] if floating else [*pairs, *single]


def _axis(axis: int, size: int, reading: TokenReading, grid: tuple[int, ...] | None = None) -> TokenAxis | None:
    """Return how an axis of this size holds tokens, of a given grid only; None where no map has so many."""
    for found in dict.fromkeys([*(reading.maps[block] for block, _ in reversed(reading.blocks)), *reading.maps.values()]):
        pixels = tuple(side // count for side, count in zip(reading.image, found.grid, strict=True))
        fits = all(side % count == 0 for side, count in zip(reading.image, found.grid, strict=True))
        for prefix in dict.fromkeys((found.prefix, 0)) if fits and grid in (None, found.grid) else ():
            if size == prefix + found.grid[0] * found.grid[1]:
                return TokenAxis(axis, prefix, found.grid, (pixels[0], pixels[1]))
    return None


def _rolled(value: Tensor, weight: PositionWeight, step: Pair) -> Tensor:
    """Return a value rolled by a number of pixels along all axes that hold tokens."""
    for each in weight.axes:
        before, tokens = value.split([each.prefix, value.shape[each.axis] - each.prefix], dim=each.axis)
        tokens = tokens.unflatten(each.axis, each.grid)
        tokens = tokens.roll((step[0] // each.pixels[0], step[1] // each.pixels[1]), (each.axis, each.axis + 1))
        value = torch.cat([before, tokens.flatten(each.axis, each.axis + 1)], dim=each.axis)
    return value


def _coarsest(weight: PositionWeight) -> TokenAxis:
    return max(weight.axes, key=lambda each: each.pixels)


def _mean(value: Tensor, weight: PositionWeight) -> Tensor:
    """Return the mean over all shifts by whole positions."""
    every, total = _coarsest(weight), torch.zeros_like(value, dtype=torch.float64)
    for down, right in product(range(every.grid[0]), range(every.grid[1])):
        total += _rolled(value, weight, (down * every.pixels[0], right * every.pixels[1]))
    return total / (every.grid[0] * every.grid[1])


def _around(value: Tensor, weight: PositionWeight) -> Tensor:
    """Return the values of pairs with the middle token, for every token: its neighbours continue across the border."""
    first = _coarsest(weight)
    other = next(each for each in weight.axes if each is not first)
    rows = value.movedim((first.axis, other.axis), (0, 1))
    middle = (first.grid[0] // 2, first.grid[1] // 2)
    centre = first.prefix + middle[0] * first.grid[1] + middle[1]
    beside = other.prefix + middle[0] * (first.pixels[0] // other.pixels[0]) * other.grid[1]
    beside += middle[1] * (first.pixels[1] // other.pixels[1])
    found = rows.clone()
    found[: first.prefix, other.prefix :] = rows[: first.prefix, beside, None]
    for place, (down, right) in enumerate(product(range(first.grid[0]), range(first.grid[1]))):
        step = ((down - middle[0]) * first.pixels[0], (right - middle[1]) * first.pixels[1])
        turned = _rolled(rows[centre : centre + 1], replace(weight, axes=(replace(other, axis=1),)), step)
        found[first.prefix + place] = turned[0]
    return found.movedim((0, 1), (first.axis, other.axis))
