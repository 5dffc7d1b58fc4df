"""Which subsamplings of a graph must keep the same phase, and where an upsampling must undo one.

Each map carries its *path*: the subsamplings that it went through. Where maps of one size meet, their paths must have the same
strides, and their subsamplings are joined one by one. Attention reads maps of other sizes beside its own; they are not joined,
because it matters to no sum over positions in which order they come. A map that is upsampled leaves the last part of its path: it
lies on the finer map again, once it is rolled by the phases of that part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from shiftscope.errors import InputError
from shiftscope.graphs.maps import Value
from shiftscope.graphs.sites import Pair

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import DisjointSet

__all__ = ["Phases", "phases_of"]

Path = tuple[fx.Node, ...]


@dataclass(frozen=True)
class Phases:
    """Subsamplings that keep the same phase, and upsamplings that undo it.

    Attributes:
        groups: number of each subsampling's group.
        undone: upsampling node -> the subsamplings that it undoes, in the order of the graph.
    """

    groups: dict[fx.Node, int]
    undone: dict[fx.Node, Path]


def phases_of(
    graph: fx.Graph, values: Mapping[fx.Node, Value], strides: Mapping[fx.Node, Pair], managed: Iterable[fx.Node]
) -> Phases:
    """Follow the paths of all maps.

    Args:
        graph: the graph, edited or not.
        values: geometry of the values before any edit; nodes that an edit inserted have none.
        strides: of all nodes that subsample.
        managed: those of them that will keep a phase of their map.

    Raises:
        InputError: maps meet after different strides.
    """
    from scipy.cluster.hierarchy import DisjointSet  # takes longer to load than the rest of this package

    groups, undone = DisjointSet(managed), dict[fx.Node, Path]()
    paths: dict[fx.Node, tuple[Path, ...]] = {}
    for node in graph.nodes:
        value = values.get(node)
        if node.op == "output" or (value is not None and not value.geometry.has_positions):
            continue  # values without positions need not be aligned
        found = tuple(dict.fromkeys(path for source in node.all_input_nodes for path in paths.get(source, ())))
        if node.op == "placeholder":
            found = ((),)
        if node in strides:
            found = tuple((*path, node) for path in found)
        elif value is not None and value.grids and value.geometry.basis != "unknown" and found:
            found = (_on_map(node, value.geometry.factor, found, strides, groups, undone),)
        if found:
            paths[node] = found
    numbers = {node: number for number, group in enumerate(groups.subsets()) for node in group}
    return Phases(numbers, undone)


def _on_map(
    node: fx.Node,
    factor: Pair,
    paths: Sequence[Path],
    strides: Mapping[fx.Node, Pair],
    groups: DisjointSet,
    undone: dict[fx.Node, Path],
) -> Path:
    """Return the path of a map with a factor, from those of the maps that it was computed from; join what meets."""
    fitting = [path for path in paths if _product(path, strides) == factor]
    if not fitting:
        for path in paths:
            kept = next((path[:size] for size in range(len(path)) if _product(path[:size], strides) == factor), None)
            if kept is not None:
                undone[node] = path[len(kept) :]
                return kept
        fitting = list(paths)
    first, *others = fitting
    for other in others:
        if not any(each in groups for each in (*first, *other)):
            continue
        if [strides[each] for each in first] != [strides[each] for each in other]:
            ours, theirs = ([strides[each] for each in path] for path in (first, other))
            raise InputError(
                f"At `{node.name}` branches meet after different strides ({ours} and {theirs}), "
                "so that they cannot keep one phase.",
                "Leave one out with `skip`.",
            )
        for one, two in zip(first, other, strict=True):
            if one in groups and two in groups:
                groups.merge(one, two)
    return first


def _product(path: Path, strides: Mapping[fx.Node, Pair]) -> Pair:
    down, right = 1, 1
    for each in path:
        down, right = down * strides[each][0], right * strides[each][1]
    return down, right
