"""Import torchvision and timm, also with a PyTorch without CUDA.

Without CUDA, torchvision's wheel fails to import, because only CUDA code registers two of its operators. Registering their names
before the import is enough: no test calls them.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch

SIGNATURES = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float t) -> Tensor",
)


@cache
def _registered() -> torch.library.Library:
    names = torch.library.Library("torchvision", "FRAGMENT")
    for signature in SIGNATURES:
        with suppress(RuntimeError):  # this build of torchvision registers it
            names.define(signature)
    return names


def importable(name: str, extra: str) -> ModuleType:
    """Return a library that imports torchvision if that is installed; skip the test where the library is not."""
    _registered()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"needs {name} (extra `{extra}`)")


def torchvision_models() -> ModuleType:
    """Return ``torchvision.models``; skip the test where torchvision is not installed."""
    _registered()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchvision", reason="needs torchvision (extra `zoo`)")
        import torchvision.models as models
    return models


def timm() -> ModuleType:
    """Return ``timm``; skip the test where it is not installed."""
    torchvision_models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm", reason="needs timm (extra `zoo`)")


def torchvision_detection() -> ModuleType:
    """Return ``torchvision.models.detection``, in plain PyTorch where its compiled operators are missing."""
    torchvision_models()
    import torchvision.models.detection as detection
    import torchvision.ops.boxes as boxes
    from torchvision.extension import _has_ops

    if not _has_ops():
        boxes.nms = _suppressed
        pooling: Any = import_module("torchvision.ops.roi_align")  # its attribute in `ops` is the function
        pooling._roi_align = getattr(pooling._roi_align, "__wrapped__", pooling._roi_align)  # compiling it takes minutes
    return detection


def _suppressed(boxes: torch.Tensor, scores: torch.Tensor, most: float) -> torch.Tensor:
    """Return the boxes that overlap no more confident one by more than a share, the most confident first."""
    import torchvision.ops.boxes as ops

    order = scores.argsort(descending=True, stable=True)
    clash = (ops.box_iou(boxes[order], boxes[order]) > most).tolist()
    kept: list[int] = []
    for number, row in enumerate(clash):
        if not any(row[other] for other in kept):
            kept.append(number)
    return order[torch.tensor(kept, dtype=torch.long)]
