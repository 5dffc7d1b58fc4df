"""Rules of operators that act on each value alone, or on all positions of an axis: sums, sorting, normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from shiftscope.graphs.rules.call import Call, UnknownError, broadcast, plus, reduced, require_still, unify
from shiftscope.graphs.symmetry import Symmetry, constant, fixed, joined, length, moves, same


def pointwise(call: Call) -> Symmetry:
    """Return the symmetry of values that depend on values at the same place of each tensor."""
    found = [call.of(each) for each in call.tensors]
    return joined(found).with_axes(broadcast(found, len(call.shape)))


def unchanged(call: Call) -> Symmetry:
    return call.first


def uniform(call: Call) -> Symmetry:
    return constant(call.shape, uniform=True)


def filled(call: Call) -> Symmetry:
    """Fill with a number, or with the only value of a tensor."""
    uniform = constant(call.shape, uniform=True)
    return call.of(call["value"]).with_axes(uniform.axes) if isinstance(call["value"], Tensor) else uniform


def uninitialised(call: Call) -> Symmetry:
    return constant(call.shape)


def reduction(call: Call) -> Symmetry:
    places = call.places()
    found = reduced(call.first, places, call.note)
    if call["keepdim"]:
        return found.with_axes(same(1) if place in places else axis for place, axis in enumerate(found.axes))
    return found.with_axes(axis for place, axis in enumerate(found.axes) if place not in places)


def extremum(call: Call) -> Symmetry | list[Symmetry | None]:
    """Return the symmetry of maxima, of two tensors or along axes."""
    return pointwise(call) if "other" in call.given else order_statistic(call)


def order_statistic(call: Call) -> list[Symmetry | None]:
    """Return the symmetry of maxima, medians or k-th smallest values, and of their places: unknown along axes that move."""
    values = reduction(call)
    return [values, None if any(moves(call.first.axes[place]) for place in call.places()) else values][: len(call.results)]


def argument_of_extremum(call: Call) -> Symmetry:
    for place in call.places():
        require_still(call.first.axes[place])
    return reduction(call)


def softmax(call: Call) -> Symmetry:
    """Softmax and the like: each value with a sum over an axis."""
    return reduced(call.first, call.places(), call.note)


def ordered(call: Call) -> list[Symmetry | None]:
    """Sorted values: the axis no longer moves, whatever order its values had."""
    place = call.place(default=-1)
    found, axis = reduced(call.first, [place], call.note), call.first.axes[place]
    values = found.with_axis(place, fixed(call.shape[place]))
    return [values, None if moves(axis) else values]


def cumulative(call: Call) -> list[Symmetry | None]:
    found = call.first
    for place in call.places():
        require_still(found.axes[place])
        found = found.with_axis(place, fixed(length(found.axes[place])))
    return [found] * len(call.results)


def batch_norm(call: Call) -> Symmetry:
    maps = call.of(call["input"])
    places = [place for place in range(len(maps.axes)) if place != 1]
    trains = call["training"] or call["use_input_stats"] or call["running_mean"] is None
    found = reduced(maps, places, call.note) if trains else maps
    return affine(call, found, 1, ("weight", "bias", "running_mean", "running_var"))


def instance_norm(call: Call) -> Symmetry:
    maps = call.of(call["input"])
    found = reduced(maps, range(2, len(maps.axes)), call.note) if call["use_input_stats"] else maps
    return affine(call, found, 1, ("weight", "bias", "running_mean", "running_var"))


def group_norm(call: Call) -> Symmetry:
    maps = call.of(call["input"])
    require_still(maps.axes[1])
    return affine(call, reduced(maps, range(2, len(maps.axes)), call.note), 1, ("weight", "bias"))


def affine(call: Call, found: Symmetry, place: int, names: Sequence[str]) -> Symmetry:
    """Return a symmetry after weights along one axis."""
    weights = [call.of(call[name]) for name in names if call[name] is not None]
    axis = found.axes[place]
    for each in weights:
        axis = unify(axis, each.axes[0])
    return replace(joined([found, *weights]), axes=found.axes).with_axis(place, axis)


def layer_norm(call: Call) -> Symmetry:
    maps, count = call.of(call["input"]), len(call["normalized_shape"])
    found = reduced(maps, range(len(maps.axes) - count, len(maps.axes)), call.note)
    for name in ("weight", "bias"):
        found = plus(found, call.of(call[name])) if call[name] is not None else found
    return found


def prelu(call: Call) -> Symmetry:
    found, weight = call.first, call.of(call["weight"])
    if not weight.axes or length(weight.axes[0]) == 1:
        return replace(joined([found, weight]), axes=found.axes)
    return affine(call, found, 1, ("weight",))


def gated(call: Call) -> Symmetry:
    place = call.place(default=-1)
    require_still(call.first.axes[place])
    return call.first.with_axis(place, fixed(call.shape[place]))


def copied(call: Call) -> Symmetry:
    """Copy over a constant tensor: the result is the source, broadcast to its axes."""
    target, source = call.results[0], call.of(call["src"])
    axes = [same(size) for size in target.shape]
    for place, axis in enumerate(source.axes, start=len(axes) - len(source.axes)):
        axes[place] = axes[place] if length(axis) == 1 else axis
    return source.with_axes(axes)


def dropout(call: Call) -> Symmetry:
    """Dropout in evaluation mode."""
    if call["train"] or call["training"]:
        raise UnknownError
    return call.first
