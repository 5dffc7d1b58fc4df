"""Read from a model's graph how far apart the positions of its maps lie in the image, and how much of it each position sees.

Every value between the image and the head has a *factor* (the product of the strides so far: pixels between neighbouring
positions) and a *receptive field* (height and width of what a position sees, pixels). Where branches meet, the larger of both
counts. An operator that is not known here is taken to keep both, and is listed in :attr:`Geometry.unknown`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from shiftscope import layers
from shiftscope.errors import UntraceableError
from shiftscope.graphs.positions import (
    BORDERS,
    Head,
    Layout,
    axis_order,
    border_of,
    head_kind,
    is_metadata,
    is_stationary,
    pads_to_fit,
    slices_of,
)
from shiftscope.graphs.sites import Pair, Site, TracedModel, pair
from shiftscope.layers.polyphase import PolyphaseSampling, TakePhase

__all__ = ["Geometry", "MapGeometry", "Reading", "Subsampling", "call_name", "geometry_of", "read_geometry"]


@dataclass(frozen=True)
class MapGeometry:
    """Where the positions of one map lie in the image.

    Attributes:
        factor: pixels between neighbouring positions, along height and width.
        receptive_field: height and width of what a position sees, pixels.
        layout: which axis holds the channels.
        has_positions: whether it is still a map; False after a head or a gate has averaged or flattened it.
    """

    factor: Pair = (1, 1)
    receptive_field: Pair = (1, 1)
    layout: Layout = "channels first"
    has_positions: bool = True


@dataclass(frozen=True)
class Subsampling:
    """An operator that keeps a part of the positions.

    Attributes:
        name: the name of its call.
        title: what it is, in a few words.
        stride: of how many positions it keeps one, along height and width.
        polyphase: whether the map itself decides which positions are kept (polyphase sampling).
    """

    name: str
    title: str
    stride: Pair
    polyphase: bool


@dataclass(frozen=True)
class Geometry:
    """What a model's graph says about its maps.

    Attributes:
        maps: the geometry of each module's output, by :func:`call_name`; of a module with a graph inside, by its own name.
        last: the geometry of the map that the head receives.
        subsamplings: in the order of the graph.
        borders: name -> padding mode of each layer that reads beyond the border (``zeros``, ``circular``, ...).
        misfits: names of layers that do not pad by what their window reads, so that circular padding of the same width would not
            give every position the same windows.
        head: how the positions are taken away: ``flatten``, ``gap`` (a mean over positions) or ``other``.
        head_name: name of the head in the graph; empty where there is none.
        unknown: names and types of operators on maps that are not known here.
    """

    maps: dict[str, MapGeometry]
    last: MapGeometry
    subsamplings: tuple[Subsampling, ...]
    borders: dict[str, str]
    misfits: tuple[str, ...]
    head: Head
    head_name: str
    unknown: tuple[str, ...]

    @property
    def factor(self) -> Pair:
        """Subsampling factor of all layers before the head, along height and width."""
        return self.last.factor


def call_name(layer: str, number: int) -> str:
    """Return the name of a layer's call in a forward pass: the layer's name, and the number of the call after the first.

    Args:
        layer: the module's name.
        number: of its calls in one pass, counted from 0.

    >>> call_name("block.relu", 0), call_name("block.relu", 1)
    ('block.relu', 'block.relu, call 2')
    """
    return layer if number == 0 else f"{layer}, call {number + 1}"


def geometry_of(model: nn.Module, image: tuple[int, int, int] | None = None) -> Geometry:
    """Read strides, receptive fields, borders and head from a model's graph.

    Args:
        model: a model that ``torch.fx`` can trace. It is not changed.
        image: (channels, height, width) of its input, to compare the graph's outputs with the model's.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model, or its graph gives other outputs.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(36, 2))
    >>> found = geometry_of(model)
    >>> found.factor, found.last.receptive_field, found.head
    ((2, 2), (8, 8), 'flatten')
    """
    return _Reader(TracedModel(model, image)).geometry()


#: A model's geometry, or why its graph cannot be read.
Reading = Geometry | UntraceableError


def read_geometry(model: nn.Module, image: tuple[int, int, int] | None = None) -> Reading:
    """Return :func:`geometry_of` a model, or its error, for those who work without a graph too."""
    try:
        return geometry_of(model, image)
    except UntraceableError as error:
        return error


class _Reader:
    """Reads a graph once, node by node."""

    def __init__(self, traced: TracedModel) -> None:
        self.traced = traced
        self.sites = {site.node: site for site in traced.sites()}
        self.slices = set(traced.slices())
        self.values: dict[fx.Node, MapGeometry] = {}
        self.calls: dict[str, MapGeometry] = {}
        self.blocks: dict[str, MapGeometry] = {}
        self.counts: Counter[str] = Counter()
        self.subsamplings: list[Subsampling] = []
        self.borders: dict[str, str] = {}
        self.misfits: list[str] = []
        self.unknown: list[str] = []
        self.heads: list[tuple[fx.Node, Head, MapGeometry]] = []

    def geometry(self) -> Geometry:
        for node in self.traced.graph.nodes:
            self._read(node, self._name(node))
        last, head, head_name = self._head()
        return Geometry(
            maps=self.blocks | self.calls,
            last=last,
            subsamplings=tuple(self.subsamplings),
            borders=self.borders,
            misfits=tuple(self.misfits),
            head=head,
            head_name=head_name,
            unknown=tuple(dict.fromkeys(self.unknown)),
        )

    def _name(self, node: fx.Node) -> str:
        if node.op != "call_module":
            return node.name
        self.counts[str(node.target)] += 1
        return call_name(str(node.target), self.counts[str(node.target)] - 1)

    def _read(self, node: fx.Node, name: str) -> None:
        if node.op == "placeholder":
            self.values[node] = MapGeometry()
            return
        sources = [self.values[other] for other in node.all_input_nodes if other in self.values]
        if not sources or node.op == "output" or is_metadata(node):
            return
        found = self.values[node] = self._after(node, name, _merged(sources))
        if node.op == "call_module":
            self.calls[name] = found
        for block, _ in node.meta.get("nn_module_stack", {}).values():
            self.blocks[block] = found  # the last node inside a block gives its output

    def _after(self, node: fx.Node, name: str, source: MapGeometry) -> MapGeometry:
        """Return the geometry of a node's value from that of its input, and note what the node does."""
        if not source.has_positions:
            return source
        part, head = self.traced.part(node), head_kind(self.traced, node, source.layout)
        if head is not None:
            self.heads.append((node, head, source))
            return replace(source, has_positions=False)
        if node in self.sites:
            return self._site(self.sites[node], name, source)
        if isinstance(part, layers.BlurPool2d | layers.MaxBlurPool2d):
            return self._blur(part, name, source)
        if isinstance(part, PolyphaseSampling | TakePhase):
            return self._polyphase(part, name, source)
        if node in self.slices:
            return self._slice(node, name, source)
        if (order := axis_order(node)) is not None:
            return replace(source, layout="channels last" if order == (0, 2, 3, 1) else "channels first")
        if (border := border_of(node, part)) is not None:
            self.borders[name] = border
        elif not is_stationary(self.traced, node, source.layout):
            self.unknown.append(f"`{name}` ({type(part).__name__ if part is not None else 'function'})")
        return source

    def _site(self, site: Site, name: str, source: MapGeometry) -> MapGeometry:
        if any(site.padding):
            # A pool pads with minus infinity, or zeros that it averages in; neither moves with the image.
            self.borders[name] = site.module.padding_mode if isinstance(site.module, nn.Conv2d) else "zeros"
        if not pads_to_fit(self.traced, site):
            self.misfits.append(name)
        return self._windowed(source, site.reach, site.stride, name, site.title)

    def _blur(self, part: layers.BlurPool2d | layers.MaxBlurPool2d, name: str, source: MapGeometry) -> MapGeometry:
        reach = [len(taps) - 1 for taps in part.filter.taps]
        if isinstance(part, layers.MaxBlurPool2d):
            windows = zip(pair(part.kernel_size), pair(part.dilation), strict=True)
            reach = [extra + step * (size - 1) for extra, (size, step) in zip(reach, windows, strict=True)]
        if any(reach) and part.filter.border == "valid":
            self.misfits.append(name)
        elif any(reach):
            self.borders[name] = BORDERS[part.filter.border]
        stride = pair(part.filter.stride)
        return self._windowed(source, pair(reach), stride, name, f"filter, stride {stride[0]}")

    def _polyphase(self, part: nn.Module, name: str, source: MapGeometry) -> MapGeometry:
        take: Any = part.take if isinstance(part, PolyphaseSampling) else part
        title, reach = f"polyphase sampling, stride {take.stride[0]}", [len(taps) - 1 for taps in take.filter.taps]
        return self._windowed(source, pair(reach), take.stride, name, title, polyphase=True)

    def _slice(self, node: fx.Node, name: str, source: MapGeometry) -> MapGeometry:
        steps = [each.step or 1 if isinstance(each, slice) else 1 for each in slices_of(node)]
        stride = pair((*steps, 1, 1, 1, 1)[2:4])
        return self._windowed(source, (0, 0), stride, name, f"slicing, stride {stride[0]}")

    def _windowed(
        self, source: MapGeometry, reach: Pair, stride: Pair, name: str, title: str, *, polyphase: bool = False
    ) -> MapGeometry:
        """Return the geometry after windows of a reach (positions from first to last) and a stride, and note a subsampling."""
        if stride != (1, 1) or polyphase:
            self.subsamplings.append(Subsampling(name, title, stride, polyphase))
        (tall, wide), (down, right) = source.receptive_field, source.factor
        field = (tall + reach[0] * down, wide + reach[1] * right)
        return replace(source, factor=(down * stride[0], right * stride[1]), receptive_field=field)

    def _head(self) -> tuple[MapGeometry, Head, str]:
        """Return the map before the head, the head's kind and its name.

        The head is the first node that flattens a map, else the last that averages over positions: earlier ones are gates.
        """
        if self.heads:
            node, kind, source = next((head for head in self.heads if head[1] == "flatten"), self.heads[-1])
            return source, kind, node.name if node.op != "call_module" else str(node.target)
        maps = [found for found in self.values.values() if found.has_positions]
        return maps[-1] if maps else MapGeometry(), "other", ""


def _merged(sources: list[MapGeometry]) -> MapGeometry:
    """Return the geometry where branches meet: the largest factor and receptive field of those that are maps."""
    maps = [source for source in sources if source.has_positions] or sources
    factor, field = (
        (max(height for height, _ in sizes), max(width for _, width in sizes))
        for sizes in ([each.factor for each in maps], [each.receptive_field for each in maps])
    )
    return replace(maps[0], factor=factor, receptive_field=field)
