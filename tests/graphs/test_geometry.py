"""Factors, receptive fields, borders and heads are read from graphs as one would by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import shiftscope as ss
from shiftscope import layers
from shiftscope.errors import UntraceableError
from shiftscope.explanations.guarantee import guarantee_of
from shiftscope.graphs.geometry import geometry_of
from shiftscope.shifts import translate
from shiftscope.surgery import circular, make_equivariant
from zoo import timm, torchvision_models


def extent_seen(model: nn.Module, size: int, channels: int = 1) -> tuple[int, int]:
    """Return height and width of what the middle position of a map sees, by its gradient."""
    image = torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = model(image)
    out[0, :, out.shape[2] // 2, out.shape[3] // 2].sum().backward()
    assert image.grad is not None
    touched = image.grad.abs().sum(dim=(0, 1)) > 0
    rows, columns = touched.any(1).nonzero().flatten(), touched.any(0).nonzero().flatten()
    return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


SPATIAL = {
    "a plain one": [nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Conv2d(2, 2, 3, dilation=2), nn.Conv2d(2, 2, (3, 1), stride=(2, 1))],
    "with filters": [nn.Conv2d(1, 2, 5), layers.BlurPool2d(3, 2), nn.Conv2d(2, 2, 2), layers.BlurPool2d(4, 3, border="zero")],
    "average pooling by 3": [nn.AvgPool2d(3, 3), nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2, 1)],
}


@pytest.mark.parametrize("name", SPATIAL)
def test_receptive_field_equals_the_extent_of_the_gradient(name: str) -> None:
    spatial = nn.Sequential(*SPATIAL[name])
    found = geometry_of(nn.Sequential(spatial, nn.Flatten(), nn.LazyLinear(2)))
    assert found.last.receptive_field == extent_seen(spatial, 61)
    assert found.head == "flatten"


def test_shift_by_the_factor_moves_the_last_map_by_one_position() -> None:
    spatial = nn.Sequential(*SPATIAL["with filters"])
    found = geometry_of(nn.Sequential(spatial, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    image = torch.rand(1, 1, 70, 70, generator=torch.Generator().manual_seed(0))
    down, right = found.factor
    assert (down, right) == (6, 6)
    moved = image.roll((down, right), (2, 3))
    assert torch.allclose(spatial(moved)[..., 4:8, 4:8], spatial(image)[..., 3:7, 3:7], atol=1e-5)
    assert found.head == "gap"


class Branches(nn.Module):
    """A strided branch and its shortcut, a gate that pools, and a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(1, 4, 3, 2, padding=1, padding_mode="reflect")
        self.shortcut = nn.Conv2d(1, 4, 1, 2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        torch._assert(images.shape[1] == 1, "one colour")
        maps = torch.relu(self.main(images) + self.shortcut(images))
        maps = maps * self.gate(maps)
        maps = functional.max_pool2d(maps[:, :, ::2, ::2], 2)
        return self.head(maps.mean((2, 3)))


def test_branches_gates_slices_and_functions_are_read() -> None:
    found = geometry_of(Branches())
    assert found.factor == (8, 8)
    assert found.last.receptive_field == (7, 7)
    assert (found.head, found.head_name) == ("gap", "mean")
    assert [each.stride for each in found.subsamplings] == [(2, 2)] * 4
    assert found.borders == {"main": "reflect"}
    assert found.unknown == ()


def test_polyphase_sampling_differs_from_plain_strides() -> None:
    found = geometry_of(make_equivariant(Branches(), skip=["main", "shortcut", "getitem"]).model)
    assert {each.polyphase for each in found.subsamplings} == {True, False}
    assert found.factor == (8, 8)


def test_unknown_operator_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2), nn.Flatten(), nn.LazyLinear(2))
    assert geometry_of(model).unknown == ("`1` (Upsample)",)


class Placed(nn.Module):
    """Scales channels, then does one thing that depends on the position."""

    def __init__(self, does: str) -> None:
        super().__init__()
        self.does, self.convolution = does, nn.Conv2d(1, 4, 1)
        self.scale, self.places = nn.Parameter(torch.ones(4)), nn.Parameter(torch.rand(1, 4, 8, 8))
        self.rows, self.norm = nn.Linear(8, 8), nn.LayerNorm((4, 8, 8))
        nn.init.uniform_(self.norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images) * self.scale.reshape(1, -1, 1, 1)
        if self.does == "adds":
            maps = maps + self.places
        elif self.does == "adds later":
            maps = maps.relu().add(self.places.mul(2))
        elif self.does == "cuts":
            maps = maps[:, :, 1:]
        elif self.does == "mixes rows":
            maps = self.rows(maps)
        elif self.does == "weighs":
            maps = self.norm(maps)
        return torch.relu(maps - 0.5).mean((-2, -1))


@pytest.mark.parametrize("does", ["nothing", "adds", "adds later", "cuts", "mixes rows", "weighs"])
def test_operators_that_treat_positions_differently_are_unknown(does: str) -> None:
    torch.manual_seed(0)
    model = Placed(does)
    found = geometry_of(model)
    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alike = torch.allclose(model(images), model(images.roll((3, 2), (2, 3))), atol=1e-6)
    assert found.head == "gap"
    assert (found.unknown == ()) == alike == (does == "nothing")


class Through(nn.Module):
    """A circular convolution, one operator on its map, and a mean over positions; or two heads."""

    def __init__(self, does: object) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
        self.pool, self.does, self.linear = nn.AdaptiveAvgPool2d(3), does, nn.Linear(256, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images)
        if self.does == "two heads":
            return self.linear(maps.flatten(1)) + maps.mean((2, 3))
        if self.does == "ellipsis":
            maps = maps[..., :-3]
        elif self.does == "channels only":
            maps = torch.cat([maps, maps], 1)[:, 1:, ...]
        elif self.does == "joined below":
            maps = torch.cat([maps, maps.abs()], dim=2)
        elif self.does == "windows of the map's size":
            maps = self.pool(maps)
        return maps.mean((2, 3))


@pytest.mark.parametrize(
    ("does", "status"),
    [
        ("nothing", "guaranteed"),
        ("channels only", "guaranteed"),
        ("ellipsis", "possible"),
        ("joined below", "guaranteed"),
        ("windows of the map's size", "possible"),
        ("two heads", "impossible"),
    ],
)
def test_operators_that_treat_positions_differently_guarantee_nothing(does: str, status: str) -> None:
    assert guarantee_of(Through(does)).status == status


def test_slices_after_an_ellipsis_and_pads_of_computed_size_are_read() -> None:
    class Sliced(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            more = images.shape[2] % 2
            maps = functional.avg_pool2d(functional.pad(images, (0, more, 0, more)), 2)
            return maps[..., ::2].mean((2, 3))

    assert geometry_of(Sliced()).factor == (2, 4)


def test_untraceable_model_is_refused() -> None:
    class Asks(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) if images.sum() > 0 else -images.flatten(1)

    with pytest.raises(UntraceableError, match="The graph of Asks cannot be traced"):
        geometry_of(Asks())


@pytest.mark.parametrize(("name", "head"), [("resnet18", "gap"), ("squeezenet1_1", "gap"), ("mobilenet_v3_small", "gap")])
def test_known_architectures_have_their_known_factor_and_head(name: str, head: str) -> None:
    found = geometry_of(torchvision_models().get_model(name).eval())
    assert (found.factor, found.head, found.unknown) == ((16, 16) if name == "squeezenet1_1" else (32, 32), head, ())


def test_adaptive_pool_to_several_positions_is_no_head() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.AdaptiveAvgPool2d((7, 7)), nn.Flatten(), nn.Linear(98, 2))
    assert (geometry_of(model).head, geometry_of(model).factor) == ("flatten", (2, 2))


def test_layout_with_channels_last_is_read() -> None:
    found = geometry_of(timm().create_model("convnext_atto", conv_mlp=False, num_classes=2).eval())
    assert {place.layout for place in found.maps.values() if place.has_positions} == {"channels first", "channels last"}


class Overwriting(nn.Module):
    """Adds a map to one that was made from it, and overwrites it before: PyTorch cannot differentiate this."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, 2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images).exp()
        doubled = maps.sigmoid() + maps
        return (maps.relu_().mul_(2) + doubled).mean((2, 3))


def test_network_without_a_gradient_has_a_geometry() -> None:
    found = geometry_of(Overwriting().eval(), (3, 16, 16))
    assert found.last.factor == (2, 2)


def test_network_that_overwrites_its_input_has_a_geometry() -> None:
    class Halving(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.mul_(0.5))

    layers_ = nn.Conv2d(3, 4, 3, 2, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    assert geometry_of(Halving(*layers_).eval(), (3, 16, 16)).last.factor == (2, 2)


def test_maps_with_a_third_axis_are_not_read_as_if_nothing_were_subsampled() -> None:
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.ReLU(), nn.AdaptiveAvgPool3d(1))
            self.f = nn.Linear(4, 2)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.f(self.c(images[:, :, None]).flatten(1))
            return found

    with pytest.raises(UntraceableError, match=r"Maps have a third axis, as of time or depth \(`c.0`\)"):
        geometry_of(Clip().eval(), (3, 16, 16))
    found = ss.explain(Clip().eval(), torch.rand(4, 3, 16, 16), max_shift=2)
    assert {each.name: each.part is None for each in found.causes.causes}["aliasing"]
    assert found.causes.main == ""
    assert "`c.0` samples other positions" in found.guarantee.sentence


class SelfPadding(nn.Conv2d):
    """Pads itself."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(images, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class Gained(nn.Module):
    """A block with a gain of its own, which may be parametrized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gain = nn.Conv2d(3, 4, 3, 2, 1), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.conv(images) * self.gain
        return found


class Exponential(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.exp()


def gained() -> nn.Module:
    block = Gained()
    parametrize.register_parametrization(block, "gain", Exponential())
    return block


@pytest.mark.parametrize(
    ("plain", "changed"), [(lambda: SelfPadding(3, 4, 3), lambda: weight_norm(SelfPadding(3, 4, 3))), (Gained, gained)]
)
def test_parametrized_part_is_read_as_the_same_part_without(
    plain: Callable[[], nn.Module], changed: Callable[[], nn.Module]
) -> None:
    models = [nn.Sequential(part(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval() for part in (plain, changed)]
    one, other = (geometry_of(model, (3, 16, 16)) for model in models)
    assert (one.borders, one.factor, one.last, one.unknown) == (other.borders, other.factor, other.last, other.unknown)
    assert one.borders
    copy, images = circular(models[1]).model, torch.rand(2, 3, 16, 16)
    assert torch.allclose(copy(images), copy(images.roll((2, 4), (2, 3))), atol=1e-6)


def test_padding_of_channels_or_by_nothing_is_no_border() -> None:
    class OptionA(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return functional.pad(maps, (0, 0, 0, 0, 1, 1))

    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(2)
    around = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    assert geometry_of(nn.Sequential(around, OptionA(), *head), (3, 16, 16)).borders == {"0": "circular"}
    assert geometry_of(nn.Sequential(nn.ZeroPad2d(0), nn.Conv2d(3, 4, 3), *head), (3, 16, 16)).borders == {}
    assert geometry_of(nn.Sequential(nn.ZeroPad2d((0, 1, 0, 0)), nn.Conv2d(3, 4, 3), *head), (3, 16, 16)).borders == {
        "0": "zeros"
    }


@pytest.mark.parametrize(("width", "known"), [(1, True), (8, False)])
def test_border_that_mirrors_more_than_windows_read_takes_the_promise_away(width: int, known: bool) -> None:
    """Content 5 pixels from the edge is mirrored into a border of 8."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.ReflectionPad2d(width), nn.Conv2d(1, 4, 3), nn.ReLU())
    found = guarantee_of(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval(), image=(1, 32, 32))
    assert (found.exact is not None) == known
    image = torch.zeros(1, 1, 32, 32)
    image[:, :, 5:9, 5:9] = torch.rand(4, 4)
    moved = body(translate(image, torch.tensor([[3, 3]]))) - body(torch.zeros_like(image))
    back = translate(body(image) - body(torch.zeros_like(image)), torch.tensor([[3, 3]]))
    assert torch.allclose(moved, back, atol=1e-6) == known
