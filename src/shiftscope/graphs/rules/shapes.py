"""Rules of operators that rearrange values: views, slices, concatenation, padding, lookup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from shiftscope.graphs.rules.call import Call, Note, UnknownError, broadcast, plus, require_still, single_factor
from shiftscope.graphs.rules.windows import windowed
from shiftscope.graphs.symmetry import Axis, Factor, Symmetry, fixed, is_same, joined, length, moves, same


def permuted(call: Call) -> Symmetry:
    axes = call.first.axes
    return call.first.with_axes(axes[place] for place in call["dims"])


def transposed(call: Call) -> Symmetry:
    axes = list(call.first.axes)
    if len(axes) < 2:
        return call.first
    one, other = (call["dim0"], call["dim1"]) if "dim0" in call.given else (0, 1)
    axes[one], axes[other] = axes[other], axes[one]
    return call.first.with_axes(axes)


def unsqueezed(call: Call) -> Symmetry:
    axes = list(call.first.axes)
    axes.insert(call["dim"] % (len(axes) + 1), same(1))
    return call.first.with_axes(axes)


def squeezed(call: Call) -> Symmetry:
    places = call.places()
    return call.first.with_axes(axis for place, axis in enumerate(call.first.axes) if place not in places or length(axis) != 1)


def reshaped(call: Call) -> Symmetry:
    """Regroup axes: those between two common products of sizes are joined and split again."""
    found, old, new = call.first, [length(axis) for axis in call.first.axes], list(call.shape)
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
            found, pieces = _regrouped(found, live, sizes, call)
        pieces.reverse()
        axes += [same(1) if size == 1 else pieces.pop() for size in new[place:end]]
        start, place = stop, end
    return found.with_axes(axes)


def _regrouped(found: Symmetry, axes: Sequence[Axis], sizes: Sequence[int], call: Call) -> tuple[Symmetry, list[Axis]]:
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


def expanded(call: Call) -> Symmetry:
    found, shape = call.first, call.shape
    axes: list[Axis] = [same(size) for size in shape[: len(shape) - len(found.axes)]]
    for axis, size in zip(found.axes, shape[len(axes) :], strict=True):
        axes.append(same(size) if length(axis) == 1 else axis)
    return found.with_axes(axes)


def repeated(call: Call) -> Symmetry:
    found, times = call.first, call["repeats"]
    axes = [*[same(1)] * (len(times) - len(found.axes)), *found.axes]
    return found.with_axes(_tiled(axis, count) for axis, count in zip(axes, times, strict=True))


def _tiled(axis: Axis, count: int) -> Axis:
    if count == 1:
        return axis
    if len(axis) != 1:
        raise UnknownError
    return ((Factor(count, "same"), *axis[0]),)


def selected(call: Call) -> Symmetry:
    place = call.places()[0]
    axis, index = call.first.axes[place], call["index"]
    require_still((_part_at(axis, index % length(axis)),))
    return call.first.without_axis(place)


def _part_at(axis: Axis, index: int) -> tuple[Factor, ...]:
    for part in axis:
        size = prod(factor.size for factor in part)
        if index < size:
            return part
        index -= size
    raise UnknownError


def sliced(call: Call) -> Symmetry:
    place, found = call.place(), call.first
    size = length(found.axes[place])
    return in_range(found, place, range(size)[call["start"] : call["end"] : call["step"] or 1], call.note)


def in_range(found: Symmetry, place: int, kept: range, note: Note) -> Symmetry:
    """Return a symmetry with a range of positions of one axis."""
    axis, size = found.axes[place], length(found.axes[place])
    if kept == range(size):
        return found
    if not moves(axis):
        return found.with_axis(place, same(len(kept)) if is_same(axis) else fixed(len(kept)))
    if not len(kept):
        raise UnknownError
    if len(axis) > 1:
        return found.with_axis(place, _parts_between(axis, kept))
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
            require_still((part,))
            found.append(fixed(high - low)[0])
        start += size
    return tuple(found)


def split(call: Call) -> list[Symmetry | None]:
    """Split along an axis into ranges."""
    place = call.place()
    found: list[Symmetry | None] = []
    start = 0
    for result in call.results:
        stop = start + result.shape[place]
        found.append(in_range(call.first, place, range(start, stop), call.note))
        start = stop
    return found


def unbound(call: Call) -> list[Symmetry | None]:
    place = call.place()
    require_still(call.first.axes[place])
    return [call.first.without_axis(place)] * len(call.results)


def concatenated(call: Call) -> Symmetry:
    parts = [call.of(each) for each in call["tensors"] if each.numel()]
    place = (call["dim"] or 0) % len(parts[0].axes)
    rest = [each.with_axis(place, same(1)) for each in parts]
    axes = broadcast(rest, len(parts[0].axes))
    along = [each.axes[place] for each in parts]
    if any(map(moves, along)):
        axes[place] = tuple(part for axis in along for part in axis)
    else:
        axes[place] = fixed(call.shape[place])
    return joined(parts).with_axes(axes)


def stacked(call: Call) -> Symmetry:
    parts = [call.of(each) for each in call["tensors"]]
    axes = broadcast(parts, len(parts[0].axes))
    axes.insert((call["dim"] or 0) % (len(axes) + 1), fixed(len(parts)))
    return joined(parts).with_axes(axes)


def flipped(call: Call) -> Symmetry:
    found = call.first
    for place in call.places("dims"):
        if moves(found.axes[place]):
            factor = single_factor(found.axes[place])
            found = found.in_image_frame().with_axis(place, ((replace(factor, step=-factor.step),),))
    return found


def rolled(call: Call) -> Symmetry:
    """Return the symmetry of a roll by a constant: it commutes with shifts, but moves what lies at a border inside."""
    found = call.first
    if not call["dims"]:
        raise UnknownError
    for place in call.places("dims"):
        axis = found.axes[place]
        if not moves(axis):
            found = found if is_same(axis) else found.with_axis(place, fixed(length(axis)))
        elif found.circular and single_factor(axis).size == found.period(single_factor(axis)):
            found = replace(found.with_axis(place, ((single_factor(axis),),)), local=False)
        else:
            raise UnknownError
    return found


def padded(call: Call) -> Symmetry:
    found, margins, mode = call.first, list(call["pad"]), call["mode"] or "constant"
    place = len(found.axes)
    for before, after in zip(margins[::2], margins[1::2], strict=True):
        place -= 1
        size = length(found.axes[place])
        low, high = max(0, -before), size - max(0, -after)
        found = in_range(found, place, range(low, high), call.note)
        more = max(0, before) + max(0, after)
        if more:
            found = extended(found, place, more, mode, call.note)
    return found


def extended(found: Symmetry, place: int, more: int, mode: str, note: Note) -> Symmetry:
    """Return a symmetry after an axis has grown at its ends."""
    axis, size = found.axes[place], length(found.axes[place]) + more
    if not moves(axis):
        return found.with_axis(place, same(size) if is_same(axis) and mode != "constant" else fixed(size))
    factor = single_factor(axis)
    around = mode == "circular" and factor.size == found.period(factor)
    note("circular" if mode == "circular" else {"constant": "zeros"}.get(mode, mode))
    if not (found.circular and around):
        found = found.leaking() if mode in ("constant", "replicate") else found.leaking().repeating(factor, more)
    return found.with_axis(place, ((replace(factor, size=size),),))


def gathered(call: Call) -> Symmetry:
    found, index, place = call.of(call["self"]), call.of(call["index"]), call.place()
    require_still(found.axes[place])
    rest = found.with_axis(place, same(1))
    sizes, kept = list(call["self"].shape), list(call["index"].shape)
    if kept[:place] + kept[place + 1 :] != sizes[:place] + sizes[place + 1 :]:
        raise UnknownError
    return plus(rest, index)


def looked_up(call: Call) -> Symmetry:
    """Rows of a table: embedding and index_select."""
    embedding = "weight" in call.given
    table, index = (call.of(call[name]) for name in (("weight", "indices") if embedding else ("self", "index")))
    place = 0 if embedding else call.place()
    require_still(table.axes[place])
    return joined([table, index]).with_axes((*table.axes[:place], *index.axes, *table.axes[place + 1 :]))
