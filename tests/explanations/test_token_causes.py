"""The causes of transformers' losses are those that they were built with; what cannot be confirmed on the model is unknown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftscope.explanations import Causes, explain
from shiftscope.explanations.causes import causes_of
from shiftscope.explanations.trial import Trial
from shiftscope.graphs.geometry import geometry_of
from shiftscope.graphs.tokens import read_tokens
from small_transformers import small

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WHOLE_PATCHES = torch.tensor([[8, 0], [-8, 16]])
WITHIN_PATCHES = torch.tensor([[3, 1], [-5, 2]])


def found(model: nn.Module, shifts: Tensor, mode: Any = "circular", *, graph: bool = False, images: Tensor = IMAGES) -> Causes:
    trial = Trial(images, shifts.expand(len(images), -1, -1), mode)
    model = model.double().eval()
    measured = trial.measure(model, "the model")
    geometry = geometry_of(model, trial.image) if graph else None
    return causes_of(model, trial, geometry, measured, tokens=read_tokens(model, images[:1]), seed=0)


def parts(causes: Causes) -> dict[str, float]:
    return {each.name: each.part.value for each in causes.causes if each.part is not None}


def test_vit_without_position_embedding_loses_nothing_at_shifts_by_whole_patches() -> None:
    causes = found(small("vit", pos_embed="none"), WHOLE_PATCHES)
    assert abs(causes.before.loss.value) < 1e-10
    assert causes.main == ""


def test_vit_with_position_embedding_loses_exactly_that_at_shifts_by_whole_patches() -> None:
    causes = found(small("vit"), WHOLE_PATCHES)
    assert causes.main == "position embedding"
    assert causes.before.loss.value > 1e-6
    assert parts(causes)["position embedding"] == pytest.approx(causes.before.loss.value, abs=1e-10)
    assert max(abs(part) for name, part in parts(causes).items() if name != "position embedding") < 1e-10
    assert "is due to the position embedding, which stays where the image moves" in causes.verdict
    step = next(each.step for each in causes.causes if each.name == "position embedding")
    assert step == "then `pos_embed` is the mean over positions"


@pytest.mark.parametrize("embedding", ["learn", "none"])
def test_position_embedding_with_as_many_channels_as_tokens_is_recognised(embedding: str) -> None:
    """16 tokens of 16 channels: a class token, gains and biases have 16 values, too."""
    model = small("vit", embed_dim=16, pos_embed=embedding, init_values=0.5)
    causes = found(model, WHOLE_PATCHES, graph=True)
    if embedding == "none":
        assert abs(causes.before.loss.value) < 1e-10
        assert causes.main == ""
    else:
        assert causes.main == "position embedding"
        assert causes.before.loss.value > 1e-6
        assert parts(causes)["position embedding"] == pytest.approx(causes.before.loss.value, abs=1e-10)


@pytest.mark.parametrize(("kind", "table"), [("beit", "relative_position_bias_table"), ("relative", "rel_pos.mlp")])
def test_attention_with_relative_positions_loses_exactly_those_at_shifts_by_whole_patches(kind: str, table: str) -> None:
    model = small(kind)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.mul_(10 if table in name else 1)
    causes = found(model, WHOLE_PATCHES)
    assert causes.main == "relative positions"
    assert causes.before.loss.value > 1e-6
    assert parts(causes)["relative positions"] == pytest.approx(causes.before.loss.value, abs=1e-11)
    assert "is due to relative positions, which end at the border" in causes.verdict
    with torch.no_grad():  # the same bias for all pairs of tokens
        for name, value in model.named_parameters():
            if table in name:
                value.zero_()
    assert abs(found(model, WHOLE_PATCHES).before.loss.value) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["maxvit", "coatnet"])
def test_all_that_networks_of_convolutions_and_attention_lose_is_confirmed(kind: str) -> None:
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    causes = found(small(kind, image=64), WITHIN_PATCHES, images=images)
    assert abs(parts(causes)["other"]) < 1e-10
    assert {each.name for each in causes.causes if each.part is None} <= {"head"}
    assert sum(parts(causes).values()) == pytest.approx(causes.before.loss.value, abs=1e-12)


class Tokens(nn.Module):
    """A transformer of one block that computes what it adds to the tokens; its graph can be traced."""

    def __init__(self, *, at: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16)
        self.attention, self.mlp = nn.MultiheadAttention(16, 2, batch_first=True), nn.Sequential(nn.Linear(16, 32), nn.GELU())
        self.back, self.head, self.at = nn.Linear(32, 16), nn.Linear(16, 4), at

    def forward(self, images: Tensor) -> Tensor:
        maps = self.embed(images)
        if self.at == "maps":
            maps = maps * torch.linspace(0.5, 1.5, 16).view(4, 4).to(maps)
        tokens = maps.flatten(2).transpose(1, 2)
        if self.at == "tokens":
            tokens = tokens * torch.linspace(0.5, 1.5, 16)[:, None].to(tokens)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        tokens = tokens + self.back(self.mlp(self.norm(tokens)))
        return self.head(tokens.mean(1))


@pytest.mark.parametrize("at", ["maps", "tokens"])
def test_no_cause_is_blamed_through_the_graph_for_positions_that_are_computed(at: str) -> None:
    causes = found(Tokens(at=at), WHOLE_PATCHES, graph=True)
    assert causes.before.loss.value > 1e-6
    assert causes.main == ""
    assert {each.name for each in causes.causes if each.part is not None and abs(each.part.value) > 1e-12} <= {"other"}
    plain = found(Tokens(at="nowhere"), WHOLE_PATCHES, graph=True)
    assert abs(plain.before.loss.value) < 1e-10


def test_vit_without_position_embedding_loses_to_the_patch_grid_within_patches() -> None:
    causes = found(small("vit", pos_embed="none"), WITHIN_PATCHES)
    assert causes.main == "patch grid"
    assert parts(causes)["patch grid"] == pytest.approx(causes.before.loss.value, abs=1e-10)
    assert causes.lattice_loss is not None
    assert abs(causes.lattice_loss.value) < 1e-10
    zero = found(small("vit", pos_embed="none"), WITHIN_PATCHES, "zero")
    assert parts(zero)["patch grid"] == pytest.approx(causes.before.loss.value, abs=1e-10)
    assert parts(zero)["borders"] == pytest.approx(zero.before.loss.value - causes.before.loss.value, abs=1e-10)


@pytest.mark.parametrize("shifts", [WHOLE_PATCHES, WITHIN_PATCHES], ids=["whole patches", "within"])
def test_all_that_a_swin_loses_is_owed_to_borders_windows_and_grid(shifts: Tensor) -> None:
    model = small("swin")
    causes = found(model, shifts)
    assert abs(parts(causes)["other"]) < 1e-10
    assert sum(parts(causes).values()) == pytest.approx(causes.before.loss.value, abs=1e-12)
    if shifts is WHOLE_PATCHES:  # multiples of what merging subsamples by
        assert abs(parts(causes)["patch grid"]) < 1e-10
        assert abs(parts(causes)["position embedding"]) < 1e-10


def test_windows_cost_nothing_at_shifts_by_whole_windows() -> None:
    """Windows of 4 tokens of 2 and 4 pixels: without a mask at the border, shifts by 16 pixels bring the same tokens together."""
    causes = found(small("swin", depths=(1, 1)), torch.tensor([[16, 0], [0, 16]]))  # no block is shifted
    assert abs(causes.before.loss.value) < 1e-10
    moved = found(small("swin", depths=(1, 1)), torch.tensor([[8, 0], [0, 4]]))
    assert moved.main == "windows"
    assert parts(moved)["windows"] == pytest.approx(moved.before.loss.value, abs=1e-10)


class Encoder(nn.Module):
    """Torch's own encoder, which cannot be traced, with a flattened head or a mean."""

    def __init__(self, *, flat: bool, shuffled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(256 if flat else 16, 4)
        self.flat, self.shuffled = flat, shuffled

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images if images.sum() < 1e9 else -images).flatten(2).transpose(1, 2)
        if self.shuffled:
            tokens = tokens * torch.linspace(0.5, 1.5, 16)[:, None].to(tokens)
        tokens = self.encoder(tokens)
        return self.head(tokens.flatten(1) if self.flat else tokens.mean(1))


def test_head_that_flattens_tokens_is_the_cause_also_without_a_graph() -> None:
    causes = found(Encoder(flat=True), WHOLE_PATCHES)
    assert causes.main == "head"
    assert parts(causes)["head"] == pytest.approx(causes.before.loss.value, abs=1e-10)
    mean = found(Encoder(flat=False), WITHIN_PATCHES)
    assert mean.main == "patch grid"
    assert parts(mean)["head"] == 0


def test_positions_that_no_weight_holds_are_unknown_and_not_a_number() -> None:
    causes = found(Encoder(flat=False, shuffled=True), WHOLE_PATCHES)
    unknown = {each.name for each in causes.causes if each.part is None}
    assert unknown == {"borders", "windows", "position embedding", "patch grid"}
    assert causes.main == ""
    assert "no weights are found that undo it by moving along" in causes.verdict


def test_mixer_loses_to_its_token_mixing() -> None:
    causes = found(small("mixer"), WHOLE_PATCHES)
    assert causes.main == "token mixing"
    assert parts(causes)["token mixing"] == pytest.approx(causes.before.loss.value, abs=1e-10)


def test_explanation_of_a_vit_shows_blocks_names_the_embedding_and_recommends_anchor() -> None:
    model, images = small("vit"), IMAGES.float()
    explained = explain(model, images, mode="circular", max_shift=8)
    assert [layer.kind for layer in explained.layers.layers] == [
        "canvas",
        "patch embedding",
        "block",
        "block",
        "head input",
        "output",
    ]
    assert "position embedding" in {each.name for each in explained.causes.causes}
    first = next(each for each in explained.fixes.ranked if each.trains)
    assert first.kinds == ("anchor",)
    assert first.ratio == 1
    assert "--with anchor" in first.command
