"""Surgery keeps the user's own module: layers are swapped inside a copy, which stays the class it is and trains as it did."""

from __future__ import annotations

import pickle
import random
import warnings
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, weight_norm

from shiftscope.errors import InputError, UntraceableError
from shiftscope.explanations import explain, guarantee_of
from shiftscope.graphs.geometry import geometry_of
from shiftscope.graphs.probing import restoring_random_numbers
from shiftscope.layers import BlurPool2d, MaxBlurPool2d
from shiftscope.surgery import FixKind, Surgery, antialias, circular, global_pool, make_equivariant, operate
from shiftscope.surgery.compare import apply_fixes
from zoo import timm

SHAPE = (3, 16, 16)


def images(*shape: int) -> Tensor:
    return torch.rand(2, *(shape or SHAPE), generator=torch.Generator().manual_seed(0))


def plain(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    stem, body = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
    return nn.Sequential(stem, *middle, nn.ReLU(), body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class Block(nn.Module):
    """One activation called twice, and one called as a function at the end, as in many libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.act = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.act(self.one(maps))
        return functional.relu(self.act(self.two(maps)) - 0.1)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.pool, self.head = Block(), nn.MaxPool2d(2), nn.Linear(4, 2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.head(self.pool(self.block(maps)).mean((2, 3)))


def test_swapped_copy_computes_what_a_rewritten_network_does() -> None:
    torch.manual_seed(0)
    model, blur = Blocks(), BlurPool2d(3, 2)
    surgery = antialias(model, image=SHAPE)
    one, two = (functional.conv2d(x, layer.weight, layer.bias, padding=1) for x, layer in [(images(), model.block.one)] * 2)
    maps = blur(one.relu())
    two = functional.conv2d(maps, model.block.two.weight, model.block.two.bias, padding=1)
    maps = MaxBlurPool2d(2, filter_size=3, stride=2)(functional.relu(blur(two.relu()) - 0.1))
    torch.testing.assert_close(surgery.model(images()), model.head(maps.mean((2, 3))))
    assert type(surgery.model) is Blocks
    assert surgery.table().notes[1].startswith("Layers are swapped inside a copy of the model")


@pytest.mark.parametrize("kind", ["blur", "circular", "aps", "gap"])
def test_copy_keeps_class_names_and_weights_of_its_own(kind: FixKind) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 16, 2))
    copy = operate(kind, model, filter_size=3 if kind == "blur" else 1, image=SHAPE).model
    assert type(copy) is nn.Sequential
    assert [name for name, _ in copy.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert list(copy.state_dict()) == list(model.state_dict())
    assert not {id(each) for each in copy.parameters()} & {id(each) for each in model.parameters()}
    assert isinstance(copy[0], nn.Conv2d)
    assert copy(images()).shape == (2, 2)


@pytest.mark.parametrize("kind", ["circular", "aps", "blur"])
def test_fix_of_a_swapped_copy_sees_the_layers_that_the_first_fix_inserted(kind: FixKind) -> None:
    first = antialias(plain()).model
    second = operate(kind, first, image=SHAPE)
    assert type(second.model) is nn.Sequential
    geometry = geometry_of(second.model)
    assert geometry.factor == (4, 4)
    if kind != "blur":
        assert set(geometry.borders.values()) == {"circular"}
    assert guarantee_of(second.model).status == ("guaranteed" if kind == "aps" else "possible")


def test_layer_that_is_called_twice_is_swapped_where_both_calls_change_alike() -> None:
    class Twice(nn.Module):
        def __init__(self, *, by_function: bool) -> None:
            super().__init__()
            self.pool, self.by_function = nn.MaxPool2d(2), by_function

        def forward(self, maps: Tensor) -> Tensor:
            maps = self.pool(maps)
            return self.pool(functional.max_pool2d(maps, 2) if self.by_function else maps)

    surgery = antialias(Twice(by_function=False), image=SHAPE)
    assert type(surgery.model) is Twice
    assert [change.becomes for change in surgery.changes] == ["MaxBlurPool2d"] * 2
    assert type(surgery.model.pool) is MaxBlurPool2d
    by_graph = antialias(Twice(by_function=True), image=SHAPE)
    assert isinstance(by_graph.model, fx.GraphModule)
    reasons = {change.layer: change.why.partition("; in the traced graph, because ")[2] for change in by_graph.changes}
    assert reasons == {"pool": "", "max_pool2d": "it is called as a function"}


class Residual(nn.Module):
    """Two branches that subsample and are added, so that they need the same phase."""

    def __init__(self) -> None:
        super().__init__()
        self.long, self.short = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1, 2)

    def forward(self, maps: Tensor) -> Tensor:
        return (self.long(maps) + self.short(maps)).relu().mean((2, 3))


def test_branches_that_share_a_phase_are_changed_in_the_graph() -> None:
    surgery = make_equivariant(Residual(), image=SHAPE)
    assert isinstance(surgery.model, fx.GraphModule)
    assert [change.why.endswith("because it shares its phase with another layer") for change in surgery.changes] == [True, True]
    assert type(antialias(Residual(), image=SHAPE).model) is Residual


class Records(nn.Module):
    """Numbers drawn in Python, and a buffer that is a new tensor after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2)
        self.average: Tensor
        self.register_buffer("average", torch.zeros(4))

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.stem(maps)
        if self.training:
            self.average = 0.9 * self.average + 0.1 * maps.detach().mean((0, 2, 3))
            maps = maps * 2 if random.random() < 0.5 else maps
        return (maps - self.average[:, None, None]).mean((2, 3))


def test_python_numbers_and_buffers_that_are_replaced_behave_as_in_the_original() -> None:
    torch.manual_seed(0)
    model = Records()
    copy = antialias(model, filter_size=1).model
    for each in (model.train(), copy.train()):
        random.seed(3)
        outputs = [each(images()) for _ in range(5)]
        if each is model:
            expected = outputs
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(copy.average, model.average)


def test_random_numbers_that_a_probe_draws_are_drawn_again() -> None:
    states = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()  # noqa: NPY002 - the generator that a model's code may use
    with restoring_random_numbers() as used:
        random.random()
        np.random.rand()  # noqa: NPY002 - the generator that a model's code may use
        torch.rand(1)
    assert used == [True]
    assert random.getstate() == states[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), states[1])  # noqa: NPY002 - the generator that a model's code may use
    assert torch.equal(torch.get_rng_state(), states[2])


class FirstBatch(nn.Module):
    """Takes its offset from the first batch that it sees, as ActNorm does."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.begun = nn.Parameter(torch.zeros(1, 4, 1, 1)), False
        self.seen: Tensor
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, maps: Tensor) -> Tensor:
        if self.seen == 0:
            self.offset.data.copy_(-maps.detach().mean((0, 2, 3), keepdim=True))
            self.seen.fill_(1)
            self.begun = True
        return maps + self.offset


@pytest.mark.parametrize("apply", [antialias, circular])
def test_first_batch_of_the_user_initialises_the_copy(apply: Callable[..., Surgery]) -> None:
    model = plain(FirstBatch())
    for each in (apply(model, image=SHAPE).model, model, apply_fixes(model, [("blur", 3)], image=SHAPE).model):
        assert (int(each[1].seen), each[1].begun, float(each[1].offset.detach().abs().sum())) == (0, False, 0.0)


def hooked(model: nn.Sequential) -> nn.Module:
    model[0].register_forward_hook(lambda layer, inputs, output: output * 2)
    model[2].register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 1,))
    return model


def with_root_hook(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda layer, inputs, output: output * 2)
    return model


def with_old_weight_norm(model: nn.Sequential) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still met
        weight_norm(model[0])
    model(images())  # its weight is now computed from others, with a gradient
    return model


def with_parametrization(model: nn.Sequential) -> nn.Module:
    parametrizations.weight_norm(model[0])
    return model


WRAPPED: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "hooks": hooked,
    "hook on the model": with_root_hook,
    "weight_norm": with_old_weight_norm,
    "parametrization": with_parametrization,
    "DataParallel": nn.DataParallel,
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_whatever_is_attached_to_a_model_is_kept(name: str) -> None:
    model = WRAPPED[name](plain()).eval()
    copy = antialias(model, filter_size=1, image=SHAPE)
    maps = images().to(next(model.parameters()))
    assert copy.changed == 2
    assert type(copy.model) is type(model)
    torch.testing.assert_close(copy.model(maps), model(maps))
    assert list(copy.model.state_dict()) == list(model.state_dict())


def test_compiled_model_is_copied_without_its_compiler() -> None:
    model = plain()
    surgery = antialias(torch.compile(model, backend="eager"), filter_size=1, image=SHAPE)
    assert type(surgery.model) is nn.Sequential
    torch.testing.assert_close(surgery.model(images()), model(images()))


def test_lazy_layer_without_weights_is_refused_and_left_as_it_is() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3, 2), nn.ReLU())
    for change in (lambda: antialias(model, image=SHAPE), lambda: apply_fixes(model, [("blur", 3)], image=SHAPE)):
        with pytest.raises(InputError, match="lazy layer `0` has no weights yet"):
            change()
    assert model[0].has_uninitialized_params()


@pytest.mark.parametrize("kind", ["blur", "gap"])
def test_frozen_weights_stay_frozen(kind: FixKind) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 2))
    model.requires_grad_(False)[0].bias.requires_grad_(True)
    copy = operate(kind, model, image=SHAPE).model
    assert {name for name, each in copy.named_parameters() if each.requires_grad} == {"0.bias"}


def test_copy_can_be_pickled_compiled_and_exported() -> None:
    copy = antialias(plain(), image=SHAPE).model.eval()
    expected = copy(images())
    torch.testing.assert_close(pickle.loads(pickle.dumps(copy))(images()), expected)  # a pickle of our own
    torch.testing.assert_close(deepcopy(copy)(images()), expected)
    torch.testing.assert_close(torch.export.export(copy, (images(),)).module()(images()), expected)
    torch.testing.assert_close(torch.compile(copy, backend="eager", fullgraph=True)(images()), expected)


def test_traced_copy_can_be_pickled() -> None:
    copy = make_equivariant(Residual().eval(), image=SHAPE).model
    assert isinstance(copy, fx.GraphModule)
    torch.testing.assert_close(pickle.loads(pickle.dumps(copy))(images()), copy(images()))  # a pickle of our own


class FrozenNorm(nn.Module):
    """What libraries put in place of a batch norm: its children are kept, and its class is not."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.offset = norm.bias - norm.running_mean * self.scale
        for name, part in norm.named_children():
            self.add_module(name, part)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.scale[:, None, None] + self.offset[:, None, None]


def test_filter_stays_where_a_norm_is_exchanged_after_the_fix() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)
    ).eval()
    copy = antialias(model, image=SHAPE).model
    before = copy(images())
    assert not torch.allclose(before, model(images()))
    for place in (1, 3):
        copy[place] = FrozenNorm(copy[place])
    torch.testing.assert_close(copy(images()), before)


class DecidesByValue(nn.Module):
    """Cannot be traced: which way the images take depends on their values."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        maps = self.one(maps)
        maps = self.act(maps) if maps.sum() > 0 else functional.relu(maps + 1)
        return {"logits": functional.max_pool2d(self.two(maps).relu() * 2, 2).mean((2, 3))}


def test_layers_of_an_untraceable_model_are_found_by_running_it() -> None:
    torch.manual_seed(0)
    model = DecidesByValue()
    surgery = antialias(model, image=SHAPE)
    assert type(surgery.model) is DecidesByValue
    assert {change.layer: bool(change.becomes) for change in surgery.changes} == {"one": True, "two": True, "max_pool2d": False}
    assert "called as a function in code that cannot be traced" in surgery.changes[-1].why
    assert any(note.startswith("Layers were found by running the model") for note in surgery.table().notes)
    same = antialias(model, filter_size=1).model
    for maps in (images(), -images()):
        torch.testing.assert_close(same(maps), model(maps))
    around = circular(model, image=SHAPE)
    assert [layer.padding_mode for layer in (around.model.one, around.model.two)] == ["circular", "circular"]


def test_fixes_that_need_no_graph_are_tried_on_an_untraceable_model() -> None:
    class Logits(DecidesByValue):
        def forward(self, maps: Tensor) -> Tensor:
            return super().forward(maps)["logits"]

    torch.manual_seed(0)
    found = explain(Logits().eval(), torch.rand(4, 3, 16, 16), mode="circular", max_shift=2)
    assert {each.kinds for each in found.fixes.ranked if each.gain is not None and each.trains} == {("blur",), ("circular",)}


@pytest.mark.parametrize("apply", [make_equivariant, global_pool])
def test_fix_that_needs_the_graph_refuses_an_untraceable_model(apply: Callable[..., Surgery]) -> None:
    with pytest.raises(UntraceableError, match="cannot be traced"):
        apply(DecidesByValue(), image=SHAPE)


PROTOCOLS = {
    "legacy_seresnet18": 32,
    "mobilenetv3_small_050": 32,
    "ghostnet_050": 32,
    "repvgg_a0": 32,
    "edgenext_xx_small": 64,
    "xcit_nano_12_p16_224": 32,
    "crossvit_tiny_240": 240,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_filter_of_one_tap_keeps_a_published_model_and_its_training(name: str) -> None:
    side = PROTOCOLS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = timm().create_model(name, pretrained=False, num_classes=4, drop_rate=0.2).eval()
        surgery = antialias(model, filter_size=1, image=(3, side, side))
    assert type(surgery.model) is type(model)
    assert surgery.changed >= 1
    maps = images(3, side, side)
    torch.testing.assert_close(surgery.model(maps), model(maps), rtol=1e-5, atol=1e-6)
    assert moved(surgery.model, maps) == moved(model, maps)


def moved(model: nn.Module, maps: Tensor) -> tuple[set[str], set[str]]:
    """Names of what changes, and of what has a gradient, in a step in training mode."""
    before = deepcopy(model.state_dict())
    model.train()(maps).square().sum().backward()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    return changed, {name for name, each in model.named_parameters() if each.grad is not None}
