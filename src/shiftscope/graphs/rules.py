"""What each operator does to the symmetry of its tensors: one function a family of operators.

A rule receives a :class:`Call` and returns the :class:`~shiftscope.graphs.symmetry.Symmetry` of each result, or raises
:class:`UnknownError` where it cannot say. Operators without a rule that act on each value alone are :func:`pointwise`; those that
are made of others are taken apart by torch; everything else is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from shiftscope.graphs.symmetry import (
    Axis,
    Factor,
    Symmetry,
    constant,
    fixed,
    is_same,
    joined,
    length,
    merged,
    moves,
    same,
    unified,
)

__all__ = ["READS", "RULES", "Call", "UnknownError", "pointwise", "reduced", "windowed"]


class UnknownError(Exception):
    """It is not known what an operator does to positions; ``weighs`` says that it has a weight for each of them."""

    def __init__(self, *, weighs: bool = False) -> None:
        super().__init__()
        self.weighs = weighs


@dataclass(frozen=True)
class Call:
    """A call of an operator.

    Attributes:
        given: its arguments by name, defaults included.
        results: the tensors that it returned.
        of: returns the symmetry of a tensor.
        note: called with what happens to positions (``stride``, ``misfit``, or a padding mode).
    """

    given: dict[str, Any]
    results: Sequence[Tensor]
    of: Callable[[Tensor], Symmetry]
    note: Callable[[str], None]

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [each for each in tree_leaves(self.given) if isinstance(each, Tensor)]

    @property
    def first(self) -> Symmetry:
        """The symmetry of the first tensor."""
        return self.of(self.tensors[0])

    def shape(self, result: int = 0) -> tuple[int, ...]:
        """Return the shape of a result."""
        return tuple(self.results[result].shape)


Rule = Callable[[Call], "Symmetry | list[Symmetry | None]"]


def windowed(
    found: Symmetry, place: int, *, reach: int, stride: int, size: int, border: str, note: Callable[[str], None]
) -> Symmetry:
    """Return a symmetry after windows along one axis.

    Args:
        found: before.
        place: of the axis.
        reach: positions from a window's first to its last.
        stride: positions from one window to the next.
        size: number of windows.
        border: padding mode of what windows read beyond the border; empty where they do not.
        note: see :class:`Call`.
    """
    axis = found.axes[place]
    if not reach and stride == 1 and not border:
        return found
    if not moves(axis):
        return _with_axis(found, place, same(size) if is_same(axis) and not border else fixed(size))
    factor = _single(axis)
    after = Factor(size, factor.kind, factor.step * stride)
    found = found.widened(factor.kind, reach, factor.step)
    if stride > 1:
        note("stride")
        found = found.at_multiples(factor.kind, after.step)
    period = found.period(after)
    if border:
        note(border)
        found = found.leaking()
    elif found.circular and (period.denominator != 1 or size < period):
        note("misfit")
        found = found.leaking()
    return _with_axis(found, place, ((after,),))


def reduced(found: Symmetry, places: Iterable[int], note: Callable[[str], None]) -> Symmetry:
    """Return a symmetry after something that depends on all positions of some axes alike, such as a sum; the axes stay."""
    for place in places:
        for factor in (factor for part in found.axes[place] for factor in part if factor.moves):
            if found.circular and not found.goes_around(factor):
                note("misfit")
                found = found.leaking()
    return found


def _with_axis(found: Symmetry, place: int, axis: Axis) -> Symmetry:
    return found.with_axes((*found.axes[:place], axis, *found.axes[place + 1 :]))


def _single(axis: Axis) -> Factor:
    """Return the only factor of an axis that moves as a whole."""
    part = merged(axis[0]) if len(axis) == 1 else ()
    if len(part) != 1:
        raise UnknownError
    return part[0]


def _still(axis: Axis) -> None:
    """Raise unless shifts leave an axis where it is."""
    if moves(axis):
        raise UnknownError


def _broadcast(symmetries: Sequence[Symmetry], count: int) -> list[Axis]:
    """Return the axes of tensors combined value by value."""
    axes: list[Axis] = [same(1)] * count
    for each in symmetries:
        for place, axis in enumerate(each.axes, start=count - len(each.axes)):
            axes[place] = _both(axes[place], axis)
    return axes


def _both(one: Axis, other: Axis) -> Axis:
    found = unified(one, other)
    if found is None:
        raise UnknownError
    return found


def pointwise(call: Call) -> Symmetry:
    """Return the symmetry of values that depend on values at the same place of each tensor."""
    found = [call.of(each) for each in call.tensors]
    return joined(found).with_axes(_broadcast(found, len(call.shape())))


def _unchanged(call: Call) -> Symmetry:
    return call.first


def _uniform(call: Call) -> Symmetry:
    return constant(call.shape(), uniform=True)


def _filled(call: Call) -> Symmetry:
    """Fill with a number, or with the only value of a tensor."""
    uniform = constant(call.shape(), uniform=True)
    return call.of(call["value"]).with_axes(uniform.axes) if isinstance(call["value"], Tensor) else uniform


def _garbage(call: Call) -> Symmetry:
    return constant(call.shape())


def _dims(call: Call, name: str = "dim") -> list[int]:
    """Return the axes that an operator names, counted from the front; all where it names none."""
    count, given = len(call.first.axes), call[name]
    if given is None or given == []:
        return list(range(count))
    return [each % max(count, 1) for each in (given if isinstance(given, list | tuple) else [given])]


def _reduction(call: Call) -> Symmetry:
    places = _dims(call)
    found = reduced(call.first, places, call.note)
    if call["keepdim"]:
        return found.with_axes(same(1) if place in places else axis for place, axis in enumerate(found.axes))
    return found.with_axes(axis for place, axis in enumerate(found.axes) if place not in places)


def _extremum(call: Call) -> Symmetry | list[Symmetry | None]:
    """Return the symmetry of maxima and that of their places: unknown along axes that move."""
    if len(call.results) == 1:
        return pointwise(call) if "other" in call.given else _reduction(call)
    values = _reduction(call)
    return [values, None if any(moves(call.first.axes[place]) for place in _dims(call)) else values]


def _places(call: Call) -> Symmetry:
    for place in _dims(call):
        _still(call.first.axes[place])
    return _reduction(call)


def _normalised(call: Call) -> Symmetry:
    """Softmax and the like: each value with a sum over an axis."""
    return reduced(call.first, _dims(call), call.note)


def _ordered(call: Call) -> list[Symmetry | None]:
    """Sorted values: the axis no longer moves, whatever order its values had."""
    place = (-1 if call["dim"] is None else call["dim"]) % len(call.first.axes)
    found, axis = reduced(call.first, [place], call.note), call.first.axes[place]
    values = _with_axis(found, place, fixed(call.shape()[place]))
    return [values, None if moves(axis) else values]


def _picked(call: Call) -> list[Symmetry | None]:
    """Return the symmetry of the k-th smallest values or of medians, and of their places."""
    values = _reduction(call)
    return [values, None if any(moves(call.first.axes[place]) for place in _dims(call)) else values][: len(call.results)]


def _cumulative(call: Call) -> list[Symmetry | None]:
    found = call.first
    for place in _dims(call):
        _still(found.axes[place])
        found = _with_axis(found, place, fixed(length(found.axes[place])))
    return [found] * len(call.results)


def _product(call: Call) -> Symmetry:
    one, other = (call.of(each) for each in call.tensors[:2])
    return _contracted(one, other, call.note)


def _contracted(one: Symmetry, other: Symmetry, note: Callable[[str], None]) -> Symmetry:
    """Return the symmetry of a matrix product: sums over the last axis of one and the last but one of the other."""
    if not one.axes or not other.axes:
        raise UnknownError
    rows = one.axes[-2:-1] if len(one.axes) > 1 else ()
    inner = other.axes[-2] if len(other.axes) > 1 else other.axes[-1]
    columns = other.axes[-1:] if len(other.axes) > 1 else ()
    first, second = replace(one, axes=one.axes[:-2]), replace(other, axes=other.axes[:-2])
    batch = _broadcast([first, second], max(len(first.axes), len(second.axes)))
    shared = unified(one.axes[-1], inner)
    if shared is None:
        left = any(map(moves, (*batch, *rows, *columns)))
        raise UnknownError(weighs=not left and one.image != other.image)
    found = joined([one, other])
    whole = reduced(replace(found, axes=(shared,)), [0], note)
    return replace(whole, axes=()).with_axes((*batch, *rows, *columns))


def _linear(call: Call) -> Symmetry:
    maps, weight = call.of(call["input"]), call.of(call["weight"])
    turned = weight.with_axes(weight.axes[::-1])
    found = _contracted(maps, turned, call.note)
    return _plus(found, call.of(call["bias"])) if call["bias"] is not None else found


def _plus(one: Symmetry, other: Symmetry) -> Symmetry:
    return joined([one, other]).with_axes(_broadcast([one, other], max(len(one.axes), len(other.axes))))


def _added_product(call: Call) -> Symmetry:
    added, one, other = (call.of(each) for each in call.tensors[:3])
    return _plus(_contracted(one, other, call.note), added)


def _attention(call: Call) -> Symmetry:
    """Attention: rows of queries stay, keys and values are summed over, paired."""
    query, key, value = (call.of(call[name]) for name in ("query", "key", "value"))
    if call["is_causal"] or (call["dropout_p"] or 0.0) > 0:
        raise UnknownError
    turned = key.with_axes((*key.axes[:-2], key.axes[-1], key.axes[-2]))
    weights = _contracted(query, turned, call.note)
    if call["attn_mask"] is not None:
        weights = _plus(weights, call.of(call["attn_mask"]))
    return _contracted(weights, value, call.note)


def _each(given: Any, count: int, default: int = 0) -> list[int]:
    """Return one number for each axis."""
    if given is None or given == []:
        return [default] * count
    listed = [int(each) for each in given] if isinstance(given, list | tuple) else [int(given)]
    return listed * count if len(listed) == 1 else listed


def _convolution(call: Call) -> Symmetry:
    maps, weight = call.of(call["input"]), call.of(call["weight"])
    axes = len(weight.axes) - 2
    if len(maps.axes) != axes + 2 or moves(maps.axes[1]) or any(map(moves, weight.axes)) or call["transposed"]:
        raise UnknownError
    kernel = call["weight"].shape[2:]
    stride, dilation = _each(call["stride"], axes, 1), _each(call["dilation"], axes, 1)
    padding = [0] * axes if isinstance(call["padding"], str) else _each(call["padding"], axes)
    borders = ["zeros" if pad else "" for pad in padding]
    if call["padding"] == "same":
        borders = ["zeros" if size > 1 else "" for size in kernel]
    found = replace(joined([maps, weight]), axes=maps.axes)
    for place, (size, step, spread, border) in enumerate(zip(kernel, stride, dilation, borders, strict=True), start=2):
        found = windowed(
            found,
            place,
            reach=spread * (size - 1),
            stride=step,
            size=call.shape()[place],
            border=border,
            note=call.note,
        )
    return found.with_axes((maps.axes[0], fixed(call.shape()[1]), *found.axes[2:]))


def _spread(call: Call) -> Symmetry:
    """Transposed convolution: windows of the output, side by side or overlapping."""
    maps, weight = call.of(call["input"]), call.of(call["weight"])
    axes = len(weight.axes) - 2
    if len(maps.axes) != axes + 2 or moves(maps.axes[1]) or any(map(moves, weight.axes)):
        raise UnknownError
    found = replace(joined([maps, weight]), axes=maps.axes)
    stride, dilation = _each(call["stride"], axes, 1), _each(call["dilation"], axes, 1)
    for place, (size, step, spread) in enumerate(zip(call["weight"].shape[2:], stride, dilation, strict=True), start=2):
        exact = size <= step and spread == 1 and call.shape()[place] == step * call["input"].shape[place]
        found = _finer(
            found, place, step, call.shape()[place], 0 if exact else spread * (size - 1), "" if exact else "zeros", call
        )
    return found.with_axes((maps.axes[0], fixed(call.shape()[1]), *found.axes[2:]))


def _finer(found: Symmetry, place: int, times: int, size: int, reach: int, border: str, call: Call) -> Symmetry:
    """Return a symmetry after an axis has become finer; ``reach`` in positions of the new axis."""
    axis = found.axes[place]
    if not moves(axis):
        return _with_axis(found, place, fixed(size))
    before = _single(axis)
    factor = Factor(size, before.kind, before.step / times)
    found = found.widened(factor.kind, reach, factor.step)
    if border:
        call.note(border)
        found = found.leaking()
    return _with_axis(found, place, ((factor,),))


def _pool(call: Call) -> Symmetry:
    """Pools of any number of axes; a window that is the complete map is a sum over positions."""
    maps, kernel = call.first, call["kernel_size"]
    axes = len(kernel)
    kernel = _each(kernel, max(axes, _axes_of_pool(call)))
    axes = len(kernel)
    stride = _each(call["stride"], axes) if call["stride"] else kernel
    padding, dilation = _each(call["padding"], axes), _each(call["dilation"], axes, 1)
    offset, found = len(maps.axes) - axes, maps
    for place, (size, step, pad, spread) in enumerate(zip(kernel, stride, padding, dilation, strict=True), start=offset):
        positions, count = length(maps.axes[place]), call.shape()[place]
        reach = spread * (size - 1)
        if not pad and size == positions and count == 1 and spread == 1:
            found = _with_axis(reduced(found, [place], call.note), place, same(1))
            continue
        beyond = (count - 1) * step + reach + 1 > positions + 2 * pad  # ceil_mode
        found = windowed(
            found, place, reach=reach, stride=step, size=count, border="zeros" if pad or beyond else "", note=call.note
        )
    return found


def _axes_of_pool(call: Call) -> int:
    return len(call["kernel_size"])


def _adaptive(call: Call) -> Symmetry:
    found, axes = call.first, len(call["output_size"])
    for place in range(len(found.axes) - axes, len(found.axes)):
        positions, count = length(found.axes[place]), call.shape()[place]
        if count == 1:
            found = _with_axis(reduced(found, [place], call.note), place, same(1))
        elif positions % count == 0:
            step = positions // count
            found = windowed(found, place, reach=step - 1, stride=step, size=count, border="", note=call.note)
        elif moves(found.axes[place]):
            raise UnknownError
        else:
            found = _with_axis(found, place, fixed(count))
    return found


def _values_of(rule: Callable[[Call], Symmetry]) -> Rule:
    """Return a rule for values and their places, which are unknown."""

    def values(call: Call) -> list[Symmetry | None]:
        return [rule(call), None][: len(call.results)]

    return values


def _batch_norm(call: Call) -> Symmetry:
    maps = call.of(call["input"])
    places = [place for place in range(len(maps.axes)) if place != 1]
    trains = call["training"] or call["use_input_stats"] or call["running_mean"] is None
    found = reduced(maps, places, call.note) if trains else maps
    return _affine(call, found, 1, ("weight", "bias", "running_mean", "running_var"))


def _affine(call: Call, found: Symmetry, place: int, names: Sequence[str]) -> Symmetry:
    """Return a symmetry after weights along one axis."""
    weights = [call.of(call[name]) for name in names if call[name] is not None]
    axis = found.axes[place]
    for each in weights:
        axis = _both(axis, each.axes[0])
    return _with_axis(replace(joined([found, *weights]), axes=found.axes), place, axis)


def _instance_norm(call: Call) -> Symmetry:
    maps = call.of(call["input"])
    found = reduced(maps, range(2, len(maps.axes)), call.note) if call["use_input_stats"] else maps
    return _affine(call, found, 1, ("weight", "bias", "running_mean", "running_var"))


def _group_norm(call: Call) -> Symmetry:
    maps = call.of(call["input"])
    _still(maps.axes[1])
    return _affine(call, reduced(maps, range(2, len(maps.axes)), call.note), 1, ("weight", "bias"))


def _layer_norm(call: Call) -> Symmetry:
    maps, count = call.of(call["input"]), len(call["normalized_shape"])
    found = reduced(maps, range(len(maps.axes) - count, len(maps.axes)), call.note)
    for name in ("weight", "bias"):
        found = _plus(found, call.of(call[name])) if call[name] is not None else found
    return found


def _prelu(call: Call) -> Symmetry:
    found, weight = call.first, call.of(call["weight"])
    if not weight.axes or length(weight.axes[0]) == 1:
        return replace(joined([found, weight]), axes=found.axes)
    return _affine(call, found, 1, ("weight",))


def _permuted(call: Call) -> Symmetry:
    axes = call.first.axes
    return call.first.with_axes(axes[place] for place in call["dims"])


def _transposed(call: Call) -> Symmetry:
    axes = list(call.first.axes)
    if len(axes) < 2:
        return call.first
    one, other = (call["dim0"], call["dim1"]) if "dim0" in call.given else (0, 1)
    axes[one], axes[other] = axes[other], axes[one]
    return call.first.with_axes(axes)


def _unsqueezed(call: Call) -> Symmetry:
    axes = list(call.first.axes)
    axes.insert(call["dim"] % (len(axes) + 1), same(1))
    return call.first.with_axes(axes)


def _squeezed(call: Call) -> Symmetry:
    places = _dims(call)
    return call.first.with_axes(axis for place, axis in enumerate(call.first.axes) if place not in places or length(axis) != 1)


def _reshaped(call: Call) -> Symmetry:
    """Regroup axes: those between two common products of sizes are joined and split again."""
    found, old, new = call.first, [length(axis) for axis in call.first.axes], list(call.shape())
    axes: list[Axis] = []
    start = place = 0
    while start < len(old) or place < len(new):
        stop, end = start + (start < len(old)), place + (place < len(new))
        while prod(old[start:stop]) != prod(new[place:end]):
            if (prod(old[start:stop]) < prod(new[place:end]) or end == len(new)) and stop < len(old):
                stop += 1
            elif end < len(new):
                end += 1
            else:
                raise UnknownError
        group = found.axes[start:stop]
        live = [axis for axis, size in zip(group, old[start:stop], strict=True) if size != 1]
        sizes = [size for size in new[place:end] if size != 1]
        if len(live) == 1 and len(sizes) == 1:
            pieces = [live[0]]
        else:
            found, pieces = _split(found, live, sizes, call)
        pieces.reverse()
        axes += [same(1) if size == 1 else pieces.pop() for size in new[place:end]]
        start, place = stop, end
    return found.with_axes(axes)


def _split(found: Symmetry, axes: Sequence[Axis], sizes: Sequence[int], call: Call) -> tuple[Symmetry, list[Axis]]:
    """Return axes of other sizes made of the same factors, the outer ones first."""
    if any(len(axis) != 1 for axis in axes):
        return found, _split_parts(axes, sizes)
    left = [factor for axis in axes for factor in axis[0]][::-1]
    pieces: list[Axis] = []
    for size in sizes:
        part: list[Factor] = []
        while size > 1:
            factor = left.pop()
            if size % factor.size == 0:
                part.append(factor)
                size //= factor.size
            elif factor.size % size == 0:
                inner = factor.size // size
                found, outer, rest = _windows(found, factor, size, inner, call)
                left.append(rest)
                part.append(outer)
                size = 1
            else:
                raise UnknownError
        pieces.append((tuple(part),))
    return found, pieces


def _split_parts(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """Join tokens behind each other (the outer axis) with the axes inside, or take these off again."""
    inner = tuple(factor for axis in axes[1:] for factor in axis[0])
    if len(sizes) == 1 and all(len(axis) == 1 for axis in axes[1:]):
        return [tuple((*part, *inner) for part in axes[0])]
    if len(axes) != 1 or len(sizes) != 2:
        raise UnknownError
    inside = {part[-1:] for part in axes[0]}
    if len(inside) != 1 or any(not part or part[-1].size != sizes[1] for part in axes[0]):
        raise UnknownError
    return [tuple(part[:-1] for part in axes[0]), (inside.pop(),)]


def _windows(found: Symmetry, factor: Factor, outer: int, inner: int, call: Call) -> tuple[Symmetry, Factor, Factor]:
    """Split a factor into windows: shifts by whole windows move these, and leave the positions inside where they are."""
    if not factor.moves:
        return found, replace(factor, size=outer), replace(factor, size=inner)
    step = factor.step * inner
    call.note("stride")
    found = found.at_multiples(factor.kind, step).widened(factor.kind, inner - 1, factor.step)
    if found.circular and factor.size != found.period(factor):
        call.note("misfit")
        found = found.leaking()
    return found, Factor(outer, factor.kind, step), Factor(inner, "fixed")


def _expanded(call: Call) -> Symmetry:
    found, shape = call.first, call.shape()
    axes: list[Axis] = [same(size) for size in shape[: len(shape) - len(found.axes)]]
    for axis, size in zip(found.axes, shape[len(axes) :], strict=True):
        axes.append(same(size) if length(axis) == 1 else axis)
    return found.with_axes(axes)


def _repeated(call: Call) -> Symmetry:
    found, times = call.first, call["repeats"]
    axes = [*[same(1)] * (len(times) - len(found.axes)), *found.axes]
    return found.with_axes(_tiled(axis, count) for axis, count in zip(axes, times, strict=True))


def _tiled(axis: Axis, count: int) -> Axis:
    if count == 1:
        return axis
    if len(axis) != 1:
        raise UnknownError
    return ((Factor(count, "same"), *axis[0]),)


def _selected(call: Call) -> Symmetry:
    place = _dims(call)[0]
    axis, index = call.first.axes[place], call["index"]
    _still((_part_at(axis, index % length(axis)),))
    return call.first.with_axes((*call.first.axes[:place], *call.first.axes[place + 1 :]))


def _part_at(axis: Axis, index: int) -> tuple[Factor, ...]:
    for part in axis:
        size = prod(factor.size for factor in part)
        if index < size:
            return part
        index -= size
    raise UnknownError


def _sliced(call: Call) -> Symmetry:
    place, found = (call["dim"] or 0) % len(call.first.axes), call.first
    size = length(found.axes[place])
    return _range(found, place, range(size)[call["start"] : call["end"] : call["step"] or 1], call.note)


def _range(found: Symmetry, place: int, kept: range, note: Callable[[str], None]) -> Symmetry:
    """Return a symmetry with a range of positions of one axis."""
    axis, size = found.axes[place], length(found.axes[place])
    if kept == range(size):
        return found
    if not moves(axis):
        return _with_axis(found, place, same(len(kept)) if is_same(axis) else fixed(len(kept)))
    if not len(kept):
        raise UnknownError
    if len(axis) > 1:
        return _with_axis(found, place, _parts_between(axis, kept))
    cut = max(0, size - len(kept) * kept.step)
    return windowed(found, place, reach=2 * cut, stride=kept.step, size=len(kept), border="", note=note)


def _parts_between(axis: Axis, kept: range) -> Axis:
    """Return the parts of an axis in a range; those that move must be in it completely or not at all."""
    if kept.step != 1:
        raise UnknownError
    found: list[tuple[Factor, ...]] = []
    start = 0
    for part in axis:
        size = prod(factor.size for factor in part)
        low, high = max(start, kept.start), min(start + size, kept.stop)
        if high > low and high - low == size:
            found.append(part)
        elif high > low:
            _still((part,))
            found.append(fixed(high - low)[0])
        start += size
    return tuple(found)


def _pieces(call: Call) -> list[Symmetry | None]:
    """Split along an axis into ranges."""
    place = (call["dim"] or 0) % len(call.first.axes)
    found: list[Symmetry | None] = []
    start = 0
    for result in call.results:
        stop = start + result.shape[place]
        found.append(_range(call.first, place, range(start, stop), call.note))
        start = stop
    return found


def _unbound(call: Call) -> list[Symmetry | None]:
    place = (call["dim"] or 0) % len(call.first.axes)
    _still(call.first.axes[place])
    return [call.first.with_axes((*call.first.axes[:place], *call.first.axes[place + 1 :]))] * len(call.results)


def _concatenated(call: Call) -> Symmetry:
    parts = [call.of(each) for each in call["tensors"] if each.numel()]
    place = (call["dim"] or 0) % len(parts[0].axes)
    rest = [each.with_axes((*each.axes[:place], same(1), *each.axes[place + 1 :])) for each in parts]
    axes = _broadcast(rest, len(parts[0].axes))
    along = [each.axes[place] for each in parts]
    if any(map(moves, along)):
        axes[place] = tuple(part for axis in along for part in axis)
    else:
        axes[place] = fixed(call.shape()[place])
    return joined(parts).with_axes(axes)


def _stacked(call: Call) -> Symmetry:
    parts = [call.of(each) for each in call["tensors"]]
    axes = _broadcast(parts, len(parts[0].axes))
    axes.insert((call["dim"] or 0) % (len(axes) + 1), fixed(len(parts)))
    return joined(parts).with_axes(axes)


def _flipped(call: Call) -> Symmetry:
    found = call.first
    for place in _dims(call, "dims"):
        if moves(found.axes[place]):
            factor = _single(found.axes[place])
            found = _with_axis(found.in_image_frame(), place, ((replace(factor, step=-factor.step),),))
    return found


def _rolled(call: Call) -> Symmetry:
    """A roll by a constant commutes with shifts, but moves what lies at a border inside."""
    found = call.first
    if not call["dims"]:
        raise UnknownError
    for place in _dims(call, "dims"):
        axis = found.axes[place]
        if not moves(axis):
            found = found if is_same(axis) else _with_axis(found, place, fixed(length(axis)))
        elif found.circular and _single(axis).size == found.period(_single(axis)):
            found = replace(_with_axis(found, place, ((_single(axis),),)), local=False)
        else:
            raise UnknownError
    return found


def _padded(call: Call) -> Symmetry:
    found, margins, mode = call.first, list(call["pad"]), call["mode"] or "constant"
    place = len(found.axes)
    for before, after in zip(margins[::2], margins[1::2], strict=True):
        place -= 1
        size = length(found.axes[place])
        low, high = max(0, -before), size - max(0, -after)
        found = _range(found, place, range(low, high), call.note)
        more = max(0, before) + max(0, after)
        if more:
            found = _continued(found, place, more, mode, call.note)
    return found


def _continued(found: Symmetry, place: int, more: int, mode: str, note: Callable[[str], None]) -> Symmetry:
    """Return a symmetry after an axis has grown at its ends."""
    axis, size = found.axes[place], length(found.axes[place]) + more
    if not moves(axis):
        return _with_axis(found, place, same(size) if is_same(axis) and mode != "constant" else fixed(size))
    factor = _single(axis)
    around = mode == "circular" and factor.size == found.period(factor)
    note("circular" if mode == "circular" else {"constant": "zeros"}.get(mode, mode))
    if not (found.circular and around):
        found = found.leaking()
    return _with_axis(found, place, ((replace(factor, size=size),),))


def _nearest(call: Call) -> Symmetry:
    found, shape = call.first, call["input"].shape if call["input"] is not None else call["self"].shape
    axes = len(shape) - 2
    scales = call["scale_factors"] or [call["scales_h"], call["scales_w"]][:axes]
    for place in range(2, len(shape)):
        before, after = shape[place], call.shape()[place]
        given = scales[place - 2] if scales and len(scales) == axes else None
        if before == after or not moves(found.axes[place]):
            _still(found.axes[place]) if before != after else None
            found = found if before == after or is_same(found.axes[place]) else _with_axis(found, place, fixed(after))
            found = _with_axis(found, place, same(after)) if is_same(found.axes[place]) else found
        elif given is not None and given * before != after:
            raise UnknownError
        elif after % before == 0:
            found = _finer(found, place, after // before, after, 0, "", call)
        elif before % after == 0:
            step = before // after
            found = windowed(found, place, reach=0, stride=step, size=after, border="", note=call.note)
        else:
            raise UnknownError
    return found


def _shuffled(call: Call) -> Symmetry:
    found, times = call.first, call["upscale_factor"]
    _still(found.axes[-3])
    for place in (len(found.axes) - 2, len(found.axes) - 1):
        found = _finer(found, place, times, call.shape()[place], 0, "", call)
    return found.with_axes((*found.axes[:-3], fixed(call.shape()[-3]), *found.axes[-2:]))


def _unshuffled(call: Call) -> Symmetry:
    found, times = call.first, call["downscale_factor"]
    _still(found.axes[-3])
    for place in (len(found.axes) - 2, len(found.axes) - 1):
        found = windowed(found, place, reach=times - 1, stride=times, size=call.shape()[place], border="", note=call.note)
    return found.with_axes((*found.axes[:-3], fixed(call.shape()[-3]), *found.axes[-2:]))


def _columns(call: Call) -> Symmetry:
    """Unfold a map into columns, one a window (im2col)."""
    found, kernel = call.first, _each(call["kernel_size"], 2)
    stride, padding, dilation = _each(call["stride"], 2, 1), _each(call["padding"], 2), _each(call["dilation"], 2, 1)
    if len(found.axes) != 4:
        raise UnknownError
    _still(found.axes[1])
    sizes = [length(axis) for axis in found.axes[2:]]
    for place, (size, step, pad, spread) in enumerate(zip(kernel, stride, padding, dilation, strict=True), start=2):
        count = (sizes[place - 2] + 2 * pad - spread * (size - 1) - 1) // step + 1
        found = windowed(
            found,
            place,
            reach=spread * (size - 1),
            stride=step,
            size=count,
            border="zeros" if pad else "",
            note=call.note,
        )
    return found.with_axes((found.axes[0], fixed(call.shape()[1]), ((*found.axes[2][0], *found.axes[3][0]),)))


def _sliding(call: Call) -> Symmetry:
    """Tensor.unfold: windows along one axis, their positions as a new last axis."""
    place = call["dimension"] % len(call.first.axes)
    size, step, count = call["size"], call["step"], call.shape()[place]
    found = windowed(call.first, place, reach=size - 1, stride=step, size=count, border="", note=call.note)
    return found.with_axes((*found.axes, fixed(size)))


def _gathered(call: Call) -> Symmetry:
    found, index, place = call.of(call["self"]), call.of(call["index"]), _dims_of(call["self"], call["dim"])
    _still(found.axes[place])
    rest = found.with_axes((*found.axes[:place], same(1), *found.axes[place + 1 :]))
    if tuple(call["index"].shape[:place]) != tuple(call["self"].shape[:place]):
        raise UnknownError
    if tuple(call["index"].shape[place + 1 :]) != tuple(call["self"].shape[place + 1 :]):
        raise UnknownError
    return _plus(rest, index)


def _dims_of(tensor: Tensor, dim: int) -> int:
    return dim % tensor.ndim


def _looked_up(call: Call) -> Symmetry:
    """Rows of a table: embedding and index_select."""
    table, index = (call.of(call["weight"]), call.of(call["indices"])) if "weight" in call.given else (None, None)
    if table is None or index is None:
        table, index = call.of(call["self"]), call.of(call["index"])
        place = _dims_of(call["self"], call["dim"])
    else:
        place = 0
    _still(table.axes[place])
    return joined([table, index]).with_axes((*table.axes[:place], *index.axes, *table.axes[place + 1 :]))


def _gated(call: Call) -> Symmetry:
    place = (-1 if call["dim"] is None else call["dim"]) % len(call.first.axes)
    _still(call.first.axes[place])
    return _with_axis(call.first, place, fixed(call.shape()[place]))


def _copied(call: Call) -> Symmetry:
    """Copy into a tensor of the same values everywhere: the result is the source, spread over its axes."""
    target, source = call.results[0], call.of(call["src"])
    axes = [same(size) for size in target.shape]
    for place, axis in enumerate(source.axes, start=len(axes) - len(source.axes)):
        axes[place] = axes[place] if length(axis) == 1 else axis
    return source.with_axes(axes)


def _idle(call: Call) -> Symmetry:
    """Dropout in evaluation mode."""
    if call["train"] or call["training"]:
        raise UnknownError
    return call.first


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


#: Operators that hand values of a tensor to Python.
READS = frozenset({"item", "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "_unique2", "unique_dim", "masked_select"})
#: Rule of each operator, by its name without overload and without a final underscore.
RULES: dict[str, Rule] = {
    **_named(
        _unchanged,
        "detach alias clone contiguous to _to_copy lift_fresh lift resolve_conj resolve_neg positive",
    ),
    **_named(_uniform, "zeros ones full new_zeros new_ones new_full zeros_like ones_like full_like zero scalar_tensor"),
    **_named(_filled, "fill"),
    **_named(_garbage, "empty new_empty empty_like new_empty_strided empty_strided"),
    **_named(
        _reduction, "sum mean amax amin prod var std logsumexp norm linalg_vector_norm all any nansum nanmean count_nonzero"
    ),
    **_named(_extremum, "max min"),
    **_named(_places, "argmax argmin"),
    **_named(_normalised, "softmax log_softmax _softmax _log_softmax"),
    **_named(_ordered, "sort topk"),
    **_named(_picked, "median nanmedian kthvalue mode"),
    **_named(_cumulative, "cumsum cumprod cummax cummin logcumsumexp"),
    **_named(_product, "mm bmm matmul mv"),
    **_named(_linear, "linear"),
    **_named(_added_product, "addmm baddbmm"),
    **_named(_attention, "scaled_dot_product_attention"),
    **_named(_convolution, "conv1d conv2d conv3d"),
    **_named(_spread, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_named(_pool, "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"),
    **_named(_values_of(_pool), "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"),
    **_named(_adaptive, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    **_named(_values_of(_adaptive), "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    **_named(_batch_norm, "batch_norm"),
    **_named(_instance_norm, "instance_norm"),
    **_named(_group_norm, "group_norm"),
    **_named(_layer_norm, "layer_norm rms_norm"),
    **_named(_prelu, "prelu _prelu_kernel"),
    **_named(_permuted, "permute"),
    **_named(_transposed, "transpose t swapaxes swapdims"),
    **_named(_unsqueezed, "unsqueeze"),
    **_named(_squeezed, "squeeze"),
    **_named(_reshaped, "view reshape _unsafe_view flatten unflatten _reshape_alias"),
    **_named(_expanded, "expand"),
    **_named(_repeated, "repeat"),
    **_named(_selected, "select"),
    **_named(_sliced, "slice"),
    **_named(_pieces, "split chunk split_with_sizes"),
    **_named(_unbound, "unbind"),
    **_named(_concatenated, "cat"),
    **_named(_stacked, "stack"),
    **_named(_flipped, "flip"),
    **_named(_rolled, "roll"),
    **_named(_padded, "pad"),
    **_named(_nearest, "upsample_nearest1d upsample_nearest2d upsample_nearest3d"),
    **_named(_shuffled, "pixel_shuffle"),
    **_named(_unshuffled, "pixel_unshuffle"),
    **_named(_columns, "im2col"),
    **_named(_sliding, "unfold"),
    **_named(_gathered, "gather"),
    **_named(_looked_up, "embedding index_select"),
    **_named(_gated, "glu"),
    **_named(_copied, "copy"),
    **_named(_idle, "dropout feature_dropout alpha_dropout feature_alpha_dropout"),
    **_named(pointwise, "hardswish softplus log_sigmoid where rsub divide multiply subtract softshrink rrelu floor_divide"),
}
