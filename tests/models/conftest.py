"""Factories of small models, importable as ``my_models`` for the duration of a test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

FACTORIES = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def number():
    return 3

def failing():
    raise RuntimeError("no luck")

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, batch):
        logits = self.inner(batch)
        return {"logits": logits, "features": 2 * logits}
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reference of a factory; the working directory is ``tmp_path``."""
    (tmp_path / "my_models.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)  # another test's
    monkeypatch.chdir(tmp_path)
    return "my_models:small"


class Malicious:
    """Creates the file ``executed`` in the working directory when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (Path("executed"),))


def images(count: int = 5, channels: int = 1, size: int = 20) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))
