"""Filter and subsample by one small matrix per axis. This module depends on no layer.

Filtering along an axis, continuing the map beyond its border and keeping every ``stride``-th position is linear, so it is a
matrix ``[positions after, positions before]``, and a map is filtered by a product along each axis. Borders are rows of that
matrix: there is no padded copy, maps may be smaller than the filter, and the gradient is the transposed product.

Three implementations of the same numbers:

- the products, in eager mode and wherever a gradient is needed;
- one sum over shifted slices, under ``torch.compile`` without a gradient, which fuses into a single pass over the map;
- padding and a depthwise convolution, under ``torch.export``, where heights and widths may be symbolic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from math import comb, prod
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.jit._trace import is_tracing
from torch.nn import functional

from shiftscope.errors import InputError

__all__ = [
    "Border",
    "Filter",
    "Margins",
    "along_axes",
    "binomial",
    "centred_margins",
    "empty_like",
    "filtered",
    "is_channels_last",
    "is_rewritten",
    "may_cache",
    "matrices",
    "output_size",
    "pieces",
    "products",
]

#: How a map continues beyond its border. ``valid``: not at all, the filter stays inside.
Border = Literal["reflect", "replicate", "zero", "circular", "valid"]
#: Positions that the filter reaches before the map's first and after its last position.
Margins = tuple[int, int]
PAD_MODES = {"reflect": "reflect", "replicate": "replicate", "circular": "circular", "zero": "constant"}
#: Pieces in which a gradient is computed on a CPU, so that the tensors between two products stay small.
GRADIENT_PIECES = 4
#: Output positions of a long axis that are computed at once: most of its matrix is zero, and few rows use few columns.
ROWS_AT_ONCE = 64


class Filter:
    """A separable filter with its stride, margins and border.

    Args:
        taps: weights along each axis.
        stride: positions from one output to the next, along each axis.
        margins: positions read beyond the border, before and after, along each axis; ignored if ``border`` is ``valid``.
        border: how the map continues there.

    Raises:
        InputError: `border` is unknown, or a stride is below 1.
    """

    def __init__(
        self, taps: Sequence[Sequence[float]], stride: Sequence[int], margins: Sequence[Margins], border: Border
    ) -> None:
        if border not in get_args(Border):
            raise InputError(f"`border` must be one of {', '.join(get_args(Border))}, got {border!r}.")
        if min(stride) < 1:
            raise InputError(f"`stride` must be 1 or more positions, got {tuple(stride)}.")
        self.taps = tuple(tuple(float(tap) for tap in axis) for axis in taps)
        self.stride = tuple(stride)
        self.margins = tuple(margins) if border != "valid" else ((0, 0),) * len(self.taps)
        self.border: Border = border
        places = product(*(range(len(axis)) for axis in self.taps))
        #: Weight of each place of the box.
        self.weights = {place: prod(axis[tap] for axis, tap in zip(self.taps, place, strict=True)) for place in places}

    @property
    def is_identity(self) -> bool:
        """Return whether the filter only subsamples."""
        return all(axis == (1.0,) for axis in self.taps)

    def check(self, sizes: Sequence[int]) -> None:
        """Check that a map of these sizes is large enough.

        Raises:
            InputError: the border cannot continue the map, or the filter does not fit into it.
        """
        for size, axis, margins in zip(sizes, self.taps, self.margins, strict=True):
            if self.border == "reflect" and max(margins) >= size:
                raise InputError(
                    f"`border` 'reflect' cannot continue a map of size {size} by the {max(margins)} positions that a filter of "
                    f"size {len(axis)} needs.",
                    "Use border 'replicate', 'zero' or 'circular', or a smaller filter.",
                )
            if size + sum(margins) < len(axis):
                raise InputError(
                    f"`filter_size` must fit into the map: a filter of size {len(axis)} does not fit into a map of size {size}.",
                    "Use border 'replicate', 'zero' or 'circular', or a smaller filter.",
                )


def binomial(size: int) -> tuple[float, ...]:
    """Return the binomial filter of a size: a row of Pascal's triangle, divided by its sum.

    >>> binomial(3)
    (0.25, 0.5, 0.25)
    """
    if not 1 <= size <= 7:
        raise InputError(f"`filter_size` must be 1 to 7, got {size}.", "Pass other filters as `taps`.")
    return tuple(comb(size - 1, tap) / 2 ** (size - 1) for tap in range(size))


def centred_margins(size: int) -> Margins:
    """Return margins with which stride 1 keeps the map's size; an even filter reaches further to the right."""
    return (size - 1) // 2, size // 2


def output_size(size: int, taps: int, stride: int, margins: Margins) -> int:
    """Return the positions of an axis after filtering and subsampling."""
    return (size + sum(margins) - taps) // stride + 1


def filtered(maps: Float[Tensor, "image channel *position"], by: Filter) -> Float[Tensor, "image channel *position"]:
    """Filter and subsample maps along each axis, in their own precision and memory order.

    Raises:
        InputError: the maps are too small, see :meth:`Filter.check`.
    """
    if torch.compiler.is_exporting():
        return _convolved(maps, by)
    if is_tracing():
        with untraced():
            by.check(maps.shape[2:])
            factors = matrices(by, maps.shape[2:], maps)
        return products(maps, factors)
    by.check(maps.shape[2:])
    if by.is_identity and not any(map(any, by.margins)):
        # A view would let a layer that works in place, such as nn.ReLU(inplace=True), change the input too.
        return _every(maps, [(0, size, step) for size, step in zip(maps.shape[2:], by.stride, strict=True)]).clone()
    if torch.compiler.is_compiling() and not (torch.is_grad_enabled() and maps.requires_grad):
        return _summed(maps, by)
    with torch.autocast(maps.device.type, enabled=False):
        return along_axes(maps, matrices(by, maps.shape[2:], maps))


def matrices(by: Filter, sizes: Sequence[int], like: Tensor) -> list[Float[Tensor, "after before"]]:
    """Return the matrix of each axis of a filter, for a map of these sizes."""
    axes = zip(by.taps, sizes, by.stride, by.margins, strict=True)
    make = _cached_matrix if may_cache() else _matrix
    return [make(*axis, by.border, like.dtype, like.device) for axis in axes]


def may_cache() -> bool:
    """Return whether tensors made now are ordinary ones, which a later call can use."""
    return not torch.compiler.is_compiling() and not torch._C._len_torch_dispatch_stack()


def _matrix(
    taps: tuple[float, ...],
    size: int,
    stride: int,
    margins: Margins,
    border: Border,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return a matrix whose row i holds the taps around position ``i * stride``, mapped into the axis by the border."""
    count = output_size(size, len(taps), stride, margins)
    rows = torch.arange(count).repeat_interleave(len(taps))
    places = (torch.arange(count)[:, None] * stride - margins[0] + torch.arange(len(taps))).flatten()
    weights = torch.tensor(taps, dtype=torch.float64).repeat(count)
    if border == "reflect":
        places = places.abs()
        places = torch.where(places >= size, 2 * (size - 1) - places, places)
    elif border == "circular":
        places = places % size
    else:
        outside = (places < 0) | (places >= size)
        weights = torch.where(outside & (border == "zero"), 0.0, weights)
        places = places.clamp(0, size - 1)
    dense = torch.zeros(count, size, dtype=torch.float64).index_put_((rows, places), weights, accumulate=True)
    return dense.to(device, dtype)


@lru_cache(maxsize=256)
def _cached_matrix(*settings: Any) -> Tensor:
    """Return a cached matrix, an ordinary tensor even if the first call is in inference mode."""
    with torch.inference_mode(False):
        return _matrix(*settings)


def along_axes(maps: Tensor, factors: Sequence[Float[Tensor, "after before"]]) -> Tensor:
    """Multiply along each position axis, first along the one that is contiguous in memory.

    Args:
        maps: [image, channel, *position], contiguous or channels-last; others are made contiguous.
        factors: one matrix per position axis; constants without a gradient.
    """
    wants_gradient = torch.is_grad_enabled() and maps.requires_grad
    if not wants_gradient or is_rewritten():
        return products(maps, factors)
    result: Tensor = _AlongAxes.apply(maps, *factors)
    return result


class _AlongAxes(torch.autograd.Function):
    """Products along the axes. The gradient is the transposed products, a few images at a time; it is differentiable too."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(*factors)
        ctx.order = is_channels_last(maps)
        return products(maps, factors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factors = [factor.t().contiguous() for factor in ctx.saved_tensors]
        with torch.autocast(gradient.device.type, enabled=False):
            if gradient.requires_grad and torch.is_grad_enabled():
                return along_axes(gradient, factors), *(None for _ in factors)
            found = empty_like(gradient, [len(factor) for factor in factors], channels_last=ctx.order)
            for part in pieces(gradient, len(gradient) // GRADIENT_PIECES + 1):
                products(gradient[part], factors, out=found[part])
        return found, *(None for _ in factors)


def pieces(maps: Tensor, images: int) -> Iterator[slice]:
    """Yield slices of ``images`` images on a CPU, one slice of all elsewhere."""
    count = max(len(maps), 1)
    step = max(1, images) if maps.device.type == "cpu" else count
    for start in range(0, count, step):
        yield slice(start, start + step)


def empty_like(maps: Tensor, sizes: Sequence[int], *, channels_last: bool) -> Tensor:
    """Return uninitialised maps of other sizes."""
    if channels_last:
        return maps.new_empty(len(maps), *sizes, maps.shape[1]).movedim(-1, 1)
    return maps.new_empty(*maps.shape[:2], *sizes)


def products(maps: Tensor, factors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Multiply along all axes; write the result to ``out`` if given, in its memory order."""
    if torch.compiler.is_exporting() or is_tracing():  # which may leave the number of images open
        for axis, factor in enumerate(factors, start=2):
            maps = (maps.transpose(axis, -1) @ factor.t()).transpose(axis, -1)
        return maps
    last = is_channels_last(maps if out is None else out)
    lines = maps.movedim(1, -1).contiguous() if last else maps.contiguous()
    place = out if out is None or not last else out.movedim(1, -1)
    order = list(enumerate(factors, start=1 if last else 2))
    order = order if last else order[::-1]
    for axis, factor in order:
        lines = _along(lines, axis, factor, place if axis == order[-1][0] else None)
    return lines.movedim(-1, 1) if last else lines


@contextmanager
def untraced() -> Iterator[None]:
    """Pause ``torch.jit.trace``, so that what is computed meanwhile is a constant of the traced code."""
    tracer: Any = torch._C
    state = tracer._get_tracing_state()
    tracer._set_tracing_state(None)
    try:
        yield
    finally:
        tracer._set_tracing_state(state)


def is_rewritten() -> bool:
    """Return whether the code is compiled, traced or transformed by ``torch.func``: values are not read, or written in place."""
    rewritten = torch.compiler.is_compiling() or is_tracing()
    return rewritten or torch._C._functorch.peek_interpreter_stack() is not None


def is_channels_last(maps: Tensor) -> bool:
    """Return whether the maps are channels-last in memory, and not contiguous as well."""
    return maps.ndim > 2 and not maps.is_contiguous() and maps.movedim(1, -1).is_contiguous()


def _along(maps: Tensor, axis: int, factor: Tensor, out: Tensor | None) -> Tensor:
    """Multiply along one axis of a contiguous tensor."""
    before, size, after = prod(maps.shape[:axis]), maps.shape[axis], prod(maps.shape[axis + 1 :])
    shape = (*maps.shape[:axis], len(factor), *maps.shape[axis + 1 :])
    flat = (before, len(factor)) if after == 1 else (before, len(factor), after)
    lines = maps.reshape(before, size) if after == 1 else maps.reshape(before, size, after)
    if out is None and is_rewritten():
        return _product(lines, factor).reshape(shape)
    place = (maps.new_empty(shape) if out is None else out).view(flat)
    done = 0
    for rows in factor.split(ROWS_AT_ONCE):
        first, last = _band(rows) if len(factor) > ROWS_AT_ONCE else (0, size)
        _product(lines.narrow(1, first, last - first), rows[:, first:last], place.narrow(1, done, len(rows)))
        done += len(rows)
    return place.view(shape)


def _product(lines: Tensor, factor: Tensor, out: Tensor | None = None) -> Tensor:
    if lines.ndim == 2:
        return torch.mm(lines, factor.t(), out=out)
    return torch.bmm(factor.expand(len(lines), -1, -1), lines, out=out)


def _band(rows: Tensor) -> tuple[int, int]:
    """Return the range of columns that some rows of a factor use."""
    used = rows.any(dim=0).nonzero()
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)


def _padded(maps: Tensor, by: Filter) -> Tensor:
    """Return the map continued beyond its border."""
    if not any(map(any, by.margins)):
        return maps
    return functional.pad(maps, [end for margins in reversed(by.margins) for end in margins], mode=PAD_MODES[by.border])


def _summed(maps: Tensor, by: Filter) -> Tensor:
    """Filter by one weighted sum over shifted slices, which become index arithmetic once they are fused."""
    if by.border == "circular" and any(max(m) > n for m, n in zip(by.margins, maps.shape[2:], strict=True)):
        return along_axes(maps, matrices(by, maps.shape[2:], maps))
    sizes = [
        output_size(size, len(taps), step, margins)
        for size, taps, step, margins in zip(maps.shape[2:], by.taps, by.stride, by.margins, strict=True)
    ]
    padded = _padded(maps, by)
    total = torch.zeros((), dtype=maps.dtype, device=maps.device)
    for place, weight in by.weights.items():
        spans = [(tap, tap + step * (size - 1) + 1, step) for tap, step, size in zip(place, by.stride, sizes, strict=True)]
        total = total + weight * _every(padded, spans)
    return total


def _every(maps: Tensor, spans: Sequence[tuple[int, int, int]]) -> Tensor:
    """Return the positions of each axis's (start, stop, step)."""
    return maps[(Ellipsis, *(slice(*span) for span in spans))]  # type: ignore[index]  # torch's types know no mixed tuple


def _convolved(maps: Tensor, by: Filter) -> Tensor:
    """Filter by padding and a depthwise convolution."""
    weight = torch.ones((1,) * (2 + len(by.taps)), dtype=maps.dtype, device=maps.device)
    for axis, taps in enumerate(by.taps):
        shape = [1] * (2 + len(by.taps))
        shape[2 + axis] = len(taps)
        weight = weight * torch.tensor(taps, dtype=maps.dtype, device=maps.device).reshape(shape)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(by.taps) - 1]
    channels = maps.shape[1]
    weights = weight.expand(channels, *weight.shape[1:])
    return convolve(_padded(maps, by), weights, stride=by.stride, groups=channels)
