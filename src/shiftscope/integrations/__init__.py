"""Measure shifts where models are trained: metrics of torchmetrics, callbacks of Lightning and transformers, trackers.

A name imports its library when it is first used; `pip install shiftscope` installs none of them (extras `torchmetrics`,
`lightning`, `trainer`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.integrations.huggingface import ShiftTrainerCallback
    from shiftscope.integrations.lightning import ShiftCallback
    from shiftscope.integrations.loggers import log
    from shiftscope.integrations.metrics import MeanCosineSimilarityUnderShift, ShiftConsistency, ShiftMetric

__all__ = [
    "MeanCosineSimilarityUnderShift",
    "ShiftCallback",
    "ShiftConsistency",
    "ShiftMetric",
    "ShiftTrainerCallback",
    "log",
]

#: The module that defines each public name, and the extra that installs its library.
_HOMES = {
    "MeanCosineSimilarityUnderShift": ("metrics", "torchmetrics"),
    "ShiftCallback": ("lightning", "lightning"),
    "ShiftConsistency": ("metrics", "torchmetrics"),
    "ShiftMetric": ("metrics", "torchmetrics"),
    "ShiftTrainerCallback": ("huggingface", "trainer"),
    "log": ("loggers", "trackers"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shiftscope.integrations' has no attribute {name!r}")
    module, extra = _HOMES[name]
    try:
        return getattr(import_module(f"shiftscope.integrations.{module}"), name)
    except ModuleNotFoundError as error:
        raise InputError(f"`{name}` needs {error.name}, which is not installed.", f"pip install 'shiftscope[{extra}]'") from error
