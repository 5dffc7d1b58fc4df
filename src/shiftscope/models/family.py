"""The paper's family of networks: a few blocks of (convolution, ReLU, pooling), then one fully connected layer.

A :class:`NetworkSpec` describes a network completely; :func:`build` builds it. The subsampling factor is the product of the
pools' strides. Images are in [0, 1]; the network's first layer normalises them.

A block is convolution, ReLU, pooling, low-pass filter, as in the paper. Because a maximum commutes with ReLU, max pooling without
a filter comes before ReLU: the same values from fewer operations.

Convolutions pad ``valid`` (nothing), ``same`` (zeros) or ``circular``. In a circular network the pools are circular too: the map
is a torus, and only subsampling can break its equivariance.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from shiftscope import layers
from shiftscope.runtime.settings import Pixels, Settings

__all__ = ["Network", "NetworkSpec", "build"]

#: The most blocks and weights of a network, and the channels of a map.
MOST_BLOCKS, MOST_WEIGHTS = 64, 10**9
Channels = Annotated[int, Field(ge=1, le=2**16)]
#: The border of the low-pass filters, by the padding of the convolutions.
BORDERS: dict[str, layers.Border] = {"valid": "valid", "same": "zero", "circular": "circular"}


class NetworkSpec(Settings):
    """One network of the family.

    Attributes:
        channels: output channels of each convolution, one per block.
        convolution_kernel: height and width of every convolution, positions.
        pool_kernel: height and width of every pool, positions.
        pool: whether pools take the maximum or the average of their window.
        strides: of the pools, one each; None to derive them from ``factor``.
        factor: the subsampling factor, a power of 2; pools get stride 2 until the product of strides is the factor.
        antialias: size of the binomial filter after each pool, before it subsamples; 1 does not filter. It filters at stride 1
            too, as in the paper's networks with factor 1.
        sampling: which phase a strided pool keeps: the first (``stride``), the one with the largest norm (``aps``), or the one
            that a small learned network chooses (``lps``).
        strided: whether the ``first`` or the ``last`` pools, counted from the input, have stride 2.
        padding: of the convolutions: ``valid``, ``same`` or ``circular``.
        pool_padding: of the pools: ``valid``, or ``half`` the kernel, rounded down, on every side. A maximum ignores it, an
            average counts it as zeros.
        head: ``flatten`` gives every position its own weights, ``gap`` averages over positions first.
        normalise: whether to subtract the training images' mean and divide by their standard deviation, per channel.
        input_size: height and width of the canvas, pixels.
        input_channels: channels of an image.
        classes: length of an output.
    """

    channels: tuple[Channels, ...] = Field((16, 32, 64), max_length=MOST_BLOCKS)
    convolution_kernel: Pixels = 3
    pool_kernel: int = Field(2, ge=2, le=5)
    pool: Literal["max", "average"] = "max"
    strides: tuple[Pixels, ...] | None = Field(None, max_length=MOST_BLOCKS)
    factor: int = 1
    antialias: int = Field(1, ge=1, le=7)
    sampling: Literal["stride", "aps", "lps"] = "stride"
    strided: Literal["first", "last"] = "first"
    padding: Literal["valid", "same", "circular"] = "valid"
    pool_padding: Literal["valid", "half"] = "valid"
    head: Literal["flatten", "gap"] = "flatten"
    normalise: bool = True
    input_size: Pixels = 40
    input_channels: Channels = 1
    classes: int = Field(10, ge=2, le=10**6)

    @field_validator("channels")
    @classmethod
    def _some_channels(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if not channels:
            raise ValueError("`channels` must be one or more positive numbers, got none.")
        return channels

    @field_validator("factor")
    @classmethod
    def _known_factor(cls, factor: int, info: Any) -> int:
        strides = info.data.get("strides")
        if strides is None and factor not in (1, 2, 4, 8):
            raise ValueError(f"`factor` must be 1, 2, 4 or 8, got {factor}. Choose one of them or give `strides` yourself.")
        if strides is not None and factor != prod(strides):
            raise ValueError(f"`factor` {factor} contradicts `strides` {list(strides)}. Leave one of them out.")
        return factor

    @model_validator(mode="after")
    def _strides_and_sizes(self) -> NetworkSpec:
        blocks = len(self.channels)
        if self.strides is not None:
            if len(self.strides) != blocks or min(self.strides) < 1:
                raise ValueError(f"`strides` must be one positive number for each of {blocks} pools, got {list(self.strides)}.")
            object.__setattr__(self, "factor", prod(self.strides))
        elif self.factor > 2**blocks:
            raise ValueError(
                f"`factor` {self.factor} needs {self.factor.bit_length() - 1} pools of stride 2, but `channels` gives {blocks}. "
                "Add blocks or lower the factor."
            )
        if self.sampling != "stride" and self.padding != "circular":
            raise ValueError(
                f"`sampling` {self.sampling!r} needs `padding` 'circular', got {self.padding!r}: its choice "
                "moves with the image only where the border loses nothing."
            )
        if self.pool_padding != "valid" and (self.padding == "circular" or self.antialias > 1):
            raise ValueError(
                f"`pool_padding` {self.pool_padding!r} needs pools without a filter on maps that are not circular. Leave it out."
            )
        self._check_weights(self.sizes()[-1])
        return self

    def _check_weights(self, last: int) -> None:
        """Refuse a network with more weights than memory could hold, before any is made."""
        width = (self.input_channels, *self.channels)
        kernels = sum(before * after for before, after in pairwise(width)) * self.convolution_kernel**2
        weights = kernels + width[-1] * self.classes * (1 if self.head == "gap" else last**2)
        if weights > MOST_WEIGHTS:
            raise ValueError(
                f"the network would have {weights:,} weights, of at most {MOST_WEIGHTS:,}. Use fewer channels, a smaller canvas "
                "or smaller kernels."
            )

    @property
    def pool_margin(self) -> int:
        """Positions that a pool adds on every side of its map."""
        return self.pool_kernel // 2 if self.pool_padding == "half" else 0

    def pool_strides(self) -> tuple[int, ...]:
        """Return the stride of each pool, from the input to the head."""
        if self.strides is not None:
            return self.strides
        strided = self.factor.bit_length() - 1
        strides = (2,) * strided + (1,) * (len(self.channels) - strided)
        return strides if self.strided == "first" else strides[::-1]

    def sizes(self) -> tuple[int, ...]:
        """Return the size of the map after each convolution and each pool: height and width in positions.

        Raises:
            ValueError: a map is smaller than the next kernel, or the size of a torus is not a multiple of its stride.
        """
        sizes = [self.input_size]
        for block, stride in enumerate(self.pool_strides(), start=1):
            pool = self.pool_kernel + (self.antialias - 1 if self.padding == "valid" else 0)
            for layer, kernel, step in (("convolution", self.convolution_kernel, 1), ("pool", pool, stride)):
                size = sizes[-1]
                same = self.padding == "circular" or (self.padding == "same" and layer == "convolution")
                if layer == "pool":
                    size += 2 * self.pool_margin
                if size < kernel:
                    raise ValueError(
                        f"the map shrinks below the kernel: {layer} {block} has kernel {kernel}, but its input is {size}x{size} "
                        f"(sizes so far {' -> '.join(map(str, sizes))}). Use a larger canvas, a smaller kernel or fewer strides."
                    )
                if self.padding == "circular" and size % step:
                    raise ValueError(
                        f"the size of a circular map must be a multiple of the stride: pool {block} has stride {step}, "
                        f"its input is {size}x{size}. Use a canvas that is a multiple of the factor."
                    )
                sizes.append(size // step if same else (size - kernel) // step + 1)
        return tuple(sizes[1:])


class Normalise(nn.Module):
    """(images - mean) / deviation, per channel. Both are buffers, so weight files hold them."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel height width"]:
        """Return normalised images."""
        return (images - self.mean[:, None, None]) / self.deviation[:, None, None]


class Network(nn.Module):
    """A network: ``normalise``, ``features`` (blocks) and ``head``.

    Args:
        spec: its description.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.normalise = Normalise(spec.input_channels) if spec.normalise else nn.Identity()
        self.features = _features(spec)
        width, size = spec.channels[-1], spec.sizes()[-1]
        pooled = nn.AdaptiveAvgPool2d(1) if spec.head == "gap" else nn.Identity()
        positions = 1 if spec.head == "gap" else size * size
        self.head = nn.Sequential(pooled, nn.Flatten(), nn.Linear(width * positions, spec.classes))

    def forward(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image class"]:
        """Return outputs before the softmax for images in [0, 1]."""
        output: Tensor = self.head(self.features(self.normalise(images)))
        return output


def build(spec: NetworkSpec, *, generator: torch.Generator) -> Network:
    """Build a network with random weights, by PyTorch's rule: uniform on +-1 / sqrt(inputs of a unit).

    Args:
        spec: its description.
        generator: of the random weights.

    >>> network = build(NetworkSpec(factor=4), generator=torch.Generator().manual_seed(0))
    >>> network(torch.zeros(2, 1, 40, 40)).shape
    torch.Size([2, 10])
    """
    with torch.device("meta"):
        network = Network(spec)
    network = network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(module, Normalise):
            module.mean.zero_()
            module.deviation.fill_(1)
    return network


def _features(spec: NetworkSpec) -> nn.Sequential:
    blocks: list[nn.Module] = []
    inputs = spec.input_channels
    for outputs, stride in zip(spec.channels, spec.pool_strides(), strict=True):
        blocks += [*_convolution(spec, inputs, outputs), *_pool(spec, outputs, stride)]
        inputs = outputs
    return nn.Sequential(*blocks)


def _pool(spec: NetworkSpec, channels: int, stride: int) -> list[nn.Module]:
    """Return ReLU and pool in the cheapest order; a filter needs the values after ReLU."""
    kernel, border = spec.pool_kernel, BORDERS[spec.padding]
    around: list[nn.Module] = [nn.CircularPad2d(_margins(kernel))] if spec.padding == "circular" else []
    if spec.pool == "max" and spec.antialias > 1 and spec.sampling == "stride":
        return [nn.ReLU(), *around, layers.MaxBlurPool2d(kernel, filter_size=spec.antialias, stride=stride, border=border)]
    step = stride if spec.antialias == 1 and spec.sampling == "stride" else 1
    kind = nn.MaxPool2d if spec.pool == "max" else nn.AvgPool2d
    pool = [*around, kind(kernel, step, spec.pool_margin)]
    activated = [*pool, nn.ReLU()] if spec.pool == "max" else [nn.ReLU(), *pool]
    return activated if step == stride and spec.antialias == 1 else [*activated, _sampling(spec, channels, stride)]


def _sampling(spec: NetworkSpec, channels: int, stride: int) -> nn.Module:
    """Return the layer that subsamples after a pool of stride 1."""
    if spec.sampling == "stride" or stride == 1:
        return layers.BlurPool2d(spec.antialias, stride, border=BORDERS[spec.padding])
    if spec.sampling == "aps":
        return layers.AdaptivePolyphaseSampling(stride, filter_size=spec.antialias)
    return layers.LearnedPolyphaseSampling(channels, stride, filter_size=spec.antialias)


def _convolution(spec: NetworkSpec, inputs: int, outputs: int) -> list[nn.Module]:
    kernel = spec.convolution_kernel
    if spec.padding == "circular":
        return [nn.CircularPad2d(_margins(kernel)), nn.Conv2d(inputs, outputs, kernel)]
    if spec.padding == "same" and kernel % 2 == 0:
        return [nn.ZeroPad2d(_margins(kernel)), nn.Conv2d(inputs, outputs, kernel)]
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 if spec.padding == "same" else 0)]


def _margins(kernel: int) -> tuple[int, int, int, int]:
    """Return the left, right, top and bottom padding with which a window of ``kernel`` is centred on every position once."""
    before = (kernel - 1) // 2
    return (before, kernel - 1 - before) * 2
