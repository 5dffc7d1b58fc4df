"""Test whether a model's head depends on positions: roll the maps that reach it, and see whether the outputs change.

The head is where the last maps end: what uses a map and gives none, and is not used by a later map, as a gate is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn

from shiftscope.graphs.positions import axis_order
from shiftscope.graphs.tracing import trace

__all__ = ["averaging_head", "begins_with", "head_change", "tokens_go_on"]

#: Most tokens that are added to those of a map: for the class and others.
MOST_ADDED = 10
#: The axes of a map's positions.
Axes = tuple[int, int]


def head_change(model: nn.Module, images: Tensor) -> float | None:
    """Return by how much the outputs change, relative to the largest, if the maps that reach the head are rolled.

    Args:
        model: in evaluation mode; a copy in double precision is tried.
        images: [image, channel, height, width].

    Returns:
        0 where no map of several positions reaches the head; None where it cannot be tried.
    """
    try:
        copy = deepcopy(model).double()
        images = images.double().to(next((value.device for value in copy.parameters()), images.device))
        rolled = _with_head(copy, images, lambda maps, axes: maps.roll((1, 1), axes))
        with torch.no_grad():
            before = copy(images)
            return float((rolled(images) - before).abs().max() / before.abs().max())
    except Exception:  # whatever the model raises on a copy or in double precision
        return None


def averaging_head(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy whose head receives every map as its mean over positions, repeated at each of them.

    Of a head that flattens, this is the same as summing its weights over positions; it also works where the graph does not say
    what the head does.
    """
    return _with_head(deepcopy(model), images, lambda maps, axes: maps.mean(axes, keepdim=True).expand_as(maps))


def tokens_go_on(model: nn.Module, images: Tensor) -> bool:
    """Return whether the positions of the last maps go through layers as tokens: what follows those maps is then no head."""
    traced = trace(model)
    image = images[:1].to(next(model.parameters(), images))
    values = _values(traced, image)
    maps = _maps(values)
    counts = {values[node].shape[first] * values[node].shape[second] for node, (first, second) in maps.items()}
    last = max((place for place, node in enumerate(traced.graph.nodes) if node in maps), default=-1)
    layers = [node for node in [*traced.graph.nodes][last + 1 :] if _has_weights(traced, node)]
    return any(_holds_tokens(values[node], counts) for node in layers)


def begins_with(model: nn.Module, images: Tensor) -> tuple[str, tuple[int, int]] | None:
    """Return the convolution that turns the last map of several positions into a single one, and that map's (height, width).

    On images that are small for its strides, a network with a mean over positions has nothing to average: such a convolution
    has a weight for every position of its map, as a fully connected layer does, and the head begins with it.

    Args:
        model: a model that ``torch.fx`` can trace.
        images: [image, channel, height, width].

    Returns:
        None where the head begins otherwise: with a mean, a flattened map, or a convolution that is no layer.
    """
    traced = trace(model)
    image = images[:1].to(next(model.parameters(), images))
    values = _values(traced, image)
    maps = _maps(values)
    feeds = _feeding(traced.graph, maps)
    for source, (down, across) in maps.items():
        for user in source.users:
            ends = user not in maps and user not in feeds and user.op == "call_module"
            if ends and isinstance(traced.get_submodule(str(user.target)), nn.Conv2d):
                shape = values[source].shape
                return str(user.target), (shape[down], shape[across])
    return None


def _values(traced: fx.GraphModule, image: Tensor) -> dict[fx.Node, Any]:
    """Return what each node gives for an image."""
    values = dict[fx.Node, Any]()

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            values[node] = super().run_node(node)
            return values[node]

    with torch.no_grad():
        Watch(traced).run(image)
    return values


def _has_weights(traced: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and any(True for _ in traced.get_submodule(str(node.target)).parameters())


def _holds_tokens(value: Any, counts: Collection[int]) -> bool:
    """Return whether a value has three axes, one of them with as many tokens as a map has positions, or a few more."""
    value = next(iter(value), None) if isinstance(value, tuple | list) else value
    if not isinstance(value, Tensor) or value.ndim != 3:
        return False
    return any(0 <= size - count <= MOST_ADDED for size in value.shape for count in counts)


def _with_head(model: nn.Module, images: Tensor, change: Callable[[Tensor, Axes], Tensor]) -> fx.GraphModule:
    """Return a model's graph in which the head receives changed maps."""
    traced = trace(model)
    maps = _maps(_values(traced, images[:1].to(next(model.parameters(), images))))
    feeds = _feeding(traced.graph, maps)
    for place in {*maps.values()}:
        traced.add_module(f"head_change_{place[0]}", _Change(change, place))
    for source in traced.graph.nodes:
        for user in list(source.users) if source in maps else ():
            if user not in maps and user not in feeds and user.op != "output":
                with traced.graph.inserting_before(user):
                    changed = traced.graph.call_module(f"head_change_{maps[source][0]}", (source,))
                user.replace_input_with(source, changed)
    traced.recompile()
    return traced.eval()


class _Change(nn.Module):
    """Applies a function to a map."""

    def __init__(self, change: Callable[[Tensor, Axes], Tensor], axes: Axes) -> None:
        super().__init__()
        self.change, self.axes = change, axes

    def forward(self, maps: Tensor) -> Tensor:
        return self.change(maps, self.axes).contiguous()


def _maps(values: Mapping[fx.Node, Any]) -> dict[fx.Node, Axes]:
    """Return the nodes whose values are maps of several positions that depend on the image, and the axes of their positions."""
    found: dict[fx.Node, Axes] = {}
    axes: dict[fx.Node, Axes] = {}
    for node, value in values.items():
        sources = [axes[other] for other in node.all_input_nodes if other in axes]
        if node.op == "placeholder" or sources:
            order = axis_order(node)
            axes[node] = (1, 2) if order == (0, 2, 3, 1) else (2, 3) if order else next(iter(sources), (2, 3))
            if isinstance(value, Tensor) and value.ndim == 4 and sum(size > 1 for size in value.shape[1:]) > 1:
                found[node] = axes[node]
    return found


def _feeding(graph: fx.Graph, maps: Collection[fx.Node]) -> set[fx.Node]:
    """Return the nodes that a later map uses, also through others."""
    found: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if any(user in maps or user in found for user in node.users):
            found.add(node)
    return found
