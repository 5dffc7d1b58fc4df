"""Rules of operators with windows: convolutions, pools, resampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shiftscope.graphs.rules.call import Call, Note, Rule, UnknownError, per_axis, reduced, require_still, single_factor
from shiftscope.graphs.symmetry import Factor, Symmetry, fixed, is_same, joined, length, moves, same


def windowed(found: Symmetry, place: int, *, reach: int, stride: int, size: int, border: str, note: Note) -> Symmetry:
    """Return a symmetry after windows along one axis.

    Args:
        found: before.
        place: of the axis.
        reach: positions from a window's first to its last.
        stride: positions from one window to the next.
        size: number of windows.
        border: padding mode of what windows read beyond the border; empty if they do not.
        note: see :class:`Call`.
    """
    axis = found.axes[place]
    if not reach and stride == 1 and not border:
        return found
    if not moves(axis):
        return found.with_axis(place, same(size) if is_same(axis) and not border else fixed(size))
    factor = single_factor(axis)
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
    return found.with_axis(place, ((after,),))


def convolution(call: Call) -> Symmetry:
    maps, weight = call.of(call["input"]), call.of(call["weight"])
    axes = len(weight.axes) - 2
    if len(maps.axes) != axes + 2 or moves(maps.axes[1]) or any(map(moves, weight.axes)) or call["transposed"]:
        raise UnknownError
    kernel = call["weight"].shape[2:]
    stride, dilation = per_axis(call["stride"], axes, 1), per_axis(call["dilation"], axes, 1)
    padding = [0] * axes if isinstance(call["padding"], str) else per_axis(call["padding"], axes)
    borders = ["zeros" if pad else "" for pad in padding]
    if call["padding"] == "same":
        borders = ["zeros" if size > 1 else "" for size in kernel]
    found = replace(joined([maps, weight]), axes=maps.axes)
    for place, (size, step, spread, border) in enumerate(zip(kernel, stride, dilation, borders, strict=True), start=2):
        reach, count = spread * (size - 1), call.shape[place]
        found = windowed(found, place, reach=reach, stride=step, size=count, border=border, note=call.note)
    return found.with_axes((maps.axes[0], fixed(call.shape[1]), *found.axes[2:]))


def transposed_convolution(call: Call) -> Symmetry:
    """Transposed convolution: windows of the output, side by side or overlapping."""
    maps, weight = call.of(call["input"]), call.of(call["weight"])
    axes = len(weight.axes) - 2
    if len(maps.axes) != axes + 2 or moves(maps.axes[1]) or any(map(moves, weight.axes)):
        raise UnknownError
    found = replace(joined([maps, weight]), axes=maps.axes)
    stride, dilation = per_axis(call["stride"], axes, 1), per_axis(call["dilation"], axes, 1)
    padding = per_axis(call["padding"], axes)
    windows = zip(call["weight"].shape[2:], stride, dilation, padding, strict=True)
    for place, (size, step, spread, cut) in enumerate(windows, start=2):
        exact = size <= step and spread == 1 and not cut and call.shape[place] == step * call["input"].shape[place]
        found = upsampled(
            found, place, step, call.shape[place], 0 if exact else spread * (size - 1), "" if exact else "zeros", call
        )
    return found.with_axes((maps.axes[0], fixed(call.shape[1]), *found.axes[2:]))


def upsampled(found: Symmetry, place: int, times: int, size: int, reach: int, border: str, call: Call) -> Symmetry:
    """Return a symmetry after an axis has become finer; ``reach`` in positions of the new axis."""
    axis = found.axes[place]
    if not moves(axis):
        return found.with_axis(place, fixed(size))
    before = single_factor(axis)
    factor = Factor(size, before.kind, before.step / times)
    found = found.widened(factor.kind, reach, factor.step)
    if border:
        call.note(border)
        found = found.leaking()
    return found.with_axis(place, ((factor,),))


def pool(call: Call) -> Symmetry:
    """Pools of any number of axes; a window that is the complete map is a sum over positions."""
    maps, kernel = call.first, list(call["kernel_size"])
    axes = len(kernel)
    stride = per_axis(call["stride"], axes) if call["stride"] else kernel
    padding, dilation = per_axis(call["padding"], axes), per_axis(call["dilation"], axes, 1)
    offset, found = len(maps.axes) - axes, maps
    for place, (size, step, pad, spread) in enumerate(zip(kernel, stride, padding, dilation, strict=True), start=offset):
        positions, count = length(maps.axes[place]), call.shape[place]
        reach = spread * (size - 1)
        if not pad and size == positions and count == 1 and spread == 1:
            found = reduced(found, [place], call.note).with_axis(place, same(1))
            continue
        beyond = (count - 1) * step + reach + 1 > positions + 2 * pad  # ceil_mode
        found = windowed(
            found, place, reach=reach, stride=step, size=count, border="zeros" if pad or beyond else "", note=call.note
        )
    return found


def adaptive_pool(call: Call) -> Symmetry:
    found, axes = call.first, len(call["output_size"])
    for place in range(len(found.axes) - axes, len(found.axes)):
        positions, count = length(found.axes[place]), call.shape[place]
        if count == 1:
            found = reduced(found, [place], call.note).with_axis(place, same(1))
        elif positions % count == 0:
            step = positions // count
            found = windowed(found, place, reach=step - 1, stride=step, size=count, border="", note=call.note)
        elif moves(found.axes[place]):
            raise UnknownError
        else:
            found = found.with_axis(place, fixed(count))
    return found


def with_indices(rule: Callable[[Call], Symmetry]) -> Rule:
    """Return a rule for values and their places, which are unknown."""

    def values(call: Call) -> list[Symmetry | None]:
        return [rule(call), None][: len(call.results)]

    return values


def nearest(call: Call) -> Symmetry:
    found, shape = call.first, call["input"].shape if call["input"] is not None else call["self"].shape
    axes = len(shape) - 2
    scales = call["scale_factors"] or [call["scales_h"], call["scales_w"]][:axes]
    for place in range(2, len(shape)):
        before, after = shape[place], call.shape[place]
        given = scales[place - 2] if scales and len(scales) == axes else None
        if before == after:
            continue
        if not moves(found.axes[place]):
            found = found.with_axis(place, same(after) if is_same(found.axes[place]) else fixed(after))
        elif given is not None and given * before != after:
            raise UnknownError
        elif after % before == 0:
            found = upsampled(found, place, after // before, after, 0, "", call)
        elif before % after == 0:
            step = before // after
            found = windowed(found, place, reach=0, stride=step, size=after, border="", note=call.note)
        else:
            raise UnknownError
    return found


def pixel_shuffle(call: Call) -> Symmetry:
    found, times = call.first, call["upscale_factor"]
    require_still(found.axes[-3])
    for place in (len(found.axes) - 2, len(found.axes) - 1):
        found = upsampled(found, place, times, call.shape[place], 0, "", call)
    return found.with_axis(-3, fixed(call.shape[-3]))


def pixel_unshuffle(call: Call) -> Symmetry:
    found, times = call.first, call["downscale_factor"]
    require_still(found.axes[-3])
    for place in (len(found.axes) - 2, len(found.axes) - 1):
        found = windowed(found, place, reach=times - 1, stride=times, size=call.shape[place], border="", note=call.note)
    return found.with_axis(-3, fixed(call.shape[-3]))


def im2col(call: Call) -> Symmetry:
    """Unfold a map into columns, one per window (im2col)."""
    found, kernel = call.first, per_axis(call["kernel_size"], 2)
    stride, padding, dilation = per_axis(call["stride"], 2, 1), per_axis(call["padding"], 2), per_axis(call["dilation"], 2, 1)
    if len(found.axes) != 4:
        raise UnknownError
    require_still(found.axes[1])
    sizes = [length(axis) for axis in found.axes[2:]]
    for place, (size, step, pad, spread) in enumerate(zip(kernel, stride, padding, dilation, strict=True), start=2):
        reach, border = spread * (size - 1), "zeros" if pad else ""
        count = (sizes[place - 2] + 2 * pad - reach - 1) // step + 1
        found = windowed(found, place, reach=reach, stride=step, size=count, border=border, note=call.note)
    return found.with_axes((found.axes[0], fixed(call.shape[1]), ((*found.axes[2][0], *found.axes[3][0]),)))


def unfolded(call: Call) -> Symmetry:
    """Tensor.unfold: windows along one axis, their positions as a new last axis."""
    place = call.place("dimension")
    size, step, count = call["size"], call["step"], call.shape[place]
    found = windowed(call.first, place, reach=size - 1, stride=step, size=count, border="", note=call.note)
    return found.with_axes((*found.axes, fixed(size)))
