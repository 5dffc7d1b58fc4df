"""Small models made of random parts, with the truth about circular shifts known twice: by construction and by trying every shift.

Every part says what it does to positions: it moves along with every shift (1), with shifts by multiples of so many positions, or
it sees positions (0). A model of parts that move along, and a head that sees no positions, is invariant by construction. What a
model really does is tried in double precision with its own weights and buffers and with random ones.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # parts are one line each
from torch.nn.utils import parametrizations

from shiftscope.layers import (
    AdaptivePolyphaseSampling,
    AliasFreeActivation,
    BlurPool2d,
    LearnedPolyphaseSampling,
    MaxBlurPool2d,
)

C = 4
CIRCULAR: dict[str, Any] = {"padding": 1, "padding_mode": "circular"}


class Do(nn.Module):
    """A function of itself and a map; modules, parameters and buffers are registered under their names."""

    def __init__(self, does: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.does = does

    def forward(self, maps: Tensor) -> Tensor:
        return self.does(self, maps)


def weight(*shape: int, zero: bool = False) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*shape) if zero else torch.randn(*shape))


def circular(maps: Tensor, by: int = 1) -> Tensor:
    return F.pad(maps, (by, by, by, by), mode="circular")


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def untokens(found: Tensor, like: Tensor) -> Tensor:
    return found.transpose(1, 2).reshape(like.shape)


class RampReLU(nn.ReLU):
    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps) * torch.linspace(0.5, 1, maps.shape[-1], dtype=maps.dtype)


class ScaledReLU(nn.ReLU):
    def forward(self, maps: Tensor) -> Tensor:
        return 2 * F.relu(maps)


class ZeroPadded(nn.Conv2d):
    def forward(self, maps: Tensor) -> Tensor:
        return F.conv2d(maps, self.weight, self.bias, padding=1)


class Standardized(nn.Conv2d):
    """Weights are standardized in the forward pass, as in many published networks."""

    def forward(self, maps: Tensor) -> Tensor:
        kernel = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(circular(maps), kernel, self.bias)


class RowRamp(nn.BatchNorm2d):
    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps) + torch.arange(maps.shape[2], dtype=maps.dtype)[:, None]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map that keeps them first."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Initialized(nn.Module):
    """Scales by statistics of the first batch that it sees."""

    def __init__(self, *, everywhere: bool) -> None:
        super().__init__()
        self.everywhere, self.done = everywhere, False
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, maps: Tensor) -> Tensor:
        if not self.done:
            axes = (0,) if self.everywhere else (0, 2, 3)
            self.scale = nn.Parameter(maps.detach().mean(axes, keepdim=True) + 1)
            self.done = True
        return maps * self.scale


class Counting(nn.Module):
    """Does something else in every second call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, maps: Tensor) -> Tensor:
        self.calls += 1
        return maps * torch.linspace(0.5, 1, maps.shape[-1], dtype=maps.dtype) if self.calls % 2 else maps


class Remembering(nn.Module):
    """Adds what it saw last."""

    last: Tensor | None = None

    def forward(self, maps: Tensor) -> Tensor:
        found = maps if self.last is None or self.last.shape != maps.shape else maps + self.last
        self.last = maps.detach()
        return found


class Learning(nn.Module):
    """A buffer that training replaces; it is zero now."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(*shape))

    def forward(self, maps: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * maps.detach().mean(0, keepdim=True)
        return maps - self.mean


class Optional(nn.Module):
    """An argument that is None by default."""

    def forward(self, maps: Tensor, scale: Tensor | None = None) -> Tensor:
        return maps if scale is None else maps * scale


class Drawing(nn.Module):
    """Draws whether to weigh positions, from one of three generators, or from one of its own."""

    def __init__(self, how: str, share: float) -> None:
        super().__init__()
        self.how, self.share = how, share

    def forward(self, maps: Tensor) -> Tensor:
        drawn = random.random() if self.how == "python" else float(torch.rand(()))
        return maps * torch.linspace(0.5, 1, maps.shape[-1], dtype=maps.dtype) if drawn < self.share else maps


class Attention(nn.Module):
    """Self-attention of all positions."""

    def __init__(self, *, functional: bool = False, places: int = 0, causal: bool = False) -> None:
        super().__init__()
        self.inside = nn.Linear(C, 3 * C)
        self.functional, self.causal = functional, causal
        self.places = nn.Parameter(torch.zeros(1, places, C)) if places else None

    def forward(self, maps: Tensor) -> Tensor:
        found = tokens(maps)
        found = found if self.places is None else found + self.places
        query, key, value = self.inside(found).reshape(*found.shape[:2], 3, 2, C // 2).permute(2, 0, 3, 1, 4).unbind(0)
        if self.functional:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        else:
            mixed = (query @ key.transpose(-2, -1) / 2).softmax(-1) @ value
        return maps + untokens(mixed.transpose(1, 2).flatten(2), maps)


class Windows(nn.Module):
    """Mixes the positions of each window, as a Swin transformer does."""

    def __init__(self, size: int, *, shifted: bool = False) -> None:
        super().__init__()
        self.size, self.shifted, self.inside = size, shifted, Attention()

    def forward(self, maps: Tensor) -> Tensor:
        w = self.size
        maps = maps.roll((-w // 2, -w // 2), (2, 3)) if self.shifted else maps
        n, c, h, v = maps.shape
        split = maps.reshape(n, c, h // w, w, v // w, w).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, w, w)
        split = self.inside(split) * torch.linspace(0.5, 1, w, dtype=maps.dtype)
        back = split.reshape(n, h // w, v // w, c, w, w).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, v)
        return back.roll((w // 2, w // 2), (2, 3)) if self.shifted else back


class UNet(nn.Module):
    def __init__(self, border: str = "circular", up: str = "nearest") -> None:
        super().__init__()
        self.up = up
        self.down, self.low, self.out = (nn.Conv2d(a, C, 3, padding=1, padding_mode=border) for a in (C, C, 2 * C))
        self.transposed = nn.ConvTranspose2d(C, C, 2, 2)

    def forward(self, maps: Tensor) -> Tensor:
        low = self.low(F.max_pool2d(self.down(maps).relu(), 2))
        high = self.transposed(low) if self.up == "transposed" else F.interpolate(low, scale_factor=2, mode=self.up)
        return self.out(torch.cat([maps, high], 1))


class Hooked(nn.Module):
    """A layer whose output a hook changes."""

    def __init__(self, *, before: bool, ramp: bool) -> None:
        super().__init__()
        self.inside = nn.Conv2d(C, C, 1)

        def change(maps: Tensor) -> Tensor:
            return maps * (torch.linspace(0.5, 1, maps.shape[-1], dtype=maps.dtype) if ramp else 2)

        if before:
            self.inside.register_forward_pre_hook(lambda module, given: (change(given[0]),))
        else:
            self.inside.register_forward_hook(lambda module, given, result: change(result))

    def forward(self, maps: Tensor) -> Tensor:
        return self.inside(maps)


class Apart(nn.Module):
    """Two samplings that choose their phases apart, added."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = AdaptivePolyphaseSampling(2), AdaptivePolyphaseSampling(2)

    def forward(self, maps: Tensor) -> Tensor:
        return self.one(maps) + self.two(maps.roll(1, 1).square())


class Together(nn.Module):
    """Two branches that share one choice."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling, self.inside = AdaptivePolyphaseSampling(2), nn.Conv2d(C, C, 3, **CIRCULAR)

    def forward(self, maps: Tensor) -> Tensor:
        choice = self.sampling.choose(maps)
        return self.sampling.take(maps, choice) + self.sampling.take(self.inside(maps).relu(), choice)


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        make: makes it for maps of a size.
        moves: with shifts by multiples of how many positions its map moves along on the torus; 0 if with none.
        of: the size of its map must be a multiple of this.
    """

    make: Callable[[int], nn.Module]
    moves: int = 1
    of: int = 1


def simple(does: Callable[[Any, Tensor], Tensor], moves: int = 1, of: int = 1, **parts: Callable[[], Any]) -> Part:
    return Part(lambda size: Do(does, **{name: part() for name, part in parts.items()}), moves, of)


def sized(does: Callable[[Any, Tensor], Tensor], place: Callable[[int], Any], of: int = 1) -> Part:
    """Return a part with one tensor that depends on the map's size, which sees positions."""
    return Part(lambda size: Do(does, place=place(size)), 0, of)


def conv(*args: Any, **options: Any) -> Part:
    return Part(lambda size: nn.Conv2d(*args, **options))


def scripted(size: int) -> nn.Module:
    class Scripted(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return torch.relu(maps) + maps.mean((2, 3), keepdim=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(Scripted(), torch.rand(2, C, size, size))


def closure(*shape: int) -> Part:
    return Part(lambda size: (lambda value: Do(lambda self, maps: maps * value.to(maps.dtype)))(torch.rand(*shape)))


def ramp_like(maps: Tensor) -> Tensor:
    return torch.arange(maps.shape[-1], dtype=maps.dtype) / maps.shape[-1]


#: Parts that move along with every shift.
MOVING: dict[str, Part] = {
    "convolution": conv(C, C, 3, **CIRCULAR),
    "dilated": conv(C, C, 3, padding=2, dilation=2, padding_mode="circular"),
    "grouped": conv(C, C, 3, groups=2, **CIRCULAR),
    "one by one": conv(C, C, 1),
    "unequal sides": conv(C, C, (3, 5), padding=(1, 2), padding_mode="circular"),
    "same": conv(C, C, 3, padding="same", padding_mode="circular"),
    "padded before": simple(lambda self, maps: self.inside(circular(maps)), inside=lambda: nn.Conv2d(C, C, 3)),
    "padded layer": Part(lambda size: nn.Sequential(nn.CircularPad2d((2, 0, 1, 1)), nn.Conv2d(C, C, 3))),
    "called by keyword": simple(lambda self, maps: self.inside(input=maps), inside=lambda: nn.Conv2d(C, C, 3, **CIRCULAR)),
    "standardized": Part(lambda size: Standardized(C, C, 3)),
    "weight norm": Part(lambda size: parametrizations.weight_norm(nn.Conv2d(C, C, 3, **CIRCULAR))),
    "spectral norm": Part(lambda size: parametrizations.spectral_norm(nn.Conv2d(C, C, 3, **CIRCULAR))),
    "lazy": Part(lambda size: nn.LazyConv2d(C, 3, **CIRCULAR)),
    "batch norm": Part(lambda size: nn.BatchNorm2d(C)),
    "norm without statistics": Part(lambda size: nn.BatchNorm2d(C, track_running_stats=False)),
    "group norm": Part(lambda size: nn.GroupNorm(2, C)),
    "instance norm": Part(lambda size: nn.InstanceNorm2d(C, affine=True)),
    "channel norm": Part(lambda size: ChannelNorm(C)),
    "norm of all values": simple(lambda self, maps: F.layer_norm(maps, maps.shape[1:])),
    "unit length": simple(lambda self, maps: F.normalize(maps, dim=1)),
    "range": simple(lambda self, maps: maps / maps.abs().amax((1, 2, 3), keepdim=True)),
    "relu": Part(lambda size: nn.ReLU(inplace=True)),
    "gelu": Part(lambda size: nn.GELU()),
    "silu": Part(lambda size: nn.SiLU()),
    "prelu": Part(lambda size: nn.PReLU(C)),
    "softplus": Part(lambda size: nn.Softplus()),
    "hardswish": Part(lambda size: nn.Hardswish()),
    "own relu": Part(lambda size: ScaledReLU()),
    "dropout": Part(lambda size: nn.Dropout2d(0.5)),
    "stochastic depth": simple(
        lambda self, maps: maps + (self.inside(maps) * (torch.rand(()) if self.training else 1)),
        inside=lambda: nn.Conv2d(C, C, 3, **CIRCULAR),
    ),
    "gate": simple(
        lambda self, maps: maps * self.inside(maps.mean((2, 3), keepdim=True)).sigmoid(), inside=lambda: nn.Conv2d(C, C, 1)
    ),
    "gate of linear layers": simple(
        lambda self, maps: maps * self.inside(maps.mean((2, 3))).sigmoid()[:, :, None, None], inside=lambda: nn.Linear(C, C)
    ),
    "expanded gate": simple(
        lambda self, maps: maps * self.inside(maps.amax((2, 3))).sigmoid().view(-1, C, 1, 1).expand_as(maps),
        inside=lambda: nn.Linear(C, C),
    ),
    "gate of a convolution over channels": simple(
        lambda self, maps: maps * self.inside(maps.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid(),
        inside=lambda: nn.Conv1d(1, 1, 3, padding=1),
    ),
    "spatial gate": simple(
        lambda self, maps: maps * self.inside(torch.cat([maps.mean(1, keepdim=True), maps.amax(1, keepdim=True)], 1)).sigmoid(),
        inside=lambda: nn.Conv2d(2, 1, 3, **CIRCULAR),
    ),
    "residual": simple(lambda self, maps: maps + self.inside(maps).relu(), inside=lambda: nn.Conv2d(C, C, 3, **CIRCULAR)),
    "dense": simple(
        lambda self, maps: self.out(torch.cat([maps, self.inside(maps)], 1)),
        inside=lambda: nn.Conv2d(C, C, 3, **CIRCULAR),
        out=lambda: nn.Conv2d(2 * C, C, 1),
    ),
    "shuffled channels": simple(
        lambda self, maps: maps.view(len(maps), 2, C // 2, *maps.shape[2:]).transpose(1, 2).reshape(maps.shape)
    ),
    "gated linear unit": simple(lambda self, maps: F.glu(self.inside(maps), dim=1), inside=lambda: nn.Conv2d(C, 2 * C, 1)),
    "chunks": simple(lambda self, maps: torch.cat([a * 2 for a in maps.chunk(2, 1)], 1)),
    "part of the channels": simple(
        lambda self, maps: torch.cat([self.inside(maps[:, :1]), maps[:, 1:]], 1), inside=lambda: nn.Conv2d(1, 1, 3, **CIRCULAR)
    ),
    "einsum over channels": simple(lambda self, maps: torch.einsum("nchw,cd->ndhw", maps, self.mix), mix=lambda: weight(C, C)),
    "channels last": simple(
        lambda self, maps: self.inside(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), inside=lambda: nn.Linear(C, C)
    ),
    "channel weights": simple(lambda self, maps: maps * self.scale[:, None, None], scale=lambda: weight(C)),
    "channel buffer": simple(lambda self, maps: (maps - self.mean) / 2, mean=lambda: torch.rand(1, C, 1, 1)),
    "repeated channel weights": simple(
        lambda self, maps: maps + self.scale.repeat(2).view(1, C, 1, 1), scale=lambda: weight(C // 2)
    ),
    "expanded scalar": simple(
        lambda self, maps: maps + self.scale.expand(1, C, *maps.shape[2:]), scale=lambda: weight(1, C, 1, 1)
    ),
    "closure of channels": closure(C, 1, 1),
    "attention": Part(lambda size: Attention()),
    "functional attention": Part(lambda size: Attention(functional=True)),
    "attention layer": simple(
        lambda self, maps: untokens(self.inside(tokens(maps), tokens(maps), tokens(maps))[0], maps),
        inside=lambda: nn.MultiheadAttention(C, 2, batch_first=True),
    ),
    "transformer layer": simple(
        lambda self, maps: untokens(self.inside(tokens(maps)), maps),
        inside=lambda: nn.TransformerEncoderLayer(C, 2, 8, batch_first=True, norm_first=True),
    ),
    "memory": simple(
        lambda self, maps: untokens((tokens(maps) @ self.key.T).softmax(-1) @ self.value, maps),
        key=lambda: weight(6, C),
        value=lambda: weight(6, C),
    ),
    "linear attention": simple(
        lambda self, maps: untokens(tokens(maps).softmax(-1) @ (tokens(maps).softmax(1).transpose(1, 2) @ tokens(maps)), maps)
    ),
    "channel attention": simple(
        lambda self, maps: ((maps.flatten(2) @ maps.flatten(2).transpose(1, 2)).softmax(-1) @ maps.flatten(2)).view_as(maps)
    ),
    "softmax over positions": simple(lambda self, maps: maps.flatten(2).softmax(-1).view_as(maps)),
    "softmax over channels": simple(lambda self, maps: maps.softmax(1)),
    "roll": simple(lambda self, maps: maps.roll((1, 2), (2, 3)) + maps),
    "pooled": simple(lambda self, maps: F.max_pool2d(circular(maps), 3, 1)),
    "averaged": simple(lambda self, maps: F.avg_pool2d(circular(maps), 3, 1)),
    "powers averaged": simple(lambda self, maps: F.lp_pool2d(circular(maps), 2.0, 3, 1)),
    "blurred": Part(lambda size: BlurPool2d(3, stride=1, border="circular")),
    "alias-free activation": Part(lambda size: AliasFreeActivation(nn.ReLU())),
    "columns": simple(
        lambda self, maps: (self.mix @ F.unfold(circular(maps), 3)).view(len(maps), C, *maps.shape[2:]),
        mix=lambda: weight(C, 9 * C),
    ),
    "windows of one": simple(
        lambda self, maps: torch.einsum("nchwij,cij->nchw", circular(maps).unfold(2, 3, 1).unfold(3, 3, 1), self.mix),
        mix=lambda: weight(C, 3, 3),
    ),
    "dynamic convolution": simple(
        lambda self, maps: F.conv2d(
            circular(maps).reshape(1, -1, maps.shape[2] + 2, maps.shape[3] + 2),
            self.make(maps.mean((2, 3))).view(-1, 1, 3, 3),
            groups=len(maps) * C,
        ).view_as(maps),
        make=lambda: nn.Linear(C, 9 * C),
    ),
    "modulated": simple(
        lambda self, maps: torch.addcmul(maps, maps, self.make(maps.std((2, 3)))[..., None, None]), make=lambda: nn.Linear(C, C)
    ),
    "codebook": simple(
        lambda self, maps: (
            F.embedding((maps.permute(0, 2, 3, 1).unsqueeze(-2) - self.table).square().sum(-1).argmin(-1), self.table).permute(
                0, 3, 1, 2
            )
            + maps
        ),
        table=lambda: weight(5, C),
    ),
    "sorted channels": simple(lambda self, maps: maps.sort(1).values),
    "cumulated channels": simple(lambda self, maps: maps.cumsum(1)),
    "largest channels": simple(lambda self, maps: torch.where(maps >= maps.topk(2, 1).values[:, 1:], maps, 0.0)),
    "shuffled up and pooled": simple(
        lambda self, maps: F.avg_pool2d(F.pixel_shuffle(self.inside(maps), 2).relu(), 2), inside=lambda: nn.Conv2d(C, 4 * C, 1)
    ),
    "enlarged and strided": simple(
        lambda self, maps: self.inside(F.interpolate(maps, scale_factor=2, mode="nearest")),
        inside=lambda: nn.Conv2d(C, C, 3, stride=2, **CIRCULAR),
    ),
    "flipped twice": simple(lambda self, maps: self.inside(maps.flip(3)).flip(3), inside=lambda: nn.Conv2d(C, C, 3, **CIRCULAR)),
    "turned twice": simple(
        lambda self, maps: self.inside(maps.transpose(2, 3)).transpose(2, 3), inside=lambda: nn.Conv2d(C, C, 3, **CIRCULAR)
    ),
    "other names": simple(lambda self, maps: (maps.clone(), maps)[0].mul_(2).add_(maps)),
    "changed in place": simple(lambda self, maps: in_place(maps, self.scale), scale=lambda: weight(C, 1, 1)),
    "no argument": Part(lambda size: Optional()),
    "scripted": Part(scripted),
    "initialized by data": Part(lambda size: Initialized(everywhere=False)),
    "learning": Part(lambda size: Learning(1, C, 1, 1), 1),
    "hook that scales": Part(lambda size: Hooked(before=False, ramp=False)),
    "pre-hook that scales": Part(lambda size: Hooked(before=True, ramp=False)),
    "branch on the type": simple(lambda self, maps: maps * 2 if isinstance(maps, Tensor) else maps),
    "branch on the shape": simple(lambda self, maps: maps * 2 if maps.shape[1] == C else maps * ramp_like(maps)),
    "cast": simple(lambda self, maps: maps.float().to(maps.dtype).relu()),
    "polyphase": Part(lambda size: AdaptivePolyphaseSampling(2), of=2),
    "learned polyphase": Part(lambda size: LearnedPolyphaseSampling(C, 2), of=2),
    "filtered polyphase": Part(lambda size: AdaptivePolyphaseSampling(2, filter_size=3), of=2),
    "two polyphase branches of one choice": Part(lambda size: Together(), of=2),
    "spectrum": simple(
        lambda self, maps: torch.fft.irfft2(torch.fft.rfft2(maps) * self.scale.exp(), s=maps.shape[2:]),
        scale=lambda: weight(C, 1, 1),
    ),
}


def in_place(maps: Tensor, scale: Tensor) -> Tensor:
    other = maps
    other = other * 1
    other *= scale
    return other


#: Parts that move along with shifts by multiples of some positions only.
LATTICE: dict[str, Part] = {
    "strided": Part(lambda size: nn.Conv2d(C, C, 3, stride=2, **CIRCULAR), 2, 2),
    "strided one by one": Part(lambda size: nn.Conv2d(C, C, 1, stride=2), 2, 2),
    "patches": Part(lambda size: nn.Conv2d(C, C, 4, stride=4), 4, 4),
    "maxima": Part(lambda size: nn.MaxPool2d(2), 2, 2),
    "averages": Part(lambda size: nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.ReLU()), 2, 2),
    "adaptive": Part(lambda size: nn.Sequential(nn.AdaptiveMaxPool2d(size // 2), nn.ReLU()), 2, 2),
    "powers": Part(lambda size: nn.LPPool2d(2, 2), 2, 2),
    "slices": simple(lambda self, maps: maps[:, :, ::2, ::2], 2, 2),
    "later slices": simple(lambda self, maps: maps[..., 1::2, 1::2], 2, 2),
    "slices of rows": simple(lambda self, maps: maps[:, :, ::2], 2, 2),
    "channels-last slices": simple(lambda self, maps: maps.permute(0, 2, 3, 1)[:, ::2, ::2].permute(0, 3, 1, 2), 2, 2),
    "resized down": simple(lambda self, maps: F.interpolate(maps, scale_factor=0.5), 2, 2),
    "unshuffled": simple(lambda self, maps: self.inside(F.pixel_unshuffle(maps, 2)), 2, 2, inside=lambda: nn.Conv2d(4 * C, C, 1)),
    "merged patches": simple(
        lambda self, maps: self.inside(
            torch.cat([maps[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)], 1).permute(0, 2, 3, 1)
        ).permute(0, 3, 1, 2),
        2,
        2,
        inside=lambda: nn.Linear(4 * C, C),
    ),
    "reshaped patches": simple(
        lambda self, maps: self.inside(
            maps.reshape(len(maps), C, maps.shape[2] // 2, 2, maps.shape[3] // 2, 2).permute(0, 2, 4, 1, 3, 5).flatten(3)
        ).permute(0, 3, 1, 2),
        2,
        2,
        inside=lambda: nn.Linear(4 * C, C),
    ),
    "columns of patches": simple(
        lambda self, maps: (self.mix @ F.unfold(maps, 2, stride=2)).view(len(maps), C, maps.shape[2] // 2, maps.shape[3] // 2),
        2,
        2,
        mix=lambda: weight(C, 4 * C),
    ),
    "windows": Part(lambda size: Windows(2), 2, 2),
    "shifted windows": Part(lambda size: Windows(2, shifted=True), 2, 2),
    "blurred down": Part(lambda size: BlurPool2d(3, stride=2, border="circular"), 2, 2),
    "skip": Part(lambda size: UNet(), 2, 2),
    "skip, transposed": Part(lambda size: UNet(up="transposed"), 2, 2),
    "samplings apart": Part(lambda size: Apart(), 2, 2),
}
#: Parts that see positions, draw random numbers, or change from call to call.
SEEING: dict[str, Part] = {
    "zeros": Part(lambda size: nn.Conv2d(C, C, 3, padding=1), 0),
    "reflected": Part(lambda size: nn.Conv2d(C, C, 3, padding=1, padding_mode="reflect"), 0),
    "replicated": simple(
        lambda self, maps: self.inside(F.pad(maps, (1, 1, 1, 1), mode="replicate")), 0, inside=lambda: nn.Conv2d(C, C, 3)
    ),
    "no padding": Part(lambda size: nn.Conv2d(C, C, 3), 0),
    "pool with padding": Part(lambda size: nn.MaxPool2d(3, 1, 1), 0),
    "strided, odd": Part(lambda size: nn.Conv2d(C, C, 2, stride=3), 0),
    "positions": sized(lambda self, maps: maps + self.place, lambda size: weight(1, C, size, size, zero=True)),
    "positions, cut": sized(
        lambda self, maps: maps + self.place[:, :, : maps.shape[2], : maps.shape[3]],
        lambda size: weight(1, C, size + 3, size + 3, zero=True),
    ),
    "positions, expanded": sized(
        lambda self, maps: maps + self.place.expand(-1, C, -1, -1), lambda size: weight(1, 1, size, size)
    ),
    "positions, interpolated": sized(
        lambda self, maps: maps + F.interpolate(self.place, maps.shape[2:], mode="bilinear"),
        lambda size: weight(1, C, 3, 3, zero=True),
    ),
    "positions, repeated": sized(
        lambda self, maps: maps + self.place.repeat(1, 1, 2, 2)[..., : maps.shape[2], : maps.shape[3]],
        lambda size: weight(1, C, (size + 1) // 2, (size + 1) // 2),
    ),
    "positions of tokens": sized(
        lambda self, maps: untokens(tokens(maps) + self.place, maps), lambda size: weight(1, size * size, C, zero=True)
    ),
    "rows": sized(lambda self, maps: maps * (1 + self.place[:, None]), lambda size: weight(size, zero=True)),
    "columns alone": sized(lambda self, maps: maps + self.place, lambda size: weight(size, zero=True)),
    "buffer of zeros": sized(lambda self, maps: maps + self.place, lambda size: torch.zeros(1, 1, size, size)),
    "buffer of one row": sized(lambda self, maps: maps + self.place, lambda size: torch.rand(1, 1, size, 1) * 0 + 1),
    "buffer along one axis": sized(lambda self, maps: maps + self.place, lambda size: torch.zeros(size, 1)),
    "mask": sized(lambda self, maps: maps * self.place, lambda size: torch.ones(size, size)),
    "bias by index": sized(lambda self, maps: maps + self.place[torch.arange(maps.shape[3])], lambda size: weight(size)),
    "learning positions": Part(lambda size: Learning(1, C, size, size), 0),
    "coordinates": simple(lambda self, maps: maps + ramp_like(maps), 0),
    "coordinate channels": simple(
        lambda self, maps: self.inside(torch.cat([maps, ramp_like(maps).expand(len(maps), 1, maps.shape[2], -1)], 1)),
        0,
        inside=lambda: nn.Conv2d(C + 1, C, 1),
    ),
    "grid": simple(
        lambda self, maps: maps * torch.stack(torch.meshgrid(ramp_like(maps.mT), ramp_like(maps), indexing="ij")).sum(0), 0
    ),
    "ramp by sums": simple(lambda self, maps: maps * torch.ones_like(maps).cumsum(-1), 0),
    "activation of another forward": Part(lambda size: RampReLU(), 0),
    "convolution of another forward": Part(lambda size: ZeroPadded(C, C, 3, **CIRCULAR), 0),
    "norm of another forward": Part(lambda size: RowRamp(C), 0),
    "hook": Part(lambda size: Hooked(before=False, ramp=True), 0),
    "pre-hook": Part(lambda size: Hooked(before=True, ramp=True), 0),
    "norm of rows": Part(lambda size: nn.LayerNorm(size), 0),
    "norm of maps": Part(lambda size: nn.LayerNorm((C, size, size)), 0),
    "linear along rows": Part(lambda size: nn.Linear(size, size), 0),
    "mixed tokens": sized(
        lambda self, maps: (maps.flatten(2) @ self.place.softmax(-1)).view_as(maps), lambda size: weight(size * size, size * size)
    ),
    "grown": Part(lambda size: nn.Sequential(nn.CircularPad2d(1), nn.ReLU()), 0),
    "cropped": simple(lambda self, maps: F.pad(maps, (-1, -1, -1, -1)), 0),
    "sliced off": simple(lambda self, maps: maps[:, :, 1:], 0),
    "maximum that is no torus": Part(lambda size: MaxBlurPool2d(3, stride=1, padding=1, border="circular"), 0),
    "cumulated": simple(lambda self, maps: maps.cumsum(-1), 0),
    "flipped": simple(lambda self, maps: (maps + maps.flip(3)).relu(), 0),
    "turned": simple(lambda self, maps: (maps * maps.transpose(2, 3)).relu(), 0),
    "attention with positions": Part(lambda size: Attention(places=size * size), 0),
    "causal attention": Part(lambda size: Attention(functional=True, causal=True), 0),
    "tokens in a row": simple(
        lambda self, maps: self.inside(maps.flatten(2)).view_as(maps),
        0,
        inside=lambda: nn.Conv1d(C, C, 3, padding=1, padding_mode="circular"),
    ),
    "bilinear": simple(lambda self, maps: F.interpolate(maps, scale_factor=2, mode="bilinear").relu(), 0),
    "resized": simple(lambda self, maps: F.interpolate(maps, scale_factor=1.4), 0),
    "adaptive windows": Part(lambda size: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(max(2, size - 3)), nn.ReLU()), 0),
    "fractional": Part(lambda size: nn.FractionalMaxPool2d(2, output_ratio=0.6), 0),
    "sampled": simple(
        lambda self, maps: F.grid_sample(
            maps, F.affine_grid(self.theta.expand(len(maps), 2, 3), list(maps.shape), align_corners=False), align_corners=False
        ),
        0,
        theta=lambda: weight(2, 3),
    ),
    "place of the largest": simple(
        lambda self, maps: maps + maps.flatten(2).argmax(-1).to(maps.dtype)[..., None, None] / maps.shape[-1], 0
    ),
    "softmax of places": simple(lambda self, maps: maps + (maps.softmax(-1) * ramp_like(maps)).sum(-1, keepdim=True), 0),
    "first position": simple(lambda self, maps: maps * maps[:, :, :1, :1], 0),
    "wide padding": Part(lambda size: nn.Sequential(nn.Conv2d(C, C, 3, padding=3), nn.ReLU()), 0),
    "branch on a value": simple(lambda self, maps: maps * ramp_like(maps) if maps.mean() > maps[..., 0].mean() else maps, 0),
    "value read": simple(lambda self, maps: maps * maps.flatten().tolist()[0], 0),
    "closure of places": Part(
        lambda size: (lambda value: Do(lambda self, maps: maps * value.to(maps.dtype)))(torch.rand(size)), 0
    ),
    "initialized by data, everywhere": Part(lambda size: Initialized(everywhere=True), 0),
    "counting": Part(lambda size: Counting(), 0),
    "remembering": Part(lambda size: Remembering(), 0),
    "drawn by Python": Part(lambda size: Drawing("python", 0.3), 0),
    "drawn by torch": Part(lambda size: Drawing("torch", 0.3), 0),
    "noise": simple(lambda self, maps: maps + torch.randn_like(maps), 0),
    "dropout that never ends": simple(lambda self, maps: F.dropout(maps, 0.5, training=True), 0),
    "zero branch": simple(
        lambda self, maps: maps + self.scale * F.relu(self.inside(maps)),
        0,
        scale=lambda: weight(1, zero=True),
        inside=lambda: nn.Conv2d(C, C, 3, padding=1),
    ),
    "numpy": simple(lambda self, maps: maps * torch.from_numpy(maps.detach().cpu().numpy().copy()).cumsum(-1).to(maps.dtype), 0),
    "changed view": simple(lambda self, maps: changed_view(maps), 0),
    "recurrent": simple(
        lambda self, maps: untokens(self.inside(tokens(maps))[0], maps), 0, inside=lambda: nn.GRU(C, C, batch_first=True)
    ),
    "skip of zeros": Part(lambda size: UNet("zeros"), 0, 2),
    "skip, bilinear": Part(lambda size: UNet(up="bilinear"), 0, 2),
    "shifted images": simple(lambda self, maps: maps + maps.roll(1, 0) * maps, 0),
    "polyphase of zeros": Part(lambda size: nn.Sequential(nn.Conv2d(C, C, 3, padding=1), AdaptivePolyphaseSampling(2)), 0, 2),
}


def changed_view(maps: Tensor) -> Tensor:
    found = maps * 1
    row = found[:, :, 0]
    row *= 3
    return found


def head(does: Callable[[Any, Tensor], Tensor], moves: int = 1, **parts: Callable[[int], Any]) -> Part:
    return Part(lambda size: Do(does, **{name: part(size) for name, part in parts.items()}), moves)


def linear(size: int) -> nn.Linear:
    return nn.Linear(C, 3)


#: Heads that see no positions.
INVARIANT: dict[str, Part] = {
    "adaptive": Part(lambda size: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 3))),
    "adaptive maximum": Part(lambda size: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(C, 3))),
    "mean": head(lambda self, maps: self.out(maps.mean((2, 3))), out=linear),
    "mean of twice": head(lambda self, maps: self.out(maps.mean(-1).mean(-1)), out=linear),
    "maximum": head(lambda self, maps: self.out(maps.amax((-2, -1))), out=linear),
    "ordinary pool": Part(lambda size: nn.Sequential(nn.AvgPool2d(size), nn.Flatten(), nn.Linear(C, 3))),
    "ordinary maximum": Part(lambda size: nn.Sequential(nn.MaxPool2d(size), nn.Flatten(), nn.Linear(C, 3))),
    "pool of the map's size": head(lambda self, maps: self.out(F.avg_pool2d(maps, maps.size()[2:]).flatten(1)), out=linear),
    "convolution after": Part(lambda size: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, 3, 1), nn.Flatten())),
    "convolution before": Part(lambda size: nn.Sequential(nn.Conv2d(C, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    "flattened maximum": head(lambda self, maps: maps.flatten(1).amax(1, keepdim=True)),
    "flattened mean": head(lambda self, maps: self.out(maps.flatten(2).mean(-1)), out=linear),
    "flattened sums": head(
        lambda self, maps: self.out(torch.cat([maps.flatten(2).sum(-1), maps.flatten(2).std(-1)], 1)),
        out=lambda size: nn.Linear(2 * C, 3),
    ),
    "powers": head(lambda self, maps: self.out(maps.clamp(min=1e-3).pow(3).mean((2, 3)).pow(1 / 3)), out=linear),
    "sum of exponentials": head(lambda self, maps: self.out(maps.logsumexp((2, 3))), out=linear),
    "weighted mean": head(
        lambda self, maps: self.out((maps * self.score(maps).flatten(2).softmax(-1).view_as(maps[:, :1])).sum((2, 3))),
        score=lambda size: nn.Conv2d(C, 1, 1),
        out=linear,
    ),
    "query": head(
        lambda self, maps: self.out(((self.query @ maps.flatten(2)).softmax(-1) @ tokens(maps))[:, 0]),
        query=lambda size: weight(1, C),
        out=linear,
    ),
    "class token": head(
        lambda self, maps: self.out(self.layer(torch.cat([self.token.expand(len(maps), -1, -1), tokens(maps)], 1))[:, 0]),
        token=lambda size: weight(1, 1, C),
        layer=lambda size: nn.TransformerEncoderLayer(C, 2, 8, batch_first=True),
        out=linear,
    ),
    "tokens without the first": head(
        lambda self, maps: self.out(torch.cat([self.token.expand(len(maps), -1, -1), tokens(maps)], 1)[:, 1:].mean(1)),
        token=lambda size: weight(1, 1, C),
        out=linear,
    ),
    "sorted": head(
        lambda self, maps: self.out(maps.flatten(2).sort(-1).values.flatten(1)), out=lambda size: nn.Linear(C * size * size, 3)
    ),
    "largest": head(lambda self, maps: self.out(maps.flatten(2).topk(3, -1).values.mean(-1)), out=linear),
    "median": head(lambda self, maps: self.out(maps.flatten(2).median(-1).values), out=linear),
    "products": head(
        lambda self, maps: self.out((maps.flatten(2) @ tokens(maps)).flatten(1)), out=lambda size: nn.Linear(C * C, 3)
    ),
    "products by einsum": head(
        lambda self, maps: self.out(torch.einsum("nchw,ndhw->ncd", maps, maps).flatten(1)), out=lambda size: nn.Linear(C * C, 3)
    ),
    "both": head(
        lambda self, maps: self.out(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)), out=lambda size: nn.Linear(2 * C, 3)
    ),
    "histogram": head(
        lambda self, maps: self.out((maps.flatten(2).unsqueeze(-1) - self.bins).square().neg().exp().mean(2).flatten(1)),
        bins=lambda size: torch.linspace(-1, 1, 4),
        out=lambda size: nn.Linear(4 * C, 3),
    ),
    "list of outputs": head(lambda self, maps: self.out(maps.mean((2, 3))).view(-1, 1, 3).squeeze(1), out=linear),
}
#: Heads that see positions.
HEADS: dict[str, Part] = {
    "flattened": Part(lambda size: nn.Sequential(nn.Flatten(), nn.Linear(C * size * size, 3)), 0),
    "viewed": head(lambda self, maps: self.out(maps.reshape(len(maps), -1)), 0, out=lambda size: nn.Linear(C * size * size, 3)),
    "several positions": Part(
        lambda size: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * C, 3)), 0
    ),
    "complete convolution": Part(lambda size: nn.Sequential(nn.Conv2d(C, 3, size), nn.Flatten()), 0),
    "middle": head(lambda self, maps: self.out(maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]), 0, out=linear),
    "rows": head(lambda self, maps: self.out(maps.mean(3).flatten(1)), 0, out=lambda size: nn.Linear(C * size, 3)),
    "place": head(lambda self, maps: maps.flatten(2).argmax(-1).to(maps.dtype) + 0 * maps.mean((2, 3)), 0),
    "soft place": head(lambda self, maps: (maps.flatten(2).softmax(-1) * ramp_like(maps.flatten(2))).sum(-1), 0),
    "first token": head(lambda self, maps: self.out(tokens(maps)[:, 0]), 0, out=linear),
    "cumulated": head(lambda self, maps: self.out(maps.cumsum(-1).relu().mean((2, 3))), 0, out=linear),
}


class Model(nn.Module):
    """A stem, parts and a head."""

    def __init__(self, features: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.features, self.end = features, end

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.features(images))


@dataclass(frozen=True)
class Made:
    """A generated model.

    Attributes:
        model: in evaluation mode.
        names: of its parts and of its head.
        size: height and width of its images.
        lattice: it is exactly equivariant to circular shifts by multiples of so many pixels; 0 if to none.
        invariant: whether it is invariant by construction.
    """

    model: Model
    names: tuple[str, ...]
    size: int
    lattice: int
    invariant: bool


def make(seed: int) -> Made:
    """Return the model of a seed."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kinds = draw.choice(("moving", "moving", "lattice", "seeing"))
    size = draw.choice((8, 24) if kinds == "seeing" else (8, 8, 12, 24))
    pools = [MOVING] * draw.randint(1, 2 if size == 24 else 4)
    if kinds != "moving":
        pools.insert(draw.randint(0, len(pools)), LATTICE if kinds == "lattice" else SEEING)
    features, names, side, factor, lattice = [nn.Conv2d(3, C, 3, **CIRCULAR)], [], size, 1, 1
    for pool in pools:
        name = draw.choice([each for each, part in pool.items() if side % part.of == 0 and side // part.of >= 2])
        part = pool[name]
        features.append(part.make(side))
        names.append(name)
        step = lattice_of(part, factor)
        lattice = 0 if not step or not lattice else max(lattice, step)
        with torch.no_grad():
            after = deepcopy(nn.Sequential(*features)).eval()(torch.rand(2, 3, size, size))
        factor, side = factor * side // after.shape[-1] if side % after.shape[-1] == 0 else factor, after.shape[-1]
        if after.shape[2] != after.shape[3]:
            break
    square = after.shape[2] == after.shape[3]
    ends = INVARIANT if draw.random() < 0.8 or not square else HEADS
    name = draw.choice([each for each in ends if square or ("ordinary" not in each and each != "sorted")])
    model = Model(nn.Sequential(*features), ends[name].make(side)).eval()
    spread(model)
    return Made(model, (*names, name), size, lattice, lattice == 1 and ends is INVARIANT)


def lattice_of(part: Part, factor: int) -> int:
    return part.moves if part.moves < 2 else part.moves * factor


def spread(model: nn.Module) -> None:
    """Give statistics and affine weights of norms values other than zero and one; weights that are zero on purpose stay."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d) and part.weight is not None:
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 1.5)


def redrawn(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy in double precision with random weights and buffers."""
    copy = deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in copy.parameters():
            if not nn.parameter.is_lazy(value):
                value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64))
        for name, value in copy.named_buffers():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                value.mul_(0.5 + noise) if name.endswith("_var") else value.add_(0.3 * noise)
    return copy


def every_shift(size: int, step: int = 1) -> list[tuple[int, int]]:
    """Return all shifts of a small torus, those along an axis and some others of a larger one."""
    found = [(down, right) for down in range(0, size, step) for right in range(0, size, step)][1:]
    draw = random.Random(size)
    return (
        found
        if len(found) < 64
        else [*draw.sample(found, 20), *((step * k, 0) for k in (1, 2)), *((0, step * k) for k in (1, 2))]
    )


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-300)) if one.shape == other.shape else float("inf")


def changes(model: nn.Module, size: int, *, precision: torch.dtype = torch.float64) -> float:
    """Return the largest relative change of a model's outputs over circular shifts, each image by its own."""
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(precision) * 2 - 1
    with torch.no_grad():
        before = model(images)
        found = relative(model(images), before)
        for down, right in every_shift(size):
            moved = torch.stack([images[0].roll((down, right), (1, 2)), images[1].roll((right, down), (1, 2))])
            found = max(found, relative(model(moved), before))
    return found


def strays(features: nn.Module, size: int, step: tuple[int, int], *, loosely: bool) -> float:
    """Return how far maps are from moving along with circular shifts by multiples of a step.

    Behind polyphase sampling (``loosely``) they may move by any whole number of positions.
    """
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64) * 2 - 1
    found = 0.0
    with torch.no_grad():
        before = features(images)
        tall, wide = before.shape[2:]
        for down, right in every_shift(size)[:24]:
            down, right = down * step[0] % size, right * step[1] % size
            after = features(images.roll((down, right), (2, 3)))
            exact = [(down * tall // size, right * wide // size)]
            rolls = [(a, b) for a in range(tall) for b in range(wide)] if loosely else exact
            each = [min(relative(after[[k]], before[[k]].roll(roll, (2, 3))) for roll in rolls) for k in (0, 1)]
            found = max(found, *each)
    return found


def strays_inside(features: nn.Module, size: int, step: tuple[int, int], field: tuple[int, int]) -> float | None:
    """Return how far maps are from moving along where an object on a constant background keeps away from the edges.

    None where it cannot keep away on images of this size.
    """
    low = [field[axis] + 1 for axis in (0, 1)]
    room = [size - 2 * low[axis] - step[axis] for axis in (0, 1)]
    if min(room) < 1:
        return None
    generator = torch.Generator().manual_seed(9)
    images = torch.full((2, 3, size, size), 0.4, dtype=torch.float64)
    images[:, :, low[0] : low[0] + room[0], low[1] : low[1] + room[1]] += torch.randn(
        2, 3, *room, generator=generator, dtype=torch.float64
    )
    found = 0.0
    with torch.no_grad():
        before = features(images)
        pixels = [min((0.25, 0.5, 1, 2, 3, 4, 6, 8), key=lambda each: abs(log(each * n / size))) for n in before.shape[2:]]
        edge = [-int(-field[axis] // pixels[axis]) for axis in (0, 1)]
        for axis in (0, 1):
            shift = [0, 0]
            shift[axis] = step[axis]
            roll = [round(shift[each] / pixels[each]) for each in (0, 1)]
            after = features(images.roll(shift, (2, 3)))
            inside = (
                ...,
                slice(edge[0] + roll[0], before.shape[2] - edge[0]),
                slice(edge[1] + roll[1], before.shape[3] - edge[1]),
            )
            if after[inside].numel():
                found = max(found, relative(after[inside], before.roll(roll, (2, 3))[inside]))
    return found
