"""Strided operators that are no convolution, pool or slicing: which are known, and names for all that a fix leaves alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope.graphs.geometry import Geometry, call_name
from shiftscope.graphs.maps import Value
from shiftscope.graphs.operators import Operators
from shiftscope.graphs.sites import Pair
from shiftscope.surgery.editor import Editor
from shiftscope.surgery.plan import Change, Surgery

__all__ = ["is_aligned", "name_the_rest", "strided_nodes"]

#: Operators that take every phase, or the first, wherever it is: they follow a map whose chosen phase comes first.
ALIGNED = Operators(
    modules=(nn.PixelUnshuffle,),
    functions=frozenset({functional.pixel_unshuffle, torch.pixel_unshuffle}),
    methods=frozenset(),
)
#: Ways to interpolate that, at a whole step, read between the positions of each step only.
INSIDE = ("nearest", "nearest-exact", "area", "bilinear")


def is_aligned(editor: Editor, node: fx.Node) -> bool:
    """Return whether an operator that subsamples takes a map apart into squares of its stride, whatever it does with each.

    Then it follows a map whose chosen phase comes first.
    """
    part: Any = editor.part(node)
    if isinstance(part, nn.Upsample):
        return part.mode in INSIDE and not part.align_corners
    if node.target is functional.interpolate:
        places = dict(zip(("size", "scale_factor", "mode", "align_corners"), node.args[1:], strict=False)) | dict(node.kwargs)
        return places.get("mode", "nearest") in INSIDE and not places.get("align_corners") and not places.get("antialias")
    return ALIGNED.match(node, part)


def strided_nodes(editor: Editor, geometry: Geometry, values: Mapping[fx.Node, Value]) -> dict[fx.Node, Pair]:
    """Return every node that subsamples, by the strides or by the sizes of the maps, and its stride."""
    strides, counts = {each.name: each.stride for each in geometry.subsamplings}, dict[str, int]()
    found = {}
    for node in editor.graph.nodes:
        if node in values:
            name = _call(node, counts)
            if name in strides:
                found[node] = strides[name]
    return found


def name_the_rest(geometry: Geometry, surgery: Surgery, why: str) -> Surgery:
    """Return a result with a line for every operator that subsamples and that no line names, as one that stays as it is.

    Args:
        geometry: what was read from the graph before any edit.
        surgery: the result.
        why: such an operator stays.
    """
    rest = {change.layer: change for change in surgery.changes}
    for each in geometry.subsamplings:
        layer = each.name.partition(", call ")[0]
        if not each.polyphase:
            rest.setdefault(layer, Change(layer, each.title, "", why))
    for name, kind in geometry.fixed:
        layer = name.partition(", call ")[0]
        rest.setdefault(layer, Change(layer, kind, "", "unsupported: it resizes its map to a given size, or by no whole number"))
    return replace(surgery, changes=(*surgery.changes, *list(rest.values())[len({each.layer for each in surgery.changes}) :]))


def _call(node: fx.Node, counts: dict[str, int]) -> str:
    """Return a node's name in :class:`Geometry`."""
    if node.op != "call_module":
        return node.name
    name = str(node.target)
    counts[name] = counts.get(name, -1) + 1
    return call_name(name, counts[name])
