"""Every operator that subsamples is changed or named, and a copy that should be equivariant is so or says why not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.layers.borders import WrappingPad2d
from shiftscope.layers.polyphase import AlignPhase
from shiftscope.surgery import Surgery, antialias, circular, make_equivariant

IMAGE = (1, 32, 32)


class Standardised(nn.Conv2d):
    """A convolution of its own class, as networks without norms have it: called as a function, with weights computed."""

    def forward(self, maps: Tensor) -> Tensor:
        weight = self.weight / self.weight.std(dim=(1, 2, 3), keepdim=True)
        return functional.conv2d(maps, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Same(nn.Conv2d):
    """Pads as its map needs it, in code that cannot be traced."""

    def forward(self, maps: Tensor) -> Tensor:
        pads = [
            max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(maps.shape[2:], self.stride, self.kernel_size, strict=True)
        ]
        if any(pads):
            maps = functional.pad(maps, (pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2))
        return functional.conv2d(maps, self.weight, self.bias, self.stride)


class Does(nn.Module):
    """A circular convolution, one way to subsample its map, another convolution, and a mean over positions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
        self.parts = nn.ModuleDict(
            {
                "standardised": Standardised(4, 4, 3, 2, padding=1),
                "same": Same(4, 4, 3, 2),
                "power": nn.LPPool2d(2, 2),
                "unshuffle": nn.PixelUnshuffle(2),
                "adaptive": nn.AdaptiveAvgPool2d(5),
                "fractional": nn.FractionalMaxPool2d(2, output_size=13),
                "patches": nn.Conv2d(4, 4, 4, 4),
                "wide": nn.Conv2d(4, 4, 3, 2, padding=4),
                "down": nn.Conv2d(4, 4, 3, 2, padding=1),
                "big": nn.Sequential(nn.MaxPool2d(8), nn.Conv2d(4, 4, 11, padding=5)),
            }
        )
        self.pads = nn.Sequential(nn.ReflectionPad2d((1, 2, 1, 2)), nn.Conv2d(4, 4, 4, 2))
        self.head = nn.LazyConv2d(3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return (8 * self.head(self.resized(self.stem(images)))).tanh().mean((2, 3))

    def resized(self, maps: Tensor) -> Tensor:  # noqa: C901 - a way each
        if self.how in self.parts:
            return self.parts[self.how](maps)
        if self.how == "pads":
            return self.pads(maps)
        if self.how == "slices":
            return maps[:, :, ::2, ::2]
        if self.how == "merge":
            return torch.cat([maps[:, :, y::2, x::2] for y in (0, 1) for x in (0, 1)], 1)
        if self.how == "skip":
            return maps + functional.interpolate(self.parts["down"](maps).relu(), scale_factor=2)
        if self.how == "deep skip":
            down = self.parts["down"](self.parts["down"](maps).relu())
            return torch.cat([maps, functional.interpolate(down, scale_factor=4)], 1)
        if self.how == "channels last":
            return maps.permute(0, 2, 3, 1)[:, ::2, ::2].permute(0, 3, 1, 2)
        if self.how == "fold":
            images, channels, height, width = maps.shape
            folded = maps.reshape(images, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
            return folded.reshape(images, 4 * channels, height // 2, width // 2)
        if self.how == "chosen":
            return maps.index_select(2, torch.arange(0, 32, 2)).index_select(3, torch.arange(0, 32, 2))
        if self.how == "power function":
            return functional.lp_pool2d(maps, 2, 2)
        return functional.interpolate(maps, scale_factor=0.5, mode=self.how)


def make(how: str) -> nn.Module:
    torch.manual_seed(0)
    model = Does(how).eval()
    model(torch.zeros(1, *IMAGE))
    return model


#: How a map is subsampled -> what a plan must name (a part of a layer's name), and whether polyphase sampling makes it exact.
CASES: dict[str, tuple[str, bool]] = {
    "standardised": ("conv2d", True),
    "same": ("parts.same", True),
    "power": ("parts.power", True),
    "unshuffle": ("parts.unshuffle", True),
    "patches": ("parts.patches", True),
    "wide": ("parts.wide", True),
    "big": ("parts.big.0", True),
    "pads": ("pads.1", True),
    "slices": ("getitem", True),
    "merge": ("getitem", True),
    "skip": ("parts.down", True),
    "deep skip": ("parts.down", True),
    "adaptive": ("parts.adaptive", False),
    "fractional": ("parts.fractional", False),
    "channels last": ("getitem", False),
    "fold": ("reshape", False),
    "chosen": ("index_select", False),
    "power function": ("lp_pool2d", False),
    "nearest": ("interpolate", True),
    "bilinear": ("interpolate", True),
    "bicubic": ("interpolate", False),
}


@pytest.mark.parametrize("fix", [antialias, make_equivariant])
@pytest.mark.parametrize("how", CASES)
def test_operator_that_subsamples_is_changed_or_named(how: str, fix: Callable[..., Surgery]) -> None:
    named = [change for change in fix(make(how), image=IMAGE).changes if CASES[how][0] in change.layer]
    assert named
    assert all(change.becomes or change.why.startswith("unsupported: ") for change in named)


@pytest.mark.parametrize("how", CASES)
def test_equivariant_copy_is_exact_or_says_why_not(how: str) -> None:
    surgery = make_equivariant(make(how), image=IMAGE)
    promise = surgery.promise
    assert promise is not None
    images = torch.rand(1, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    double = surgery.model.double()
    with torch.no_grad():
        alike = all(torch.allclose(double(images.roll(shift, (2, 3))), double(images), atol=1e-10) for shift in ((1, 0), (5, 14)))
    assert (promise.exact, alike) == (CASES[how][1], CASES[how][1])
    assert promise.exact or (promise.reasons and "because" in promise.sentence)


@pytest.mark.parametrize("how", ["same", "standardised", "pads"])
def test_circular_copy_moves_along_at_the_lattice(how: str) -> None:
    changed = circular(make(how).double(), image=IMAGE).model
    images = torch.rand(1, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(changed(images.roll((2, 6), (2, 3))), changed(images), atol=1e-12, rtol=0)


@pytest.mark.parametrize("zero", ["weight", "bias"])
def test_weights_of_zero_hide_nothing(zero: str) -> None:
    head = nn.Linear(4, 2)
    nn.init.zeros_(head.get_parameter(zero))
    uneven = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(5), nn.Tanh(), nn.AdaptiveAvgPool2d(1))
    promise = make_equivariant(nn.Sequential(uneven, nn.Flatten(), head).eval(), image=IMAGE).promise
    assert promise is not None
    assert promise.error is not None
    assert not promise.exact


@pytest.mark.parametrize("side", [30, 32])  # on 3x32x32, random shifts were once even along both axes
@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
def test_stride_that_is_left_is_found_whatever_the_image_size(side: int, stride: Any) -> None:
    around: Any = {"padding": 1, "padding_mode": "circular"}
    layers = nn.Conv2d(3, 4, 3, **around), nn.ReLU(), nn.Conv2d(4, 4, 3, stride, **around), nn.ReLU()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    promise = make_equivariant(model, skip=["2"], image=(3, side, side)).promise
    assert promise is not None
    assert (promise.error is None, promise.exact) == (False, False)


def test_outputs_that_no_image_changes_promise_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, 2, padding=1), nn.Threshold(1e9, 1.0), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    promise = make_equivariant(model.eval(), image=IMAGE).promise
    assert promise is not None
    assert (promise.error, promise.exact, "could not be tried" in promise.sentence) == (None, False, True)


def test_copy_of_a_deep_graph_can_be_copied() -> None:
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(150)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *blocks, Does("skip").parts["down"], nn.AdaptiveAvgPool2d(1))
    assert copy.deepcopy(make_equivariant(model.eval(), image=IMAGE).model) is not None


@pytest.mark.parametrize("how", [how for how in CASES if how != "fractional"])
def test_filter_of_one_tap_changes_no_output(how: str) -> None:
    model, images = make(how).double(), torch.rand(2, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(antialias(model, filter_size=1).model(images), model(images))


def test_wrapping_pad_equals_reading_around_the_map() -> None:
    maps = torch.arange(6.0).reshape(1, 1, 2, 3)
    found = WrappingPad2d((4, 7, 5, 1))(maps)
    places = [[maps[0, 0, (row - 5) % 2, (column - 4) % 3] for column in range(14)] for row in range(8)]
    assert torch.equal(found[0, 0], torch.tensor(places))


@pytest.mark.parametrize("stride", [(2, 2), (3, 2)])
def test_aligned_phase_comes_first_and_goes_back(stride: tuple[int, int]) -> None:
    maps = torch.rand(6, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    choice = torch.arange(6) % (stride[0] * stride[1])
    aligned = AlignPhase(stride)(maps, choice)
    for image, index in enumerate(choice.tolist()):
        row, column = divmod(index, stride[1])
        assert torch.equal(aligned[image, :, :: stride[0], :: stride[1]], maps[image, :, row :: stride[0], column :: stride[1]])
    assert torch.equal(AlignPhase(stride, back=True)(aligned, choice), maps)
