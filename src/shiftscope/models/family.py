"""The source's family of networks: (convolution, ReLU, pooling) times a few, then one fully connected layer.

A :class:`NetworkSpec` is the whole description; :func:`build` makes the module. The subsampling factor is the product of
the pools' strides. Images come in [0, 1]; their normalisation is the network's first layer.

Order inside a block: convolution, ReLU, pooling, filter, as in the source. Because a maximum commutes with ReLU, max pooling
without a filter is done first: the same values from fewer operations.

Padding of a convolution: ``valid`` (none), ``same`` (zeros) or ``circular``. In a circular network the pools are circular
too: the map is a torus, and subsampling is all that can break its equivariance.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from shiftscope import layers
from shiftscope.runtime.settings import Spec

__all__ = ["Network", "NetworkSpec", "build"]

#: How a filter continues the maps of a network, by the padding of its convolutions.
BORDERS: dict[str, layers.Border] = {"valid": "valid", "same": "zero", "circular": "circular"}


class NetworkSpec(Spec):
    """One network of the family.

    Attributes:
        channels: of each convolution, one block an entry.
        convolution_kernel: height and width of every convolution, pixels.
        pool_kernel: height and width of every pool, positions.
        pool: what a pool keeps of its window.
        strides: of the pools, given one by one; else they follow from ``factor``.
        factor: the subsampling factor: so many pools have stride 2 that their product is the factor.
        antialias: size of the binomial filter that follows each pool, before it subsamples; 1 is none. It is applied at stride
            1 too, as in the source's factor 1.
        sampling: what a strided pool keeps: the first phase (``stride``), the one of the largest norm (``aps``) or the one that a
            small learned network chooses (``lps``).
        strided: which pools those are, counted from the input (``first``) or from the head (``last``).
        padding: of the convolutions (see the module).
        head: ``flatten`` weighs every position, ``gap`` averages over positions first.
        normalise: subtract the training images' mean and divide by their standard deviation, colour by colour.
        input_size: height and width of the canvas, pixels.
        input_channels: colours of an image.
        classes: length of an output.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    convolution_kernel: int = Field(3, ge=1)
    pool_kernel: int = Field(2, ge=2, le=5)
    pool: Literal["max", "average"] = "max"
    strides: tuple[int, ...] | None = None
    factor: int = 1
    antialias: int = Field(1, ge=1, le=7)
    sampling: Literal["stride", "aps", "lps"] = "stride"
    strided: Literal["first", "last"] = "first"
    padding: Literal["valid", "same", "circular"] = "valid"
    head: Literal["flatten", "gap"] = "flatten"
    normalise: bool = True
    input_size: int = Field(40, ge=1)
    input_channels: int = Field(1, ge=1)
    classes: int = Field(10, ge=2)

    @field_validator("channels")
    @classmethod
    def _some_channels(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if not channels or min(channels) < 1:
            raise ValueError(f"`channels` must be one or more positive numbers, got {list(channels)}.")
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
                f"`sampling` {self.sampling!r} needs `padding` 'circular', got {self.padding!r}: its choice follows the image "
                "only where nothing is lost at the border."
            )
        self.sizes()
        return self

    def pool_strides(self) -> tuple[int, ...]:
        """The stride of each pool, from the input to the head."""
        if self.strides is not None:
            return self.strides
        strided = self.factor.bit_length() - 1
        strides = (2,) * strided + (1,) * (len(self.channels) - strided)
        return strides if self.strided == "first" else strides[::-1]

    def sizes(self) -> tuple[int, ...]:
        """Height and width of the map after each convolution and each pool, in positions.

        Raises:
            ValueError: a map is smaller than the kernel that comes next, or a torus does not divide by its stride.
        """
        sizes = [self.input_size]
        for block, stride in enumerate(self.pool_strides(), start=1):
            pool = self.pool_kernel + (self.antialias - 1 if self.padding == "valid" else 0)
            for layer, kernel, step in (("convolution", self.convolution_kernel, 1), ("pool", pool, stride)):
                size = sizes[-1]
                keeps = self.padding == "circular" or (self.padding == "same" and layer == "convolution")
                if size < kernel:
                    raise ValueError(
                        f"the map shrinks below the kernel: {layer} {block} has kernel {kernel}, but its input is {size}x{size} "
                        f"(sizes so far {' -> '.join(map(str, sizes))}). Use a larger canvas, a smaller kernel or fewer strides."
                    )
                if self.padding == "circular" and size % step:
                    raise ValueError(
                        f"a circular map must divide by the stride: pool {block} has stride {step}, its input is {size}x{size}. "
                        "Use a canvas that is a multiple of the factor."
                    )
                sizes.append(size // step if keeps else (size - kernel) // step + 1)
        return tuple(sizes[1:])


class Normalise(nn.Module):
    """(x - mean) / deviation, colour by colour; both are buffers, so they travel with the weights."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel height width"]:
        """Normalised images."""
        return (images - self.mean[:, None, None]) / self.deviation[:, None, None]


class Network(nn.Module):
    """Normalisation, spatial part (``features``) and head (``head``)."""

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
        """Outputs before the softmax for images in [0, 1]."""
        output: Tensor = self.head(self.features(self.normalise(images)))
        return output


def build(spec: NetworkSpec, *, generator: torch.Generator) -> Network:
    """A network with weights drawn from ``generator`` by PyTorch's own rule: uniform on +-1/sqrt(inputs of a unit).

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
    found: list[nn.Module] = []
    inputs = spec.input_channels
    for outputs, stride in zip(spec.channels, spec.pool_strides(), strict=True):
        found += [*_convolution(spec, inputs, outputs), *_pool(spec, outputs, stride)]
        inputs = outputs
    return nn.Sequential(*found)


def _pool(spec: NetworkSpec, channels: int, stride: int) -> list[nn.Module]:
    """ReLU and pool, in the order that costs least; a filter must see what the ReLU leaves."""
    kernel, border = spec.pool_kernel, BORDERS[spec.padding]
    around: list[nn.Module] = [nn.CircularPad2d(_margins(kernel))] if spec.padding == "circular" else []
    if spec.pool == "max" and spec.antialias > 1 and spec.sampling == "stride":
        return [nn.ReLU(), *around, layers.MaxBlurPool2d(kernel, spec.antialias, stride, border=border)]
    step = stride if spec.antialias == 1 and spec.sampling == "stride" else 1
    pool = [*around, nn.MaxPool2d(kernel, step) if spec.pool == "max" else nn.AvgPool2d(kernel, step)]
    activated = [*pool, nn.ReLU()] if spec.pool == "max" else [nn.ReLU(), *pool]
    return activated if step == stride and spec.antialias == 1 else [*activated, _sampling(spec, channels, stride)]


def _sampling(spec: NetworkSpec, channels: int, stride: int) -> nn.Module:
    """What follows a pool that keeps every position."""
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
    """Left, right, top and bottom margins after which a window of ``kernel`` finds every position once."""
    before = (kernel - 1) // 2
    return (before, kernel - 1 - before) * 2
