"""What a model's graph says of its maps: how far apart their positions lie in the image, and how much of it each one sees.

Every value on the way from the image to the head gets a *factor* (the product of the strides so far, pixels between neighbouring
positions) and a *field* (the receptive field: height and width, pixels, that a position sees). Where branches meet, the larger
of both counts. An operator that this module does not know is taken to leave them alone, and is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from shiftscope import layers
from shiftscope.graphs.positions import (
    BORDERS,
    Head,
    Layout,
    border_of,
    fits,
    head_kind,
    is_about_maps,
    is_still,
    order_of,
    sliced,
)
from shiftscope.layers.polyphase import PolyphaseSampling, TakePhase
from shiftscope.surgery.editor import Editor, Pair, Site

__all__ = ["Geometry", "Head", "Place", "Subsampling", "as_maps", "call_name", "geometry_of", "placed", "shape_of"]

POLYPHASE = (PolyphaseSampling, TakePhase)
BLURS = (layers.BlurPool2d, layers.MaxBlurPool2d)


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
            if not sources or node.op == "output" or is_about_maps(node):
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
        part, head = self.editor.part(node), head_kind(self.editor, node, place.layout)
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
        if (order := order_of(node)) is not None:
            return replace(place, layout="channels last" if order == (0, 2, 3, 1) else "channels first")
        if (border := border_of(node, part)) is not None:
            self.borders[name] = border
        elif not is_still(self.editor, node, place.layout):
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
        if not same and not fits(self.editor, site):
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
        take: Any = part.take if isinstance(part, PolyphaseSampling) else part
        stride: Pair = take.stride
        self.subsamplings.append(Subsampling(name, f"polyphase sampling, stride {stride[0]}", stride, polyphase=True))
        reach = [len(taps) - 1 for taps in take.filter.taps]
        return _moved(place, (reach[0], reach[1]), stride)

    def _sliced(self, node: fx.Node, name: str, place: Place) -> Place:
        steps = [each.step or 1 if isinstance(each, slice) else 1 for each in sliced(node)]
        down, right = (*steps, 1, 1, 1, 1)[2:4]
        stride = (int(down), int(right))
        self.subsamplings.append(Subsampling(name, f"slicing, stride {stride[0]}", stride, polyphase=False))
        return _moved(place, (0, 0), stride)

    def _head(self) -> tuple[Place, Head, str]:
        """The last place where positions are taken away (gates do so for a factor only), or one that keeps them apart."""
        spatial = [place for place in self.found.values() if place.positions]
        if self.heads:
            node, kind, place = next((head for head in self.heads if head[1] == "flatten"), self.heads[-1])
            return place, kind, node.name if node.op != "call_module" else str(node.target)
        return spatial[-1] if spatial else Place(), "other", ""


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


def _two(value: Any) -> Iterator[int]:
    yield from (value, value) if isinstance(value, int) else value


def as_maps(value: Any, place: Place) -> Tensor:
    """[image, channel, height, width]; a vector has one position."""
    if not isinstance(value, Tensor):
        return torch.empty(0, 0, 0, 0)
    if value.ndim == 2:
        return value[:, :, None, None]
    return value.permute(0, 3, 1, 2) if place.layout == "channels last" else value


def shape_of(shape: tuple[int, ...], place: Place) -> tuple[int, int, int]:
    """Channels, height and width of maps of a shape, whichever way they lie."""
    return (shape[3], shape[1], shape[2]) if place.layout == "channels last" else (shape[1], shape[2], shape[3])


def placed(known: Place | None, shape: tuple[int, ...], size: Pair) -> Place | None:
    """Where the positions of a map lie: as the graph says, or by the map's size where it does not, or cannot be right."""
    if known is None or (not known.positions and shape[2] * shape[3] > 1):
        return _by_size(shape, size)
    if not known.positions:
        return known
    channels, height, width = shape_of(shape, known)
    if _agrees(known, (height, width), size):
        return known
    found = _by_size((1, channels, height, width), size)  # behind an operator that the graph does not explain
    return None if found is None else replace(found, layout=known.layout)


def _agrees(place: Place, found: Pair, size: Pair) -> bool:
    """Whether a map is as large as its factor says: no smaller than without padding, no larger than with as much as it sees."""
    each = zip(found, size, place.factor, place.field, strict=True)
    return all((whole - seen) // step + 1 <= part <= (whole + seen) // step + 1 for part, whole, step, seen in each)


def _by_size(shape: tuple[int, ...], size: Pair) -> Place | None:
    """Where positions lie, as far as the map's size tells; None where height and width do not shrink alike."""
    tall, wide = (whole / max(part, 1) for whole, part in zip(size, shape[2:4], strict=True))
    apart = 1.0 if size[0] == size[1] else 1.5
    if max(tall, wide) > apart * min(tall, wide):
        return None
    return Place((max(1, round(tall)), max(1, round(wide))))
