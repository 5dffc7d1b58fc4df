"""Hooks on a model's layers: which modules to watch, and what a layer that subsamples gives at stride 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from shiftscope import layers as ours
from shiftscope.graphs.operators import POINTWISE
from shiftscope.graphs.sites import Pair, check_layer, pair
from shiftscope.graphs.tokens import TokenReading, first_tensor
from shiftscope.layers.blur import max_filtered
from shiftscope.layers.polyphase import PhaseLogits, PolyphaseSampling, TakePhase
from shiftscope.layers.resampling import Filter, filtered

__all__ = ["HEADS", "LayerKind", "at_stride_one", "hooked", "stride_of", "watched"]

LayerKind = Literal[
    "canvas",
    "convolution",
    "pool",
    "activation",
    "filter",
    "polyphase sampling",
    "patch embedding",
    "block",
    "merging",
    "layer",
    "head input",
    "output",
]

KINDS: tuple[tuple[tuple[type[nn.Module], ...], LayerKind], ...] = (
    ((nn.Conv2d, nn.ConvTranspose2d), "convolution"),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d), "pool"),
    ((ours.BlurPool2d, ours.MaxBlurPool2d), "filter"),
    ((PolyphaseSampling, TakePhase), "polyphase sampling"),
    ((*POINTWISE.modules, nn.PReLU, ours.AliasFreeActivation), "activation"),
)
#: Names of activations, also those of other libraries.
ACTIVATIONS = {*(kind.__name__ for kind in POINTWISE.modules), "Swish", "HardSwish", "HardSigmoid", "QuickGELU", "GELUTanh"}
#: Layers that a head starts with. The last of them that receives a map belongs to the head; earlier ones are gates.
HEADS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)


def at_stride_one(module: nn.Module, maps: Tensor) -> Tensor | None:
    """Return a pool's or filter's output before it subsamples; None for other layers.

    Args:
        module: a layer.
        maps: its input [image, channel, height, width].
    """
    if isinstance(module, nn.MaxPool2d):
        # A maximum over rows of maxima over columns: kernel + kernel values instead of kernel * kernel.
        (high, wide), (down, right), (tall, broad) = map(pair, (module.kernel_size, module.padding, module.dilation))
        columns = functional.max_pool2d(maps, (high, 1), 1, (down, 0), (tall, 1))
        return functional.max_pool2d(columns, (1, wide), 1, (0, right), (1, broad))
    if isinstance(module, nn.AvgPool2d):
        options = module.padding, False, module.count_include_pad, module.divisor_override
        return functional.avg_pool2d(maps, module.kernel_size, 1, *options)
    if isinstance(module, ours.BlurPool2d | ours.MaxBlurPool2d):
        by = Filter(module.filter.taps, (1, 1), module.filter.margins, module.filter.border)
        if isinstance(module, ours.BlurPool2d):
            return filtered(maps, by)
        return max_filtered(maps, module.kernel_size, module.padding, module.dilation, by)
    return None


@contextmanager
def hooked(model: nn.Module, names: Sequence[str], see: Callable[[str, int, nn.Module, Tensor, Any], None]) -> Iterator[None]:
    """Call ``see`` with name, number of the call, module, input and output at every call of the named modules."""
    numbers: Counter[str] = Counter()

    def hook(layer: str) -> Callable[[nn.Module, Any, Any, Any], None]:
        def called(module: nn.Module, args: Any, options: Any, out: Any) -> None:
            into = next((value for value in [*args, *options.values()] if isinstance(value, Tensor)), None)
            numbers[layer] += 1
            if into is not None:
                see(layer, numbers[layer] - 1, module, into, first_tensor(out))

        return called

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True))
        yield


def watched(model: nn.Module, layers: Sequence[str] | None, tokens: TokenReading | None) -> dict[str, LayerKind | None]:
    """Return the modules to watch and their kinds; the kind is None of those that only lead to the head's input."""
    modules = {name: part for name, part in model.named_modules() if name}
    # Layers inside polyphase sampling work on phases, not on the map.
    inside = tuple(f"{name}." for name, part in modules.items() if isinstance(part, (PolyphaseSampling, PhaseLogits)))
    known = {name: kind for name, part in modules.items() if (kind := _kind(part)) and not name.startswith(inside)}
    if tokens is not None and tokens.blocks:
        blocks: dict[str, LayerKind] = {name.split(", call ")[0]: kind for name, kind in tokens.blocks}
        known = blocks if layers is None else known | blocks
    if layers is not None:
        for name in layers:
            check_layer(name, modules)
        known = {name: known.get(name, "layer") for name in layers}
    heads = {name: None for name, part in modules.items() if isinstance(part, (*HEADS, nn.Linear))}
    return {name: known.get(name, heads.get(name)) for name in modules if name in known or name in heads}


def _kind(part: nn.Module) -> LayerKind | None:
    """Return a module's kind by its type; an activation of another library is known by its name."""
    if type(part).__name__ in ACTIVATIONS:
        return "activation"
    return next((kind for types, kind in KINDS if isinstance(part, types)), None)


def stride_of(module: nn.Module) -> Pair:
    """Return a layer's stride; 1 for layers without."""
    if isinstance(module, PolyphaseSampling):
        module = module.take
    found: Any = module.filter.stride if isinstance(module, ours.BlurPool2d | ours.MaxBlurPool2d) else None
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d | TakePhase):
        found = module.stride if getattr(module, "stride", None) is not None else module.kernel_size
    return pair(1 if found is None else found)
