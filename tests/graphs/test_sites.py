"""Tracing reads a model and leaves it exactly as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shiftscope.errors import UntraceableError
from shiftscope.graphs.sites import TracedModel
from shiftscope.graphs.tracing import trace


class Remembering(nn.Module):
    """Stores its maps in an attribute and a buffer, and drops values in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3)
        self.register_buffer("latest", torch.zeros(1))
        self.maps: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        self.maps = self.convolution(images)
        self.latest = self.maps * 2
        return nn.functional.dropout(self.maps, training=self.training)


def test_tracing_leaves_attributes_buffers_and_modes_as_they_were() -> None:
    model = Remembering().train()
    model.convolution.eval()
    before = model.latest
    traced = trace(model)
    assert model.maps is None
    assert model.latest is before
    assert (model.training, model.convolution.training) == (True, False)
    dropout = next(node for node in traced.graph.nodes if node.target is nn.functional.dropout)
    assert dropout.kwargs["training"] is False


def test_traced_model_shares_the_layers_of_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    traced = TracedModel(model)
    assert [traced.part(site.node) for site in traced.sites()] == [model[0], model[1][1]]
    assert [site.name for site in traced.sites()] == ["0", "1.1"]


def test_untraceable_model_raises_an_error_with_the_reason_in_its_problem() -> None:
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.sum() > 0:
                raise ValueError
            return images

    with pytest.raises(UntraceableError) as caught:
        TracedModel(Branching())
    assert caught.value.problem.startswith("The graph of Branching cannot be traced (")
    assert "shiftscope.layers" in caught.value.remedy


def test_tracing_leaves_dictionaries_of_the_model_as_they_were() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cache: dict[str, Tensor] = {}

        def forward(self, images: Tensor) -> Tensor:
            self.cache["maps"] = images * 2
            return self.cache["maps"]

    model = Caching()
    trace(model)
    assert model.cache == {}
