"""Compare in single precision: switch off what PyTorch may compute with fewer bits, and back to the user's setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["full_precision", "is_reduced"]


def is_reduced(device: torch.device) -> bool:
    """Return whether products of single precision may be computed with fewer bits on a device, as TF32 or bfloat16."""
    return any(getattr(part, name) not in ("ieee", "none", False) for part, name, _ in _switches(device))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute products of single precision in single precision on a device; restore the user's setting afterwards."""
    before = [(part, name, getattr(part, name)) for part, name, _ in _switches(device)]
    try:
        for part, name, full in _switches(device):
            setattr(part, name, full)
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)


def _switches(device: torch.device) -> list[tuple[Any, str, Any]]:
    """Return the settings of a device, each as its owner, its name and its value for full precision."""
    there: Any = torch.backends
    if not hasattr(there.cuda.matmul, "fp32_precision"):  # before PyTorch 2.9
        return [(there.cuda.matmul, "allow_tf32", False), (there.cudnn, "allow_tf32", False)] if device.type == "cuda" else []
    parts = (there.cuda.matmul, there.cudnn.conv) if device.type == "cuda" else (there.mkldnn.matmul, there.mkldnn.conv)
    return [(part, "fp32_precision", "ieee") for part in parts]
