"""One exact rule per operator: how it changes a sheet, so that every window's map is the one that the model computes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.engine.sheets import (
    BatchSize,
    Flat,
    Layout,
    NotDenseError,
    Pair,
    Sheet,
    Spectra,
    Vectors,
    combined,
    correlate,
    global_average,
    largest,
    multiplied,
    pair,
    region,
    size_after,
    weighted,
    wrapped,
)
from shiftscope.graphs.operators import ADDITIONS, IDLE, POINTWISE, PRODUCTS, QUOTIENTS, SUBTRACTIONS
from shiftscope.layers import BlurPool2d, MaxBlurPool2d

__all__ = ["Rules"]


class Rules:
    """The rules for one layout of windows. Every rule raises NotDenseError, with the reason, where it is not exact.

    Args:
        layout: where the windows lie.
        spectra: transformed weights, cached from one block of images to the next.
    """

    def __init__(self, layout: Layout, spectra: Spectra) -> None:
        self.layout, self.spectra = layout, spectra

    def module(self, name: str, part: nn.Module, value: Any, *rest: Any, **options: Any) -> Any:
        """Apply a module, called ``name`` in the model, to a value."""
        if rest or options:
            raise NotDenseError(f"`{name}` takes more than one input")
        kinds = [kind for kind in (*IDLE.modules, *POINTWISE.modules, *MODULE_RULES) if isinstance(part, kind)]
        if not kinds:
            raise NotDenseError(f"`{name}` ({type(part).__name__}) has no exact rule")
        if not any(_runs_code_of(part, kind) for kind in kinds):
            raise NotDenseError(f"`{name}` ({type(part).__name__}) has code of its own")
        if kinds[0] in IDLE.modules:
            return value
        if kinds[0] in POINTWISE.modules:
            return self.pointwise(_out_of_place(part), value)
        return MODULE_RULES[kinds[0]](self, name, part, value)

    def function(self, target: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Apply a function to values."""
        first, *rest = arguments or (None,)
        if target in IDLE.functions:
            return _idle(options, first)
        if target in POINTWISE.functions:
            options = {**options, "inplace": False} if "inplace" in options else options
            return self.pointwise(lambda values: target(values, *rest, **options), first)
        if target in ADDITIONS | SUBTRACTIONS | PRODUCTS | QUOTIENTS and not options:
            return self.arithmetic(target, *arguments)
        if target is getattr and rest == ["shape"]:
            return (BatchSize(),)
        if target is operator.getitem and isinstance(first, tuple) and rest == [0]:
            return first[0]
        if target in FUNCTION_RULES:
            return FUNCTION_RULES[target](self, *arguments, **options)
        raise NotDenseError(f"`{getattr(target, '__name__', target)}` has no exact rule")

    def method(self, name: str, value: Any, *arguments: Any, **options: Any) -> Any:
        """Apply a tensor's method to a value."""
        if name in IDLE.methods:
            return value
        if name in POINTWISE.methods:
            return self.pointwise(getattr(torch, name.rstrip("_")), value)
        if name == "size" and arguments == (0,):
            return BatchSize()
        if name in ("view", "reshape") and len(arguments) == 2 and isinstance(arguments[0], BatchSize) and arguments[1] == -1:
            return self.flatten(value, 1)
        if name in ("flatten", "mean"):
            return getattr(self, name)(value, *arguments, **options)
        if name in ("add", "sub", "mul", "div") and len(arguments) == 1 and not options:
            return self.arithmetic(getattr(torch, name), value, *arguments)
        raise NotDenseError(f"`{name}` has no exact rule")

    def pointwise(self, apply: Callable[[Tensor], Tensor], value: Any) -> Any:
        """Apply f to each value; a sheet's maps become f(values) - f(background)."""
        if isinstance(value, Flat):
            return Flat(self.pointwise(apply, value.sheet))
        if isinstance(value, Vectors):
            return replace(value, values=apply(value.values))
        background = apply(value.background)
        if torch.is_grad_enabled():  # a background of 0 has a gradient too, and autograd needs the values as they are
            return replace(value, maps=apply(value.values) - background[:, None, None], background=background)
        maps = apply(value.values if value.background.any() else value.maps)
        return replace(value, maps=maps.sub_(background[:, None, None]) if background.any() else maps, background=background)

    def batch_norm(self, name: str, part: nn.BatchNorm1d | nn.BatchNorm2d, value: Any) -> Any:
        """Apply batch normalisation with running statistics, an affine map of each channel."""
        if part.running_mean is None or part.running_var is None:
            raise NotDenseError(f"`{name}` takes its statistics from the batch")
        scale = (part.running_var + part.eps).rsqrt() * (1 if part.weight is None else part.weight)
        shift = (0 if part.bias is None else part.bias) - part.running_mean * scale
        if isinstance(value, Vectors) and not value.trailing:
            return replace(value, values=value.values * scale + shift)
        if not isinstance(value, Sheet):
            raise NotDenseError(f"`{name}` follows a flattened map")
        return replace(value, maps=value.maps * scale[:, None, None], background=value.background * scale + shift)

    def convolution(self, name: str, part: nn.Conv2d, sheet: Any) -> Sheet:
        """Apply a convolution module, padding included."""
        if not isinstance(sheet, Sheet):
            raise NotDenseError(f"`{name}` (Conv2d) has no exact rule after the spatial part")
        padding = (0, 0) if part.padding == "valid" else part.padding
        if padding == "same":
            if part.stride != (1, 1):
                raise NotDenseError(f"`{name}` pads by a rule that depends on its size")
            reach = [d * (k - 1) for d, k in zip(part.dilation, part.kernel_size, strict=True)]
            margins = [(r // 2, r - r // 2) for r in reach]
        else:
            margins = [(int(p), int(p)) for p in padding]
        if any(map(any, margins)):
            if part.padding_mode != "circular":
                kind = "zeros" if part.padding_mode == "zeros" else part.padding_mode
                raise NotDenseError(f"`{name}` pads with {kind}, which a shift of the image does not move")
            sheet = self.circular_pad(name, sheet, *margins)
        return self.convolve(sheet, part.weight, part.bias, pair(part.stride), pair(part.dilation), part.groups)

    def functional_convolution(
        self,
        sheet: Any,
        weight: Any,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Sheet:
        """Apply ``functional.conv2d`` with constant weights."""
        if not isinstance(weight, Tensor) or not isinstance(sheet, Sheet):
            raise NotDenseError("`conv2d` has weights that depend on the data")
        if padding not in (0, (0, 0), [0, 0], "valid"):
            raise NotDenseError("`conv2d` pads with zeros, which a shift of the image does not move")
        return self.convolve(sheet, weight, bias, pair(stride), pair(dilation), groups)

    def convolve(self, sheet: Sheet, weight: Tensor, bias: Tensor | None, stride: Pair, dilation: Pair, groups: int) -> Sheet:
        """Convolve the differences, dilated by the sheet's factor, and the background alone."""
        kernel = (weight.shape[2], weight.shape[3])
        constant = sheet.background[None, :, None, None].expand(1, -1, *kernel)
        background = functional.conv2d(constant, weight, bias, groups=groups)[0, :, 0, 0]
        found = self.windowed(
            sheet, kernel, stride, dilation, lambda maps, taps: functional.conv2d(maps, weight, dilation=taps, groups=groups)
        )
        return replace(found, background=background)

    def windowed(
        self, sheet: Sheet, kernel: Pair, stride: Pair, dilation: Pair, apply: Callable[[Tensor, Pair], Tensor]
    ) -> Sheet:
        """Apply an operator on windows to the box it reads, a window's positions the sheet's factor apart; keep the background.

        Args:
            sheet: the map.
            kernel: (height, width) of a window.
            stride: from one window to the next.
            dilation: from one position of a window to the next.
            apply: the operator at every position; takes the maps and the distance between a window's positions.
        """
        taps, factor = multiplied(sheet.factor, dilation), multiplied(sheet.factor, stride)
        size = size_after(sheet.size, kernel, stride, dilation)
        reach = (taps[0] * (kernel[0] - 1), taps[1] * (kernel[1] - 1))
        grown, corner = self.grown(sheet, reach, factor, size)
        return Sheet(apply(grown, taps), sheet.background, corner, factor, size, sheet.origin)

    def max_pool(self, name: str, part: nn.MaxPool2d, sheet: Any) -> Sheet:
        """Take the largest value of each window; the background's is the background."""
        if part.return_indices:
            raise NotDenseError(f"`{name}` returns positions")
        return self.pool(name, part, sheet, pair(part.dilation), largest)

    def average_pool(self, name: str, part: nn.AvgPool2d, sheet: Any) -> Sheet:
        """Average each window: a sum, divided."""
        height, width = pair(part.kernel_size)
        divisor = part.divisor_override or height * width
        sums = self.pool(name, part, sheet, (1, 1), torch.add)
        return replace(sums, maps=sums.maps / divisor, background=sums.background * (height * width / divisor))

    def pool(
        self,
        name: str,
        part: nn.MaxPool2d | nn.AvgPool2d,
        sheet: Any,
        dilation: Pair,
        combine: Callable[[Tensor, Tensor], Tensor],
    ) -> Sheet:
        """Combine each window's values, the sheet's factor apart: along one axis, then along the other."""
        if not isinstance(sheet, Sheet):
            raise NotDenseError(f"`{name}` has no exact rule after the spatial part")
        if pair(part.padding) != (0, 0):
            raise NotDenseError(f"`{name}` pads its map, and a shift of the image does not move the padding")
        if part.ceil_mode:
            raise NotDenseError(f"`{name}` rounds its size up, so that windows hang over the border")
        kernel = pair(part.kernel_size)
        stride = kernel if part.stride is None else pair(part.stride)
        return self.windowed(sheet, kernel, stride, dilation, lambda maps, taps: combined(maps, kernel, taps, combine))

    def blur(self, name: str, part: BlurPool2d | MaxBlurPool2d, sheet: Any) -> Sheet:
        """Filter along each axis; the border must be circular, or the filter stay inside."""
        if not isinstance(sheet, Sheet):
            raise NotDenseError(f"`{name}` has no exact rule after the spatial part")
        by = part.filter
        if any(map(any, by.margins)):
            if by.border != "circular":
                raise NotDenseError(f"`{name}` continues its map by {by.border}, which a shift of the image does not move")
            sheet = self.circular_pad(name, sheet, by.margins[0], by.margins[1])
        kernel, stride = (len(by.taps[0]), len(by.taps[1])), (by.stride[0], by.stride[1])
        found = self.windowed(sheet, kernel, stride, (1, 1), lambda maps, taps: weighted(maps, by.taps, taps))
        return replace(found, background=sheet.background * (sum(by.taps[0]) * sum(by.taps[1])))

    def max_blur(self, name: str, part: MaxBlurPool2d, sheet: Any) -> Sheet:
        """Take a maximum at every position, then filter."""
        kernel, padding, dilation = (pair(value) for value in (part.kernel_size, part.padding, part.dilation))
        return self.blur(name, part, self.max_pool(name, nn.MaxPool2d(kernel, 1, padding, dilation), sheet))

    def grown(self, sheet: Sheet, reach: Pair, factor: Pair, size: Pair) -> tuple[Tensor, Pair]:
        """Return the box that an operator of this reach reads, and its corner, so that every output that can differ is on it.

        On a torus that is the torus, wrapped below and to the right by the reach. Otherwise it is the box, grown by the reach on
        all sides but no further than any window extends.
        """
        if self.layout.torus:
            return wrapped(sheet.maps, reach), (0, 0)
        corner, lengths = [], []
        for axis, starts in enumerate(self.layout.starts):
            begin, length = sheet.corner[axis], sheet.maps.shape[2 + axis]
            extent = starts[-1] + factor[axis] * (size[axis] - 1) + 1
            first = max(min(begin - reach[axis], extent - 1), starts[0])
            last = max(min(begin + length, extent), first + 1)
            corner.append(first)
            lengths.append(last - first + reach[axis])
        grown = region(sheet, (corner[0], corner[1]), (lengths[0], lengths[1]))
        return grown, (corner[0], corner[1])

    def circular_pad(self, name: str, sheet: Any, vertical: Pair, horizontal: Pair) -> Any:
        """Pad circularly: only the origin moves, because the torus holds what comes in."""
        if not any((*vertical, *horizontal)):
            return sheet
        torus = self.layout.torus
        if torus is None:
            raise NotDenseError(f"`{name}` pads circularly, which is exact under circular shifts only")
        if not isinstance(sheet, Sheet) or multiplied(sheet.size, sheet.factor) != torus:
            raise NotDenseError(f"`{name}` pads a map that does not cover the torus once")
        size = (sheet.size[0] + sum(vertical), sheet.size[1] + sum(horizontal))
        origin = (sheet.origin[0] - sheet.factor[0] * vertical[0], sheet.origin[1] - sheet.factor[1] * horizontal[0])
        return replace(sheet, size=size, origin=origin)

    def pad(self, sheet: Any, margins: Any, mode: str = "constant", value: float | None = None) -> Any:
        """Apply ``functional.pad``; only circular padding has a rule."""
        del value
        if mode != "circular" or len(margins) != 4:
            raise NotDenseError(f"`pad` with mode {mode!r} fills in values that a shift of the image does not move")
        left, right, top, bottom = margins
        return self.circular_pad("pad", sheet, (top, bottom), (left, right))

    def arithmetic(self, target: Callable[..., Any], left: Any, right: Any) -> Any:
        """Add or subtract aligned values, or combine a value with a constant of one value per channel."""
        if isinstance(left, Vectors) and isinstance(right, Vectors):
            if target in ADDITIONS | SUBTRACTIONS and left.trailing == right.trailing:
                return replace(left, values=target(left.values, right.values))
        elif isinstance(left, Sheet) and isinstance(right, Sheet):
            if target in ADDITIONS | SUBTRACTIONS:
                first, second, corner = self.aligned(left, right)
                return replace(
                    left, maps=target(first, second), corner=corner, background=target(left.background, right.background)
                )
        elif isinstance(left, Vectors) and isinstance(right, int | float):
            return replace(left, values=target(left.values, right))
        elif isinstance(left, Sheet) or isinstance(right, Sheet):
            return self.with_constant(target, left, right)
        raise NotDenseError(f"`{getattr(target, '__name__', target)}` has no exact rule for these operands")

    def with_constant(self, target: Callable[..., Any], left: Any, right: Any) -> Sheet:
        """Combine a sheet and a constant: sums move the background, products scale maps and background."""
        sheet, other = (left, right) if isinstance(left, Sheet) else (right, left)
        constant = _per_channel(other, len(sheet.background), sheet.maps)
        if target in ADDITIONS or (target in SUBTRACTIONS and sheet is left):
            return replace(sheet, background=target(sheet.background, constant))
        if target in PRODUCTS or (target in QUOTIENTS and sheet is left):
            return replace(sheet, maps=target(sheet.maps, constant[:, None, None]), background=target(sheet.background, constant))
        raise NotDenseError(f"`{getattr(target, '__name__', target)}` of a constant by a map has no exact rule")

    def aligned(self, left: Sheet, right: Sheet) -> tuple[Tensor, Tensor, Pair]:
        """Return two sheets' maps on their common box, and its corner."""
        if self.layout.torus and left.origin != right.origin:
            turn = (left.origin[0] - right.origin[0], left.origin[1] - right.origin[1])
            right = replace(right, maps=right.maps.roll(turn, (2, 3)), origin=left.origin)
        if (left.factor, left.size, left.origin) != (right.factor, right.size, right.origin):
            raise NotDenseError("two branches that meet lie differently on the image")
        corner = (min(left.corner[0], right.corner[0]), min(left.corner[1], right.corner[1]))
        ends = [max(sheet.corner[axis] + sheet.maps.shape[2 + axis] for sheet in (left, right)) for axis in (0, 1)]
        lengths = (ends[0] - corner[0], ends[1] - corner[1])
        return region(left, corner, lengths), region(right, corner, lengths), corner

    def cat(self, values: Any, dim: int = 0) -> Any:
        """Concatenate the channels of aligned sheets."""
        if dim not in (1, -3) or not all(isinstance(value, Sheet) for value in values):
            raise NotDenseError("`cat` has an exact rule for channels of maps only")
        joined: Sheet = values[0]
        for sheet in values[1:]:
            first, second, corner = self.aligned(joined, sheet)
            background = torch.cat([joined.background, sheet.background])
            joined = replace(joined, maps=torch.cat([first, second], dim=1), corner=corner, background=background)
        return joined

    def flatten(self, value: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
        """Flatten all but the image axis."""
        if start_dim != 1 or end_dim not in (-1, 3):
            raise NotDenseError("`flatten` has an exact rule for all axes but the first only")
        return Flat(value) if isinstance(value, Sheet) else replace(value, trailing=0) if isinstance(value, Vectors) else value

    def mean(self, value: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """Average over both position axes."""
        if not isinstance(value, Sheet) or dim is None or sorted(axis % 4 for axis in _listed(dim)) != [2, 3]:
            raise NotDenseError("`mean` has an exact rule over both axes of a map only")
        return replace(self.global_average(value, 1), trailing=2 if keepdim else 0)

    def global_average(self, value: Any, output_size: Any) -> Vectors:
        """Apply adaptive average pooling to one position."""
        if not isinstance(value, Sheet) or output_size is None or pair(output_size) != (1, 1):
            raise NotDenseError("adaptive pooling to more than one position is not stationary")
        return global_average(value, self.layout)

    def linear(self, name: str, value: Any, weight: Tensor, bias: Tensor | None = None) -> Vectors:
        """Apply a fully connected layer: to vectors directly, to flattened maps as a correlation."""
        if isinstance(value, Vectors) and not value.trailing:
            return replace(value, values=functional.linear(value.values, weight, bias))
        if not isinstance(value, Flat):
            raise NotDenseError(f"`{name}` acts along the last axis of a map")
        return correlate(value, self.layout, weight, bias, self.spectra)


def _circular_module(rules: Rules, name: str, part: nn.CircularPad2d, value: Any) -> Any:
    left, right, top, bottom = part.padding
    return rules.circular_pad(name, value, (top, bottom), (left, right))


def _zero_module(_: Rules, name: str, part: nn.ZeroPad2d, value: Any) -> Any:
    if any(part.padding):
        raise NotDenseError(f"`{name}` pads with zeros, which a shift of the image does not move")
    return value


#: The rule of each kind of module that is not pointwise.
MODULE_RULES: dict[Any, Callable[..., Any]] = {
    nn.Conv2d: Rules.convolution,
    MaxBlurPool2d: Rules.max_blur,
    BlurPool2d: Rules.blur,
    nn.MaxPool2d: Rules.max_pool,
    nn.AvgPool2d: Rules.average_pool,
    nn.BatchNorm1d: Rules.batch_norm,
    nn.BatchNorm2d: Rules.batch_norm,
    nn.AdaptiveAvgPool2d: lambda rules, _, part, value: rules.global_average(value, part.output_size),
    nn.Flatten: lambda rules, _, part, value: rules.flatten(value, part.start_dim, part.end_dim),
    nn.Linear: lambda rules, name, part, value: rules.linear(name, value, part.weight, part.bias),
    nn.CircularPad2d: _circular_module,
    nn.ZeroPad2d: _zero_module,
}
#: The rule of each function that is not pointwise.
FUNCTION_RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.cat: Rules.cat,
    torch.flatten: Rules.flatten,
    torch.mean: Rules.mean,
    functional.pad: Rules.pad,
    functional.conv2d: Rules.functional_convolution,
    functional.linear: lambda rules, *arguments, **options: rules.linear("linear", *arguments, **options),
    functional.adaptive_avg_pool2d: Rules.global_average,
    functional.max_pool2d: lambda rules, value, *size, **how: rules.max_pool("max_pool2d", nn.MaxPool2d(*size, **how), value),
    functional.avg_pool2d: lambda rules, value, *size, **how: rules.average_pool("avg_pool2d", nn.AvgPool2d(*size, **how), value),
}


def _runs_code_of(part: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module computes what its class says, without code of a subclass or of its own."""
    names = ("__call__", "forward", "_conv_forward")
    inherited = all(getattr(type(part), name, None) is getattr(kind, name, None) for name in names)
    return inherited and not any(name in vars(part) for name in names)


def _idle(options: dict[str, Any], value: Any) -> Any:
    """Return the value; functional dropout also drops in evaluation mode, unless ``training`` is False."""
    if options.get("training", True) is not False:
        raise NotDenseError("`dropout` drops in evaluation mode too")
    return value


def _per_channel(value: Any, channels: int, like: Tensor) -> Tensor:
    """Return a constant as one value per channel."""
    if isinstance(value, int | float):
        return torch.full((channels,), float(value)).to(like)
    if not isinstance(value, Tensor):
        raise NotDenseError("a map meets something that is not a constant")
    shape = (1,) * (4 - value.ndim) + tuple(value.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[2:] != (1, 1) or shape[1] not in (1, channels):
        raise NotDenseError(f"a constant of shape {tuple(value.shape)} differs between positions")
    return value.reshape(-1).expand(channels).to(like)


def _out_of_place(part: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a pointwise module that does not change its input in place."""
    if not getattr(part, "inplace", False):
        return part
    copy = type(part).__new__(type(part))
    copy.__dict__ = {**part.__dict__, "inplace": False}
    return copy


def _listed(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value)
