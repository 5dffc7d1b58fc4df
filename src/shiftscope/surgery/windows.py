"""Change the windows of a convolution, pool or slicing in a graph: no stride, circular borders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope.graphs.maps import Value
from shiftscope.graphs.positions import PADS
from shiftscope.graphs.sites import Pair, Site, arguments_of, pair
from shiftscope.layers.borders import WrappingPad2d
from shiftscope.surgery.editor import Editor

__all__ = ["make_windows_circular", "own_pad", "slice_sites", "surround", "unstride"]

#: Circular padding of a convolution's own must not be wider than its map; wider windows get a pad that wraps around.
NARROW = 1


def unstride(editor: Editor, site: Site) -> None:
    """Set a site's stride to 1."""
    if site.kind == "slice":
        _keep_all(editor, site)
    elif site.module is None:
        site.node.args, site.node.kwargs = site.node.args[:1], {**arguments_of(site.node), "stride": 1}
    else:
        layer: Any = site.module  # torch types the settings of pools as parameters
        layer.stride = (1, 1) if site.kind == "convolution" else 1


def make_windows_circular(editor: Editor, site: Site) -> tuple[fx.Node, bool]:
    """Let a site at stride 1 read a torus, so that its map keeps its size and every window is whole.

    Args:
        editor: the graph.
        site: a site whose stride is 1, or that keeps its stride and divides the sides of its map.

    Returns:
        the node of its result, and whether anything was changed.
    """
    if site.kind == "slice":
        return site.node, False
    if site.pads_itself:
        return surround(editor, site, WrappingPad2d), True
    if (pad := own_pad(editor, site)) is not None:
        return site.node, _widen(editor, site, pad)
    (high, wide), (up, side) = site.reach, site.padding
    (top, bottom), (left, right) = (min(up, high), max(high - up, 0)), (min(side, wide), max(wide - side, 0))
    fitting = (top + bottom, left + right) == (2 * up, 2 * side)
    if isinstance(site.module, nn.Conv2d) and site.module.padding_mode == "circular" and fitting:
        return site.node, False
    if not (top or bottom or left or right):
        _unpad(site)
        return site.node, False
    even = (top, left) == (bottom, right) == tuple(site.padding)
    if isinstance(site.module, nn.Conv2d) and even and max(site.padding) <= NARROW:
        site.module.padding_mode = "circular"
    else:
        editor.insert_before(site.node, WrappingPad2d((left, right, top, bottom)), "around")
        _unpad(site)
    return site.node, True


def own_pad(editor: Editor, site: Site) -> fx.Node | None:
    """Return the node that pads a site's map, where the model has one; what cuts a map off is no pad."""
    source = site.node.args[0] if site.node.args else None
    if not isinstance(source, fx.Node) or source not in editor.original.nodes:
        return None
    if not isinstance(editor.part(source), tuple(PADS)) and source.target is not functional.pad:
        return None
    return None if any(isinstance(each, int) and each < 0 for each in _margins(editor, source)) else source


def slice_sites(editor: Editor, values: Mapping[fx.Node, Value]) -> Iterator[Site]:
    """Yield the slicings of maps with channels first that take every n-th position, from the first or a later one on."""
    for node in editor.slices():
        source = node.args[0]
        value = values.get(source) if isinstance(source, fx.Node) else None
        if value is None or not value.grids or value.geometry.layout != "channels first" or _parts(node) is None:
            continue
        steps = [part.step or 1 for part in _parts(node) or ()]
        yield Site(node, node.name, "slice", (1, 1), (steps[0], steps[1]), (0, 0), (1, 1), None)


def _parts(node: fx.Node) -> tuple[slice, slice] | None:
    """Return the slices of height and width of a node that takes nothing else away; None for other nodes."""
    given: Any = node.args[1]
    parts = [*given] if isinstance(given, tuple) else [given]
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (5 - len(parts))
    parts += [slice(None)] * (4 - len(parts))
    if len(parts) != 4 or parts[:2] != [slice(None)] * 2 or not all(isinstance(part, slice) for part in parts):
        return None
    whole = all(part.stop is None and isinstance(part.start or 0, int) and (part.start or 0) >= 0 for part in parts[2:])
    return (parts[2], parts[3]) if whole and all(isinstance(part.step or 1, int) for part in parts[2:]) else None


def _keep_all(editor: Editor, site: Site) -> None:
    """Let a slicing keep every position, the one that it started at first."""
    down, right = (part.start or 0 for part in _parts(site.node) or ())
    source: Any = site.node.args[0]
    site.node.args = (source, (slice(None),) * 4)
    if down or right:
        with editor.graph.inserting_before(site.node):
            rolled = editor.graph.call_function(torch.roll, (source, (-down, -right), (2, 3)))
        site.node.args = (rolled, (slice(None),) * 4)


def surround(editor: Editor, site: Site, pad: type[nn.CircularPad2d] | type[nn.ZeroPad2d]) -> fx.Node:
    """Pad the map of a layer that pads itself on all sides, cut off what that adds afterwards, and return the node of the result.

    At stride 1 the layer reads r // 2 positions before each one, where r is its reach; with its own stride, ``site.padding``.
    """
    kept = pair(getattr(site.module, "stride", 1))
    wide = [-(-reach // step) * step for reach, step in zip(site.reach, kept, strict=True)]  # whole steps
    editor.insert_before(site.node, pad((wide[1], wide[1], wide[0], wide[0])), "around")

    def cut(axis: int) -> Pair:
        shift = site.reach[axis] // 2 - site.padding[axis] if kept[axis] == 1 else 0
        return -(wide[axis] // kept[axis] + shift), -(wide[axis] // kept[axis] - shift)

    return editor.insert_after(site.node, nn.ZeroPad2d((*cut(1), *cut(0))), "cut")


def _widen(editor: Editor, site: Site, pad: fx.Node) -> bool:
    """Let the pad before a site add as much as its windows read, if it serves no other layer; return whether that changed it."""
    part, (top, left) = editor.part(pad), _before(_margins(editor, pad), site)
    wanted = (left, site.reach[1] - left, top, site.reach[0] - top)
    if isinstance(part, nn.CircularPad2d) and tuple(part.padding) == wanted:
        return False
    source: Any = pad.args[0]
    with editor.graph.inserting_before(site.node):
        new = editor.graph.call_module(editor.add(pad, WrappingPad2d(wanted), "around"), (source,))
    site.node.replace_input_with(pad, new)
    return True


def _margins(editor: Editor, pad: fx.Node) -> tuple[Any, ...]:
    part = editor.part(pad)
    given: Any = vars(part)["padding"] if part is not None else pad.args[1] if len(pad.args) > 1 else pad.kwargs["pad"]
    return tuple(given) if isinstance(given, list | tuple) else (given,) * 4


def _before(margins: tuple[Any, ...], site: Site) -> Pair:
    """Return how many positions a pad adds above and to the left, at most as many as windows read.

    What code computes from the map is as much as is needed there, half of it before.
    """
    left, _, top, *_ = (*margins, 0, 0, 0, 0)
    found = []
    for margin, reach, step in zip((top, left), site.reach, site.stride, strict=True):
        needed = max(reach + 1 - step, 0) // 2
        found.append(min(max(margin, 0), reach) if isinstance(margin, int) else needed)
    return found[0], found[1]


def _unpad(site: Site) -> None:
    """Set a site's own padding to 0, and let no window of a pool extend beyond the border."""
    if isinstance(site.module, nn.Conv2d):
        site.module.padding, site.module.padding_mode = (0, 0), "zeros"
    elif site.module is not None:
        layer: Any = site.module  # torch types the settings of pools as parameters
        layer.ceil_mode = False
        if hasattr(layer, "padding"):
            layer.padding = 0
    elif site.kind == "convolution":
        site.node.args, site.node.kwargs = site.node.args[:1], {**arguments_of(site.node), "padding": 0}
    else:
        arguments = {**arguments_of(site.node), "padding": 0, "ceil_mode": False}
        site.node.args, site.node.kwargs = site.node.args[:1], arguments
