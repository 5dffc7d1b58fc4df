"""A model's traced graph and the places in it that subsample or read beyond a border: convolutions, pools, slices."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.graphs.operators import POINTWISE
from shiftscope.graphs.tracing import check_traced, trace

__all__ = ["Pair", "Site", "TracedModel", "check_layer", "pair", "pool_arguments"]

Pair = tuple[int, int]
Kind = Literal["convolution", "max", "average"]
KINDS: dict[Kind, str] = {"convolution": "convolution", "max": "max pooling", "average": "average pooling"}
POOLS: dict[Any, Kind] = {functional.max_pool2d: "max", torch.max_pool2d: "max", functional.avg_pool2d: "average"}


@dataclass(frozen=True)
class Site:
    """A convolution or pool in a graph.

    Attributes:
        node: the node that calls it.
        name: the layer's name, or the node's where it is called as a function.
        kind: what it computes.
        kernel, stride, padding, dilation: along height and width, positions.
        module: the layer; None where it is called as a function.
        refusal: why :mod:`shiftscope.surgery` cannot change it; empty where it can.
    """

    node: fx.Node
    name: str
    kind: Kind
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    module: nn.Module | None
    refusal: str = ""

    @property
    def title(self) -> str:
        """The layer in a few words."""
        depthwise = isinstance(self.module, nn.Conv2d) and self.module.groups == self.module.in_channels > 1
        stride = self.stride[0] if self.stride[0] == self.stride[1] else self.stride
        form = "x".join(map(str, self.kernel))
        return f"{'depthwise ' if depthwise else ''}{KINDS[self.kind]} {form}, stride {stride}"

    @property
    def reach(self) -> Pair:
        """Positions from the first to the last that a window reads, along height and width."""
        return (self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1))

    @property
    def rounds_up(self) -> bool:
        """Whether a pool's last window may extend beyond the border (``ceil_mode``)."""
        options = pool_arguments(self.node) if self.module is None else vars(self.module)
        return bool(options.get("ceil_mode"))

    @property
    def is_strided(self) -> bool:
        """Whether it subsamples."""
        return self.stride != (1, 1)


class TracedModel:
    """A model's graph, to be read.

    Args:
        model: the model. It is neither copied nor changed; the graph shares its layers.
        image: (channels, height, width) of its input, to compare the graph's outputs with the model's.

    Attributes:
        module: the traced model, as ``torch.fx`` returns it.
        graph: its graph.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model, or its graph gives other outputs.

    >>> traced = TracedModel(nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)))
    >>> [site.title for site in traced.sites()]
    ['convolution 3x3, stride 2', 'max pooling 2x2, stride 2']
    """

    def __init__(self, model: nn.Module, image: tuple[int, int, int] | None = None) -> None:
        self.module = trace(model)
        check_traced(model, self.module, image)
        self.graph = self.module.graph

    def sites(self) -> list[Site]:
        """Return every convolution and pool, in the order of the graph."""
        return [site for node in self.graph.nodes if (site := self._site(node)) is not None]

    def slices(self) -> Iterator[fx.Node]:
        """Yield the nodes that subsample by slicing with a step."""
        for node in self.graph.nodes:
            parts = node.args[1] if node.target is operator.getitem else ()
            if isinstance(parts, tuple) and any(isinstance(each, slice) and each.step not in (None, 1) for each in parts):
                yield node

    def part(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls; None where it calls no module."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def is_pointwise(self, node: fx.Node) -> bool:
        """Return whether a node is an activation: an operator on each value alone."""
        part = self.part(node)
        return POINTWISE.match(node, part) or isinstance(part, nn.PReLU | layers.AliasFreeActivation)

    def _site(self, node: fx.Node) -> Site | None:
        if node.op == "call_function" and node.target in POOLS:
            options = pool_arguments(node)
            if len(node.all_input_nodes) > 1:
                return None  # its window depends on the map
            return Site(node, node.name, POOLS[node.target], *_pool_form(options), None, _pool_refusal(options))
        module, name = self.part(node), str(node.target)
        if isinstance(module, nn.Conv2d):
            form = (pair(module.kernel_size), pair(module.stride), _convolution_padding(module), pair(module.dilation))
            foreign = type(module) is not nn.Conv2d and not is_parametrized(module)
            return Site(node, name, "convolution", *form, module, f"{type(module).__name__} may do more" if foreign else "")
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            kind: Kind = "max" if isinstance(module, nn.MaxPool2d) else "average"
            return Site(node, name, kind, *_pool_form(vars(module)), module, _pool_refusal(vars(module)))
        return None


def check_layer(name: str, known: Collection[str]) -> None:
    """Raise :class:`~shiftscope.errors.InputError`, with similar names, unless a model has a layer of this name."""
    if name not in known:
        near = get_close_matches(name, known, n=3) or sorted(known)[:3]
        raise InputError(f"The model has no layer {name!r}.", f"Similar names: {', '.join(near)}.")


def pair(value: Any) -> Pair:
    """Return one number or two as two, for height and width."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def pool_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a pool that is called as a function, by name, without its map."""
    last = ("dilation", "ceil_mode", "return_indices")
    last = last if POOLS[node.target] == "max" else ("ceil_mode", "count_include_pad", "divisor_override")
    names = ("kernel_size", "stride", "padding", *last)
    return dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)


def _pool_form(options: dict[str, Any]) -> tuple[Pair, Pair, Pair, Pair]:
    """Return kernel, stride, padding and dilation of a pool from its arguments."""
    kernel = pair(options["kernel_size"])
    stride = kernel if options.get("stride") in (None, []) else pair(options["stride"])
    return kernel, stride, pair(options.get("padding", 0)), pair(options.get("dilation", 1))


def _pool_refusal(options: dict[str, Any]) -> str:
    return "it returns positions too" if options.get("return_indices") else ""


def _convolution_padding(module: nn.Conv2d) -> Pair:
    """Return a convolution's padding before height and width, also where it is ``valid`` or ``same``."""
    if module.padding == "valid":
        return (0, 0)
    if module.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))  # type: ignore[return-value]
    return pair(module.padding)
