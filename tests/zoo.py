"""torchvision and timm beside a PyTorch without CUDA.

torchvision's wheel fails to import there, because two of its operators are registered by CUDA code only. Naming them before the
import is enough: no test calls them.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import cache
from types import ModuleType

import pytest
import torch

SIGNATURES = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float t) -> Tensor",
)


@cache
def _named() -> torch.library.Library:
    names = torch.library.Library("torchvision", "FRAGMENT")
    for signature in SIGNATURES:
        with suppress(RuntimeError):  # this PyTorch's torchvision brings it itself
            names.define(signature)
    return names


def torchvision_models() -> ModuleType:
    """``torchvision.models``, or a skip that says what is missing."""
    _named()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchvision", reason="needs torchvision (extra `zoo`)")
        import torchvision.models as models
    return models


def timm() -> ModuleType:
    """``timm``, or a skip that says what is missing."""
    torchvision_models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm", reason="needs timm (extra `zoo`)")
