"""What a model's graph says of its maps: how far apart their positions lie in the image, and how much of it each one sees.

Every value on the way from the image to the head gets a *factor* (the product of the strides so far, pixels between neighbouring
positions) and a *field* (the receptive field: height and width, pixels, that a position sees). Where branches meet, the larger
of both counts. An operator that this module does not know is taken to leave them alone, and is named.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional

from shiftscope import layers
from shiftscope.graphs import (
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
from shiftscope.layers.polyphase import NormChoice, PhaseLogits, TakePhase
from shiftscope.surgery.graph import Editor, Pair, Site

__all__ = ["Geometry", "Head", "Place", "Subsampling", "call_name", "geometry_of"]

Head = Literal["flatten", "gap", "other"]
Layout = Literal["channels first", "channels last"]

#: Norms whose statistics are fixed or taken over channels or over the whole map: none sees a position.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)
#: Layers that only pad, and how they continue a map.
PADS: dict[type[nn.Module], str] = {
    nn.ZeroPad2d: "zeros",
    nn.ConstantPad2d: "zeros",
    nn.CircularPad2d: "circular",
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
}
BORDERS = {"constant": "zeros", "zero": "zeros", "circular": "circular", "reflect": "reflect", "replicate": "replicate"}
POLYPHASE = (layers.AdaptivePolyphaseSampling, layers.LearnedPolyphaseSampling, TakePhase)
BLURS = (layers.BlurPool2d, layers.MaxBlurPool2d)
OTHERS = (nn.PReLU, layers.AliasFreeActivation, NormChoice, PhaseLogits, nn.Linear)
#: To several positions they leave maps of the size that a model was made for as they are.
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
    *MEAN_FUNCTIONS,
    torch.cat,
    functional.pad,
    functional.layer_norm,
    functional.batch_norm,
    functional.group_norm,
    functional.normalize,
    operator.getitem,
    operator.neg,
    getattr,
)
STILL_METHODS = (*IDLE_METHODS, *POINTWISE_METHODS, "add", "sub", "mul", "div", "add_", "mul_", "size", "to", "type")


@dataclass(frozen=True)
class Place:
    """Where the positions of a value lie.

    Attributes:
        factor: pixels between neighbouring positions, along height and width.
        field: pixels that a position sees, along height and width.
        layout: where the channels are.
        positions: whether there are any left.
    """

    factor: Pair = (1, 1)
    field: Pair = (1, 1)
    layout: Layout = "channels first"
    positions: bool = True


@dataclass(frozen=True)
class Subsampling:
    """An operator that keeps a part of the positions.

    Attributes:
        name: of its call.
        title: what it is, in a few words.
        stride: positions along height and width of which it keeps one.
        polyphase: whether it chooses which by the map itself.
    """

    name: str
    title: str
    stride: Pair
    polyphase: bool


@dataclass(frozen=True)
class Geometry:
    """What the graph says.

    Attributes:
        places: of each call of a module, by :func:`call_name`; of a module with a graph inside, by its own name.
        last: the map that the head gets.
        subsamplings: in the order of the graph.
        borders: name -> how a layer that reads beyond the border continues its map (``zeros``, ``circular``, ...).
        unfitting: names of layers that read inside their map only, or pad more than they read, so that not each of its positions,
            continued at its other end, would be met by the same windows.
        head: what takes the positions away.
        head_name: its name in the graph; empty where nothing does.
        unknown: names and kinds of operators on maps that are not known here.
    """

    places: dict[str, Place]
    last: Place
    subsamplings: tuple[Subsampling, ...]
    borders: dict[str, str]
    unfitting: tuple[str, ...]
    head: Head
    head_name: str
    unknown: tuple[str, ...]

    @property
    def factor(self) -> Pair:
        """Of the spatial part."""
        return self.last.factor


def call_name(layer: str, number: int) -> str:
    """The name of a layer's call in one pass: the layer's, and which call it is where there are several.

    >>> call_name("block.relu", 0), call_name("block.relu", 1)
    ('block.relu', 'block.relu, call 2')
    """
    return layer if number == 0 else f"{layer}, call {number + 1}"


def geometry_of(model: nn.Module) -> Geometry:
    """Read a model's graph.

    Args:
        model: whose graph ``torch.fx`` can trace.

    Raises:
        InputError: it cannot.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(36, 2))
    >>> found = geometry_of(model)
    >>> found.factor, found.last.field, found.head
    ((2, 2), (8, 8), 'flatten')
    """
    return _Walk(Editor(model, image=None, only=None, skip=())).geometry()


class _Walk:
    """One pass over the graph, in its order."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.sites = {site.node: site for site in editor.sites()}
        self.slices = set(editor.slices())
        self.found: dict[fx.Node, Place] = {}
        self.places: dict[str, Place] = {}
        self.wholes: dict[str, Place] = {}
        self.calls: Counter[str] = Counter()
        self.subsamplings: list[Subsampling] = []
        self.borders: dict[str, str] = {}
        self.unfitting: list[str] = []
        self.unknown: list[str] = []
        self.heads: list[tuple[fx.Node, Head, Place]] = []

    def geometry(self) -> Geometry:
        for node in self.editor.graph.nodes:
            name = self._name(node)
            if node.op == "placeholder":
                self.found[node] = Place()
                continue
            sources = [self.found[other] for other in node.all_input_nodes if other in self.found]
            if not sources or node.op == "output":
                continue
            place = self._after(node, name, _joined(sources))
            self.found[node] = place
            if node.op == "call_module":
                self.places[name] = place
            for inside, _ in node.meta.get("nn_module_stack", {}).values():
                self.wholes[inside] = place  # the last node inside is what the module gives
        last, head, head_name = self._head()
        unknown = tuple(dict.fromkeys(self.unknown))
        places, subsamplings = self.wholes | self.places, tuple(self.subsamplings)
        return Geometry(places, last, subsamplings, self.borders, tuple(self.unfitting), head, head_name, unknown)

    def _name(self, node: fx.Node) -> str:
        if node.op != "call_module":
            return node.name
        self.calls[str(node.target)] += 1
        return call_name(str(node.target), self.calls[str(node.target)] - 1)

    def _after(self, node: fx.Node, name: str, place: Place) -> Place:
        """Where the positions lie behind a node."""
        if not place.positions:
            return place
        part, head = self.editor.part(node), _head_kind(self.editor, node)
        if head is not None:
            self.heads.append((node, head, place))
            return replace(place, positions=False)
        if node in self.sites:
            return self._site(self.sites[node], name, place)
        if isinstance(part, BLURS):
            return self._blurred(part, name, place)
        if isinstance(part, POLYPHASE):
            return self._polyphase(part, name, place)
        if node in self.slices:
            return self._sliced(node, name, place)
        if (order := _order(node)) is not None:
            return replace(place, layout="channels last" if order == (0, 2, 3, 1) else "channels first")
        if (border := _border(node, part)) is not None:
            self.borders[name] = border
        elif not self._is_still(node, part):
            self.unknown.append(f"`{name}` ({type(part).__name__ if part is not None else 'function'})")
        return place

    def _site(self, site: Site, name: str, place: Place) -> Place:
        if any(site.padding):
            mode = site.module.padding_mode if isinstance(site.module, nn.Conv2d) else "zeros"
            # A pool pads with what never wins, or is averaged in: nothing that a shift of the image brings along.
            self.borders[name] = mode
        if site.is_strided:
            self.subsamplings.append(Subsampling(name, site.title, site.stride, polyphase=False))
        same = isinstance(site.module, nn.Conv2d) and site.module.padding == "same"
        if not same and not _fits(self.editor, site):
            self.unfitting.append(name)
        return _moved(place, site.reach, site.stride)

    def _blurred(self, part: layers.BlurPool2d | layers.MaxBlurPool2d, name: str, place: Place) -> Place:
        reach = [len(taps) - 1 for taps in part.filter.taps]
        if isinstance(part, layers.MaxBlurPool2d):
            windows = zip(_two(part.kernel_size), _two(part.dilation), strict=True)
            reach = [extra + step * (size - 1) for extra, (size, step) in zip(reach, windows, strict=True)]
        stride = (part.filter.stride[0], part.filter.stride[1])
        if part.filter.border == "valid" and any(reach):
            self.unfitting.append(name)
        elif any(reach):
            self.borders[name] = BORDERS[part.filter.border]
        if stride != (1, 1):
            self.subsamplings.append(Subsampling(name, f"filter, stride {stride[0]}", stride, polyphase=False))
        return _moved(place, (reach[0], reach[1]), stride)

    def _polyphase(self, part: nn.Module, name: str, place: Place) -> Place:
        take: Any = part.take if isinstance(part, layers.AdaptivePolyphaseSampling) else part
        stride: Pair = take.stride
        self.subsamplings.append(Subsampling(name, f"polyphase sampling, stride {stride[0]}", stride, polyphase=True))
        reach = [len(taps) - 1 for taps in take.filter.taps]
        return _moved(place, (reach[0], reach[1]), stride)

    def _sliced(self, node: fx.Node, name: str, place: Place) -> Place:
        parts: Any = node.args[1]
        steps = [each.step or 1 if isinstance(each, slice) else 1 for each in parts][2:4]
        stride = (int(steps[0]), int(steps[1]) if len(steps) > 1 else 1)
        self.subsamplings.append(Subsampling(name, f"slicing, stride {stride[0]}", stride, polyphase=False))
        return _moved(place, (0, 0), stride)

    def _is_still(self, node: fx.Node, part: nn.Module | None) -> bool:
        """Whether a node acts on each position alone, or at least leaves factor and field as they are."""
        if part is not None:
            known = (
                *POINTWISE_MODULES,
                *IDLE_MODULES,
                *NORMS,
                *MEANS,
                nn.PReLU,
                layers.AliasFreeActivation,
                NormChoice,
                PhaseLogits,
            )
            return isinstance(part, (*known, nn.Linear))
        if getattr(node.target, "__name__", "") == "stochastic_depth":  # torchvision's; idle in evaluation
            return True
        return node.target in (STILL if node.op == "call_function" else STILL_METHODS)

    def _head(self) -> tuple[Place, Head, str]:
        """The last place where positions are taken away for good: gates take them away for a factor only."""
        spatial = [place for place in self.found.values() if place.positions]
        for node, kind, place in reversed(self.heads):
            return place, kind, node.name if node.op != "call_module" else str(node.target)
        return spatial[-1] if spatial else Place(), "other", ""


def _fits(editor: Editor, site: Site) -> bool:
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
    padded = (up + down + 2 * site.padding[0], left + right + 2 * site.padding[1])
    return all(1 - step <= pad - reach <= 0 for pad, reach, step in zip(padded, site.reach, site.stride, strict=True))


def _border(node: fx.Node, part: nn.Module | None) -> str | None:
    """How a pad of its own continues a map; None where a node is none."""
    if node.target is functional.pad:
        return BORDERS[str(node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant"))]
    return next((border for kind, border in PADS.items() if isinstance(part, kind)), None)


def _joined(places: list[Place]) -> Place:
    """Where branches meet."""
    spatial = [place for place in places if place.positions] or places
    pairs = [(place.factor, place.field) for place in spatial]
    factor = (max(each[0][0] for each in pairs), max(each[0][1] for each in pairs))
    field = (max(each[1][0] for each in pairs), max(each[1][1] for each in pairs))
    return Place(factor, field, spatial[0].layout, spatial[0].positions)


def _moved(place: Place, reach: Pair, stride: Pair) -> Place:
    """Behind a window that reaches so far beyond its first position, and keeps one of so many."""
    field = (place.field[0] + reach[0] * place.factor[0], place.field[1] + reach[1] * place.factor[1])
    return replace(place, factor=(place.factor[0] * stride[0], place.factor[1] * stride[1]), field=field)


def _head_kind(editor: Editor, node: fx.Node) -> Head | None:
    """How a node takes positions away; None where it does not."""
    part = editor.part(node)
    if isinstance(part, MEANS) or node.target in MEAN_FUNCTIONS:
        size = part.output_size if part is not None else next(iter([*node.args[1:], *node.kwargs.values()]), 1)
        return "gap" if size in (1, (1, 1), [1, 1]) else None
    if isinstance(part, nn.Flatten) or node.target in (torch.flatten, "flatten", "view", "reshape"):
        return "flatten" if _is_flattening(node, part) else None
    if node.target in (torch.mean, "mean", torch.amax, "amax"):
        return "gap" if _axes(node) in ({-1, -2}, {2, 3}, {1, 2}) else None
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


def _order(node: fx.Node) -> tuple[int, ...] | None:
    """The order of axes that a node makes, where it reorders."""
    if node.target not in (torch.permute, "permute"):
        return None
    given: Any = node.args[1] if len(node.args) == 2 else node.args[1:]
    order = tuple(given) if isinstance(given, list | tuple) else ()
    return order if order in ((0, 2, 3, 1), (0, 3, 1, 2)) else None


def _two(value: Any) -> Iterator[int]:
    yield from (value, value) if isinstance(value, int) else value
