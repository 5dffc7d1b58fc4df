"""What a model's graph promises about shifts, before anything is measured.

The spatial part (all before the head) moves its maps along with the image where every operator is stationary, nothing is seen
beyond the border that the shift does not move, and the shift is a multiple of the factor; polyphase sampling lifts the last
condition. The head then has to be blind to positions. That is all; each sentence names the layers it rests on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from torch import nn

from shiftscope.errors import UntraceableError
from shiftscope.graphs.geometry import Geometry, geometry_of

__all__ = ["Guarantee", "described", "guarantee_of"]

HEADS = {"flatten": "a flattened map", "gap": "a mean over positions", "other": "of an unknown kind"}
Status = Literal["guaranteed", "possible", "impossible", "unknown"]


@dataclass(frozen=True)
class Guarantee:
    """What follows from the graph.

    Attributes:
        status: of invariance under whole-pixel circular shifts: ``guaranteed`` for all of them, whatever the weights;
            ``possible`` where it holds for some of them, or only if the weights make it so; ``impossible`` while the head weighs
            every position for itself; ``unknown`` without a graph.
        sentence: why, so that a reader can check it.
        exact_at: at which shifts the spatial part is exactly equivariant.
        geometry: strides, receptive fields, borders and head; None without a graph.
    """

    status: Status
    sentence: str
    exact_at: str
    geometry: Geometry | None


def described(geometry: Geometry) -> str:
    """Factor, receptive field, borders and head, in a sentence."""
    (down, right), (tall, wide) = geometry.factor, geometry.last.receptive_field
    factor = str(down) if down == right else f"{down} down, {right} across"
    kinds = Counter(geometry.borders.values())
    borders = ", ".join(f"{count} pad with {kind}" for kind, count in sorted(kinds.items())) or "none pads"
    return (
        f"The graph: subsampling factor {factor}, receptive field {tall}x{wide} pixels; of its layers {borders}; its head is "
        f"{HEADS[geometry.head]}."
    )


def guarantee_of(model: nn.Module) -> Guarantee:
    """Read what the graph promises; ``unknown``, with the reason, where there is none.

    >>> around = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
    >>> guarantee_of(nn.Sequential(around, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))).status
    'guaranteed'
    """
    try:
        geometry = geometry_of(model)
    except UntraceableError as error:
        return Guarantee("unknown", f"{error.problem} Only the measured part is available.", "", None)
    status, sentence = _promise(geometry)
    return Guarantee(status, sentence, _exact_at(geometry), geometry)


def _promise(geometry: Geometry) -> tuple[Status, str]:
    if geometry.head == "flatten":
        return "impossible", (
            f"Invariance is impossible: the head (`{geometry.head_name}`) flattens the map, so that a fully connected layer "
            "weighs every position for itself; a shift of the map changes the output, unless the weights of all positions are "
            "alike, which would be an average."
        )
    if geometry.head == "other":
        return "possible", (
            "Invariance is possible, not guaranteed: no mean over positions and no flattening is found in the graph, so that "
            "what the head sees of positions is not known."
        )
    conditions = [*_samples(geometry), *_edges(geometry), *_strangers(geometry)]
    if conditions:
        return "possible", (
            "Invariance is possible, not guaranteed: the head averages over positions "
            f"(`{geometry.head_name}`), but {'; '.join(conditions)}."
        )
    samplings = "every subsampling follows the map (polyphase sampling)" if geometry.subsamplings else "nothing is subsampled"
    return "guaranteed", (
        "Invariance is guaranteed for every circular shift by whole pixels: every map continues at its other end, "
        f"{samplings}, and the head averages over positions (`{geometry.head_name}`)."
    )


def _samples(geometry: Geometry) -> list[str]:
    plain = [each.name for each in geometry.subsamplings if not each.polyphase]
    return [f"shifts that are no multiples of {_pixels(geometry)} meet other samples at {_listed(plain)}"] if plain else []


def _edges(geometry: Geometry) -> list[str]:
    """What keeps maps from being tori."""
    leaking = [name for name, border in geometry.borders.items() if border != "circular"]
    inside = [name for name in geometry.misfits if name not in leaking]
    kinds = "/".join(sorted({geometry.borders[name] for name in leaking}))
    found = [f"{_listed(leaking)} pad with {kinds}, which the shift does not move"] if leaking else []
    if inside:
        found.append(f"{_listed(inside)} do not pad as far as they read, so that content near the border counts for less")
    return found


def _strangers(geometry: Geometry) -> list[str]:
    unknown = ", ".join(geometry.unknown[:3])
    return [f"it is not known what {unknown} make of positions"] if unknown else []


def _exact_at(geometry: Geometry) -> str:
    """Where the spatial part is exactly equivariant."""
    unknown = _strangers(geometry)
    if unknown:
        return f"At which shifts the spatial part is exactly equivariant is not known: {unknown[0]}."
    follows = [each.polyphase for each in geometry.subsamplings]
    where = "every whole-pixel shift" if all(follows) else f"shifts by multiples of {_pixels(geometry)}"
    if not _edges(geometry):
        sides = "" if geometry.factor == (1, 1) else f", on images whose sides are multiples of {_pixels(geometry)}"
        return f"The spatial part is exactly equivariant to {where}, circular{sides}."
    if any(follows):
        return "The spatial part is not exactly equivariant: polyphase sampling is so on circular maps only."
    down, right = geometry.last.receptive_field
    return (
        f"The spatial part is exactly equivariant to {where}, as long as what differs from the background stays as far from "
        f"every edge as a position sees (its receptive field is {down}x{right} pixels)."
    )


def _pixels(geometry: Geometry) -> str:
    down, right = geometry.factor
    return f"{down} pixels" if down == right else f"{down} pixels down and {right} across"


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
