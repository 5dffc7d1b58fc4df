"""A model's traced graph and the places in it that subsample or read beyond a border: convolutions, pools, slices."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.graphs.operators import POINTWISE
from shiftscope.graphs.tracing import check_traced, trace

__all__ = ["Pair", "Site", "TracedModel", "arguments_of", "check_layer", "is_shape", "pair"]

Pair = tuple[int, int]
SiteKind = Literal["convolution", "max", "average", "power", "slice"]
KINDS: dict[SiteKind, str] = {
    "convolution": "convolution",
    "max": "max pooling",
    "average": "average pooling",
    "power": "power-average pooling",
    "slice": "slicing",
}
POOLS: dict[Any, SiteKind] = {functional.max_pool2d: "max", torch.max_pool2d: "max", functional.avg_pool2d: "average"}
CONVOLUTIONS = (functional.conv2d, torch.conv2d)
#: Names of arguments after the map, in their order.
ARGUMENTS: dict[SiteKind, tuple[str, ...]] = {
    "convolution": ("weight", "bias", "stride", "padding", "dilation", "groups"),
    "max": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "average": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}


@dataclass(frozen=True)
class Site:
    """A convolution, pool or slicing in a graph.

    Attributes:
        node: the node that calls it.
        name: the layer's name, or the node's where it is called as a function.
        kind: what it computes.
        kernel, stride, padding, dilation: along height and width, positions.
        module: the layer; None if it is called as a function.
        refusal: why :mod:`shiftscope.surgery` cannot change it; empty if it can.
        pads_itself: whether the layer's code pads its map by as much as that needs (``SAME``); ``padding`` is then what it adds
            before a map whose sides are multiples of the stride.
    """

    node: fx.Node
    name: str
    kind: SiteKind
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    module: nn.Module | None
    refusal: str = ""
    pads_itself: bool = False

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
        if self.kind == "slice":
            return False
        options = arguments_of(self.node) if self.module is None else vars(self.module)
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
        """Return the module that a node calls; None if it calls no module."""
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def is_pointwise(self, node: fx.Node) -> bool:
        """Return whether a node is an activation: an operator on each value alone."""
        part = self.part(node)
        return POINTWISE.match(node, part) or isinstance(part, nn.PReLU | layers.AliasFreeActivation)

    def _site(self, node: fx.Node) -> Site | None:
        if node.op == "call_function" and node.target in POOLS:
            options = arguments_of(node)
            if len(node.all_input_nodes) > 1:
                return None  # its window depends on the map
            return Site(node, node.name, POOLS[node.target], *_pool_form(options), None, _pool_refusal(options))
        if node.op == "call_function" and node.target in CONVOLUTIONS:
            return self._convolution(node)
        module, name = self.part(node), str(node.target)
        if isinstance(module, nn.Conv2d):
            form = (pair(module.kernel_size), pair(module.stride), _convolution_padding(module), pair(module.dilation))
            if type_before_parametrizations(module) is nn.Conv2d:
                return Site(node, name, "convolution", *form, module)
            before = _same_padding(module, form[0], form[1], form[3])
            refusal = "" if before else f"{type(module).__name__} may do more"
            return Site(node, name, "convolution", *form[:2], before or form[2], form[3], module, refusal, bool(before))
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d | nn.LPPool2d):
            kind: SiteKind = (
                "max" if isinstance(module, nn.MaxPool2d) else "average" if isinstance(module, nn.AvgPool2d) else "power"
            )
            return Site(node, name, kind, *_pool_form(vars(module)), module, _pool_refusal(vars(module)))
        return None

    def _convolution(self, node: fx.Node) -> Site | None:
        """Return a convolution that is called as a function; None if its weights depend on images or its form on the map."""
        options = arguments_of(node)
        weight = self._weight(options["weight"])
        stride, padding, dilation = (options.get(name, each) for name, each in (("stride", 1), ("padding", 0), ("dilation", 1)))
        kernel = pair(tuple(weight.shape[2:])) if weight is not None else (1, 1)
        form = [each for value in (stride, padding, dilation) for each in (value if isinstance(value, tuple | list) else [value])]
        if weight is None or not all(isinstance(each, int) for each in form):
            return None
        return Site(node, node.name, "convolution", kernel, pair(stride), pair(padding), pair(dilation), None)

    def _weight(self, node: Any) -> Tensor | None:
        """Return the largest four-dimensional parameter that a weight is computed from, also by a parametrization; else None."""
        waiting, found, seen = [node], list[Tensor](), set[fx.Node]()
        while waiting:
            other = waiting.pop()
            if not isinstance(other, fx.Node) or other in seen or is_shape(other):
                continue
            seen.add(other)
            part = self.part(other)
            if other.op == "placeholder" or not isinstance(part, ParametrizationList | None):
                return None
            if part is not None:
                with torch.no_grad():
                    found += [value] if (value := part()).ndim == 4 else []
            if other.op == "get_attr":
                value = operator.attrgetter(str(other.target))(self.module)
                found += [value] if isinstance(value, Tensor) and value.ndim == 4 else []
            waiting += other.all_input_nodes
        return max(found, key=Tensor.numel, default=None)  # beside it there may be a gain for each channel


def is_shape(node: fx.Node) -> bool:
    """Return whether a node's value is a shape or a part of one, not a tensor."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return is_shape(node.args[0])
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda")
    return node.op == "call_method" and node.target in ("size", "dim", "numel")


def check_layer(name: str, known: Collection[str]) -> None:
    """Raise :class:`~shiftscope.errors.InputError`, with similar names, unless a model has a layer of this name."""
    if name not in known:
        near = get_close_matches(name, known, n=3) or sorted(known)[:3]
        raise InputError(f"The model has no layer {name!r}.", f"Similar names: {', '.join(near)}.")


def pair(value: Any) -> Pair:
    """Return one number or two as two, for height and width."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a convolution or pool that is called as a function, by name, without its map."""
    names = ARGUMENTS["convolution" if node.target in CONVOLUTIONS else POOLS[node.target]]
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
        down, right = (d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
        return down, right
    return pair(module.padding)


def _same_padding(module: nn.Conv2d, kernel: Pair, stride: Pair, dilation: Pair) -> Pair | None:
    """Return what a convolution of a foreign class pads before maps whose sides are multiples of its stride.

    Its code is tried: with its own stride and with stride 1 it must treat the middle of a map alike, and the size of its output
    must be that of the map over the stride. Returns None for other classes.
    """
    reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    before = tuple(max(each + 1 - step, 0) // 2 for each, step in zip(reach, stride, strict=True))
    sides = [step * (2 * each + 4) for each, step in zip(reach, stride, strict=True)]
    like, kept, mode = module.weight, module.stride, module.training
    maps = torch.rand(1, module.in_channels, *sides, generator=torch.Generator().manual_seed(0)).to(like)
    try:
        module.eval()
        with torch.no_grad():
            strided = module(maps)
            module.stride = (1, 1)
            dense = module(maps)
    except Exception:  # whatever its code raises
        return None
    finally:
        module.stride = kept
        module.train(mode)
    fitting = [side // step for side, step in zip(sides, stride, strict=True)]
    if list(strided.shape[2:]) != fitting or dense.shape[2:] != maps.shape[2:]:
        return None
    # At stride 1 it pads more before the map, so that the window of an output lies farther up and left.
    offset = [each // 2 - first for each, first in zip(reach, before, strict=True)]
    rows, columns = (
        slice(first, first + step * (count - 1) + 1, step)
        for first, step, count in zip(offset, stride, strided.shape[2:], strict=True)
    )
    middle = tuple(slice(each, -each or None) for each in reach)
    close = 1e-4 * float(strided.abs().max())
    alike = torch.allclose(dense[..., rows, columns][(..., *middle)], strided[(..., *middle)], atol=close)
    return (before[0], before[1]) if alike else None
