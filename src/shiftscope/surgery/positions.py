"""Weights with a value for each token, as position embeddings have: find them, move them along with the image, average them.

Such weights are found by their shapes and confirmed on the model: if they move along with a circular shift by whole patches, the
outputs must stay the same. What does not pass is not accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from shiftscope.graphs.sites import Pair
from shiftscope.graphs.tokens import TokenReading

__all__ = ["PositionWeight", "averaged", "moved", "position_weights"]

#: Layers whose weights mix channels; only mixers have one row of them for each token.
MIXING = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.MultiheadAttention)


@dataclass(frozen=True)
class PositionWeight:
    """A parameter or buffer with a value for each token.

    Attributes:
        name: in the model.
        axes: those along which tokens lie; for a map the first of its two.
        prefix: number of tokens before those of the map.
        grid: height and width of the map, positions.
        flat: whether the map's positions lie along one axis.
    """

    name: str
    axes: tuple[int, ...]
    prefix: int
    grid: Pair
    flat: bool


def position_weights(model: nn.Module, reading: TokenReading) -> Iterator[tuple[PositionWeight, ...]]:
    """Yield sets of weights that may hold a value for each token, the likeliest first; none is confirmed yet.

    Args:
        model: the model.
        reading: how its tokens lie on the image.
    """
    found = [each for name, value in _values(model) if (each := _weight(name, value, reading)) is not None]
    mixing = [each for each in found if isinstance(model.get_submodule(each.name.rpartition(".")[0]), MIXING)]
    plain = [each for each in found if each not in mixing and not _is_index(model, each)]
    for chosen in (plain, [each for each in found if each not in mixing], found):
        if chosen:
            yield tuple(chosen)


def moved(model: nn.Module, weights: tuple[PositionWeight, ...], step: Pair) -> nn.Module:
    """Return a copy whose position weights are rolled by a number of tokens, down and right."""
    copy = deepcopy(model)
    values = dict(_values(copy))
    with torch.no_grad():
        for weight in weights:
            value = values[weight.name]
            value.copy_(_rolled(value, weight, step))
    return copy


def averaged(model: nn.Module, weights: tuple[PositionWeight, ...]) -> nn.Module | None:
    """Return a copy whose position weights are their mean over all positions; None where they are indices, which have no mean."""
    copy = deepcopy(model)
    values = dict(_values(copy))
    if any(not values[weight.name].is_floating_point() for weight in weights):
        return None
    with torch.no_grad():
        for weight in weights:
            value, total = values[weight.name], torch.zeros_like(values[weight.name], dtype=torch.float64)
            steps = list(product(range(weight.grid[0]), range(weight.grid[1])))
            for step in steps:
                total += _rolled(value, weight, step)
            value.copy_(total / len(steps))
    return copy


def _values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _weight(name: str, value: Tensor, reading: TokenReading) -> PositionWeight | None:
    """Return how a value's axes hold tokens; None where none does."""
    for found in dict.fromkeys(reading.maps[block] for block, _ in reversed(reading.blocks)):
        tokens = found.grid[0] * found.grid[1]
        for prefix in dict.fromkeys((found.prefix, 0)):
            axes = tuple(axis for axis, size in enumerate(value.shape) if size == prefix + tokens)
            if axes:
                return PositionWeight(name, axes, prefix, found.grid, flat=True)
        pairs = [axis for axis in range(value.ndim - 1) if tuple(value.shape[axis : axis + 2]) == found.grid]
        if pairs and value.ndim > 2:
            return PositionWeight(
                name, (pairs[-1] if value.ndim == 4 and pairs[-1] == 2 else pairs[0],), 0, found.grid, flat=False
            )
    return None


def _is_index(model: nn.Module, weight: PositionWeight) -> bool:
    return not dict(_values(model))[weight.name].is_floating_point()


def _rolled(value: Tensor, weight: PositionWeight, step: Pair) -> Tensor:
    """Return a value rolled along all axes that hold tokens."""
    if not weight.flat:
        axis = weight.axes[0]
        return value.roll(step, (axis, axis + 1))
    for axis in weight.axes:
        parts = value.split([weight.prefix, value.shape[axis] - weight.prefix], dim=axis)
        grid = parts[1].unflatten(axis, weight.grid).roll(step, (axis, axis + 1)).flatten(axis, axis + 1)
        value = torch.cat([parts[0], grid], dim=axis)
    return value
