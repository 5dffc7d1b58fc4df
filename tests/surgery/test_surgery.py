"""Fixes change a copy of a model, keep its weights, and record every change."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import as_users_import_it
from shiftscope.errors import InputError
from shiftscope.explanations import guarantee_of
from shiftscope.layers import BlurPool2d, MaxBlurPool2d
from shiftscope.models.family import NetworkSpec, build
from shiftscope.surgery import Surgery, antialias, circular, cost, global_pool, make_equivariant, operate
from zoo import timm, torchvision_models

#: Together these take over 20 s.
pytestmark = pytest.mark.slow


def randoms(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Residual(nn.Module):
    """A block whose shortcut subsamples as the block does."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, stride, padding=1)
        self.norm, self.two = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.short = nn.Conv2d(channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.norm(self.one(x)))) + self.short(x))


class Shared(nn.Module):
    """One pool and one activation in two places, and pools called as functions."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.pool, self.act = nn.MaxPool2d(2), nn.ReLU()
        self.one, self.two = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.one(x)))
        x = self.pool(self.act(self.two(x)))
        x = nn.functional.avg_pool2d(nn.functional.max_pool2d(x, 3, 2, 1), 2)
        return self.head(x.mean((2, 3)))


def block(draw: st.DrawFn, channels: int) -> nn.Module:
    kind = draw(st.sampled_from(["convolution", "depthwise", "max", "average", "residual", "norm"]))
    stride, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if kind == "convolution":
        return nn.Sequential(
            nn.Conv2d(channels, channels, kernel, stride, padding=kernel // 2), nn.BatchNorm2d(channels), nn.ReLU()
        )
    if kind == "depthwise":
        return nn.Sequential(nn.Conv2d(channels, channels, kernel, stride, groups=channels), nn.ReLU6())
    if kind == "max":
        return nn.MaxPool2d(kernel, stride, padding=kernel // 2)
    if kind == "average":
        return nn.AvgPool2d(kernel, stride)
    return Residual(channels, stride) if kind == "residual" else nn.BatchNorm2d(channels)


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 999)))
    blocks = [block(draw, 4) for _ in range(draw(st.integers(1, 4)))]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    return model


@settings(deadline=None, max_examples=60)
@given(models(), st.integers(20, 31))
def test_filter_of_size_one_changes_no_output(model: nn.Module, size: int) -> None:
    images = randoms(2, 1, size, size + 3)
    with torch.no_grad():
        try:
            before = model(images)
        except RuntimeError:  # the map shrinks to nothing
            return
        after = antialias(model, filter_size=1).model(images)
    torch.testing.assert_close(after, before, atol=1e-10, rtol=1e-10)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_equivariant_copies_of_random_networks_have_the_same_output_at_every_shift(data: st.DataObject) -> None:
    """Residual and plain blocks of strides 1 to 4, random weights, double precision."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    strides = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    kinds = (Residual, lambda channels, stride: nn.Sequential(nn.Conv2d(channels, channels, 3, stride, 1), nn.ReLU()))
    blocks = [data.draw(st.sampled_from(kinds))(3, stride) for stride in strides]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), *blocks, *head).double().eval()
    size = 2 * int(torch.tensor(strides).prod())
    size = size if size >= 4 else 4 * size
    method = data.draw(st.sampled_from(["aps", "lps"]))
    changed = make_equivariant(model, method=method, filter_size=data.draw(st.integers(1, 3)))
    image = randoms(1, 1, size, size)
    shifts = [(step, 0) for step in range(size)] + [(1, 1), (2, 5), (3, 7)]
    with torch.no_grad():
        outputs = changed.model.eval()(torch.cat([image.roll(shift, (2, 3)) for shift in shifts]))
    torch.testing.assert_close(outputs, outputs[:1].expand_as(outputs), atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", ["aps", "lps"])
def test_branch_that_is_zero_leaves_the_choice_to_the_one_that_meets_it(method: Literal["aps", "lps"]) -> None:
    """All phases of a map that a ReLU has set to zero are equal, but not those of the shortcut, which takes the same phase."""
    torch.manual_seed(0)
    block = Residual(3, 3)
    with torch.no_grad():
        block.norm.bias.fill_(-100)
    model = (
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        .double()
        .eval()
    )
    found = make_equivariant(model, method=method, image=(1, 12, 12))
    image = randoms(1, 1, 12, 12)
    images = torch.cat([image.roll(shift, (2, 3)) for shift in ((0, 0), (1, 0), (2, 1), (5, 7))])
    outputs = found.model.eval()(images)
    torch.testing.assert_close(outputs, outputs[:1].expand_as(outputs), atol=1e-10, rtol=0)
    assert found.promise is not None
    assert "is equivariant" in found.promise.sentence
    assert guarantee_of(found.model, image=(1, 12, 12)).status == "guaranteed"


def small_resnet() -> nn.Module:
    models = torchvision_models()
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)


def small_vgg() -> nn.Module:
    """VGG-11 with 8 to 32 channels, and 32 units in its head."""
    models = torchvision_models()
    channels = [8, "M", 16, "M", 24, 24, "M", 32, 32, "M", 32, 32, "M"]
    with torch.device("meta"):
        model = models.VGG(nn.Sequential(), init_weights=False)
    model.features = models.vgg.make_layers(channels, batch_norm=True)
    model.avgpool = nn.AdaptiveAvgPool2d((7, 7))
    model.classifier = nn.Sequential(nn.Linear(32 * 7 * 7, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))
    return model


ZOO: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet": small_resnet,
    "torchvision mobilenet_v2": lambda: torchvision_models().mobilenet_v2(width_mult=0.25, num_classes=10),
    "torchvision densenet": lambda: torchvision_models().DenseNet(8, (2, 2, 2, 2), 16, num_classes=10),
    "torchvision vgg11_bn": small_vgg,
    "timm resnet": lambda: timm().create_model("test_resnet", num_classes=10),
    "timm convnext_atto": lambda: timm().create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 12, 16), num_classes=10),
    "timm mobilenetv3_small_050": lambda: timm().create_model("mobilenetv3_small_050", num_classes=10),
}


@pytest.mark.parametrize("name", ZOO)
def test_known_architectures_are_changed_and_equivariant(name: str) -> None:
    """Filters of size 1 change no output; equivariant copies are exactly equivariant, and the originals are not."""
    torch.manual_seed(0)
    model = ZOO[name]().double().eval()
    side = 128 if "convnext" in name else 64
    images = randoms(1, 3, side, side)
    image = (3, side, side)
    with torch.no_grad():
        before = model(images)
        torch.testing.assert_close(antialias(model, filter_size=1).model(images), before, atol=1e-9, rtol=1e-9)
        filtered = antialias(model, image=image)
        assert filtered.changed >= 4
        assert (filtered.after.multiply_adds > filtered.before.multiply_adds) or "vgg" in name
        assert filtered.after.parameters == filtered.before.parameters
        pooled = global_pool(model, image=image).model if "vgg" in name else model
        changed = make_equivariant(pooled, image=image).model
        outputs = changed(images)
        moved = changed(images.roll((3, 5), (2, 3)))
        size = outputs.abs().max()
        torch.testing.assert_close(moved / size, outputs / size, atol=1e-9, rtol=0)
        assert ((model(images.roll((3, 5), (2, 3))) - before).abs().max() / before.abs().max()) > 1e-6
        assert torch.equal(model(images), before)


@pytest.mark.parametrize("fix", [antialias, circular, make_equivariant])
def test_fixes_keep_weights_and_names_and_leave_the_original_unchanged(fix: Callable[[nn.Module], Surgery]) -> None:
    model = nn.Sequential(Residual(3, 2), nn.Flatten(), nn.Linear(3 * 16, 2))
    before = copy.deepcopy(model.state_dict())
    after = fix(model).model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model[0].one.stride == (2, 2)
    assert model[0].one.padding_mode == "zeros"


def test_pool_that_is_used_twice_is_changed_in_both_places() -> None:
    model = Shared().double().eval()
    surgery = antialias(model)
    assert [change.layer for change in surgery.changes if change.becomes] == ["pool", "pool", "max_pool2d", "avg_pool2d"]
    assert sum(isinstance(part, MaxBlurPool2d) for part in surgery.model.modules()) == 2
    images = randoms(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(antialias(model, filter_size=1).model(images), model(images), atol=1e-12, rtol=0)
        alike = make_equivariant(model).model
        images = images[:, :, :32, :32]
        torch.testing.assert_close(alike(images), alike(images.roll((1, 2), (2, 3))), atol=1e-12, rtol=0)


def test_plan_says_where_each_filter_goes() -> None:
    surgery = antialias(nn.Sequential(Residual(3, 2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), image=(3, 16, 16))
    fates = {change.layer: (change.becomes, change.why) for change in surgery.changes}
    assert fates["0.one"][0] == "stride 1, BlurPool2d after the nonlinearity"
    assert fates["0.short"][0] == "stride 1, BlurPool2d before"
    assert fates["0.two"] == ("", "stride 1: nothing is subsampled")
    assert fates["1"][0] == "MaxBlurPool2d"
    assert "3 of 4 layers changed" in surgery.table().notes[0]
    assert "Multiply-adds of one image" in surgery.table().notes[-1]
    assert surgery.to_json()["rows"][0]["layer"] == "0.one"


def test_model_without_subsampling_is_not_changed() -> None:
    surgery = antialias(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    assert surgery.changed == 0
    assert surgery.table().notes == ("Nothing was changed.",)


def test_cost_equals_a_count_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    found = cost(model, (2, 6, 6))
    assert found.multiply_adds == 6 * 6 * 4 * 2 * 9 + 4 * 36 * 5
    assert found.parameters == 4 * 2 * 9 + 4 + 4 * 36 * 5 + 5
    blurred = nn.Sequential(MaxBlurPool2d(2, filter_size=3, stride=2))
    assert cost(blurred, (1, 9, 9)).multiply_adds == 4 * 4 * 9


def test_pooled_head_keeps_the_output_of_a_constant_map() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout(0.1), nn.Flatten(), nn.Linear(3 * 16, 2)).double().eval()
    changed = global_pool(model, image=(1, 6, 6))
    constant = torch.full((1, 1, 6, 6), 0.7, dtype=torch.float64)
    torch.testing.assert_close(changed.model(constant), model(constant))
    assert changed.changes[0].becomes == "mean over positions, 3 inputs"
    assert global_pool(changed.model).changes[0].why == "it sees one position already"


def test_pool_that_others_use_stays_for_them() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(4, 3)

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            pooled = self.pool(images)
            return self.head(pooled.flatten(1)), pooled

    images = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(global_pool(Net()).model(images)[1], Net()(images)[1])


def test_circular_copy_commutes_with_circular_shifts() -> None:
    torch.manual_seed(0)
    layers = [
        nn.ZeroPad2d(1),
        nn.Conv2d(1, 3, 3),
        nn.MaxPool2d(3, 1, 1),
        nn.Conv2d(3, 3, 4, padding=1),
        nn.AvgPool2d(2, 1),
        BlurPool2d(3, 1),
    ]
    model = nn.Sequential(*layers).double().eval()
    changed = circular(model, image=(1, 12, 12)).model
    image = randoms(1, 1, 12, 12)
    torch.testing.assert_close(changed(image.roll((5, 2), (2, 3))), changed(image).roll((5, 2), (2, 3)))
    assert changed(image).shape[2:] == (12, 12)


class Functional(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return torch.max_pool2d(maps, 2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 2, 5, padding=1, padding_mode="circular"),
        nn.Conv2d(1, 2, 5, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 2, 4, stride=2, padding=1, padding_mode="circular"),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Functional(),
    ],
)
def test_layer_with_any_padding_is_made_equivariant(layer: nn.Module) -> None:
    network = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    alike = make_equivariant(network).model
    maps = torch.rand(2, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for shift in ((1, 0), (3, 5), (8, 7)):
            assert torch.allclose(alike(maps.roll(shift, (2, 3))), alike(maps), atol=1e-12)
        around = circular(nn.Sequential(layer)).model(maps)
        stride = 16 // around.shape[2]
        assert torch.allclose(circular(nn.Sequential(layer)).model(maps.roll((stride,) * 2, (2, 3))), around.roll((1, 1), (2, 3)))


def test_network_of_the_family_is_made_equivariant() -> None:
    spec = NetworkSpec(factor=4, padding="same")
    model = build(spec, generator=torch.Generator().manual_seed(0)).eval()
    pooled = global_pool(model, image=(1, 40, 40)).model
    alike = make_equivariant(pooled, image=(1, 40, 40)).model
    images = torch.rand(2, 1, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(alike(images), alike(images.roll((1, 3), (2, 3))), atol=1e-5, rtol=0)


#: Without the annotation checks that the tests add, which would raise first.
PLAIN = as_users_import_it(importlib.import_module("shiftscope.surgery.equivariance"))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Opaque(nn.Module):
    """Cannot be traced, and has a pool inside."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) if x.sum() > 0 else x


def test_part_that_cannot_be_traced_is_left_and_named() -> None:
    surgery = antialias(nn.Sequential(nn.MaxPool2d(2), Opaque()))
    assert [bool(change.becomes) for change in surgery.changes] == [True, False]
    assert surgery.changes[1].why == "unsupported: its code cannot be traced"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: global_pool(Branching()), "The graph of Branching cannot be traced"),
        (lambda: antialias(Shared(), skip=["pol"]), "The model has no layer 'pol'. Similar names: pool"),
        (lambda: antialias(Shared(), border="valid"), "`border` must keep the maps' sizes, got 'valid'"),
        (lambda: antialias(Shared(), filter_size=9), "`filter_size` must be 1 to 7, got 9"),
        (lambda: PLAIN.make_equivariant(Shared(), method="best"), "`method` must be 'aps' or 'lps', got 'best'"),
        (
            lambda: make_equivariant(Shared(), image=(3, 30, 30)),
            "multiples of the stride (2, 2) of polyphase sampling",
        ),
        (
            lambda: circular(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 2)), image=(1, 8, 8)),
            "does not run on an image of (1, 8, 8)",
        ),
        (lambda: make_equivariant(Uneven()), "branches meet after different strides"),
    ],
)
def test_invalid_input_is_reported(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)


class Uneven(nn.Module):
    """Two strides of 2 on one way, one of 4 on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.four = nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)) + self.four(x)


def test_layers_are_chosen_by_name() -> None:
    surgery = antialias(Shared(), skip=["pool"])
    assert [change.why for change in surgery.changes if change.layer == "pool"] == ["left out by `only` or `skip`"] * 2
    only = antialias(Shared(), only=["pool"])
    assert only.changed == 2


class Late(nn.Module):
    """The shortcut is computed before the activation behind the block's convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.short = nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(1, 2, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = self.short(x)
        return (torch.relu(a) + b).mean((2, 3))


def alike(model: nn.Module, side: int = 16) -> None:
    image = randoms(1, 1, side, side)
    with torch.no_grad():
        torch.testing.assert_close(model(image.roll((1, 3), (2, 3))), model(image), atol=1e-10, rtol=0)


def test_filtered_model_is_made_equivariant() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    surgery = make_equivariant(antialias(nn.Sequential(*layers).double().eval()).model)
    alike(surgery.model)
    assert sum("APS" in change.becomes for change in surgery.changes) == 2


def test_branch_computed_before_the_choice_of_phase_uses_it() -> None:
    torch.manual_seed(0)
    alike(make_equivariant(Late().double().eval()).model)


def test_branches_that_meet_after_their_heads_may_have_different_strides() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two, self.four = nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(1, 2, 3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.two(x).mean((2, 3)), self.four(x).mean((2, 3))], 1)

    alike(make_equivariant(Apart().double().eval()).model)
    make_equivariant(Uneven(), skip=["four", "one", "two"])


def test_in_place_operator_without_users_is_kept() -> None:
    class Discarding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.r = nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.c(x)
            self.r(x)
            return x

    model = Discarding().double()
    images = randoms(1, 1, 8, 8)
    assert torch.equal(antialias(model).model(images), model(images))


def test_in_place_operators_keep_their_order() -> None:
    class Reread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 2, 3, 2), nn.Conv2d(2, 2, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            a = self.one(x)
            before = a * 1
            a.relu_()
            return self.two(a) + before[..., :3, :3].mean((2, 3), keepdim=True)

    torch.manual_seed(0)
    model, images = Reread().double(), randoms(2, 1, 15, 15)
    torch.testing.assert_close(antialias(model, filter_size=1).model(images), model(images), atol=1e-12, rtol=0)


def test_strided_layer_that_pads_after_a_pad_is_left_unchanged() -> None:
    model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 2, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    changes = {change.layer: change for change in make_equivariant(model).changes}
    assert (changes["1"].becomes, changes["1"].why) == ("", "unsupported: a pad stands before a layer that pads itself")
    assert make_equivariant(model).model.get_submodule("1").stride == (2, 2)


def test_modes_of_parts_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.BatchNorm2d(2), nn.Dropout(0.5)).train()
    model[1].eval()
    copied = antialias(model).model
    assert (copied.training, copied.get_submodule("1").training, copied.get_submodule("2").training) == (True, False, True)


def test_layers_around_an_untraceable_part_are_changed() -> None:
    model = nn.Sequential(nn.Sequential(nn.MaxPool2d(2), Branching(), nn.MaxPool2d(2)), nn.MaxPool2d(2))
    assert [change.layer for change in antialias(model).changes if change.becomes] == ["0.0", "0.2", "1"]


class Dynamic(nn.Conv2d):
    """Scales its weights by the mean of its map."""

    def forward(self, maps: Tensor) -> Tensor:
        return nn.functional.conv2d(maps, self.weight * maps.mean(), self.bias, self.stride)


@pytest.mark.parametrize("fix", [antialias, make_equivariant])
@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.MaxPool2d(2, return_indices=True), "unsupported: it returns positions too"),
        (Dynamic(1, 2, 3, 2), "unsupported: "),
    ],
)
def test_unsupported_layer_is_left_with_the_reason(layer: nn.Module, why: str, fix: Callable[[nn.Module], Surgery]) -> None:
    surgery = fix(nn.Sequential(layer))
    assert surgery.changed == 0
    assert surgery.changes[0].why.startswith(why)


def test_only_subsampled_axes_are_filtered() -> None:
    model = nn.Sequential(nn.MaxPool2d((2, 1), (2, 1)))
    image = randoms(1, 1, 8, 8)
    changed = antialias(model).model
    assert not torch.equal(changed(image), model(image))
    columns = image[:, :, :1].expand(-1, -1, 8, -1)
    torch.testing.assert_close(changed(columns), model(columns))


def test_pool_that_rounds_up_is_not_filtered_but_made_equivariant() -> None:
    model = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    assert antialias(model).changes[0].why.startswith("unsupported: its size is rounded up")
    alike(make_equivariant(model).model)


def test_operate_applies_a_fix_by_its_short_name() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * 9, 2))
    changed = operate("blur", model, filter_size=3, image=(1, 8, 8)).model
    assert any(type(module).__name__ == "MaxBlurPool2d" for module in changed.modules())
    plain = as_users_import_it(importlib.import_module("shiftscope.surgery.fixes"))
    with pytest.raises(
        InputError, match=r"there is no fix 'gpa'\. Choose one of blur, aps, lps, gap, circular, anchor, canonical"
    ):
        plain.operate("gpa", model)


class TwoHeads(nn.Module):
    """Flattens two maps, the second of which holds a position map; ``turned`` uses the second one first."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.heads, self.turned = nn.ModuleList([nn.Linear(256, 3), nn.Linear(256, 3)]), turned
        self.position = nn.Parameter(torch.randn(1, 4, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images).relu()
        if self.turned:
            late = self.heads[1](self.second((maps + self.position).relu()).relu().flatten(1))
            found: Tensor = late + self.heads[0](maps.flatten(1))
            return found
        early: Tensor = self.heads[0](maps.flatten(1))
        return early + self.heads[1](self.second((maps + self.position).relu()).relu().flatten(1))


@pytest.mark.parametrize("turned", [False, True])
def test_promise_holds_of_every_map_that_is_flattened(turned: bool) -> None:
    torch.manual_seed(0)
    found = make_equivariant(TwoHeads(turned=turned).eval(), image=(1, 16, 16))
    assert found.promise is not None
    assert "is not equivariant" in found.promise.sentence


def test_wanted_max_blur_pool_is_changed_as_a_whole() -> None:
    torch.manual_seed(0)
    pool = MaxBlurPool2d(filter_size=3, stride=2, kernel_size=2)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(), pool, nn.AdaptiveAvgPool2d(1)).eval()
    found = make_equivariant(model, image=(1, 16, 16), only=["2"]).model
    images = torch.rand(2, 1, 16, 16)
    assert torch.allclose(found(images), found(images.roll((1, 3), (2, 3))), atol=1e-6)


def test_filter_of_given_weights_leaves_an_axis_that_is_not_subsampled() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=(2, 1), padding=1)).eval()
    by_weights, by_size = (
        antialias(model, image=(1, 16, 16), **how).model for how in ({"taps": [0.25, 0.5, 0.25]}, {"filter_size": 3})
    )
    images = torch.rand(2, 1, 16, 16)
    assert torch.allclose(by_weights(images), by_size(images), atol=1e-6)


def test_head_that_is_called_on_two_maps_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 3)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.head(self.one(images).flatten(1)) + self.head(self.other(images).flatten(1))
            return found

    model, images = Twice().eval(), torch.rand(2, 1, 8, 8)
    found = global_pool(model)
    assert {change.why for change in found.changes} == {"unsupported: it is called on several maps"}
    assert torch.equal(found.model(images), model(images))
