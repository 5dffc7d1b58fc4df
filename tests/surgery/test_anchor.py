"""Anchored transformers follow circular shifts exactly where theory says so, at the multiply-adds and weights that they had."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.layers.anchor import Anchoring, make_anchored, roll_each
from shiftscope.layers.surrounded import surround
from shiftscope.surgery import Surgery, anchor, operate
from small_transformers import small
from zoo import torchvision_models

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SHIFTS = [(1, 0), (0, 5), (3, -7), (8, 16), (11, 30)]


def anchored(kind: str, **settings: Any) -> tuple[nn.Module, Surgery]:
    model = small(kind, **settings).double().eval()
    return model, anchor(model, image=(3, 32, 32))


@torch.no_grad()
def change(model: nn.Module, shift: tuple[int, int]) -> float:
    before = model(IMAGES)
    return float((model(IMAGES.roll(shift, (2, 3))) - before).abs().max() / before.abs().max())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("vit", {"pos_embed": "none"}),
        ("vit", {"pos_embed": "none", "global_pool": "avg"}),
        ("swin", {}),
        ("swin", {"depths": (1, 3)}),
        ("beit", {}),
        ("maxvit", {}),
    ],
    ids=["class token", "mean", "swin", "swin, other depths", "beit", "maxvit"],
)
def test_no_circular_shift_changes_an_anchored_model_without_position_embedding(kind: str, settings: dict[str, Any]) -> None:
    model, surgery = anchored(kind, **settings)
    assert max(change(model, shift) for shift in SHIFTS) > 1e-3
    assert max(change(surgery.model, shift) for shift in SHIFTS) < 1e-10
    assert surgery.changes[-1].why == "they change no output (tried in double precision)"
    assert surgery.before is not None
    assert surgery.after is not None
    assert surgery.after.multiply_adds <= 1.1 * surgery.before.multiply_adds
    assert list(surgery.model.state_dict()) == list(model.state_dict())
    assert isinstance(surgery.model, type(model))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_anchored_copy_is_pickled_and_compiled(kind: str) -> None:
    model = small(kind).eval()
    copy = anchor(model, image=(3, 32, 32)).model
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = copy(images)
    torch.testing.assert_close(pickle.loads(pickle.dumps(copy))(images), expected)  # a pickle of our own
    torch.testing.assert_close(deepcopy(copy)(images), expected)
    torch.testing.assert_close(torch.compile(copy, backend="eager", fullgraph=True)(images), expected)


@torch.no_grad()
def test_anchored_copy_is_exported_for_any_batch() -> None:
    copy = anchor(small("vit").eval(), image=(3, 32, 32)).model
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = {0: torch.export.Dim("batch", min=1, max=8)}
    exported = torch.export.export(copy, (images[:2],), dynamic_shapes=(batch,)).module()
    torch.testing.assert_close(exported(images), copy(images), rtol=1e-4, atol=1e-5)


def test_anchored_copy_keeps_the_mode_of_the_model() -> None:
    model = small("vit").train()
    copy = anchor(model, image=(3, 32, 32)).model
    assert [part.training for part in copy.modules() if type(part) is nn.Dropout] == [
        part.training for part in model.modules() if type(part) is nn.Dropout
    ]
    assert model.training
    assert copy.training


@torch.no_grad()
def test_branches_that_are_added_keep_the_same_phase() -> None:
    """Of 8 images, the norms of a shortcut and of the map beside it choose different phases for some."""
    model = small("maxvit").double()
    surgery = anchor(model, image=(3, 32, 32))
    lines = {line.layer: line for line in surgery.changes if line.was == "2 branches of stride 2"}
    assert list(lines) == ["stages.0.blocks.0.conv", "stages.1.blocks.0.conv"]
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = surgery.model(images)
    for shift in [(1, 1), (1, 0), (0, 1), (5, 2)]:
        assert torch.allclose(surgery.model(images.roll(shift, (2, 3))), before, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_anchored_vit_with_position_embedding_depends_on_shifts_by_whole_patches_only() -> None:
    """All 64 shifts within a patch, and all multiples of it, give 16 outputs: one for each place of the patches."""
    _, surgery = anchored("vit")
    image = IMAGES[:1]
    places = torch.stack(
        [surgery.model(image.roll((8 * down, 8 * right), (2, 3)))[0] for down, right in product(range(4), repeat=2)]
    )
    apart = (places[:, None] - places).abs().amax(2) + torch.eye(16)
    assert apart.min() > 1e-6
    for shift in SHIFTS:
        found = surgery.model(image.roll(shift, (2, 3)))
        assert (places - found).abs().amax(1).min() < 1e-10
    assert surgery.changes[-1].why.startswith("they change outputs only through `pos_embed`, a value for each position")


def transformers_swin() -> nn.Module:
    library = pytest.importorskip("transformers", reason="needs transformers (extra `transformers`)")
    options = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 2}
    model = library.SwinForImageClassification(library.SwinConfig(**options, initializer_range=0.2))

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(pixel_values=images).logits

    return Logits()


def torchvision_swin() -> nn.Module:
    options = {"patch_size": [2, 2], "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": [4, 4]}
    return torchvision_models().SwinTransformer(**options, num_classes=5)


OTHERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "swin of transformers": (transformers_swin, 32),
    "swin of torchvision": (torchvision_swin, 32),
    "twins": (lambda: small("twins"), 32),
    "pvt": (lambda: small("pvt"), 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_transformers_are_anchored_exactly(name: str) -> None:
    torch.manual_seed(0)
    make, size = OTHERS[name]
    model = make().double().eval()
    surgery = anchor(model, image=(3, size, size))
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        before, unchanged = surgery.model(images), model(images)
        for shift in SHIFTS:
            moved = surgery.model(images.roll(shift, (2, 3)))
            assert torch.allclose(moved, before, rtol=1e-10, atol=1e-10 * float(before.abs().max()))
        assert not torch.allclose(model(images.roll((3, -7), (2, 3))), unchanged, rtol=1e-6)
    assert surgery.after is not None
    assert surgery.before is not None
    assert surgery.after.multiply_adds <= 1.1 * surgery.before.multiply_adds


def test_window_that_does_not_fill_the_map_is_named() -> None:
    model = small("swin", image=24)  # 12 and 6 tokens a side, windows of 4
    surgery = anchor(model, image=(3, 24, 24))
    kept = {change.layer: change.why for change in surgery.changes if not change.becomes}
    assert "its map of 6x6 tokens is not filled by whole windows" in kept["layers.1.blocks.0"]
    assert kept["-"] == "they still change outputs: not every layer follows them"


def test_layers_are_left_out_by_name_and_networks_without_tokens_unchanged() -> None:
    model = small("vit", pos_embed="none").double()
    left = anchor(model, image=(3, 32, 32), skip=["patch_embed.proj"])
    assert left.changed == 0
    assert left.changes[0].why == "left out by `only` or `skip`"
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(900, 2))
    assert anchor(plain, image=(3, 32, 32)).changes[0].why == "it has no token maps: use `aps`"
    with pytest.raises(InputError, match="The model has no layer 'nothing'"):
        anchor(model, image=(3, 32, 32), skip=["nothing"])
    with pytest.raises(InputError, match="The model does not take images of"):
        anchor(model, image=(3, 33, 33))


def test_anchored_copy_trains_and_is_called_by_its_short_name() -> None:
    model = small("swin")
    copy = operate("anchor", model, image=(3, 32, 32)).model.train()
    copy(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in copy.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_plan_of_polyphase_sampling_recommends_anchor_for_a_transformer() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention = nn.Conv2d(3, 8, 8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.embed(images).flatten(2).transpose(1, 2)
            return self.attention(tokens, tokens, tokens)[0].mean(1)

    surgery = operate("aps", Patches().eval(), image=(3, 32, 32))
    assert "`anchor` lets patches follow shifts at no more than before" in surgery.changes[-1].why


def test_rolls_equal_those_of_torch_image_by_image() -> None:
    maps, steps = torch.rand(3, 2, 4, 6), torch.tensor([[0, 0], [1, -2], [-3, 5]])
    for image, step, found in zip(maps, steps.tolist(), roll_each(maps, steps), strict=True):
        assert torch.equal(found, image.roll(step, (1, 2)))


def test_anchored_phase_is_that_of_the_largest_norm_and_rolls_are_short() -> None:
    maps = torch.rand(5, 2, 6, 8, dtype=torch.float64)
    steps = Anchoring((3, 4), returns=False)(maps)[1]
    assert steps[:, 0].abs().max() <= 1.5
    assert steps[:, 1].abs().max() <= 2
    norms = roll_each(maps, steps).unflatten(3, (2, 4)).unflatten(2, (2, 3)).square().sum((1, 2, 4))
    assert torch.equal(norms.flatten(1).argmax(1), torch.zeros(5, dtype=torch.long))


def test_map_that_is_no_multiple_of_the_period_stays() -> None:
    pool = nn.AvgPool2d(2)
    make_anchored(pool, Anchoring((2, 2), returns=False))
    maps = torch.rand(1, 1, 5, 5)
    assert torch.equal(pool(maps), nn.functional.avg_pool2d(maps, 2))


@pytest.mark.parametrize("first", ["surround", "anchor"])
@torch.no_grad()
def test_layer_that_was_changed_twice_is_copied_and_pickled(first: str) -> None:
    layer, images = nn.Conv2d(3, 4, 4, stride=4).eval(), IMAGES.float()
    changes = {
        "surround": lambda: surround(layer, after=nn.ReLU()),
        "anchor": lambda: make_anchored(layer, Anchoring((4, 4), returns=False)),
    }
    for change in (first, *(changes.keys() - {first})):
        changes[change]()
    expected = layer(images.roll((1, 3), (2, 3)))
    read = pickle.loads(pickle.dumps(layer))  # a pickle of our own
    for copy in (deepcopy(layer), read, deepcopy(read)):
        assert type(copy) is type(layer)
        assert torch.equal(copy(images.roll((1, 3), (2, 3))), expected)


class Merging(nn.Linear):
    """Merges an adapter into its weights when it is evaluated, as LoRA layers do."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.merged = False

    def train(self, mode: bool = True) -> Any:
        if not mode and not self.merged:
            self.weight.data += 1
            self.merged = True
        return super().train(mode)


def test_anchor_leaves_a_model_whose_layers_have_a_mode_of_their_own() -> None:
    model = nn.Sequential(small("vit"), Merging(10, 10)).train()
    with torch.no_grad():
        model[1] = Merging(model[0](IMAGES.float()).shape[1], 4)
    before = deepcopy(model.state_dict())
    anchor(model, image=(3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[1].merged
    assert all(part.training for part in model.modules())


def test_windows_that_read_nothing_beyond_the_border_stay() -> None:
    model = small("vit").eval()
    found = operate("circular", model, filter_size=1, image=(3, 32, 32))
    assert {change.why for change in found.changes} == {"it reads nothing beyond the border"}
    both = operate("anchor", found.model, filter_size=1, image=(3, 32, 32))
    assert any(change.becomes == "anchored" for change in both.changes)
