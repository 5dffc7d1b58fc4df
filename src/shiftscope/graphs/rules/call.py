"""The call of an operator that a rule receives, and helpers on axes that several rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from shiftscope.graphs.symmetry import Axis, Factor, Symmetry, joined, merged, moves, same, unified

__all__ = [
    "Call",
    "Note",
    "Rule",
    "UnknownError",
    "broadcast",
    "per_axis",
    "plus",
    "reduced",
    "require_still",
    "single_factor",
    "unify",
]


class UnknownError(Exception):
    """It is not known what an operator does to positions; ``weighs`` says that it has a weight for each of them."""

    def __init__(self, *, weighs: bool = False) -> None:
        super().__init__()
        self.weighs = weighs


#: Called with what happens to positions: ``stride``, ``misfit``, or a padding mode.
Note = Callable[[str], None]


@dataclass(frozen=True)
class Call:
    """A call of an operator.

    Attributes:
        given: its arguments by name, defaults included.
        results: the tensors that it returned.
        of: returns the symmetry of a tensor.
        note: see :data:`Note`.
    """

    given: dict[str, Any]
    results: Sequence[Tensor]
    of: Callable[[Tensor], Symmetry]
    note: Note

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [each for each in tree_leaves(self.given) if isinstance(each, Tensor)]

    @property
    def first(self) -> Symmetry:
        """The symmetry of the first tensor."""
        return self.of(self.tensors[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first result."""
        return tuple(self.results[0].shape)

    def place(self, name: str = "dim", default: int = 0) -> int:
        """Return the axis of the first tensor that an argument names, counted from the front."""
        given = self.given.get(name)
        return (default if given is None else int(given)) % len(self.first.axes)

    def places(self, name: str = "dim") -> list[int]:
        """Return the axes of the first tensor that an argument names, counted from the front; all where it names none."""
        count, given = len(self.first.axes), self[name]
        if given is None or given == []:
            return list(range(count))
        return [each % max(count, 1) for each in (given if isinstance(given, list | tuple) else [given])]


Rule = Callable[[Call], "Symmetry | list[Symmetry | None]"]


def single_factor(axis: Axis) -> Factor:
    """Return the only factor of an axis that moves as a whole."""
    part = merged(axis[0]) if len(axis) == 1 else ()
    if len(part) != 1:
        raise UnknownError
    return part[0]


def require_still(axis: Axis) -> None:
    """Raise UnknownError if shifts move an axis."""
    if moves(axis):
        raise UnknownError


def broadcast(symmetries: Sequence[Symmetry], count: int) -> list[Axis]:
    """Return the axes of tensors combined value by value."""
    axes: list[Axis] = [same(1)] * count
    for each in symmetries:
        for place, axis in enumerate(each.axes, start=count - len(each.axes)):
            axes[place] = unify(axes[place], axis)
    return axes


def unify(one: Axis, other: Axis) -> Axis:
    """Return the axis of two tensors combined value by value."""
    found = unified(one, other)
    if found is None:
        raise UnknownError
    return found


def plus(one: Symmetry, other: Symmetry) -> Symmetry:
    """Return the symmetry of two tensors combined value by value."""
    return joined([one, other]).with_axes(broadcast([one, other], max(len(one.axes), len(other.axes))))


def reduced(found: Symmetry, places: Iterable[int], note: Note) -> Symmetry:
    """Return the symmetry after an operator that treats all positions of some axes alike, such as a sum; the axes stay."""
    for place in places:
        for factor in (factor for part in found.axes[place] for factor in part if factor.moves):
            if found.circular and not found.goes_around(factor):
                note("misfit")
                found = found.leaking()
    return found


def per_axis(given: Any, count: int, default: int = 0) -> list[int]:
    """Return one number for each axis."""
    if given is None or given == []:
        return [default] * count
    listed = [int(each) for each in given] if isinstance(given, list | tuple) else [int(given)]
    return listed * count if len(listed) == 1 else listed
