"""Token maps are laid on the image as their construction says, found by trial on the model, also where it cannot be traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shiftscope.explanations.layers import layer_responses
from shiftscope.graphs.tokens import TokenMap, read_tokens
from small_transformers import small


class Encoder(nn.Module):
    """Torch's own encoder on patches, with registers before the tokens, token first if wanted, and a branch on the data."""

    def __init__(self, *, batch_first: bool = True, registers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.registers = nn.Parameter(torch.randn(registers, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head, self.batch_first = nn.Linear(16, 4), batch_first

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images if images.sum() < 1e9 else -images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.registers.expand(len(tokens), -1, -1), tokens], dim=1)
        if not self.batch_first:
            return self.head(self.encoder(tokens.transpose(0, 1)).mean(0))
        return self.head(self.encoder(tokens).mean(1))


def test_vit_has_a_class_token_before_its_grid() -> None:
    found = read_tokens(small("vit"), torch.zeros(1, 3, 32, 32))
    assert found is not None
    assert found.blocks == (("patch_embed", "patch embedding"), ("blocks.0", "block"), ("blocks.1", "block"))
    assert found.maps["blocks.1"] == TokenMap("tokens", (4, 4), prefix=1)
    assert (found.last, found.factor) == ("blocks.1", (8, 8))


def test_swin_keeps_channels_last_and_merges_patches() -> None:
    found = read_tokens(small("swin"), torch.zeros(1, 3, 32, 32))
    assert found is not None
    kinds = {name: (kind, found.maps[name].layout, found.maps[name].grid) for name, kind in found.blocks}
    assert kinds["patch_embed"] == ("patch embedding", "channels last", (16, 16))
    assert kinds["layers.0.blocks.1"] == ("block", "channels last", (16, 16))
    assert kinds["layers.1.downsample"] == ("merging", "channels last", (8, 8))
    assert found.factor == (4, 4)


@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_of_torch_is_read_without_a_graph(batch_first: bool) -> None:
    model = Encoder(batch_first=batch_first).eval()
    found = read_tokens(model, torch.zeros(1, 3, 24, 32))
    assert found is not None
    assert [name for name, _ in found.blocks] == ["embed", "encoder.layers.0", "encoder.layers.1"]
    expected = TokenMap("tokens", (6, 8), prefix=2, sequence_first=not batch_first)
    assert found.maps["encoder.layers.1"] == expected
    if batch_first:
        layers = layer_responses(model, torch.rand(3, 3, 24, 32), torch.tensor([[4, -4]]), mode="circular").layers
        assert [(layer.kind, layer.size, layer.factor) for layer in layers[1:4]] == [
            ("patch embedding", (6, 8), (4, 4)),
            ("block", (6, 8), (4, 4)),
            ("block", (6, 8), (4, 4)),
        ]
        assert layers[1].displacement[:, 0].tolist() == [[1, -1]] * 3


def test_block_that_shuffles_its_tokens_is_unknown() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Sequential(nn.Linear(8, 8), nn.GELU())
            self.order = torch.randperm(64, generator=torch.Generator().manual_seed(0))

        def forward(self, images: Tensor) -> Tensor:
            return self.mix(self.embed(images).flatten(2).transpose(1, 2)[:, self.order]).mean(1)

    found = read_tokens(Shuffled().eval(), torch.zeros(1, 3, 32, 32))
    assert found is not None
    assert set(found.maps) == {"embed"}


class Halved(nn.Module):
    """Tokens in Hiera's order: of each square the first token, then the second and so on, twice over."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Sequential(nn.Linear(8, 8), nn.GELU())

    def split(self, maps: Tensor) -> Tensor:
        """Return the four maps of every second row and column, one after the other, [image * 4, channel, height, width]."""
        parts = [maps[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return torch.stack(parts, dim=1).flatten(0, 1)

    def tokens(self, images: Tensor) -> Tensor:
        maps = self.embed(images)
        return self.split(self.split(maps)).transpose(0, 1).flatten(1).reshape(8, len(images), -1).permute(1, 2, 0)

    def forward(self, images: Tensor) -> Tensor:
        return self.mix(self.tokens(images)).mean(1)


def test_split_rows_and_columns_are_put_together() -> None:
    model, images = Halved().eval(), torch.rand(2, 3, 32, 48)
    found = read_tokens(model, images[:1])
    assert found is not None
    assert found.maps["mix"] == TokenMap("tokens", (8, 12), levels=2)
    tokens = model.tokens(images)
    assert torch.equal(found.maps["mix"].maps(tokens), model.embed(images))
    assert torch.equal(found.maps["mix"].with_maps(tokens, lambda maps: maps), tokens)


def test_positions_on_the_corners_of_patches_are_found() -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            convolutions = [nn.Conv2d(3 if step == 0 else 8, 8, 3, 2, 1) for step in range(4)]
            self.stem = nn.Sequential(*convolutions)
            self.mix = nn.Sequential(nn.Linear(8, 8), nn.GELU())

        def forward(self, images: Tensor) -> Tensor:
            return self.mix(self.stem(images).flatten(2).transpose(1, 2)).mean(1)

    found = read_tokens(Stem().eval(), torch.zeros(1, 3, 128, 128))
    assert found is not None
    assert (found.last, found.maps["mix"], found.factor) == ("mix", TokenMap("tokens", (8, 8)), (16, 16))


def test_networks_without_tokens_are_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 900, 2)).eval()
    assert read_tokens(model, torch.zeros(1, 3, 32, 32)) is None


@pytest.mark.parametrize("layout", ["tokens", "channels last", "channels first"])
def test_replaced_map_leaves_the_tokens_before_it(layout: str) -> None:
    prefix = 2 if layout == "tokens" else 0
    shape = {"tokens": (2, 8, 5), "channels last": (2, 2, 3, 5), "channels first": (2, 5, 2, 3)}[layout]
    value, found = torch.randn(shape), TokenMap(layout, (2, 3), prefix)
    assert torch.equal(found.with_maps(value, lambda maps: maps), value)
    moved = found.with_maps(value, lambda maps: maps.roll(1, 3))
    assert torch.equal(found.maps(moved), found.maps(value).roll(1, 3))
    assert torch.equal(moved[:, :prefix], value[:, :prefix])
