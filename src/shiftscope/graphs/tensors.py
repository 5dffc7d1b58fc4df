"""A table of values by tensor that finds tensors sharing memory."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["TensorTable", "region"]

Value = TypeVar("Value")


class TensorTable(Generic[Value]):
    """Values by tensor; a tensor that nothing else holds is dropped."""

    def __init__(self) -> None:
        self._values: Any = WeakTensorKeyDictionary()

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        self._values[tensor] = value

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._values

    def get(self, tensor: Tensor) -> Value | None:
        """Return a tensor's value; None if it has none."""
        found: Value | None = self._values.get(tensor)
        return found

    def aliases(self, tensor: Tensor) -> list[tuple[Tensor, Value]]:
        """Return the other tensors that share a tensor's memory, and their values."""
        memory = _memory(tensor)
        if memory is None:
            return []
        return [(other, value) for other, value in self._values.items() if other is not tensor and _memory(other) == memory]


def _memory(tensor: Tensor) -> int | None:
    with suppress(Exception):  # tensors without memory: sparse ones, of a subclass, on no device
        return tensor.untyped_storage()._cdata if tensor.numel() else None
    return None


def region(tensor: Tensor) -> tuple[Any, ...]:
    """Return which part of its memory a tensor shows."""
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
