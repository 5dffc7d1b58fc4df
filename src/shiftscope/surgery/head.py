"""Give a model a head that sees no positions: a mean over them instead of a weight for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope import layers
from shiftscope.graphs.operators import ADDITIONS, IDLE, PRODUCTS
from shiftscope.graphs.positions import is_flattening
from shiftscope.graphs.sites import TracedModel
from shiftscope.surgery.editor import SKIPPED, Editor, source_of
from shiftscope.surgery.plan import Surgery

__all__ = ["ONE_POSITION", "channels_of", "global_pool"]

#: The reason of a head that has nothing to average.
ONE_POSITION = "it sees one position already"
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
    """Return a copy of a model whose fully connected head sees the mean over positions instead of each of them.

    Weights [class, channel x position] become their sums over positions [class, channel]. On a map that is the same everywhere
    the new head returns what the old one did; on other maps it does not, so train the head again.

    Args:
        model: a model that ``torch.fx`` can trace; it is not changed.
        only: names of the fully connected layers to change; all by default.
        skip: names of layers that stay as they are.
        image: (channels, height, width), to count costs and to check that the changed model runs.

    Returns:
        the copy, what became of each head and why, and the costs.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model.
        InputError: the model has no layer of such a name.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> global_pool(model).model(torch.zeros(1, 1, 30, 30)).shape
    torch.Size([1, 2])
    """
    editor = Editor(model, image=image, only=only, skip=skip)
    calls = Counter(id(editor.part(node)) for node in editor.graph.nodes)
    for node in list(editor.graph.nodes):
        linear = editor.part(node)
        flat = _flattening(editor, node) if isinstance(linear, nn.Linear) else None
        if flat is None or not isinstance(linear, nn.Linear):
            continue
        name, was = str(node.target), f"fully connected, {linear.in_features} inputs"
        if editor.wants(name) and calls[id(linear)] > 1:
            editor.keep(name, was, "unsupported: it is called on several maps")
        elif editor.wants(name):
            _average(editor, linear, flat, name, was)
        else:
            editor.keep(name, was, SKIPPED)
    if not editor.changes:
        editor.keep("-", "head", "no map flattened by flatten(1) or view(len(x), -1) reaches a fully connected layer")
    return editor.finish()


def _average(editor: Editor, linear: nn.Linear, flat: fx.Node, name: str, was: str) -> None:
    """Average over positions before a flattening node, and sum the weights of the fully connected layer after it."""
    source = source_of(flat)
    channels = channels_of(editor, source)
    if channels is None or linear.in_features % channels:
        editor.keep(name, was, "unsupported: the number of its map's channels does not follow from the graph")
        return
    positions = linear.in_features // channels
    if positions == 1:
        editor.keep(name, was, ONE_POSITION)
        return
    if isinstance(editor.part(source), nn.AdaptiveAvgPool2d) and len(source.users) == 1:
        source.target = editor.add(source, nn.AdaptiveAvgPool2d(1), "global")
    else:
        editor.insert_before(flat, nn.AdaptiveAvgPool2d(1), "global")
    bias = linear.bias is not None
    like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    pooled = nn.utils.skip_init(nn.Linear, channels, linear.out_features, bias=bias, **like)  # which draws no random numbers
    pooled.weight.data.copy_(linear.weight.detach().reshape(-1, channels, positions).sum(2))
    if linear.bias is not None:
        pooled.bias.data.copy_(linear.bias.detach())
    editor.module.set_submodule(name, pooled)
    why = f"its weights summed over {positions} positions; train the head again"
    editor.record(name, was, f"mean over positions, {channels} inputs", why)


def _flattening(traced: TracedModel, node: fx.Node) -> fx.Node | None:
    """Return the node that flattens a map for a fully connected layer, also through dropout; None where there is none."""
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node):
        part = traced.part(source)
        if is_flattening(source, part):
            return source
        if not IDLE.match(source, part):
            return None
        source = source.args[0] if source.args else None
    return None


def channels_of(traced: TracedModel, node: fx.Node) -> int | None:
    """Return the number of channels of a node's map, from the last layer that fixes it; None where the graph does not say."""
    current: Any = node
    while isinstance(current, fx.Node):
        part = traced.part(current)
        if isinstance(part, nn.Conv2d):
            return part.out_channels
        if isinstance(part, nn.BatchNorm2d):
            return part.num_features
        if current.target is torch.cat:
            listed: Any = current.args[0]
            parts = [channels_of(traced, each) for each in listed if isinstance(each, fx.Node)]
            return None if None in parts or not parts else sum(part for part in parts if part is not None)
        if current.target in JOINS:
            # A factor of one channel (a gate) applies to all the others.
            found = [channels_of(traced, each) for each in current.args if isinstance(each, fx.Node)]
            return None if None in found or not found else max(each for each in found if each is not None)
        if not _keeps_channels(traced, current, part):
            return None
        current = current.args[0] if current.args else None
    return None


def _keeps_channels(traced: TracedModel, node: fx.Node, part: nn.Module | None) -> bool:
    """Return whether a node's map has as many channels as its input."""
    ours = part is not None and type(part).__module__.startswith(layers.__name__)
    if ours or isinstance(part, (*KEEPS_CHANNELS, *IDLE.modules)) or traced.is_pointwise(node):
        return True
    return node.target in (functional.max_pool2d, functional.avg_pool2d)
