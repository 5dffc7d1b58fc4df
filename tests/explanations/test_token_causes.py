"""The causes of transformers' losses are those that they were built with; what cannot be confirmed on the model is unknown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shiftscope.explanations import Causes, explain
from shiftscope.explanations.causes import causes_of
from shiftscope.explanations.trial import Trial
from shiftscope.graphs.tokens import read_tokens
from small_transformers import small

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WHOLE_PATCHES = torch.tensor([[8, 0], [-8, 16]])
WITHIN_PATCHES = torch.tensor([[3, 1], [-5, 2]])


def found(model: nn.Module, shifts: Tensor, mode: Any = "circular") -> Causes:
    trial = Trial(IMAGES, shifts.expand(len(IMAGES), -1, -1), mode)
    model = model.double().eval()
    measured = trial.measure(model, "the model")
    return causes_of(model, trial, None, measured, tokens=read_tokens(model, IMAGES[:1]), seed=0)


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
    assert explained.fixes.ranked[0].kinds == ("anchor",)
    assert explained.fixes.ranked[0].ratio == 1
    assert "--with anchor" in explained.fixes.ranked[0].command
