"""Classify single nodes by what they do to a map's positions: remove them, pad, reorder axes, or treat all alike."""

from __future__ import annotations

import operator
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from shiftscope import layers
from shiftscope.graphs.operators import ADDITIONS, IDLE, POINTWISE, PRODUCTS, QUOTIENTS, SUBTRACTIONS
from shiftscope.graphs.sites import Site, TracedModel, is_shape
from shiftscope.layers.polyphase import NormChoice, PhaseLogits

__all__ = [
    "BORDERS",
    "PADS",
    "Head",
    "Layout",
    "axis_order",
    "border_of",
    "head_kind",
    "is_flattening",
    "is_metadata",
    "is_stationary",
    "pads_to_fit",
    "slices_of",
]

Head = Literal["flatten", "gap", "other"]
Layout = Literal["channels first", "channels last", "tokens"]

#: Norms whose statistics are fixed, or taken over channels or over the complete map, so that they treat positions alike.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
#: Layers that only pad, and the padding mode of a convolution that does the same.
PADS: dict[type[nn.Module], str] = {
    nn.ZeroPad2d: "zeros",
    nn.ConstantPad2d: "zeros",
    nn.CircularPad2d: "circular",
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
}
#: Axes of a map: image, channel, height, width.
RANK = 4
#: Names of border modes in torch.nn.functional.pad and in our filters, and the padding mode of a convolution that does the same.
BORDERS = {"constant": "zeros", "zero": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
#: Other layers that treat positions alike.
OTHERS = (nn.PReLU, layers.AliasFreeActivation, NormChoice, PhaseLogits)
#: With one output position these are a head; with several they average windows that depend on the map's size.
ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
#: Pools as functions, which are a head where their window is the complete map.
POOL_FUNCTIONS = (functional.avg_pool2d, functional.max_pool2d, torch.max_pool2d)
ADAPTIVE_POOL_FUNCTIONS = (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d)
#: Functions and methods that keep factor, receptive field and layout.
STATIONARY_FUNCTIONS: tuple[Any, ...] = (
    *ADDITIONS,
    *SUBTRACTIONS,
    *PRODUCTS,
    *QUOTIENTS,
    *IDLE.functions,
    *POINTWISE.functions,
    torch.cat,
    functional.pad,
    functional.layer_norm,
    functional.batch_norm,
    functional.group_norm,
    functional.normalize,
    operator.getitem,
    operator.neg,
)
STATIONARY_METHODS = (*IDLE.methods, *POINTWISE.methods, "add", "sub", "mul", "div", "add_", "mul_", "to", "type")


def head_kind(traced: TracedModel, node: fx.Node, layout: Layout) -> Head | None:
    """Return how a node removes positions; None if it keeps them."""
    part = traced.part(node)
    if isinstance(part, ADAPTIVE_POOLS) or node.target in ADAPTIVE_POOL_FUNCTIONS:
        size = part.output_size if part is not None else next(iter([*node.args[1:], *node.kwargs.values()]), 1)
        return "gap" if size in (1, (1, 1), [1, 1]) else None
    if _pools_complete_map(node) and layout == "channels first":
        return "gap"
    if is_flattening(node, part):
        return "flatten"
    if node.target in (torch.mean, "mean", torch.amax, "amax"):
        return "gap" if {axis % 4 for axis in _axes(node)} == ({2, 3} if layout == "channels first" else {1, 2}) else None
    return None


def _pools_complete_map(node: fx.Node) -> bool:
    """Return whether a node is a pool called as a function with its map's own size as window: ``avg_pool2d(x, x.shape[2:])``."""
    if node.target not in POOL_FUNCTIONS or len(node.all_input_nodes) != 2:
        return False
    maps, window = node.all_input_nodes
    if window.target is not operator.getitem or window.args[1] not in (slice(2, None), slice(-2, None)):
        return False
    size: Any = window.args[0]
    is_size = size.target == "size" or (size.target is getattr and size.args[1] == "shape")
    return is_size and size.all_input_nodes == [maps]


def is_flattening(node: fx.Node, part: nn.Module | None) -> bool:
    """Return whether a node flattens all axes but the first; ``part`` is the module that it calls, if it calls one."""
    if isinstance(part, nn.Flatten):
        return bool(part.start_dim == 1)
    if node.target in (torch.flatten, "flatten"):
        start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        return bool(start == 1)
    return node.target in ("view", "reshape") and len(node.args) == 3 and bool(node.args[2] == -1)


def _axes(node: fx.Node) -> set[int]:
    given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    return set(given) if isinstance(given, list | tuple) else {given} - {None}


def axis_order(node: fx.Node) -> tuple[int, ...] | None:
    """Return the order of axes after a permutation between channels first and channels last; None for other nodes."""
    if node.target not in (torch.permute, "permute"):
        return None
    given: Any = node.args[1] if len(node.args) == 2 else node.args[1:]
    order = tuple(given) if isinstance(given, list | tuple) else ()
    return order if order in ((0, 2, 3, 1), (0, 3, 1, 2)) else None


def pads_to_fit(traced: TracedModel, site: Site) -> bool:
    """Return whether a site has size / stride windows on its padded map, so that on a torus they meet every position alike.

    With padding P in all, reach r and stride s there are floor((n + P - r - 1) / s) + 1 windows: n / s for 1 - s <= P - r <= 0.
    """
    if isinstance(site.module, nn.Conv2d) and site.module.padding == "same":
        return True
    source = site.node.args[0]
    part: Any = traced.part(source) if isinstance(source, fx.Node) else None
    margins: Any = (0, 0, 0, 0)
    if isinstance(part, tuple(PADS)):
        margins = vars(part)["padding"]
    elif isinstance(source, fx.Node) and source.target is functional.pad:
        margins = source.args[1] if len(source.args) > 1 else source.kwargs["pad"]
    left, right, up, down = (*margins, 0, 0, 0, 0)[:4]
    if not all(isinstance(margin, int) for margin in (left, right, up, down)):
        return False  # computed from the map
    padded = (up + down + 2 * site.padding[0], left + right + 2 * site.padding[1])
    return all(1 - step <= pad - reach <= 0 for pad, reach, step in zip(padded, site.reach, site.stride, strict=True))


def border_of(node: fx.Node, part: nn.Module | None, layout: Layout) -> str | None:
    """Return the padding mode of a node that only pads; empty where it pads no height or width, None for other nodes."""
    if node.target is functional.pad:
        margins = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
        border = BORDERS[str(node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant"))]
    else:
        border = next((border for kind, border in PADS.items() if isinstance(part, kind)), "")
        if not border:
            return None
        margins = vars(part)["padding"]
    start = 2 if layout == "channels last" else 0  # margins begin with the last axis
    still = isinstance(margins, tuple | list) and all(each == 0 for each in margins[start : start + 4])
    return "" if still else border


def is_metadata(node: fx.Node) -> bool:
    """Return whether a node's value only describes a map: its shape, type or device."""
    return node.target is not operator.getitem and is_shape(node)


def is_stationary(traced: TracedModel, node: fx.Node, layout: Layout) -> bool:
    """Return whether a node treats all positions alike and keeps factor and receptive field."""
    part = traced.part(node)
    if isinstance(part, nn.Linear):
        return layout == "channels last"
    if isinstance(part, nn.LayerNorm):
        return len(part.normalized_shape) == 1 and layout == "channels last"
    if part is not None:
        return isinstance(part, (*POINTWISE.modules, *IDLE.modules, *NORMS, *OTHERS))
    if getattr(node.target, "__name__", "") == "stochastic_depth":  # torchvision's; idle in evaluation mode
        return True
    if node.target is operator.getitem and any(each not in (slice(None), None) for each in slices_of(node)[2:]):
        return False  # a part of the map's height or width
    if node.target is torch.cat and _concatenation_axis(node) != (1 if layout == "channels first" else 3):
        return False
    known = STATIONARY_FUNCTIONS if node.op == "call_function" else STATIONARY_METHODS
    return node.target in known and not _adds_positions(traced, node)


def slices_of(node: fx.Node) -> tuple[Any, ...]:
    """Return the index or slice that a node takes along each axis of a map; empty if it does not index one."""
    parts: Any = node.args[1] if node.target is operator.getitem else ()
    if not isinstance(parts, tuple):
        return ()
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    if not places:
        return parts
    return (*parts[: places[0]], *[slice(None)] * (RANK + 1 - len(parts)), *parts[places[0] + 1 :])


def _concatenation_axis(node: fx.Node) -> int:
    """Return the axis along which maps are concatenated, counted from the front; -1 if the graph does not say."""
    axis: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return axis % RANK if isinstance(axis, int) else -1


def _adds_positions(traced: TracedModel, node: fx.Node) -> bool:
    """Return whether a node combines a map with a weight for each position: one that varies along more than one axis."""
    images = _nodes_of_images(node.graph)
    waiting, weights = list(node.all_input_nodes), list[Tensor]()
    while waiting:
        other = waiting.pop()
        if other.op == "get_attr":
            weights.append(operator.attrgetter(str(other.target))(traced.module))
        elif other.op != "call_module" and other not in images:
            waiting += other.all_input_nodes
    return any(sum(size > 1 for size in weight.shape) > 1 for weight in weights)


def _nodes_of_images(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose values depend on the images."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(other in found for other in node.all_input_nodes):
            found.add(node)
    return found
