"""Find where a map's positions lie in the image, by the strides before it and the sizes that maps have in real passes.

Strides multiply along one path. Where paths meet, where attention reads a coarser map beside its tokens, and where a function
resizes, their product over the graph is not the spacing of the map. Two passes on images of different sizes show the spacing
itself: if the image grows by L pixels and the map by n positions, neighbouring positions lie L / n pixels apart. Where only one
size is possible (position embeddings), the map must have as many positions as the image has pixels over the factor, rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, isqrt
from typing import Literal

import torch
from torch import fx

from shiftscope.graphs.observed import BATCH, Pass
from shiftscope.graphs.positions import Layout
from shiftscope.graphs.sites import Pair

__all__ = ["Basis", "MapGeometry", "Sizes", "Value", "merged"]

#: Where a factor comes from: strides alone, strides that the sizes of the map agree with, sizes alone, or neither.
Basis = Literal["strides", "strides and sizes", "sizes", "unknown"]
TRANSPOSES = ("transpose", "permute", "swapaxes", torch.transpose, torch.permute, torch.swapaxes)
#: Most extra tokens (class, registers) beside those of a map's positions.
MOST_PREFIX = 8
#: Most pixels by which an unknown operator is assumed to enlarge a map's receptive field.
LARGEST_WINDOW = 16


@dataclass(frozen=True)
class MapGeometry:
    """Where the positions of one map lie in the image.

    Attributes:
        factor: pixels between neighbouring positions, along height and width.
        receptive_field: height and width of what a position sees, pixels.
        layout: which axis holds the channels; ``tokens`` are [image, position, channel].
        has_positions: whether it is still a map; False after a head or a gate has averaged or flattened it.
        basis: where the factor comes from; where ``unknown``, the factor is that of the strides and may be wrong.
    """

    factor: Pair = (1, 1)
    receptive_field: Pair = (1, 1)
    layout: Layout = "channels first"
    has_positions: bool = True
    basis: Basis = "strides"


@dataclass(frozen=True)
class Value:
    """The value of a node.

    Attributes:
        geometry: of the map, or of that from which it was computed.
        grids: (height, width) of the map in each pass, positions; empty if its axes are not known.
        prefix: number of tokens before those of the positions.
        candidates: the maps from which a value with unknown axes was computed.
    """

    geometry: MapGeometry
    grids: tuple[Pair, ...] = ()
    prefix: int = 0
    candidates: tuple[Value, ...] = ()

    @property
    def maps(self) -> tuple[Value, ...]:
        """The map itself, or those from which it was computed."""
        return (self,) if self.grids else self.candidates

    @property
    def middle(self) -> tuple[slice | int, ...]:
        """Index of the middle position, all images and channels."""
        high, wide = self.grids[0]
        if self.geometry.layout == "tokens":
            return slice(None), self.prefix + high // 2 * wide + wide // 2
        place = (high // 2, wide // 2)
        return (slice(None), *place) if self.geometry.layout == "channels last" else (slice(None), slice(None), *place)


def merged(values: Sequence[Value]) -> Value:
    """Merge the values of branches that meet: the largest factor and receptive field, before the merged map's size is read."""
    found = [value for value in values if value.geometry.has_positions] or list(values)
    first = max(found, key=lambda value: value.geometry.factor)
    fields = [value.geometry.receptive_field for value in found]
    field = (max(height for height, _ in fields), max(width for _, width in fields))
    maps = tuple(dict.fromkeys(each for value in found for each in value.maps))
    # Only sizes can decide between several factors.
    basis = first.geometry.basis if len({value.geometry.factor for value in found}) == 1 else "unknown"
    return replace(first, geometry=replace(first.geometry, receptive_field=field, basis=basis), candidates=maps)


class Sizes:
    """Sizes of all values in passes on images of one or two sizes."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self.passes = tuple(passes)

    def has(self, node: fx.Node) -> bool:
        """Return whether a node's size is known."""
        return any(node in each.shapes for each in self.passes)

    def is_constant(self, node: fx.Node) -> bool:
        """Return whether a node's value has the same shape in two passes, so its positions form no lattice on the image."""
        shapes = [each.shapes[node] for each in self.passes if node in each.shapes]
        return len(shapes) == 2 and shapes[0] == shapes[1]

    def is_resized(self, node: fx.Node, before: Value, after: Value) -> bool:
        """Return whether a node makes a map with as many channels, but of another size that lies on no lattice of the image."""
        shape = self.passes[0].shapes.get(node, ())
        if len(shape) != 4 or shape[2:] == (1, 1) or after.grids or not after.geometry.has_positions:
            return False  # no map, one value of all positions, or a map on a lattice
        if not before.grids or before.geometry.layout != "channels first":
            return False
        sources = [self.passes[0].shapes.get(each, ()) for each in node.all_input_nodes]
        return shape[2:] != before.grids[0] and any(shape[:2] == each[:2] for each in sources if len(each) == 4)

    def placed(self, node: fx.Node, value: Value, *, known: bool) -> Value:
        """Return a node's value with the factor that its size agrees with.

        Args:
            node: the node.
            value: what strides say of it.
            known: whether the reader knows what the node does, so that its axes are those that ``value`` says.
        """
        shapes = [each.shapes[node] for each in self.passes if node in each.shapes]
        if not shapes or not value.geometry.has_positions:
            return replace(value, grids=())
        if len(shapes[0]) < 3 and shapes[0][:1] == (BATCH,):
            return Value(replace(value.geometry, has_positions=False))
        for layout in _layouts(value.geometry.layout, len(shapes[0])):
            for like in (value, *value.candidates):
                if found := self._fit(shapes, value, like, layout, known=known):
                    return found
        if len(shapes[0]) == 3 and node.target in TRANSPOSES:
            return _not_laid_out(value)  # its second axis may be of channels
        return self._observed(shapes, value, known=known) or _not_laid_out(value)

    def _fit(self, shapes: list[tuple[int, ...]], value: Value, like: Value, layout: Layout, *, known: bool) -> Value | None:
        """Return the value as a map of this layout whose factor is that of another; None if sizes differ."""
        grids, prefix = _positions(shapes, layout, like)
        sources = {(each.geometry.factor, each.grids) for each in value.candidates}
        clear = known and like is value and len(grids) == 1 and len(sources) == 1 and bool(value.grids)
        without_padding = clear and self._plausible(value.geometry, value.geometry.factor, grids[0])
        same = like is not value and grids == like.grids[: len(grids)]  # as many positions as a map that was looked at before
        if not grids or not (same or without_padding or self._agrees(like.geometry.factor, grids)):
            return None
        basis: Basis = "sizes" if like.geometry.basis == "sizes" else "strides and sizes"
        geometry = replace(value.geometry, factor=like.geometry.factor, layout=layout, basis=basis)
        return Value(geometry, grids, prefix)

    def _observed(self, shapes: list[tuple[int, ...]], value: Value, *, known: bool) -> Value | None:
        """Return the value as a map whose factor follows from its size alone; None if it does not."""
        source = next(iter(value.candidates), value)
        layout, rank = source.geometry.layout, len(shapes[0])
        if (layout == "tokens") != (rank == 3):
            return None
        grids = self._token_grids(shapes, source.prefix) if rank == 3 else _positions(shapes, layout, value)[0]
        factor = self._factor(grids)
        if factor is not None and not known and not _proportional(factor, source.geometry.factor):
            factor = None  # axes of something else
        if factor is not None and rank == 3 and any(new % old for new, old in zip(factor, source.geometry.factor, strict=True)):
            factor = None  # tokens are merged, never split
        if factor is not None and rank == 4 and not self._plausible(value.geometry, factor, grids[0], LARGEST_WINDOW):
            factor = None  # a coincidence of rounding
        if not grids or (factor is None and not known):
            return None
        if factor is None:
            return Value(replace(value.geometry, basis="unknown"), grids, source.prefix)
        return Value(replace(value.geometry, factor=factor, layout=layout, basis="sizes"), grids, source.prefix)

    def _agrees(self, factor: Pair, grids: Sequence[Pair]) -> bool:
        return all(self._axis_agrees(axis, factor[axis], [grid[axis] for grid in grids]) for axis in (0, 1))

    def _axis_agrees(self, axis: int, factor: int, counts: list[int]) -> bool:
        sizes = [each.image[axis] for each in self.passes]
        if len(counts) == 1:
            return sizes[0] // factor <= counts[0] <= ceil(sizes[0] / factor)
        grown, more = sizes[1] - sizes[0], counts[1] - counts[0]
        return more == grown // factor if grown % factor == 0 else abs(more - grown / factor) < 1

    def _plausible(self, geometry: MapGeometry, factor: Pair, grid: Pair, more: int = 0) -> bool:
        """Return whether a map is as large as its factor allows: between no padding and padding by what a position sees.

        Args:
            geometry: with the receptive field.
            factor: of the map.
            grid: its height and width, positions.
            more: pixels that a position may see beyond its receptive field.
        """
        each = zip(self.passes[0].image, factor, geometry.receptive_field, grid, strict=True)
        return all((size - seen - more) // step < count <= (size + seen + more) // step + 1 for size, step, seen, count in each)

    def _factor(self, grids: Sequence[Pair]) -> Pair | None:
        """Return the factor that follows from a map's sizes; None if it is not a whole number."""
        found = [self._axis_factor(axis, [grid[axis] for grid in grids]) for axis in (0, 1)] if grids else [0]
        return (found[0], found[1]) if all(found) else None

    def _axis_factor(self, axis: int, counts: list[int]) -> int:
        sizes = [each.image[axis] for each in self.passes]
        if len(counts) == 1:
            return _ratio(sizes[0], counts[0])
        return _ratio(sizes[1] - sizes[0], counts[1] - counts[0])

    def _token_grids(self, shapes: list[tuple[int, ...]], prefix: int) -> tuple[Pair, ...]:
        """Return the grids of tokens that lie as far apart down as across; empty if there are none."""
        grids = []
        for shape, each in zip(shapes, self.passes, strict=False):
            pixels, count = each.image[0] * each.image[1], shape[1] - prefix
            step = isqrt(pixels // count) if count > 0 else 0
            if shape[0] != BATCH or not step or step * step * count != pixels or each.image[0] % step or each.image[1] % step:
                return ()
            grids.append((each.image[0] // step, each.image[1] // step))
        return tuple(grids)


def _not_laid_out(value: Value) -> Value:
    """Return a value with unknown axes; its factor is known if all maps that it was computed from share one."""
    factors = {each.geometry.factor for each in value.candidates}
    geometry = value.geometry if len(factors) <= 1 else replace(value.geometry, basis="unknown")
    return replace(value, grids=(), geometry=geometry)


def _layouts(layout: Layout, rank: int) -> Iterable[Layout]:
    """Return the layouts that a value of this rank may have, that of its source first."""
    if rank == 3:
        return ("tokens",)
    return ("channels last", "channels first") if layout == "channels last" else ("channels first", "channels last")


def _positions(shapes: list[tuple[int, ...]], layout: Layout, like: Value) -> tuple[tuple[Pair, ...], int]:
    """Return height and width in positions of each pass, and the number of tokens beside them; empty if they do not fit.

    Args:
        shapes: of the value, one for each pass.
        layout: where its positions are.
        like: a map; tokens must be as many as its positions.
    """
    if any(len(shape) != (3 if layout == "tokens" else 4) or shape[0] != BATCH for shape in shapes):
        return (), 0
    if layout != "tokens":
        return tuple((shape[1], shape[2]) if layout == "channels last" else (shape[2], shape[3]) for shape in shapes), 0
    beside = {shape[1] - high * wide for shape, (high, wide) in zip(shapes, like.grids, strict=False)}
    prefix = beside.pop() if len(beside) == 1 else -1
    return (like.grids[: len(shapes)], prefix) if 0 <= prefix <= MOST_PREFIX and not beside else ((), 0)


def _proportional(factor: Pair, other: Pair) -> bool:
    """Return whether a map is resized by the same factor along both axes."""
    return factor[0] * other[1] == factor[1] * other[0]


def _ratio(pixels: int, positions: int) -> int:
    """Return the pixels per position; 0 if that is not a whole number."""
    return pixels // positions if positions > 0 and pixels % positions == 0 else 0
