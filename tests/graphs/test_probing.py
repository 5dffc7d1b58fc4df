"""Looking at a model leaves it as it was."""

from __future__ import annotations

from collections import OrderedDict, deque
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import shiftscope as ss
from shiftscope.graphs.probing import restoring
from shiftscope.models.spec import Fix
from zoo import importable


class Capturing(nn.Module):
    """Adds hooks in its first call, as models of transformers do, and says so in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.captured: list[Tensor] = []
        self.installed = False

    def forward(self, batch: Tensor) -> Tensor:
        if not self.installed:
            self.layer.register_forward_hook(lambda _, __, output: self.captured.append(output))
            self.installed = True
        self.captured.clear()
        found: Tensor = self.layer(batch)
        return found


def test_hooks_of_a_first_call_go_with_the_attribute_that_counts_them() -> None:
    model = Capturing()
    for _ in range(2):
        with restoring(model):
            model(torch.ones(1, 2))
    assert (len(model.layer._forward_hooks), model.installed) == (0, False)
    model(torch.ones(1, 2))
    assert len(model.captured) == 1


def test_fix_of_a_transformer_that_never_ran_equals_that_of_one_that_ran() -> None:
    transformers = importable("transformers", "transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        num_labels=6,
        initializer_range=0.5,
    )
    images, outputs = torch.rand(2, 3, 64, 64), []
    for ran in (True, False):
        torch.manual_seed(0)
        model = transformers.SegformerForSemanticSegmentation(config).eval()
        with torch.no_grad():
            plain = model(images).logits if ran else None
            # A file's fixes are applied to a model that was just made.
            fixed = Fix(kind="blur", filter_size=3).apply(model, image=(3, 64, 64) if ran else None).model
            outputs.append(fixed(images).logits)
            if plain is not None:
                torch.testing.assert_close(model(images).logits, plain)
                assert not torch.allclose(outputs[0], plain, atol=1e-3)
    torch.testing.assert_close(*outputs)


class Caching(nn.Module):
    """Keeps what it computes in containers of its own, one within another."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)
        self._kept: Any = kind()
        self.nested = {"maps": [torch.ones(1)]}

    def forward(self, batch: Tensor) -> Tensor:
        maps = self.layer(batch).relu()
        if isinstance(self._kept, dict):
            self._kept["maps"] = maps
        else:
            (self._kept.add if isinstance(self._kept, set) else self._kept.append)(maps)
        self.nested["maps"].append(maps)
        found: Tensor = self.head(maps.mean((2, 3)))
        return found


@pytest.mark.parametrize("kind", [dict, OrderedDict, list, set, deque])
def test_tracing_leaves_containers_of_a_model_as_they_were(kind: type) -> None:
    model = Caching(kind).eval()
    ss.shift_outputs(model, torch.rand(2, 1, 16, 16), ss.grid(1))
    ss.certify(model, torch.rand(2, 1, 16, 16), radius=1)
    kept = [*(model._kept.values() if isinstance(model._kept, dict) else model._kept), *model.nested["maps"]]
    assert all(isinstance(each, Tensor) and not isinstance(each, fx.Proxy) for each in kept)
    torch.save(model, BytesIO())
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 3)
