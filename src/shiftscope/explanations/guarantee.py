"""What a model's operators guarantee about circular shifts, before anything is measured.

A shift of the image moves the last feature map with it (the layers before the head are *equivariant*) if every operator treats
all positions alike, no layer reads beyond a border that the shift does not move, and the shift is a multiple of the subsampling
factor; polyphase sampling removes the last condition. Outputs then stay the same (are *invariant*) if the head treats all
positions alike. The operators are those that run (:mod:`shiftscope.graphs.execution`), whatever the model's code looks like; each
sentence names the layers that it rests on, and one that random shifts of random images refute is withdrawn
(:mod:`shiftscope.explanations.verification`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import lcm
from typing import Literal

from torch import nn

from shiftscope.errors import UntraceableError
from shiftscope.explanations.verification import COUNTEREXAMPLE, Observed, observe, probe_shape
from shiftscope.graphs.geometry import Geometry, Reading, read_geometry
from shiftscope.graphs.maps import Basis
from shiftscope.graphs.naming import subject
from shiftscope.graphs.sites import Pair
from shiftscope.graphs.symmetry import Lost, Symmetry, Tracked

__all__ = ["Exactness", "Guarantee", "describe", "guarantee_of"]

HEADS = {"flatten": "a flattened map", "gap": "a mean over positions", "other": "of an unknown kind"}
#: Where a factor comes from, in words.
BASES: dict[Basis, str] = {
    "strides": "strides",
    "strides and sizes": "strides and the sizes of the maps",
    "sizes": "the sizes of the maps",
    "unknown": "",
}
Status = Literal["guaranteed", "possible", "impossible", "unknown"]


@dataclass(frozen=True)
class Exactness:
    """At which shifts the maps before the head move along exactly.

    Attributes:
        lattice: at multiples of so many pixels, down and right.
        circular: whether at circular shifts; else as long as everything that differs from a constant background stays farther
            from every edge than the receptive field.
        receptive_field: height and width of what a position of the last map sees, pixels.
    """

    lattice: Pair
    circular: bool
    receptive_field: Pair


@dataclass(frozen=True)
class Guarantee:
    """What follows from the operators that a model runs on images of one size.

    Attributes:
        status: of invariance to circular shifts by whole pixels: ``guaranteed`` for all of them, whatever the weights;
            ``possible`` where it holds for some shifts or some weights only, or cannot be shown; ``impossible`` where the head
            has a weight for every position; ``unknown`` where the model cannot be tried, or a run shows nothing.
        sentence: the reason.
        exact_at: at which shifts the layers before the head are exactly equivariant, in a sentence.
        geometry: strides, receptive fields, borders and head; None where the graph cannot be read.
        exact: the same as ``exact_at`` in numbers; None where it is not known.
    """

    status: Status
    sentence: str
    exact_at: str
    geometry: Geometry | None
    exact: Exactness | None = None


def guarantee_of(model: nn.Module, *, geometry: Reading | None = None, image: tuple[int, int, int] | None = None) -> Guarantee:
    """Return what is certain about a model under circular shifts of images of one size.

    Args:
        model: a model; copies of it are run.
        geometry: what :func:`shiftscope.graphs.geometry.read_geometry` returned for it; read here by default.
        image: (channels, height, width) of the images; by default eight positions of the last map a side.

    >>> convolution = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
    >>> guarantee_of(nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))).status
    'guaranteed'
    """
    geometry = read_geometry(model, image) if geometry is None else geometry
    graph = None if isinstance(geometry, UntraceableError) else geometry
    image = image or probe_shape(model, graph)
    found = observe(model, image)
    why = f"{geometry.problem} " if isinstance(geometry, UntraceableError) else ""
    if not found.run.outputs:
        return Guarantee("unknown", f"{why}Nothing is known about invariance: {found.problem}.", "", graph)
    (status, sentence), exact = _invariance(found, graph), _exactness(found)
    return Guarantee(status, why + sentence, _equivariance(found, exact, image), graph, exact)


def describe(geometry: Geometry) -> str:
    """Return factor, receptive field, borders and head in a sentence."""
    (down, right), (tall, wide) = geometry.factor, geometry.last.receptive_field
    factor = str(down) if down == right else f"{down} down, {right} across"
    factor = "unknown" if geometry.basis == "unknown" else f"{factor} ({BASES[geometry.basis]})"
    field = f"{'at least ' if geometry.field_basis == 'gradient' else ''}{tall}x{wide} pixels"
    kinds = Counter(geometry.borders.values())
    borders = ", ".join(f"{count} {_s(count, 'layer')} padded with {kind}" for kind, count in sorted(kinds.items()))
    return (
        f"The graph: subsampling factor {factor}, receptive field {field}, {borders or 'no padding'}; the head is "
        f"{HEADS[geometry.head]}."
    )


def _invariance(found: Observed, geometry: Geometry | None) -> tuple[Status, str]:
    outputs = found.run.outputs
    sure = found.change is not None and found.change > COUNTEREXAMPLE and not found.problem
    if sure and any(isinstance(each, Lost) and each.weighs for each in outputs):
        flat = geometry is not None and geometry.head == "flatten" and geometry.head_name
        name = f"`{flat}`" if flat else next(each.reason for each in outputs if isinstance(each, Lost) and each.weighs)
        return "impossible", (
            f"Invariance is impossible: the head ({name}) flattens the map, so that a fully connected layer has "
            "a weight for every position, and a shift of the map changes the output unless all these weights are alike."
        )
    conditions = _conditions(found)
    if found.problem and geometry is None:
        return "unknown", f"Nothing is known about invariance: {conditions[0]}."
    if conditions:
        return "possible", f"Invariance is possible, not guaranteed: {'; '.join(conditions)}."
    steps = {name for name, what in found.run.notes if what == "polyphase"}
    samplings = "every subsampling follows the map (polyphase sampling)" if steps else "nothing is subsampled"
    return "guaranteed", (
        "Invariance is guaranteed for every circular shift by whole pixels: every map is circular, "
        f"{samplings}, and the head treats all positions alike."
    )


def _conditions(found: Observed) -> list[str]:
    """Return why invariance is not guaranteed; empty where it is."""
    if found.problem:
        return [f"{found.problem}, so that nothing can be concluded from a run"]
    outputs = found.run.outputs
    reasons = [*_strides(found), *_borders(found), *_unknown_layers(found)]
    if any(isinstance(each, Symmetry) and each.factors for each in outputs):
        reasons.insert(0, "the outputs are maps, and it is not known how the head uses positions")
    if any(isinstance(each, Lost) and each.weighs for each in outputs):
        reasons.append("the head has a weight for every position, yet no circular shift that was tried changes the outputs")
    if any(isinstance(each, Symmetry) and each.is_phase for each in outputs):
        reasons.insert(0, "an output is the phase that polyphase sampling chose, which shifts change")
    if all(map(_is_invariant, outputs)):
        return _refuted(found)
    return reasons or ["it is not known how its layers treat positions"]


def _is_invariant(output: Tracked) -> bool:
    """Return whether operators promise that no circular shift changes an output."""
    if isinstance(output, Lost) or output.factors or output.is_phase:
        return False
    return output.lattice == (1, 1) and output.circular


def _refuted(found: Observed) -> list[str]:
    """Return what random shifts showed against a guarantee."""
    if found.change is None:
        return ["that cannot be tried, because the outputs do not depend on the image"]
    if found.change > found.tolerance:
        return [
            f"its operators promise it, but circular shifts change the outputs (by {found.change:.1g} of the largest), so some "
            "layer does not do what its type says"
        ]
    return []


def _exactness(found: Observed) -> Exactness | None:
    """Return at which shifts every map before the head moves along; None where that is not known."""
    maps = found.run.maps
    doubtful = found.problem or any(not each.weighs for each in found.run.lost)
    reach = [max((each.reach[axis] for each in maps), default=0) for axis in (0, 1)]
    beyond = any(each.mirrored[axis] > reach[axis] for each in maps for axis in (0, 1))
    circular = all(each.circular for each in maps) and _ends_whole(found, maps)
    local = all(each.local for each in maps) and not beyond
    if doubtful or not (circular or local):
        return None
    if circular and maps and (found.stray is None or found.stray > found.tolerance):
        return None
    if all(map(_is_invariant, found.run.outputs)) and found.change is not None and found.change > found.tolerance:
        return None  # a map that was not compared does not do what its layer's type says
    lattice = (lcm(*(each.lattice[0] for each in maps)), lcm(*(each.lattice[1] for each in maps)))
    return Exactness(lattice, circular, (-(-reach[0] // 1) + 1, -(-reach[1] // 1) + 1))


def _ends_whole(found: Observed, maps: list[Symmetry]) -> bool:
    """Return whether the head receives whole tori, not maps that are padded around and continue themselves."""
    whole = not maps or all(factor.size == maps[-1].period(factor) for factor in maps[-1].factors)
    return whole and not _noted(found, "misfit")


def _equivariance(found: Observed, exact: Exactness | None, image: tuple[int, int, int]) -> str:
    """Return a sentence on the shifts at which the layers before the head are exactly equivariant."""
    if exact is not None:
        shifts = "every whole-pixel shift" if exact.lattice == (1, 1) else f"shifts by multiples of {_pixels(exact.lattice)}"
        size = f"on images of {image[1]}x{image[2]} pixels"
        if exact.circular:
            return f"The layers before the head are exactly equivariant to {shifts}, circular, {size}."
        down, right = exact.receptive_field
        if 2 * down >= image[1] or 2 * right >= image[2]:
            return (
                f"Apart from what borders change, the layers before the head are exactly equivariant to {shifts}. But images of "
                f"{image[1]}x{image[2]} pixels are too small to keep content away from borders: the receptive field is "
                f"{down}x{right} pixels."
            )
        return (
            f"The layers before the head are exactly equivariant to {shifts}, as long as everything that differs from the "
            f"background stays farther from every edge than the receptive field ({down}x{right} pixels), {size}."
        )
    if any(what == "polyphase border" for _, what in found.run.notes):
        return "The layers before the head are not exactly equivariant: polyphase sampling is so on circular maps only."
    if unknown := _unknown_layers(found):
        why = unknown[0]
    elif found.problem:
        why = found.problem
    elif found.stray is not None and found.stray > found.tolerance:
        why = "by their operators they are, but not on random images"
    else:
        why = "that cannot be tried"
    return f"It is not known at which shifts the layers before the head are exactly equivariant: {why}."


def _noted(found: Observed, *kinds: str) -> list[str]:
    return list(dict.fromkeys(name for name, what in found.run.notes if what in kinds))


def _strides(found: Observed) -> list[str]:
    plain = _noted(found, "stride")
    outputs = [each for each in found.run.outputs if isinstance(each, Symmetry)]
    lattice = (lcm(*(each.lattice[0] for each in outputs)), lcm(*(each.lattice[1] for each in outputs)))
    if lattice == (1, 1):
        maps = found.run.maps
        lattice = (lcm(*(each.lattice[0] for each in maps)), lcm(*(each.lattice[1] for each in maps)))
    if not plain:
        sampled = _noted(found, "polyphase")
        if not sampled or lattice == (1, 1):
            return []
        apart = f"{subject(sampled, 'choose')} phases independently"
        return [f"{apart}, so maps stay aligned only after shifts by multiples of {_pixels(lattice)}"]
    if lattice == (1, 1):
        return []
    return [f"{subject(plain, 'sample')} other positions after shifts that are not multiples of {_pixels(lattice)}"]


def _borders(found: Observed) -> list[str]:
    """Return what keeps maps from being circular."""
    modes = ("zeros", "reflect", "replicate")
    leaking = _noted(found, *modes)
    kinds = "/".join(sorted({what for _, what in found.run.notes if what in modes}))
    reasons = [f"{subject(leaking, 'pad')} with {kinds}, which the shift does not move"] if leaking else []
    inside = [name for name in _noted(found, "misfit") if name not in leaking]
    if inside:
        reasons.append(
            f"{subject(inside, 'do not cover')} every position equally often (windows that do not fit the map, or a padded map), "
            "so that content near the border counts for less or more"
        )
    return reasons


def _unknown_layers(found: Observed) -> list[str]:
    unknown = _noted(found, "unknown")
    return [f"it is not known how {subject(unknown, 'treat')} positions"] if unknown else []


def _pixels(lattice: Pair) -> str:
    down, right = lattice
    return f"{down} {_s(down, 'pixel')}" if down == right else f"{down} {_s(down, 'pixel')} down and {right} across"


def _s(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
