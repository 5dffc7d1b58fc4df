"""Read the subsampling factor and the receptive field of every map from a model's graph.

Every value between the image and the head has a *factor* (pixels between neighbouring positions) and a *receptive field* (height
and width of what a position sees, pixels). Strides along the graph explain the factor, and the sizes of the maps in passes of the
model decide it (:mod:`shiftscope.graphs.maps`). Where branches meet, the larger receptive field counts. Operators without a rule
are listed in :attr:`Geometry.unknown`; after one, the receptive field is measured by the gradient of one position.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import lcm
from operator import le
from typing import Any, Literal

from torch import fx, nn

from shiftscope import layers
from shiftscope.errors import UntraceableError
from shiftscope.graphs.maps import Basis, MapGeometry, Sizes, Value, merged
from shiftscope.graphs.observed import extent_seen, observe
from shiftscope.graphs.operators import VOLUMES
from shiftscope.graphs.positions import (
    BORDERS,
    Head,
    axis_order,
    border_of,
    head_kind,
    is_metadata,
    is_stationary,
    pads_to_fit,
    slices_of,
)
from shiftscope.graphs.sites import Pair, Site, TracedModel, pair
from shiftscope.graphs.tracing import default_image
from shiftscope.layers.polyphase import PolyphaseSampling, TakePhase

#: Images grow by at most twice this many pixels a side when the sizes of maps are observed.
LARGEST_FACTOR = 64
#: Images grow by about this many pixels or more, so that rounding does not hide fractions.
SMALLEST_GROWTH = 16

__all__ = ["Geometry", "MapGeometry", "Reading", "Subsampling", "call_name", "geometry_of", "read_geometry", "read_graph"]


@dataclass(frozen=True)
class Subsampling:
    """An operator that keeps some of the positions.

    Attributes:
        name: the name of its call.
        title: what it is, in a few words.
        stride: along height and width; it keeps one of so many positions.
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
        misfits: names of layers whose padding does not match their window: with circular padding of the same width, positions
            would not all get the same windows.
        head: how positions are removed: ``flatten``, ``gap`` (a mean over positions) or ``other``.
        head_name: name of the head in the graph; empty if there is none.
        unknown: names and types of operators on maps that have no rule.
        lattice: pixels, down and across, of which every factor on the way to the outputs is a divisor.
        fixed: names and types of operators that resize a map to a fixed size, or by a factor that is not a whole number.
        field_basis: where the last map's receptive field comes from: the graph, or a gradient, which gives a lower bound.
    """

    maps: dict[str, MapGeometry]
    last: MapGeometry
    subsamplings: tuple[Subsampling, ...]
    borders: dict[str, str]
    misfits: tuple[str, ...]
    head: Head
    head_name: str
    unknown: tuple[str, ...]
    lattice: Pair = (1, 1)
    fixed: tuple[tuple[str, str], ...] = ()
    field_basis: Literal["graph", "gradient"] = "graph"

    @property
    def factor(self) -> Pair:
        """Subsampling factor of all layers before the head, along height and width; see :attr:`basis`."""
        return self.last.factor

    @property
    def basis(self) -> Basis:
        """Where the factor comes from."""
        return self.last.basis


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
        UntraceableError: ``torch.fx`` cannot trace the model, its graph gives other outputs, or its maps have a third axis.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(36, 2))
    >>> found = geometry_of(model)
    >>> found.factor, found.last.receptive_field, found.head
    ((2, 2), (8, 8), 'flatten')
    """
    traced = TracedModel(model, image)
    volumes = [str(node.target) for node in traced.graph.nodes if VOLUMES.match(node, traced.part(node))]
    if volumes:
        raise UntraceableError(f"Maps have a third axis, as of time or depth (`{volumes[0]}`), and such graphs are not read.")
    return read_graph(traced, model, image)[0]


def read_graph(
    traced: TracedModel, model: nn.Module, image: tuple[int, int, int] | None = None
) -> tuple[Geometry, dict[fx.Node, Value]]:
    """Read a graph, and also return the value of each of its nodes that depends on the images.

    Args:
        traced: the graph.
        model: the model that it was traced from; it is left as it was.
        image: (channels, height, width) of its input.
    """
    image = image or default_image(model)
    first = observe(model, traced.module, image)
    factor = _Reader(traced, Sizes([first])).geometry().factor
    # At least two positions more a side: a factor twice as large would give half as many, and one half as large twice as many.
    down, right = (min(step, LARGEST_FACTOR) * max(2, SMALLEST_GROWTH // step) for step in factor)
    second = observe(model, traced.module, (image[0], image[1] + down, image[2] + right))
    reader = _Reader(traced, Sizes([first, second]))
    return _with_extent(reader.geometry(), reader, model, image), reader.values


#: A model's geometry, or why its graph cannot be read.
Reading = Geometry | UntraceableError


def read_geometry(model: nn.Module, image: tuple[int, int, int] | None = None) -> Reading:
    """Return :func:`geometry_of` a model, or its error, for callers that can do without a graph."""
    try:
        return geometry_of(model, image)
    except UntraceableError as error:
        return error


class _Reader:
    """Reads a graph once, node by node."""

    def __init__(self, traced: TracedModel, sizes: Sizes) -> None:
        self.traced, self.sizes = traced, sizes
        self.sites = {site.node: site for site in traced.sites()}
        self.slices = set(traced.slices())
        self.values: dict[fx.Node, Value] = {}
        self.calls: dict[str, MapGeometry] = {}
        self.blocks: dict[str, MapGeometry] = {}
        self.counts: Counter[str] = Counter()
        self.subsamplings: list[Subsampling] = []
        self.borders: dict[str, str] = {}
        self.misfits: list[str] = []
        self.unknown: list[str] = []
        self.fixed: list[tuple[str, str]] = []
        self.heads: list[tuple[fx.Node, Head, fx.Node]] = []
        self.last: fx.Node | None = None

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
            lattice=self._lattice(),
            fixed=tuple(self.fixed),
        )

    def _name(self, node: fx.Node) -> str:
        if node.op != "call_module":
            return node.name
        self.counts[str(node.target)] += 1
        return call_name(str(node.target), self.counts[str(node.target)] - 1)

    def _read(self, node: fx.Node, name: str) -> None:
        if node.op == "placeholder":
            self.values[node] = self.sizes.placed(node, Value(MapGeometry()), known=True)
            return
        sources = [self.values[other] for other in node.all_input_nodes if other in self.values]
        if not sources or node.op == "output" or is_metadata(node):
            return
        value, unknown = merged(sources), len(self.unknown)
        after = replace(value, geometry=self._after(node, name, value))
        found = self.values[node] = self.sizes.placed(node, after, known=len(self.unknown) == unknown)
        self._note_resizing(node, name, value, found)
        if node.op == "call_module":
            self.calls[name] = found.geometry
        for block, _ in node.meta.get("nn_module_stack", {}).values():
            self.blocks[block] = found.geometry  # the last node inside a block gives its output

    def _note_resizing(self, node: fx.Node, name: str, before: Value, after: Value) -> None:
        """Record a subsampling that only the sizes of maps show, or a resizing by a factor that is not a whole number."""
        if self.sizes.is_resized(node, before, after):
            self.fixed.append((name, _kind(self.traced.part(node), node)))
        if after.geometry.basis != "sizes" or not before.maps or (self.subsamplings and self.subsamplings[-1].name == name):
            return
        smallest = min(each.geometry.factor for each in before.maps)
        steps = [new // old if new % old == 0 else 1 for new, old in zip(after.geometry.factor, smallest, strict=True)]
        if max(steps) > 1:
            title = f"{_kind(self.traced.part(node), node)}, keeps one of {steps[0]} positions"
            self.subsamplings.append(Subsampling(name, title, pair(steps), polyphase=False))

    def _after(self, node: fx.Node, name: str, value: Value) -> MapGeometry:
        """Return the geometry of a node's value from that of its input, and record what the node does."""
        source = value.geometry
        if not source.has_positions:
            return source
        part, head = self.traced.part(node), head_kind(self.traced, node, source.layout)
        if head is not None:
            self.heads.append((node, head, next(each for each in node.all_input_nodes if each in self.values)))
            return replace(source, has_positions=False)
        if node in self.sites:
            return self._site(self.sites[node], name, source)
        if isinstance(part, layers.BlurPool2d | layers.MaxBlurPool2d):
            return self._blur(part, name, source)
        if isinstance(part, PolyphaseSampling | TakePhase):
            return self._polyphase(part, name, source)
        if node in self.slices and self._has_axes(node, value):
            return self._slice(node, name, source)
        if (order := axis_order(node)) is not None:
            return replace(source, layout="channels last" if order == (0, 2, 3, 1) else "channels first")
        if (border := border_of(node, part, source.layout)) is not None:
            self.borders |= {name: border} if border else {}
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
        start = 1 if source.layout == "channels last" else 2
        stride = pair((*steps, 1, 1, 1, 1)[start : start + 2])
        return self._windowed(source, (0, 0), stride, name, f"slicing, stride {stride[0]}")

    def _has_axes(self, node: fx.Node, value: Value) -> bool:
        """Return whether height and width are axes of a value, as far as its size is known."""
        return value.geometry.layout != "tokens" and (bool(value.grids) or not self.sizes.has(node))

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
            node, kind, self.last = next((head for head in self.heads if head[1] == "flatten"), self.heads[-1])
            return self._trusted(self.last), kind, node.name if node.op != "call_module" else str(node.target)
        maps = [node for node, found in self.values.items() if found.geometry.has_positions]
        # A map that becomes a vector: by a mean over tokens, or by the choice of one.
        ends = [node for node in maps if self.values[node].grids and any(self._is_vector(user) for user in node.users)]
        placed = [node for node in maps if self.values[node].grids]
        self.last = next(reversed(ends or placed or maps), None)
        return (MapGeometry() if self.last is None else self._trusted(self.last)), "other", ""

    def _is_vector(self, node: fx.Node) -> bool:
        return node in self.values and not self.values[node].geometry.has_positions

    def _trusted(self, node: fx.Node) -> MapGeometry:
        """Return the geometry of a node's map, or of the map before a pool to a fixed size; ``unknown`` for other values."""
        value = self.values[node]
        if value.grids or not self.sizes.has(node):
            return value.geometry
        if len(value.candidates) == 1 and self.sizes.is_constant(node):
            return replace(value.geometry, basis=value.candidates[0].geometry.basis)
        return replace(value.geometry, basis="unknown")

    def _lattice(self) -> Pair:
        maps = [value.geometry for node, value in self.values.items() if value.grids or not self.sizes.has(node)]
        factors = [each.factor for each in maps if each.has_positions and each.basis != "unknown"] or [(1, 1)]
        return lcm(*(down for down, _ in factors)), lcm(*(right for _, right in factors))


def _kind(part: nn.Module | None, node: fx.Node) -> str:
    """Return the name of what a node calls."""
    return type(part).__name__ if part is not None else str(getattr(node.target, "__name__", node.target))


def _with_extent(found: Geometry, reader: _Reader, model: nn.Module, image: tuple[int, int, int]) -> Geometry:
    """Return a geometry with the receptive field that a gradient shows, if the graph gives none or a smaller one."""
    value = reader.values.get(reader.last) if reader.last is not None else None
    if value is None or reader.last is None or not value.grids:
        return found
    seen = extent_seen(model, reader.traced.module, image, reader.last, value.middle)
    field, gated = found.last.receptive_field, len(reader.heads) > 1  # a gate sees the complete map, which the field leaves out
    if seen is None or (not found.unknown and (gated or all(map(le, seen, field)))):
        return found
    return replace(found, last=replace(found.last, receptive_field=seen), field_basis="gradient")
