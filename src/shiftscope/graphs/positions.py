"""What single operators of a graph do to positions: take them away, pad around them, or leave them where they are."""

from __future__ import annotations

import operator
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from shiftscope import layers
from shiftscope.graphs.operators import (
    ADDITIONS,
    IDLE_FUNCTIONS,
    IDLE_METHODS,
    IDLE_MODULES,
    POINTWISE_FUNCTIONS,
    POINTWISE_METHODS,
    POINTWISE_MODULES,
    PRODUCTS,
    QUOTIENTS,
    SUBTRACTIONS,
)
from shiftscope.layers.polyphase import NormChoice, PhaseLogits
from shiftscope.surgery.editor import Editor, Site

__all__ = ["BORDERS", "Head", "Layout", "border_of", "fits", "head_kind", "is_about_maps", "is_still", "order_of", "sliced"]

Head = Literal["flatten", "gap", "other"]
Layout = Literal["channels first", "channels last"]

#: Norms whose statistics are fixed or taken over channels or over the whole map: none sees a position.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
#: Layers that only pad, and how they continue a map.
PADS: dict[type[nn.Module], str] = {
    nn.ZeroPad2d: "zeros",
    nn.ConstantPad2d: "zeros",
    nn.CircularPad2d: "circular",
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
}
#: Axes of a map: image, channel, height, width.
RANK = 4
BORDERS = {"constant": "zeros", "zero": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
OTHERS = (nn.PReLU, layers.AliasFreeActivation, NormChoice, PhaseLogits)
#: To one position they are a head; to several they take means of windows that depend on the map's size.
MEANS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
MEAN_FUNCTIONS = (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d)
#: Functions that leave factor, field and layout alone.
STILL: tuple[Any, ...] = (
    *ADDITIONS,
    *SUBTRACTIONS,
    *PRODUCTS,
    *QUOTIENTS,
    *IDLE_FUNCTIONS,
    *POINTWISE_FUNCTIONS,
    torch.cat,
    functional.pad,
    functional.layer_norm,
    functional.batch_norm,
    functional.group_norm,
    functional.normalize,
    operator.getitem,
    operator.neg,
)
STILL_METHODS = (*IDLE_METHODS, *POINTWISE_METHODS, "add", "sub", "mul", "div", "add_", "mul_", "to", "type")


def head_kind(editor: Editor, node: fx.Node, layout: Layout) -> Head | None:
    """How a node takes positions away; None where it does not."""
    part = editor.part(node)
    if isinstance(part, MEANS) or node.target in MEAN_FUNCTIONS:
        size = part.output_size if part is not None else next(iter([*node.args[1:], *node.kwargs.values()]), 1)
        return "gap" if size in (1, (1, 1), [1, 1]) else None
    if isinstance(part, nn.Flatten) or node.target in (torch.flatten, "flatten", "view", "reshape"):
        return "flatten" if _is_flattening(node, part) else None
    if node.target in (torch.mean, "mean", torch.amax, "amax"):
        return "gap" if {axis % 4 for axis in _axes(node)} == ({2, 3} if layout == "channels first" else {1, 2}) else None
    return None


def _is_flattening(node: fx.Node, part: nn.Module | None) -> bool:
    if isinstance(part, nn.Flatten):
        return bool(part.start_dim == 1)
    if node.target in (torch.flatten, "flatten"):
        start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        return bool(start == 1)
    return len(node.args) == 3 and bool(node.args[2] == -1)


def _axes(node: fx.Node) -> set[int]:
    given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
    return set(given) if isinstance(given, list | tuple) else {given}


def order_of(node: fx.Node) -> tuple[int, ...] | None:
    """The order of axes that a node makes, where it reorders."""
    if node.target not in (torch.permute, "permute"):
        return None
    given: Any = node.args[1] if len(node.args) == 2 else node.args[1:]
    order = tuple(given) if isinstance(given, list | tuple) else ()
    return order if order in ((0, 2, 3, 1), (0, 3, 1, 2)) else None


def fits(editor: Editor, site: Site) -> bool:
    """Whether a padded map has size / stride windows, which on a torus meet each position alike.

    With padding P in all, reach r and stride s there are floor((n + P - r - 1) / s) + 1 windows: n / s for 1 - s <= P - r <= 0.
    """
    source = site.node.args[0]
    part: Any = editor.part(source) if isinstance(source, fx.Node) else None
    margins: Any = (0, 0, 0, 0)
    if any(isinstance(part, kind) for kind in PADS):
        margins = part.padding
    elif isinstance(source, fx.Node) and source.target is functional.pad:
        margins = source.args[1] if len(source.args) > 1 else source.kwargs["pad"]
    left, right, up, down = (*margins, 0, 0, 0, 0)[:4]
    if not all(isinstance(margin, int) for margin in (left, right, up, down)):
        return False  # computed from the map
    padded = (up + down + 2 * site.padding[0], left + right + 2 * site.padding[1])
    return all(1 - step <= pad - reach <= 0 for pad, reach, step in zip(padded, site.reach, site.stride, strict=True))


def border_of(node: fx.Node, part: nn.Module | None) -> str | None:
    """How a pad of its own continues a map; None where a node is none."""
    if node.target is functional.pad:
        return BORDERS[str(node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant"))]
    return next((border for kind, border in PADS.items() if isinstance(part, kind)), None)


def is_about_maps(node: fx.Node) -> bool:
    """Whether a node's value is not a map but something about one: its shape, its type, where it is."""
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda")
    return node.op == "call_method" and node.target in ("size", "dim", "numel")


def is_still(editor: Editor, node: fx.Node, layout: Layout) -> bool:
    """Whether a node acts on each position alone and alike, or at least leaves factor and field as they are."""
    part = editor.part(node)
    if isinstance(part, nn.Linear):
        return layout == "channels last"
    if isinstance(part, nn.LayerNorm):
        return len(part.normalized_shape) == 1 and layout == "channels last"
    if part is not None:
        return isinstance(part, (*POINTWISE_MODULES, *IDLE_MODULES, *NORMS, *OTHERS))
    if getattr(node.target, "__name__", "") == "stochastic_depth":  # torchvision's; idle in evaluation
        return True
    if node.target is operator.getitem and _cuts(node):
        return False
    if node.target is torch.cat and _joined_along(node) != (1 if layout == "channels first" else 3):
        return False
    return node.target in (STILL if node.op == "call_function" else STILL_METHODS) and not _adds_positions(editor, node)


def _cuts(node: fx.Node) -> bool:
    """Whether a part of a map is taken along height or width."""
    return any(part not in (slice(None), None) for part in sliced(node)[2:])


def sliced(node: fx.Node) -> tuple[Any, ...]:
    """What a node takes along each axis of a map; empty where it takes no part of one."""
    parts: Any = node.args[1] if node.target is operator.getitem else ()
    if not isinstance(parts, tuple):
        return ()
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    if not places:
        return parts
    return (*parts[: places[0]], *[slice(None)] * (RANK + 1 - len(parts)), *parts[places[0] + 1 :])


def _joined_along(node: fx.Node) -> int:
    """The axis along which maps are joined, from the front."""
    axis: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return axis % RANK if isinstance(axis, int) else -1


def _adds_positions(editor: Editor, node: fx.Node) -> bool:
    """Whether a weight with a value for each position enters here: one that varies along more than one axis."""
    waiting, weights = list(node.all_input_nodes), list[Tensor]()
    while waiting:
        other = waiting.pop()
        if other.op == "get_attr":
            weights.append(operator.attrgetter(str(other.target))(editor.traced))
        elif other.op != "call_module" and not _has_images(other):
            waiting += other.all_input_nodes
    return any(sum(size > 1 for size in weight.shape) > 1 for weight in weights)


def _has_images(node: fx.Node) -> bool:
    """Whether a node's value comes from the images."""
    return node.op == "placeholder" or any(_has_images(other) for other in node.all_input_nodes)
