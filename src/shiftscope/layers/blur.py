"""Anti-aliased pooling: a low-pass filter before every subsampling, alone or after a maximum.

Subsampling aliases frequencies above half the new sampling rate, in a way that depends on where the object is: this is how stride
breaks shift equivariance. A low-pass filter removes most of them first (Zhang, "Making convolutional networks shift-invariant
again", ICML 2019).

Our layers compute the same outputs as that paper's code in another way (:mod:`shiftscope.layers.resampling`); ``compat`` selects
the library whose outputs and output sizes they reproduce.

The maximum over a box is a maximum along each axis in turn. Forward, maximum and filter run over a few images at a time, so that
the maxima stay in the processor's cache. Backward, the maxima are computed again from the input, the only tensor that is saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from shiftscope.errors import InputError
from shiftscope.layers.resampling import (
    Border,
    Filter,
    binomial,
    centred_margins,
    empty_like,
    filtered,
    is_channels_last,
    is_rewritten,
    matrices,
    output_size,
    pieces,
    products,
)

__all__ = [
    "BlurPool",
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "Compat",
    "MaxBlurPool1d",
    "MaxBlurPool2d",
    "MaxBlurPool3d",
    "max_filtered",
]

#: A library whose layer of the same name can be reproduced.
Compat = Literal["adobe", "kornia", "timm"]
#: The default border of each.
BORDERS: dict[str, Border] = {"adobe": "reflect", "kornia": "zero", "timm": "reflect"}
#: Bytes of a map that are processed at once on a CPU.
BYTES_AT_ONCE = 1 << 20
#: For each axis: positions of a window, padding, and positions from one to the next.
Windows = tuple[tuple[int, int, int], ...]


class BlurPool(nn.Module):
    """Base of the blur pools along one, two or three axes."""

    axes: ClassVar[int]
    max_kernel: tuple[int, ...] | None = None

    def __init__(
        self,
        filter_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        *,
        border: Border | None = None,
        taps: Sequence[float] | Sequence[Sequence[float]] | None = None,
        compat: Compat | None = None,
    ) -> None:
        super().__init__()
        if compat is not None and compat not in get_args(Compat):
            raise InputError(f"`compat` must be one of {', '.join(get_args(Compat))}, got {compat!r}.")
        weights = self._taps(filter_size, taps)
        steps = self._each(stride, "stride")
        sizes = tuple(len(axis) for axis in weights)
        if compat == "timm" and any(size % 2 == 0 or size == 1 for size in sizes):
            raise InputError(
                f"`filter_size` must be odd and 3 or more with `compat='timm'`, got {sizes}: timm pads both sides equally, so "
                "that even filters return maps of another size.",
                "Use an odd filter, or `compat='adobe'`.",
            )
        margins = [centred_margins(size) for size in sizes]
        if compat == "timm":
            margins = [((step - 1 + size - 1) // 2,) * 2 for size, step in zip(sizes, steps, strict=True)]
        self.compat = compat
        self.filter = Filter(weights, steps, margins, border or BORDERS.get(compat or "", "reflect"))

    def forward(self, maps: Float[Tensor, "image channel *position"]) -> Float[Tensor, "image channel *position"]:
        """Filter and subsample the maps."""
        self._check(maps)
        return filtered(maps, self.filter)

    def extra_repr(self) -> str:
        """Return the settings that ``print`` shows."""
        sizes = tuple(len(axis) for axis in self.filter.taps)
        how = f", compat={self.compat!r}" if self.compat else ""
        return f"filter_size={sizes}, stride={self.filter.stride}, border={self.filter.border!r}{how}"

    def _check(self, maps: Tensor) -> None:
        if maps.ndim != 2 + self.axes:
            raise InputError(
                f"`maps` must be [image, channel{', position' * self.axes}] for {type(self).__name__}, got {tuple(maps.shape)}."
            )
        if not maps.is_floating_point():
            raise InputError(f"`maps` must be floating point for {type(self).__name__}, got {maps.dtype}.")

    def _taps(self, filter_size: int | Sequence[int], taps: Any) -> tuple[tuple[float, ...], ...]:
        if taps is None:
            return tuple(binomial(size) for size in self._each(filter_size, "filter_size"))
        listed = [torch.as_tensor(axis, dtype=torch.float64) for axis in taps]
        per_axis = listed if listed and listed[0].ndim == 1 else [torch.stack(listed)] * self.axes if listed else []
        if len(per_axis) != self.axes or any(axis.ndim != 1 or not len(axis) for axis in per_axis):
            raise InputError(f"`taps` must be weights along an axis, or one list of them for each of {self.axes} axes.")
        return tuple(tuple(axis.tolist()) for axis in per_axis)

    def _each(self, value: int | Sequence[int], name: str) -> tuple[int, ...]:
        values = (value,) * self.axes if isinstance(value, int) else tuple(value)
        if len(values) != self.axes:
            raise InputError(f"`{name}` must be one number or {self.axes}, got {values}.")
        return values

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Accept filters that other libraries store among their weights, if they equal ours."""
        for name in ("filt", "1.filt", "kernel"):
            stored = state.pop(prefix + name, None)
            if stored is not None and not self._is_ours(stored):
                errors = rest[-1]
                errors.append(f"{prefix}{name} holds another filter than {self.extra_repr()}.")
        super()._load_from_state_dict(state, prefix, *rest)

    def _is_ours(self, stored: Tensor) -> bool:
        ours = torch.ones(())
        for taps in self.filter.taps:
            ours = ours[..., None] * torch.tensor(taps)
        return stored.shape[-self.axes :] == ours.shape and torch.allclose(
            stored.cpu().float(), ours.expand_as(stored), atol=1e-6
        )


class BlurPool1d(BlurPool):
    """:class:`BlurPool2d` along one axis: [image, channel, position]."""

    axes = 1


class BlurPool2d(BlurPool):
    """Filter maps, then keep every ``stride``-th position along each axis.

    ``y[i, j] = sum over a, b of taps[a] taps[b] x[stride i + a - before, stride j + b - before]``, with
    ``before = (filter_size - 1) // 2``. At stride 1 it filters and keeps every position.

    Args:
        filter_size: of the binomial filter, 1 to 7, one number or one for each axis; 1 does not filter.
        stride: positions from one output to the next, one number or one for each axis.
        border: how the map continues beyond its border: its mirror image (``reflect``), its outermost value (``replicate``),
            ``zero``, its opposite end (``circular``), or not at all (``valid``: the filter stays inside). ``reflect`` by default,
            with ``compat`` that library's own.
        taps: weights of another separable filter, one list for all axes or one for each.
        compat: reproduce ``adobe`` (antialiased-cnns), ``kornia`` or ``timm``: their border and, for timm, its margins of
            ``(stride + filter_size - 2) // 2`` on both sides. Adobe's margins are ours.

    Shape:
        [image, channel, height, width] -> [image, channel, ceil(height / stride), ceil(width / stride)], less
        ``filter_size - 1`` before the division where ``border`` is ``valid``.

    Raises:
        InputError: a setting is out of range, or a filter is even with ``compat='timm'``; in ``forward``, a map is too small for
            border ``reflect`` or ``valid``.

    Source: Zhang 2019, ``models_lpf``/``antialiased_cnns.BlurPool``, which pads a copy and convolves it depthwise, needs the
    number of channels, and fails on maps too small for reflection; ours accepts them with another border.

    >>> BlurPool2d(filter_size=3, stride=2)(torch.eye(4)[None, None])[0, 0].tolist()
    [[0.5, 0.125], [0.125, 0.375]]
    """

    axes = 2


class BlurPool3d(BlurPool):
    """:class:`BlurPool2d` along three axes: [image, channel, depth, height, width]."""

    axes = 3


class _MaxBlurPool(BlurPool):
    """Base of the maximum blur pools: a maximum at every position, then :class:`BlurPool`."""

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 2,
        *,
        filter_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        border: Border | None = None,
        taps: Sequence[float] | Sequence[Sequence[float]] | None = None,
        compat: Compat | None = None,
    ) -> None:
        super().__init__(filter_size, stride, border=border, taps=taps, compat=compat)
        self.kernel_size = self._each(kernel_size, "kernel_size")
        self.padding = self._each(padding, "padding")
        self.dilation = self._each(dilation, "dilation")
        if min(self.kernel_size) < 1 or min(self.dilation) < 1:
            raise InputError(f"`kernel_size` and `dilation` must be 1 or more, got {self.kernel_size} and {self.dilation}.")
        if any(not 0 <= 2 * pad <= kernel for pad, kernel in zip(self.padding, self.kernel_size, strict=True)):
            raise InputError(f"`padding` must be at most half of `kernel_size` {self.kernel_size}, got {self.padding}.")

    def forward(self, maps: Float[Tensor, "image channel *position"]) -> Float[Tensor, "image channel *position"]:
        """Take maxima of the maps, filter and subsample them."""
        self._check(maps)
        for size, kernel, padding, step in zip(maps.shape[2:], self.kernel_size, self.padding, self.dilation, strict=True):
            if not torch.compiler.is_exporting() and size + 2 * padding < step * (kernel - 1) + 1:
                raise InputError(
                    f"`kernel_size` must fit into the map: a maximum over {kernel} positions does not fit into a map of size "
                    f"{size}.",
                    "Use a smaller `kernel_size`, or larger `padding`.",
                )
        return max_filtered(maps, self.kernel_size, self.padding, self.dilation, self.filter)

    def extra_repr(self) -> str:
        """Return the settings that ``print`` shows."""
        return f"kernel_size={self.kernel_size}, padding={self.padding}, dilation={self.dilation}, {super().extra_repr()}"


class MaxBlurPool1d(_MaxBlurPool):
    """:class:`MaxBlurPool2d` along one axis: [image, channel, position]."""

    axes = 1


class MaxBlurPool2d(_MaxBlurPool):
    """Take a maximum at every position, filter, then subsample: max pooling whose stride aliases less.

    Args:
        kernel_size: positions that the maximum is over, one number or one for each axis.
        filter_size: of the binomial filter, 1 to 7, one number or one for each axis; 1 does not filter.
        stride: positions from one output to the next, one number or one for each axis.
        padding: of the maximum, as in ``nn.MaxPool2d``.
        dilation: of the maximum, as in ``nn.MaxPool2d``.
        border: how the maxima continue beyond their border, see :class:`BlurPool2d`.
        taps: weights of another separable filter, one list for all axes or one for each.
        compat: reproduce ``adobe``, ``kornia`` or ``timm``, see :class:`BlurPool2d`.

    Shape:
        [image, channel, height, width] -> the output size of ``nn.MaxPool2d`` with this stride.

    Raises:
        InputError: a setting is out of range; in ``forward``, a map is too small for the maximum or the border.

    All settings but ``kernel_size`` are keyword-only: their order and defaults differ from those of ``nn.MaxPool2d``. The
    backward pass gives the gradient to the first of equal values, as ``nn.MaxPool2d`` does. It recomputes maxima instead of
    saving them, and cannot be differentiated again: a gradient penalty raises an error, and a Hessian is 0. Maps must be
    finite, because the filter multiplies every value, by zeros too.

    Source: Zhang 2019, as ``nn.Sequential(nn.MaxPool2d(kernel, stride=1), BlurPool(...))``: the same values.

    >>> MaxBlurPool2d(kernel_size=2, filter_size=3)(torch.eye(6)[None, None]).shape
    torch.Size([1, 1, 3, 3])
    """

    axes = 2


class MaxBlurPool3d(_MaxBlurPool):
    """:class:`MaxBlurPool2d` along three axes: [image, channel, depth, height, width]."""

    axes = 3


def max_filtered(maps: Tensor, kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int], by: Filter) -> Tensor:
    """Take maxima over boxes at stride 1, then filter and subsample them.

    Args:
        maps: [image, channel, *position].
        kernel: positions of a box along each axis.
        padding: positions of minus infinity around the maps, along each axis.
        dilation: distance between a box's positions, along each axis.
        by: the filter and the stride.
    """
    windows = tuple(zip(kernel, padding, dilation, strict=True))
    if is_rewritten():
        pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(windows) - 1]
        return filtered(pool(maps, tuple(kernel), 1, tuple(padding), tuple(dilation)), by)
    by.check(_sizes(maps, windows))
    if torch.is_grad_enabled() and maps.requires_grad:
        result: Tensor = _MaxFiltered.apply(maps, windows, by)
        return result
    return _forward(maps, windows, by)


class _MaxFiltered(torch.autograd.Function):
    """Maximum and filter, with a gradient computed from the input alone."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, windows: Windows, by: Filter) -> Tensor:
        ctx.save_for_backward(maps)
        ctx.windows, ctx.by = windows, by
        return _forward(maps, windows, by)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (maps,) = ctx.saved_tensors
        windows, by = ctx.windows, ctx.by
        maps = _dense(maps)
        if is_channels_last(maps):
            gradient = gradient.movedim(1, -1).contiguous().movedim(-1, 1)
        found = torch.empty_like(maps)
        with torch.autocast(maps.device.type, enabled=False):
            back = [factor.t().contiguous() for factor in matrices(by, _sizes(maps, windows), maps)]
            for part in _in_cache(maps):
                _routed(maps[part], products(gradient[part], back), windows, found[part])
        return found, None, None


def _forward(maps: Tensor, windows: Windows, by: Filter) -> Tensor:
    maps = _dense(maps)
    sizes = _sizes(maps, windows)
    axes = zip(sizes, by.taps, by.stride, by.margins, strict=True)
    after = [output_size(size, len(taps), step, margins) for size, taps, step, margins in axes]
    found = empty_like(maps, after, channels_last=is_channels_last(maps))
    with torch.autocast(maps.device.type, enabled=False):
        factors = matrices(by, sizes, maps)
        for part in _in_cache(maps):
            products(_maxima(maps[part], windows), factors, out=found[part])
    return found


def _maxima(maps: Tensor, windows: Windows) -> Tensor:
    for axis in _order(windows):
        maps = _running(_taps(maps, 2 + axis, windows[axis]))[-1]
    return maps


def _order(windows: Windows) -> range:
    """Return the axes, the last first, so that of equal values the first in reading order wins, as in torch's own pools."""
    return range(len(windows) - 1, -1, -1)


def _running(taps: list[Tensor]) -> list[Tensor]:
    """Return the maxima over the first, the first two, ... of a window's positions."""
    found = [taps[0]]
    for tap in taps[1:]:
        found.append(torch.maximum(found[-1], tap))
    return found


def _taps(maps: Tensor, axis: int, window: tuple[int, int, int]) -> list[Tensor]:
    """Return, for each of a window's positions, the map's values there for every window."""
    count, pad, step = window
    if pad:
        ends = [0, 0] * (maps.ndim - 1 - axis) + [pad, pad]
        maps = functional.pad(maps, ends, value=float("-inf"))
    length = maps.shape[axis] - step * (count - 1)
    return [maps.narrow(axis, step * tap, length) for tap in range(count)]


def _routed(maps: Tensor, gradient: Tensor, windows: Windows, out: Tensor) -> None:
    """Route the gradient of the maxima to the first of each window's largest values, axis by axis, into ``out``."""
    levels = [(maps, out)]
    order = _order(windows)
    for axis in order[:-1]:
        level = _running(_taps(levels[-1][0], 2 + axis, windows[axis]))[-1]
        levels.append((level, torch.empty_like(level)))
    for axis, (level, target) in zip(reversed(order), reversed(levels), strict=True):
        _along_axis(level, gradient, 2 + axis, windows[axis], target)
        gradient = target


def _along_axis(maps: Tensor, gradient: Tensor, axis: int, window: tuple[int, int, int], out: Tensor) -> None:
    """Route the gradient along one axis: a later value takes it only where it exceeds all earlier ones.

    ``gradient`` is overwritten. Positions beyond the border are minus infinity and never take a gradient.
    """
    count, pad, step = window
    taps = _taps(maps, axis, window)
    running = _running(taps[:-1]) if count > 1 else []
    fresh = True
    for tap in reversed(range(count)):
        first, last = max(0, pad - step * tap), min(gradient.shape[axis], maps.shape[axis] + pad - step * tap)
        if last <= first:
            continue
        place, inside = out.narrow(axis, first + step * tap - pad, last - first), (axis, first, last - first)
        given = gradient.narrow(*inside)
        if tap:
            # A comparison into floating point is vectorised; into booleans it is not.
            won = torch.gt(taps[tap].narrow(*inside), running[tap - 1].narrow(*inside), out=torch.empty_like(given))
            won = torch.mul(won, given, out=place if fresh else won)
            given.sub_(won)
        else:
            won = given
        if not fresh:
            place.add_(won)
            continue
        fresh = False
        out.narrow(axis, 0, first + step * tap - pad).zero_()
        out.narrow(axis, last + step * tap - pad, out.shape[axis] - (last + step * tap - pad)).zero_()
        if won is not place:
            place.copy_(won)
    if fresh:  # every window lies beyond the border
        out.zero_()


def _sizes(maps: Tensor, windows: Windows) -> list[int]:
    return [size + 2 * pad - step * (count - 1) for size, (count, pad, step) in zip(maps.shape[2:], windows, strict=True)]


def _dense(maps: Tensor) -> Tensor:
    """Return the maps as they are if channels-last, otherwise contiguous."""
    return maps if is_channels_last(maps) else maps.contiguous()


def _in_cache(maps: Tensor) -> Iterator[slice]:
    """Yield slices of a few images that fit the processor's cache."""
    return pieces(maps, BYTES_AT_ONCE * max(len(maps), 1) // max(maps.nbytes, 1))
