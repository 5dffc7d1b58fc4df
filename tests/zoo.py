"""torchvision and timm beside a PyTorch without CUDA.

torchvision's wheel fails to import there, because two of its operators are registered by CUDA code only. Naming them before the
import is enough: no test calls them.
"""

from __future__ import annotations

import warnings
from types import ModuleType

import pytest
import torch

_names = torch.library.Library("torchvision", "DEF")


def _named() -> None:
    for signature in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float t) -> Tensor",
    ):
        try:
            _names.define(signature)
        except RuntimeError:  # this PyTorch's torchvision brings them itself
            return


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
