"""Max pooling of what a ReLU leaves, compiled for the processor by Numba (extra ``fast``).

PyTorch's max pooling on a CPU stores an index of eight bytes for every value it keeps, in loops that use little of the
processor, and rectifies in a pass of its own: in the family's networks of factor 1 that takes more time than the
convolutions. Here both are one pass (``benchmarks/training.py``), which gains where one thread does the work: several share
PyTorch's loops better. The bits of floating point numbers that are not negative
are in the order of the numbers, so that the maximum is one of integers, whatever the precision, and what is stored is one
byte.

The values are those of ``relu(max_pool2d(x))``, and the gradient goes where PyTorch's does, to the first of equal ones. Where
windows overlap, gradients are added in single precision at least, in PyTorch's order: in single precision the result is PyTorch's
bit for bit, in half precision it is rounded once instead of at every addition.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from shiftscope.layers import BlurPool2d, MaxBlurPool2d

__all__ = ["ReluMaxPool2d", "fast_max_pools", "version"]

#: Bits of a number as an integer, by the size of the number in bytes.
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Values that are worked on at once, so that they stay in the processor's cache.
AT_ONCE = 1 << 18
#: The index of a value that no input was kept for, because none was positive.
NONE = 255


@contextmanager
def fast_max_pools(model: nn.Module) -> Iterator[None]:
    """Let a model on a CPU rectify and pool in one pass for the duration, wherever an ``nn.Sequential`` has one after the other.

    The model's parameters and their names stay as they are. Without Numba nothing is changed.

    Args:
        model: any. Left alone are layers that pad, dilate, give indices, work in place or have hooks, and subclasses.
    """
    swapped: list[tuple[nn.Sequential, int, nn.Module]] = []
    if _numba() is not None:
        for sequence in [module for module in model.modules() if type(module) is nn.Sequential]:
            swapped += _swap(sequence)
    try:
        yield
    finally:
        for sequence, place, module in swapped:
            sequence[place] = module


def _swap(sequence: nn.Sequential) -> list[tuple[nn.Sequential, int, nn.Module]]:
    """Put quick layers into a sequence; what was there before, with its place."""
    before = []
    for place in range(len(sequence) - 1):
        pair = sequence[place], sequence[place + 1]
        quick = _quick(*pair)
        if quick is not None:
            before += [(sequence, place, pair[0]), (sequence, place + 1, pair[1])]
            sequence[place], sequence[place + 1] = quick
    return before


def _quick(first: nn.Module, second: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Two layers that do the same as two layers in a row; None where there are none."""
    if any(module._forward_hooks or module._forward_pre_hooks or getattr(module, "inplace", False) for module in (first, second)):
        return None
    kinds = {type(first), type(second)}
    if kinds == {nn.ReLU, nn.MaxPool2d}:
        pool: Any = first if isinstance(first, nn.MaxPool2d) else second
        kernel, stride = _alike(pool.kernel_size), _alike(pool.stride)
        plain = (_alike(pool.padding), _alike(pool.dilation)) == (0, 1) and not (pool.ceil_mode or pool.return_indices)
        return (ReluMaxPool2d(kernel, stride), nn.Identity()) if plain and kernel and stride else None
    if type(first) is nn.ReLU and type(second) is MaxBlurPool2d:
        kernel = _alike(second.kernel_size)
        if kernel and (_alike(second.padding), _alike(second.dilation)) == (0, 1):
            by = second.filter
            return ReluMaxPool2d(kernel, 1), BlurPool2d(1, by.stride, border=by.border, taps=by.taps, compat=second.compat)
    return None


def version() -> str | None:
    """Of Numba, where it is there and has not turned out to be of no use. It is not imported for that: it takes a while."""
    if find_spec("numba") is None or (_numba.cache_info().currsize and _numba() is None):
        return None
    return metadata.version("numba")


def _alike(value: int | tuple[int, ...]) -> int | None:
    """The one number along both axes; None where they differ."""
    values = {value} if isinstance(value, int) else set(value)
    return values.pop() if len(values) == 1 else None


class ReluMaxPool2d(nn.Module):
    """``relu(max_pool2d(x, kernel, stride))`` of [image, channel, height, width], compiled where ``x`` lies on a CPU.

    Args:
        kernel: height and width of a window, positions, up to 15.
        stride: from one window to the next.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, maps: Tensor) -> Tensor:
        """The rectified maxima."""
        served = maps.device.type == "cpu" and maps.is_floating_point() and maps.numel() and self.kernel**2 < NONE
        if not served or maps.ndim != 4 or min(maps.shape[2:]) < self.kernel:
            return functional.relu(functional.max_pool2d(maps, self.kernel, self.stride))
        found: Tensor = _Pooled.apply(maps, self.kernel, self.stride)
        return found


class _Pooled(torch.autograd.Function):
    """Rows are followed along width and channels (channels last) or along width alone, whichever lies in one piece in memory."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: int, stride: int) -> Tensor:
        _, channels, *size = maps.shape
        high, wide = ((each - kernel) // stride + 1 for each in size)
        last = channels > 1 and not maps.is_contiguous()
        form = torch.channels_last if last else torch.contiguous_format
        maps = maps.contiguous(memory_format=form)
        pooled = torch.empty((*maps.shape[:2], high, wide), dtype=maps.dtype, memory_format=form)
        rows, kept = _rows(maps, last), _rows(pooled, last)
        index = torch.empty(kept.shape, dtype=torch.uint8)
        bits = INTEGERS[maps.element_size()]
        lowest = torch.tensor(-torch.inf, dtype=maps.dtype).view(bits).item()
        inputs, outputs, places = rows.view(bits).numpy(), kept.view(bits).numpy(), index.numpy()
        run, keep = channels if last else 1, _kernels()[0]
        strange = [False] * len(rows)

        def work(start: int, stop: int) -> None:
            part = slice(start, stop)
            strange[start] = keep(inputs[part], outputs[part], places[part], kernel, stride, run, lowest)

        _in_parts(0, len(rows), work)
        if any(strange):  # not a number, with a sign: its bits say nothing
            pooled.fill_(torch.nan)
        ctx.save_for_backward(index)
        ctx.form = (maps.shape, last, kernel, stride)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        shape, last, kernel, stride = ctx.form
        form = torch.channels_last if last else torch.contiguous_format
        rows = _rows(gradient.contiguous(memory_format=form), last)
        found = torch.empty(shape, dtype=gradient.dtype, memory_format=form)
        whole, places = _rows(found, last), index.numpy()
        wide = torch.promote_types(gradient.dtype, torch.float32)
        run, give = shape[1] if last else 1, _kernels()[1]
        for start in range(0, len(rows), each := _at_once(whole)):
            part = slice(start, start + each)
            moved = rows[part].to(wide).numpy()
            target = whole[part] if gradient.dtype == wide else torch.empty_like(whole[part], dtype=wide)
            summed = target.numpy()

            def work(one: int, other: int, start: int = start, moved: Any = moved, summed: Any = summed) -> None:
                give(places[start:][one:other], moved[one:other], summed[one:other], kernel, stride, run)

            _in_parts(0, len(summed), work)
            if target.dtype != found.dtype:
                whole[part].copy_(target)
        return found, None, None


def _rows(maps: Tensor, last: bool) -> Tensor:
    """Maps as [plane, row, what lies in a row in one piece]."""
    if last:
        return maps.permute(0, 2, 3, 1).flatten(2)
    return maps.flatten(0, 1)


def _at_once(planes: Tensor) -> int:
    """How many planes to work on at once."""
    return max(1, AT_ONCE // planes[0].numel()) * torch.get_num_threads()


def _in_parts(start: int, stop: int, work: Callable[[int, int], None]) -> None:
    """Work on a range in as many parts as there are threads."""
    threads = min(torch.get_num_threads(), stop - start)
    if threads <= 1:
        work(start, stop)
        return
    ends = [start + (stop - start) * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, ends[:-1], ends[1:]))


@lru_cache(maxsize=1)
def _numba() -> Any:
    """The package; None where it is missing, or where it says that it cannot work with the others here."""
    try:
        import numba
    except ImportError as error:
        if find_spec("numba") is not None:
            warnings.warn(f"Numba cannot be used ({error}); trainings are slower without it.", stacklevel=2)
        return None
    return numba


@lru_cache(maxsize=1)
def _kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two loops, compiled when they are first called. They let other threads run."""
    compiled = _numba().njit(nogil=True)
    return compiled(inspect.unwrap(_keep)), compiled(inspect.unwrap(_give))


def _keep(maps: Any, kept: Any, index: Any, kernel: int, stride: int, run: int, lowest: int) -> bool:
    """Rectified maxima [plane, high, wide * run] and their places in the windows; whether a value is not a number, signed.

    ``run`` values of neighbouring positions lie side by side. At stride 1 a whole row is one loop.
    """
    strange = 0
    pieces, length = (1, kept.shape[2]) if stride == 1 else (kept.shape[2] // run, run)
    for plane in range(kept.shape[0]):
        for row in range(kept.shape[1]):
            best, where = kept[plane, row], index[plane, row]
            for place in range(best.shape[0]):
                best[place] = 0
                where[place] = NONE
            for down in range(kernel):
                for across in range(kernel):
                    number = np.uint8(down * kernel + across)
                    for piece in range(pieces):
                        first = (piece * stride + across) * run
                        values = maps[plane, row * stride + down, first : first + length]
                        highest = best[piece * length : piece * length + length]
                        at = where[piece * length : piece * length + length]
                        for place in range(length):
                            higher = values[place] > highest[place]
                            highest[place] = values[place] if higher else highest[place]
                            at[place] = number if higher else at[place]
        for row in range(maps.shape[1]):
            values = maps[plane, row]
            for place in range(values.shape[0]):
                strange += (values[place] > lowest) & (values[place] < 0)
    return strange > 0


def _give(index: Any, gradient: Any, summed: Any, kernel: int, stride: int, run: int) -> None:
    """Each gradient to the input that was kept, in the order of the windows."""
    pieces, length = (1, gradient.shape[2]) if stride == 1 else (gradient.shape[2] // run, run)
    for plane in range(gradient.shape[0]):
        summed[plane] = 0
        for row in range(gradient.shape[1]):
            for down in range(kernel):
                for across in range(kernel - 1, -1, -1):
                    number = np.uint8(down * kernel + across)
                    for piece in range(pieces):
                        first = (piece * stride + across) * run
                        target = summed[plane, row * stride + down, first : first + length]
                        given = gradient[plane, row, piece * length : piece * length + length]
                        at = index[plane, row, piece * length : piece * length + length]
                        for place in range(length):
                            target[place] += given[place] if at[place] == number else given.dtype.type(0)
