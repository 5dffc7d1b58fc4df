"""A head that sees no positions: the mean over them instead of a weight for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope import layers
from shiftscope.graphs.operators import ADDITIONS, IDLE_FUNCTIONS, IDLE_MODULES, PRODUCTS
from shiftscope.surgery.editor import Editor, source_of
from shiftscope.surgery.plan import Surgery

__all__ = ["ALONE", "channels_of", "global_pool"]

ALONE = "it sees one position already"
JOINS = (*ADDITIONS, *PRODUCTS, "add", "mul")
KEEPS_CHANNELS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.CircularPad2d,
    nn.ZeroPad2d,
    nn.BatchNorm2d,
    nn.GroupNorm,
)


def global_pool(
    model: nn.Module,
    *,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    image: tuple[int, int, int] | None = None,
) -> Surgery:
    """A copy of a model whose fully connected head sees the mean over positions instead of each of them.

    Weights [class, channel x position] become their sums over positions [class, channel]: what the old head answers to a map that
    is the same everywhere. Of other maps it answers differently, so that the head should be trained again.

    Args:
        model: whose graph ``torch.fx`` can trace. It is left as it is.
        only: names of the fully connected layers to change; all by default.
        skip: names of layers to leave alone.
        image: (channels, height, width), for the costs.

    Returns:
        the copy, what became of each head and why, and the costs.

    Raises:
        InputError: an untraceable model, an unknown name.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> global_pool(model).model(torch.zeros(1, 1, 30, 30)).shape
    torch.Size([1, 2])
    """
    editor = Editor(model, image=image, only=only, skip=skip)
    for node in list(editor.graph.nodes):
        linear = editor.part(node)
        flat = _flattening(editor, node) if isinstance(linear, nn.Linear) else None
        if flat is None or not isinstance(linear, nn.Linear):
            continue
        name, was = str(node.target), f"fully connected, {linear.in_features} inputs"
        if not editor.wants(name):
            editor.leave(name, was, "left out, as asked for")
            continue
        _pooled(editor, linear, flat, (name, was))
    if not editor.changes:
        editor.leave("-", "head", "no map flattened by flatten(1) or view(len(x), -1) reaches a fully connected layer")
    return editor.finish()


def _pooled(editor: Editor, linear: nn.Linear, flat: fx.Node, called: tuple[str, str]) -> None:
    source = source_of(flat)
    channels = channels_of(editor, source)
    if channels is None or linear.in_features % channels:
        editor.leave(*called, "unsupported: how many channels its map has does not follow from the graph")
        return
    positions = linear.in_features // channels
    if positions == 1:
        editor.leave(*called, ALONE)
        return
    before = editor.part(source)
    if isinstance(before, nn.AdaptiveAvgPool2d):
        source.target = editor.add(source, nn.AdaptiveAvgPool2d(1), "global")
    else:
        editor.before_node(flat, nn.AdaptiveAvgPool2d(1), "global")
    pooled = nn.Linear(channels, linear.out_features, bias=linear.bias is not None).to(linear.weight)
    pooled.weight.data.copy_(linear.weight.detach().reshape(-1, channels, positions).sum(2))
    if linear.bias is not None:
        pooled.bias.data.copy_(linear.bias.detach())
    parent, _, last = called[0].rpartition(".")
    setattr(editor.traced.get_submodule(parent), last, pooled)
    why = f"its weights summed over {positions} positions; train the head again"
    editor.note(*called, f"mean over positions, {channels} inputs", why)


def _flattening(editor: Editor, node: fx.Node) -> fx.Node | None:
    """The node that flattens a map for a fully connected layer, looking back through what does nothing in evaluation."""
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node):
        if _flattens(editor, source):
            return source
        if not (isinstance(editor.part(source), IDLE_MODULES) or source.target in IDLE_FUNCTIONS):
            return None
        source = source.args[0] if source.args else None
    return None


def _flattens(editor: Editor, node: fx.Node) -> bool:
    part = editor.part(node)
    if isinstance(part, nn.Flatten):
        return part.start_dim == 1
    if node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten"):
        start: Any = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        return isinstance(start, int) and start == 1
    flattening = node.op == "call_method" and node.target in ("view", "reshape") and len(node.args) == 3
    return flattening and isinstance(node.args[2], int) and node.args[2] == -1


def channels_of(editor: Editor, node: fx.Node) -> int | None:
    """How many channels a node's map has, from the last layer that says so; None where the graph does not tell."""
    current: Any = node
    while isinstance(current, fx.Node):
        part = editor.part(current)
        if isinstance(part, nn.Conv2d):
            return part.out_channels
        if isinstance(part, nn.BatchNorm2d):
            return part.num_features
        if current.target is torch.cat:
            listed: Any = current.args[0]
            parts = [channels_of(editor, each) for each in listed if isinstance(each, fx.Node)]
            return None if None in parts or not parts else sum(part for part in parts if part is not None)
        if current.target in JOINS:
            # A factor of one channel (a gate) is spread over the others.
            found = [channels_of(editor, each) for each in current.args if isinstance(each, fx.Node)]
            return None if None in found or not found else max(each for each in found if each is not None)
        if not _keeps_channels(editor, current, part):
            return None
        current = current.args[0] if current.args else None
    return None


def _keeps_channels(editor: Editor, node: fx.Node, part: nn.Module | None) -> bool:
    """Whether a node's map has as many channels as its input's."""
    ours = part is not None and type(part).__module__.startswith(layers.__name__)
    if ours or isinstance(part, (*KEEPS_CHANNELS, *IDLE_MODULES)) or editor.is_pointwise(node):
        return True
    return node.target in (functional.max_pool2d, functional.avg_pool2d)
