"""A copy that no fix has changed equals its original: outputs, gradients, statistics and state dict, in both modes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.errors import UntraceableError
from shiftscope.explanations import guarantee_of
from shiftscope.graphs.geometry import geometry_of
from shiftscope.graphs.tracing import trace_both_modes
from shiftscope.surgery import FixKind, antialias, make_equivariant, operate
from zoo import timm


class FunctionalNorm(nn.BatchNorm2d):
    """A norm and an activation in one layer, written as timm's: it counts its batches in Python."""

    def forward(self, maps: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normed = functional.batch_norm(
            maps, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum or 0.0, self.eps
        )
        return functional.relu(normed)


class StochasticDepth(nn.Module):
    """Drops a branch for some images while it is trained."""

    def forward(self, maps: Tensor) -> Tensor:
        if not self.training:
            return maps
        return maps * maps.new_empty(maps.shape[0], 1, 1, 1).bernoulli_(0.5)


class Net(nn.Module):
    """What surgery meets in published models, in one small network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = FunctionalNorm(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depth = StochasticDepth()
        self.head = nn.Linear(8, 4)
        self.unused = nn.Linear(2, 2)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.stem(images))
        maps = (maps + self.depth(self.block(maps))) * self.scale + torch.tensor(0.25)
        features = functional.dropout(maps.mean((2, 3)), 0.3, training=self.training)
        return self.head(features)


class DropsLabels(nn.Module):
    """Its forward itself does something else in training mode, as with auxiliary heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        return maps.relu().mean((2, 3)) if self.training else maps.mean((2, 3))


def published(name: str) -> Callable[[], nn.Module]:
    return lambda: timm().create_model(name, pretrained=False, num_classes=4, drop_rate=0.2)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ours": Net,
    "mobilenetv2_050": published("mobilenetv2_050"),
    "regnetx_002": published("regnetx_002"),
    "resnet10t": published("resnet10t"),
    "convnext_atto": published("convnext_atto"),
}


def one_step(model: nn.Module) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Outputs, gradients by size, and buffers after one step in training mode."""
    torch.manual_seed(2)
    outputs = model(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    outputs.square().sum().backward()
    gradients = [each.grad for _, each in sorted(model.named_parameters()) if each.grad is not None]
    return outputs.detach(), gradients, [value for _, value in sorted(model.state_dict().items())]


@pytest.mark.parametrize("name", MODELS)
def test_unchanged_copy_trains_like_its_original(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    copy = antialias(model, only=()).model
    before = deepcopy(model.state_dict())
    ours, theirs = one_step(copy), one_step(model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    moved = [key for key, value in copy.state_dict().items() if not torch.equal(value, before[key])]
    assert any("num_batches_tracked" in key for key in moved) == any("num_batches_tracked" in key for key in before)


@pytest.mark.parametrize("name", MODELS)
def test_unchanged_copy_answers_like_its_original(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(antialias(model, only=()).model(images), model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_state_dicts_fit_both_ways(name: str) -> None:
    model = MODELS[name]()
    copy = antialias(model, only=()).model
    copy.load_state_dict(model.state_dict())
    model.load_state_dict(copy.state_dict())


def test_copy_drops_branches_and_features_only_in_training() -> None:
    torch.manual_seed(0)
    copy = antialias(Net().eval(), only=()).model
    images = torch.rand(8, 3, 32, 32)
    torch.testing.assert_close(copy(images), copy(images))
    copy.train()
    assert not torch.allclose(copy(images), copy(images))


def test_tracing_both_modes_leaves_the_model_as_it_was() -> None:
    model = Net().train()
    model.norm.eval()
    before, modes = deepcopy(model.state_dict()), [part.training for part in model.modules()]
    trace_both_modes(model)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class PoolsByFunction(DropsLabels):
    """Needs the traced graph, which does not show what it does in training mode."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(functional.max_pool2d(images, 2))


def test_traced_copy_of_a_model_with_another_forward_in_training_is_named() -> None:
    named = [change for change in antialias(PoolsByFunction()).changes if change.was == "training mode"]
    assert [change.layer for change in named] == ["PoolsByFunction"]
    assert "behaves as in evaluation mode" in named[0].why


def test_swapped_copy_of_a_model_with_another_forward_in_training_trains_like_it() -> None:
    torch.manual_seed(0)
    model, images = DropsLabels().train(), torch.rand(2, 3, 16, 16)
    copy = antialias(model, filter_size=1).model
    torch.testing.assert_close(copy(images), model(images))
    torch.testing.assert_close(copy.eval()(images), model.eval()(images))


def test_filter_stands_behind_the_activation_inside_a_norm() -> None:
    changes = antialias(Net(), only=("stem",)).changes
    assert next(change.becomes for change in changes if change.layer == "stem") == "stride 1, BlurPool2d after the nonlinearity"


class KeywordNet(nn.Module):
    """Passes maps by keyword, and averages windows of the map's own size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(input=images).relu()
        return self.head(functional.avg_pool2d(input=maps, kernel_size=maps.size()[2:]).flatten(1))


@pytest.mark.parametrize("fix", get_args(FixKind))
def test_maps_by_keyword_and_pools_of_the_complete_map_can_be_fixed(fix: FixKind) -> None:
    torch.manual_seed(0)
    surgery = operate(fix, KeywordNet().eval(), image=(3, 16, 16))
    assert surgery.model(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    assert any(change.layer == "stem" for change in surgery.changes) == (fix not in ("gap", "anchor", "canonical", "average"))


def test_pool_of_the_complete_map_is_a_mean_over_positions() -> None:
    geometry = geometry_of(KeywordNet())
    assert (geometry.head, geometry.factor, geometry.unknown) == ("gap", (2, 2), ())


class BranchesOnType(nn.Module):
    """Does something else where it is traced, because a proxy is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        return maps.relu().mean((2, 3)) if isinstance(maps, Tensor) else maps.mean((2, 3))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(2))
    model.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


@pytest.mark.parametrize("make", [BranchesOnType, hooked])
def test_graph_that_is_another_model_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(UntraceableError, match="gives other outputs than the model"):
        make_equivariant(make())
    with pytest.raises(UntraceableError, match="gives other outputs than the model"):
        geometry_of(make())
    assert guarantee_of(make()).geometry is None


def test_traced_copy_that_trains_otherwise_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, stride=2)

        def forward(self, images: Tensor) -> Tensor:
            return functional.avg_pool2d(self.stem(images), 2).mean((2, 3)) * (1.0 + float(self.training))

    assert "training mode" in [change.was for change in antialias(Net()).changes]
    assert "training mode" not in [change.was for change in antialias(Net(), only=("stem",)).changes]


class Called(nn.Module):
    """Calls a function on its features, between a convolution and a head."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.stem, self.function = nn.Conv2d(3, 4, 3, stride=2), function

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        self.function(maps)
        return maps.mean((2, 3))


@pytest.mark.parametrize("function", [functional.relu_, torch.relu_, functional.leaky_relu_, lambda maps: maps.relu_()])
def test_function_that_works_in_place_is_kept(function: Callable[[Tensor], object]) -> None:
    torch.manual_seed(0)
    model, images = Called(function), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(antialias(model, only=()).model(images), model(images))


class Merging(nn.Conv2d):
    """Changes its weights when its mode changes, as adapters do."""

    def train(self, mode: bool = True) -> nn.Module:
        self.weight.data += 1.0
        return super().train(mode)


def test_reading_a_graph_calls_no_train_method_of_the_model() -> None:
    model = nn.Sequential(Merging(3, 4, 3), nn.ReLU())
    before = model[0].weight.detach().clone()
    geometry_of(model)
    assert torch.equal(model[0].weight, before)


class NormsWhileTraining(nn.Module):
    """Calls a layer in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(maps) if self.training else maps


def test_part_that_calls_a_layer_in_training_only_stays_one_node() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), NormsWhileTraining())
    traced, problem = trace_both_modes(model)
    assert (problem, [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]) == ("", ["0", "1"])


def test_buffer_of_nan_is_no_change() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model.register_buffer("best", torch.tensor(float("nan")))
    assert trace_both_modes(model)[1] == ""


def test_scripted_part_keeps_the_modes_of_the_others() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated, but still met
        scripted = torch.jit.script(nn.ReLU())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), scripted, nn.BatchNorm2d(4), nn.Dropout()).train()
    with suppress(UntraceableError):
        geometry_of(model)
    assert all(part.training for part in model.modules())


def test_deep_network_of_functions_is_read() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(150))

        def forward(self, maps: Tensor) -> Tensor:
            for layer in self.layers:
                maps = functional.relu(layer(maps) * 0.9 + maps) + 0.1
            return maps.mean((2, 3))

    assert geometry_of(Deep()).head == "gap"
