"""Max pooling and ReLU in one pass, compiled for the CPU by Numba (extra ``fast``).

PyTorch's max pooling on a CPU stores an index of eight bytes per output in loops that use little of the processor, and ReLU is
another pass: in the family's networks of factor 1 both take more time than the convolutions. Here both are one pass
(``benchmarks/training.py``), which is faster on one thread; on several threads PyTorch's loops scale better. Floating-point
numbers that are not negative have the order of their bits, so the maximum is one of integers in any precision, and an index of
one byte is stored.

The values are those of ``relu(max_pool2d(x))``, and the gradient goes where PyTorch's does, to the first of equal inputs. Where
windows overlap, gradients are added in single precision at least, in PyTorch's order: in single precision the result is PyTorch's
bit for bit; in half precision it is rounded once instead of at every addition.
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

__all__ = ["ReluMaxPool2d", "fast_max_pools", "numba_version"]

#: The integer type of the same size as a floating-point number, by bytes.
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Values per chunk, so that a chunk stays in the processor's cache.
CHUNK = 1 << 18
#: The index of an output that comes from no input, because none in its window is positive.
NO_INPUT = 255


@contextmanager
def fast_max_pools(model: nn.Module) -> Iterator[None]:
    """Run ReLU and max pooling of a model in one pass for the duration, wherever an ``nn.Sequential`` has one after the other.

    The model's parameters and their names stay. Without Numba nothing changes.

    Args:
        model: on the CPU. Layers that pad, dilate, return indices, work in place or have hooks stay as they are; so do subclasses
            of the layers and of ``nn.Sequential``.
    """
    replaced: list[tuple[nn.Sequential, int, nn.Module]] = []
    if _numba() is not None:
        for sequence in [module for module in model.modules() if type(module) is nn.Sequential]:
            replaced += _replace(sequence)
    try:
        yield
    finally:
        for sequence, index, module in replaced:
            sequence[index] = module


def _replace(sequence: nn.Sequential) -> list[tuple[nn.Sequential, int, nn.Module]]:
    """Put fast layers into a sequence; return the replaced ones with their indices."""
    replaced = []
    for index in range(len(sequence) - 1):
        pair = sequence[index], sequence[index + 1]
        fast = _fast_pair(*pair)
        if fast is not None:
            replaced += [(sequence, index, pair[0]), (sequence, index + 1, pair[1])]
            sequence[index], sequence[index + 1] = fast
    return replaced


def _fast_pair(first: nn.Module, second: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Return two layers that compute what two successive layers do, faster; None if there are none."""
    if any(module._forward_hooks or module._forward_pre_hooks or getattr(module, "inplace", False) for module in (first, second)):
        return None
    if {type(first), type(second)} == {nn.ReLU, nn.MaxPool2d}:
        pool: Any = first if isinstance(first, nn.MaxPool2d) else second
        kernel, stride = _square(pool.kernel_size), _square(pool.stride)
        plain = (_square(pool.padding), _square(pool.dilation)) == (0, 1) and not (pool.ceil_mode or pool.return_indices)
        return (ReluMaxPool2d(kernel, stride), nn.Identity()) if plain and kernel and stride else None
    if type(first) is nn.ReLU and type(second) is MaxBlurPool2d:
        kernel = _square(second.kernel_size)
        if kernel and (_square(second.padding), _square(second.dilation)) == (0, 1):
            blur = second.filter
            return ReluMaxPool2d(kernel, 1), BlurPool2d(1, blur.stride, border=blur.border, taps=blur.taps, compat=second.compat)
    return None


def numba_version() -> str | None:
    """Return Numba's version; None if it is missing or cannot be used. It is not imported for that: imports take a while."""
    if find_spec("numba") is None or (_numba.cache_info().currsize and _numba() is None):
        return None
    return metadata.version("numba")


def _square(value: int | tuple[int, ...]) -> int | None:
    """Return the one number along both axes; None if they differ."""
    values = {value} if isinstance(value, int) else set(value)
    return values.pop() if len(values) == 1 else None


class ReluMaxPool2d(nn.Module):
    """``relu(max_pool2d(x, kernel, stride))`` of [image, channel, height, width], compiled if ``x`` is on a CPU.

    Args:
        kernel: height and width of a window, positions, up to 15.
        stride: from one window to the next, positions.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, maps: Tensor) -> Tensor:
        """Return the rectified maxima."""
        supported = maps.device.type == "cpu" and maps.is_floating_point() and maps.numel() and self.kernel**2 < NO_INPUT
        if not supported or maps.ndim != 4 or min(maps.shape[2:]) < self.kernel:
            return functional.relu(functional.max_pool2d(maps, self.kernel, self.stride))
        found: Tensor = _ReluMaxPool.apply(maps, self.kernel, self.stride)
        return found


class _ReluMaxPool(torch.autograd.Function):
    """Walks along width and channels (channels last) or along width alone, whichever is contiguous in memory."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: int, stride: int) -> Tensor:
        _, channels, *size = maps.shape
        high, wide = ((each - kernel) // stride + 1 for each in size)
        last = channels > 1 and not maps.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        maps = maps.contiguous(memory_format=layout)
        pooled = torch.empty((*maps.shape[:2], high, wide), dtype=maps.dtype, memory_format=layout)
        rows, maxima = _rows(maps, last), _rows(pooled, last)
        index = torch.empty(maxima.shape, dtype=torch.uint8)
        bits = INTEGERS[maps.element_size()]
        lowest = torch.tensor(-torch.inf, dtype=maps.dtype).view(bits).item()
        inputs, outputs, indices = rows.view(bits).numpy(), maxima.view(bits).numpy(), index.numpy()
        run, pool = channels if last else 1, _kernels()[0]
        invalid = [False] * len(rows)

        def work(start: int, stop: int) -> None:
            part = slice(start, stop)
            invalid[start] = pool(inputs[part], outputs[part], indices[part], kernel, stride, run, lowest)

        _in_threads(0, len(rows), work)
        if any(invalid):  # a negative NaN, whose bits are no order
            pooled.fill_(torch.nan)
        ctx.save_for_backward(index)
        ctx.settings = (maps.shape, last, kernel, stride)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        shape, last, kernel, stride = ctx.settings
        layout = torch.channels_last if last else torch.contiguous_format
        rows = _rows(gradient.contiguous(memory_format=layout), last)
        result = torch.empty(shape, dtype=gradient.dtype, memory_format=layout)
        planes, indices = _rows(result, last), index.numpy()
        wide = torch.promote_types(gradient.dtype, torch.float32)
        run, scatter = shape[1] if last else 1, _kernels()[1]
        for start in range(0, len(rows), size := _planes_per_chunk(planes)):
            part = slice(start, start + size)
            given = rows[part].to(wide).numpy()
            target = planes[part] if gradient.dtype == wide else torch.empty_like(planes[part], dtype=wide)
            summed = target.numpy()

            def work(one: int, other: int, start: int = start, given: Any = given, summed: Any = summed) -> None:
                scatter(indices[start:][one:other], given[one:other], summed[one:other], kernel, stride, run)

            _in_threads(0, len(summed), work)
            if target.dtype != result.dtype:
                planes[part].copy_(target)
        return result, None, None


def _rows(maps: Tensor, last: bool) -> Tensor:
    """Return maps as [plane, row, contiguous values of a row]."""
    if last:
        return maps.permute(0, 2, 3, 1).flatten(2)
    return maps.flatten(0, 1)


def _planes_per_chunk(planes: Tensor) -> int:
    """Return how many planes to process at once."""
    return max(1, CHUNK // planes[0].numel()) * torch.get_num_threads()


def _in_threads(start: int, stop: int, work: Callable[[int, int], None]) -> None:
    """Process a range in as many parts as PyTorch has threads."""
    threads = min(torch.get_num_threads(), stop - start)
    if threads <= 1:
        work(start, stop)
        return
    ends = [start + (stop - start) * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, ends[:-1], ends[1:]))


@lru_cache(maxsize=1)
def _numba() -> Any:
    """Return the package; None if it is missing or refuses the versions of other packages."""
    try:
        import numba
    except Exception as error:  # of any kind: it may find a file of the user's in the place of a package that it needs
        if find_spec("numba") is not None:
            warnings.warn(f"Numba cannot be used ({error}); trainings are slower without it.", stacklevel=2)
        return None
    return numba


@lru_cache(maxsize=1)
def _kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the two loops, compiled when they are first called. They release the interpreter's lock."""
    compiled = _numba().njit(nogil=True)
    return compiled(inspect.unwrap(_pool_kernel)), compiled(inspect.unwrap(_scatter_kernel))


def _pool_kernel(maps: Any, maxima: Any, index: Any, kernel: int, stride: int, run: int, lowest: int) -> bool:
    """Write rectified maxima [plane, high, wide * run] and their indices in the windows; say whether one is a negative NaN.

    A position has ``run`` contiguous values. At stride 1 a complete row is one loop.
    """
    invalid = 0
    pieces, length = (1, maxima.shape[2]) if stride == 1 else (maxima.shape[2] // run, run)
    for plane in range(maxima.shape[0]):
        for row in range(maxima.shape[1]):
            best, where = maxima[plane, row], index[plane, row]
            for place in range(best.shape[0]):
                best[place] = 0
                where[place] = NO_INPUT
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
                invalid += (values[place] > lowest) & (values[place] < 0)
    return invalid > 0


def _scatter_kernel(index: Any, gradient: Any, summed: Any, kernel: int, stride: int, run: int) -> None:
    """Add each gradient to the input that was the maximum, in the order of the windows."""
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
