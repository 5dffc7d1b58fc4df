"""Track how circular shifts of the image move a tensor, through windows, sums and splits of its axes.

A shift (down, right) of the image is followed by a tensor if each of its axes is a product of *factors* of four kinds: ``same``
(values do not vary along it), ``fixed`` (they vary, and a shift moves nothing: channels, images, weights), and ``down`` or
``right`` (a shift by d pixels moves the values by d / step positions, around). Flattening a map joins factors, reshaping splits
them: of a factor of 14 positions in windows of 7, two windows move and the 7 positions inside are fixed, for shifts by whole
windows. So patches, windows, token sequences and channels-last maps need no rules of their own.

A tensor also has a *lattice*: the shifts, multiples of some number of pixels, for which this holds. ``circular`` says that it
holds on the torus; ``local`` that it holds while everything that differs from a constant background stays farther from every edge
than the receptive field, as after zero padding. After polyphase sampling the map itself decides how far
it moves: tensors of one *frame* move together, those of different frames do so only at multiples of their steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm, prod
from typing import Literal

from shiftscope.graphs.sites import Pair

__all__ = [
    "Axis",
    "Factor",
    "AxisKind",
    "Lost",
    "Symmetry",
    "Tracked",
    "constant",
    "fixed",
    "is_same",
    "joined",
    "length",
    "merged",
    "moves",
    "same",
    "unified",
]

AxisKind = Literal["same", "fixed", "down", "right"]


@dataclass(frozen=True)
class Factor:
    """A factor of an axis.

    Attributes:
        size: positions.
        kind: what a shift of the image does to it.
        step: pixels from one position to the next; negative where the axis is mirrored.
    """

    size: int
    kind: AxisKind
    step: Fraction = Fraction(1)

    @property
    def moves(self) -> bool:
        """Whether a shift moves its values."""
        return self.kind in ("down", "right")


#: Parts of an axis one after the other (tokens of a map behind a class token), each a product of factors, the outer one first.
Axis = tuple[tuple[Factor, ...], ...]


@dataclass(frozen=True)
class Lost:
    """Why it is not known how a tensor follows shifts.

    Attributes:
        reason: the layer and what it does.
        weighs: whether it is a sum with a weight for each position, in which no positions are left: a fully connected head.
    """

    reason: str
    weighs: bool = False


@dataclass(frozen=True)
class Symmetry:
    """How a tensor follows circular shifts of the image.

    Attributes:
        axes: of the tensor.
        extent: height and width of the image, pixels.
        lattice: pixels, down and right; it follows shifts by multiples of these.
        circular: whether it does so on the torus.
        local: whether it does so while everything that differs from a constant background stays away from the edges.
        reach: receptive field minus one, pixels.
        mirrored: how far from an edge content may lie, pixels, that a border shows again beyond it.
        frame: number of the polyphase sampling that decides how far it moves; 0 if the shift alone does. Where nothing moves, it
            is the phase itself that was chosen, and only taking that phase says anything about shifts.
        image: whether it depends on the image.
    """

    axes: tuple[Axis, ...]
    extent: Pair = (1, 1)
    lattice: Pair = (1, 1)
    circular: bool = True
    local: bool = True
    reach: tuple[Fraction, Fraction] = (Fraction(0), Fraction(0))
    mirrored: tuple[Fraction, Fraction] = (Fraction(0), Fraction(0))
    frame: int = 0
    image: bool = False

    @property
    def factors(self) -> list[Factor]:
        """All factors that move."""
        return [factor for axis in self.axes for part in axis for factor in part if factor.moves]

    def period(self, factor: Factor) -> Fraction:
        """Return after how many positions the values of a moving factor repeat on the torus."""
        return self.extent[factor.kind == "right"] / abs(factor.step)

    def goes_around(self, factor: Factor) -> bool:
        """Return whether a factor holds every position of the torus equally often."""
        return factor.size % self.period(factor) == 0

    def at_multiples(self, kind: AxisKind, step: Fraction) -> Symmetry:
        """Return the symmetry for shifts by multiples of a step, at which the shift alone decides how far the tensor moves."""
        found = self.in_image_frame()
        down, right = found.lattice
        pixels = abs(step).numerator
        return replace(found, lattice=(lcm(down, pixels), right) if kind == "down" else (down, lcm(right, pixels)))

    def in_image_frame(self) -> Symmetry:
        """Return the symmetry restricted to shifts at which polyphase sampling moves a map by the shift over the step."""
        if not self.frame:
            return self
        found = replace(self, frame=0)
        for factor in self.factors:
            found = found.at_multiples(factor.kind, factor.step)
        return found

    def leaking(self) -> Symmetry:
        """Return the symmetry after an operator that is not circular: one that pads with zeros, or counts positions twice."""
        return replace(self, circular=False, local=self.local and not self.frame)

    def widened(self, kind: AxisKind, positions: int, step: Fraction) -> Symmetry:
        """Return the symmetry with a larger receptive field."""
        down, right = self.reach
        extra = positions * abs(step)
        return replace(self, reach=(down + extra, right) if kind == "down" else (down, right + extra))

    def repeating(self, factor: Factor, positions: int) -> Symmetry:
        """Return the symmetry after a border of so many positions in all shows content again that lies inside."""
        axis = int(factor.kind == "right")
        far = max(self.mirrored[axis], self.reach[axis] + positions * abs(factor.step))
        return replace(self, mirrored=(far, self.mirrored[1]) if axis == 0 else (self.mirrored[0], far))

    def with_axis(self, place: int, axis: Axis) -> Symmetry:
        """Return the symmetry with the axis at ``place`` replaced."""
        return self.with_axes(axis if other == place % len(self.axes) else each for other, each in enumerate(self.axes))

    def without_axis(self, place: int) -> Symmetry:
        """Return the symmetry without the axis at ``place``."""
        return self.with_axes((*self.axes[:place], *self.axes[place + 1 :]))

    def with_axes(self, axes: Iterable[Axis]) -> Symmetry:
        """Return the symmetry with other axes; a map that loses its moving factors no longer depends on the frame."""
        found = replace(self, axes=tuple(axes))
        return found if found.factors or not self.factors else replace(found, frame=0)

    @property
    def is_phase(self) -> bool:
        """Whether it is a phase that polyphase sampling chose, which shifts change."""
        return bool(self.frame) and not self.factors


Tracked = Symmetry | Lost


def same(size: int) -> Axis:
    """Return an axis along which values do not vary."""
    return ((Factor(size, "same"),) if size != 1 else (),)


def fixed(size: int) -> Axis:
    """Return an axis whose values no shift moves."""
    return ((Factor(size, "fixed"),) if size != 1 else (),)


def constant(shape: Sequence[int], *, uniform: bool = False) -> Symmetry:
    """Return the symmetry of a tensor that does not depend on the image: of weights, or of one value everywhere."""
    return Symmetry(tuple((same if uniform else fixed)(size) for size in shape))


def length(axis: Axis) -> int:
    """Return the positions of an axis."""
    return sum(prod(factor.size for factor in part) for part in axis)


def moves(axis: Axis) -> bool:
    """Return whether a shift moves an axis."""
    return any(factor.moves for part in axis for factor in part)


def is_same(axis: Axis) -> bool:
    """Return whether values do not vary along an axis."""
    return len(axis) == 1 and all(factor.kind == "same" for factor in axis[0])


def joined(symmetries: Iterable[Symmetry]) -> Symmetry:
    """Return the symmetry that several tensors have in common, without axes.

    Raises:
        ValueError: one of them is a phase that polyphase sampling chose.
    """
    found = list(symmetries)
    if any(each.is_phase for each in found):
        raise ValueError("it is not known how values computed from a phase follow shifts")
    if len({each.frame for each in found if each.factors}) > 1:
        found = [each.in_image_frame() for each in found]
    return Symmetry(
        axes=(),
        extent=next((each.extent for each in found if each.image), (1, 1)),
        lattice=(lcm(*(each.lattice[0] for each in found)), lcm(*(each.lattice[1] for each in found))),
        circular=all(each.circular for each in found),
        local=all(each.local for each in found),
        reach=(
            max((each.reach[0] for each in found), default=Fraction(0)),
            max((e.reach[1] for e in found), default=Fraction(0)),
        ),
        mirrored=(
            max((each.mirrored[0] for each in found), default=Fraction(0)),
            max((each.mirrored[1] for each in found), default=Fraction(0)),
        ),
        frame=next((each.frame for each in found if each.factors), 0),
        image=any(each.image for each in found),
    )


def unified(one: Axis, other: Axis) -> Axis | None:
    """Return the axis of two tensors combined value by value; None if one moves against the other or against fixed values."""
    if is_same(one):
        return other
    if is_same(other):
        return one
    if len(one) != len(other):
        return None
    parts = [_unified_part(mine, theirs) for mine, theirs in zip(one, other, strict=True)]
    return None if None in parts else tuple(part for part in parts if part is not None)


def _unified_part(one: tuple[Factor, ...], other: tuple[Factor, ...]) -> tuple[Factor, ...] | None:
    if one == other:
        return one
    if [factor.size for factor in one] != [factor.size for factor in other]:
        one, other = merged(one), merged(other)
    if [factor.size for factor in one] != [factor.size for factor in other]:
        one, other = _refined(one, other), _refined(other, one)
        if [factor.size for factor in one] != [factor.size for factor in other]:
            return None
    found = []
    for mine, theirs in zip(one, other, strict=True):
        if mine != theirs and "same" not in (mine.kind, theirs.kind):
            return None
        found.append(theirs if mine.kind == "same" else mine)
    return tuple(found)


def merged(part: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """Join neighbouring factors: those of one kind, and a moving one with those inside it."""
    found: list[Factor] = []
    for factor in part:
        last = found[-1] if found else None
        if last is not None and last.kind == factor.kind and not factor.moves:
            found[-1] = Factor(last.size * factor.size, factor.kind)
        elif last is not None and last.moves and not factor.moves:
            found[-1] = Factor(last.size * factor.size, last.kind, last.step / factor.size)
        else:
            found.append(factor)
    return tuple(found)


def _refined(part: tuple[Factor, ...], like: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """Return the same factors, those that do not move split at the borders of the other's."""
    found: list[Factor] = []
    ends = {prod(factor.size for factor in like[:count]) for count in range(len(like) + 1)}
    before = 1
    for factor in part:
        inside = sorted(end for end in ends if before < end < before * factor.size and end % before == 0)
        if factor.moves or not inside:
            found.append(factor)
        else:
            bounds = [before, *inside, before * factor.size]
            found += [Factor(high // low, factor.kind) for low, high in itertools.pairwise(bounds)]
        before *= factor.size
    return tuple(found)
