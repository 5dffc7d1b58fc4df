"""Factors are what the sizes of the maps say, wherever the product of the strides is something else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.explanations.guarantee import describe, guarantee_of
from shiftscope.graphs.geometry import geometry_of
from zoo import timm


class Resized(nn.Module):
    """A convolution of stride 2, one way to change the size of its map, and a mean over positions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, padding=1), nn.Conv2d(4, 4, 3, 2, padding=1)
        self.up, self.shuffle, self.power = nn.ConvTranspose2d(4, 4, 2, 2), nn.PixelUnshuffle(2), nn.LPPool2d(2, 2)
        self.same = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        coarse = self.second(maps)
        if self.how == "skip":
            return (maps + functional.interpolate(coarse, scale_factor=2)).mean((2, 3))
        if self.how == "transposed":
            return self.same(torch.cat([self.up(coarse), maps], 1)[:, 4:]).mean((2, 3))
        if self.how == "shuffle":
            return self.shuffle(maps).mean((2, 3))
        if self.how == "power":
            return self.power(maps).mean((2, 3))
        if self.how == "merge":
            return torch.cat([maps[:, :, ::2, ::2], maps[:, :, 1::2, ::2]], 1).mean((2, 3))
        if self.how == "smaller":
            return functional.interpolate(maps, scale_factor=0.5, mode="bilinear").mean((2, 3))
        if self.how == "fold":
            images, channels, height, width = maps.shape
            folded = maps.reshape(images, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
            return folded.reshape(images, 4 * channels, height // 2, width // 2).mean((2, 3))
        if self.how == "odd":
            return functional.interpolate(maps, size=(5, 5)).mean((2, 3))
        return coarse.mean((2, 3))


@pytest.mark.parametrize(
    ("how", "factor", "lattice", "basis"),
    [
        ("plain", 4, 4, "strides and sizes"),
        ("skip", 2, 4, "strides and sizes"),
        ("transposed", 2, 4, "sizes"),
        ("shuffle", 4, 4, "sizes"),
        ("power", 4, 4, "strides and sizes"),
        ("merge", 4, 4, "strides and sizes"),
        ("smaller", 4, 4, "sizes"),
        ("fold", 4, 4, "sizes"),
    ],
)
def test_factor_after_resizing_is_the_image_over_the_map(how: str, factor: int, lattice: int, basis: str) -> None:
    found = geometry_of(Resized(how), (1, 32, 48))
    assert (found.factor, found.lattice, found.basis) == ((factor, factor), (lattice, lattice), basis)


@pytest.mark.parametrize("how", ["shuffle", "power", "merge", "smaller", "fold"])
def test_subsampling_that_only_sizes_show_is_listed(how: str) -> None:
    assert {(2, 2)} == {each.stride for each in geometry_of(Resized(how), (1, 32, 48)).subsamplings[2:]}


def test_map_of_a_fixed_size_keeps_the_factor_of_the_map_before_it() -> None:
    found = geometry_of(Resized("odd"), (1, 32, 32))
    assert (found.factor, found.basis) == ((2, 2), "strides and sizes")


class Stretched(nn.Module):
    """Resizes its map by a factor that is no whole number."""

    def forward(self, images: Tensor) -> Tensor:
        return functional.interpolate(images, scale_factor=0.75).mean((2, 3))


def test_factor_that_is_no_whole_number_is_unknown() -> None:
    guarantee = guarantee_of(Stretched(), image=(1, 32, 32))
    assert guarantee.geometry is not None
    assert guarantee.geometry.basis == "unknown"
    assert "subsampling factor unknown" in describe(guarantee.geometry)
    assert guarantee.status != "guaranteed"


class Attends(nn.Module):
    """Tokens that attend to a map which is 4 times coarser, as in pyramid transformers, with a class token or a mean."""

    def __init__(self, *, fixed: bool, prefix: bool) -> None:
        super().__init__()
        self.fixed, self.prefix = fixed, prefix
        self.patches, self.reduce, self.norm = nn.Conv2d(1, 8, 4, 4), nn.Conv2d(8, 8, 4, 4), nn.LayerNorm(8)
        self.token, self.places = nn.Parameter(torch.rand(1, 1, 8)), nn.Parameter(torch.rand(1, 64, 8))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.patches(images)
        tokens, keys = (each.flatten(2).transpose(1, 2) for each in (maps, self.reduce(maps)))
        if self.fixed:
            tokens = tokens + self.places
        tokens = self.norm(tokens + functional.scaled_dot_product_attention(tokens, keys, keys))
        if self.prefix:
            return torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1)[:, 0]
        return tokens.mean(1)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("prefix", [False, True])
def test_coarser_map_that_tokens_attend_to_does_not_count(fixed: bool, prefix: bool) -> None:
    found = geometry_of(Attends(fixed=fixed, prefix=prefix), (1, 32, 32))
    assert (found.factor, found.basis, found.last.layout) == ((4, 4), "strides and sizes", "tokens")
    assert found.last.receptive_field == (32, 32)
    assert found.field_basis == "gradient"


@pytest.mark.parametrize("size", [33, 40])
def test_maps_without_padding_agree_with_their_strides_at_any_size(size: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 5), nn.MaxPool2d(3), nn.Conv2d(2, 2, 3), nn.AvgPool2d(2), nn.Flatten(), nn.LazyLinear(2)
    )
    model(torch.zeros(1, 1, size, size))
    found = geometry_of(model, (1, size, size))
    assert (found.factor, found.basis) == ((6, 6), "strides and sizes")


#: Models whose factor was wrong when strides were multiplied along the graph.
NAMES = [
    "hrnet_w18_small",
    "pvt_v2_b0",
    "twins_svt_small",
    "swin_tiny_patch4_window7_224",
    "resnetblur18",
    "efficientformerv2_s0",
    "levit_128s",
    "edgenext_xx_small",
    "nf_regnet_b0",
    "cait_xxs24_224",
    "vit_tiny_patch16_224",
    "focalnet_tiny_srf",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_factor_of_published_architectures_equals_their_librarys_table(name: str) -> None:
    torch.manual_seed(0)
    options = {"img_size": 64} if name.startswith(("swin", "cait", "vit", "levit", "twins", "efficientformerv2")) else {}
    model = timm().create_model(name, num_classes=2, **options).eval()
    info = model.feature_info
    reduction = info[-1]["reduction"] if isinstance(info, list) else info.reduction()[-1]
    found = geometry_of(model, (3, 64, 64))
    assert (found.factor, found.basis != "unknown") == ((reduction, reduction), True)
