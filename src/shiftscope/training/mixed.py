"""Mixed precision that is quick on processors without quick arithmetic in bfloat16.

On most processors convolutions and products in bfloat16 take longer than in single precision: a training step took a tenth to a
half longer on an Intel processor that has ``avx512_bf16`` but not AMX, and nine times as long without both
(``benchmarks/training.py --parts products``). There they are computed in single precision, of values rounded to bfloat16, and
their results are rounded as PyTorch rounds them. Products of two such values are exact in single precision, so the numbers differ
from PyTorch's by the order of sums alone, as they do between two processors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["SinglePrecisionProducts", "has_quick_bfloat16", "mixed_precision"]

PROCESSOR = Path("/proc/cpuinfo")
#: What is computed in bfloat16 under autocast and takes most of the time.
PRODUCTS = frozenset({torch.conv1d, torch.conv2d, torch.conv3d, functional.linear})


@contextmanager
def mixed_precision(device: torch.device, *, enabled: bool) -> Iterator[None]:
    """Compute convolutions and products in bfloat16 for the duration, by the quickest way of a device.

    Args:
        device: of the model and its images.
        enabled: whether to; otherwise nothing changes.
    """
    slow = enabled and device.type == "cpu" and not has_quick_bfloat16()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), SinglePrecisionProducts() if slow else nullcontext():
        yield


@lru_cache(maxsize=1)
def has_quick_bfloat16() -> bool:
    """Return whether this machine's CPU is known to multiply in bfloat16 at least as quickly as in single precision.

    Intel's does with AMX, AMD's with ``avx512_bf16``, and ARM's with ``bf16``, as Linux names them.
    """
    told: set[str] = set()
    with suppress(OSError):
        told = set(PROCESSOR.read_text().split())
    return not told.isdisjoint({"amx_bf16", "bf16"}) or told >= {"AuthenticAMD", "avx512_bf16"}


class SinglePrecisionProducts(TorchFunctionMode):
    """Computes what autocast computes in bfloat16 in single precision, of values rounded to bfloat16, and rounds the results.

    Where a model switches autocast off, and for numbers of double precision, which autocast leaves alone, it does nothing.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch."""
        kwargs = kwargs or {}
        if function not in PRODUCTS or not torch.is_autocast_enabled("cpu") or not all(map(_is_cast, (*args, *kwargs.values()))):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            found = function(*map(_rounded, args), **{name: _rounded(value) for name, value in kwargs.items()})
        return found.bfloat16()


def _is_cast(value: Any) -> bool:
    """Return whether autocast casts a value, if it is a tensor."""
    return not isinstance(value, Tensor) or value.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _rounded(value: Any) -> Any:
    """Return a tensor rounded to bfloat16, in single precision; anything else as it is."""
    return value.bfloat16().float() if isinstance(value, Tensor) else value
