"""What a model's graph guarantees about circular shifts, before anything is measured.

A shift of the image moves the last feature map with it (the layers before the head are *equivariant*) if every operator treats
all positions alike, no layer reads beyond a border that the shift does not move, and the shift is a multiple of the subsampling
factor; polyphase sampling removes the last condition. Outputs then stay the same (are *invariant*) if the head treats all
positions alike. Each sentence here names the layers that it rests on, so that a reader can check it, and none is given that
random shifts of random images refute (:mod:`shiftscope.explanations.verification`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from torch import nn

from shiftscope.errors import UntraceableError
from shiftscope.explanations.verification import TOLERANCE, equivariance_error, invariance_error, probe_shape
from shiftscope.graphs.geometry import Geometry, Reading, read_geometry
from shiftscope.graphs.maps import Basis

__all__ = ["Guarantee", "describe", "guarantee_of"]

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
class Guarantee:
    """What follows from a model's graph.

    Attributes:
        status: of invariance to circular shifts by whole pixels: ``guaranteed`` for all of them, whatever the weights;
            ``possible`` where it holds for some shifts or some weights only; ``impossible`` where the head has a weight for
            every position; ``unknown`` where the graph cannot be read.
        sentence: the reason.
        exact_at: at which shifts the layers before the head are exactly equivariant.
        geometry: strides, receptive fields, borders and head; None where the graph cannot be read.
    """

    status: Status
    sentence: str
    exact_at: str
    geometry: Geometry | None


def guarantee_of(model: nn.Module, *, geometry: Reading | None = None, image: tuple[int, int, int] | None = None) -> Guarantee:
    """Return what a model's graph guarantees, after trying it on the model; ``unknown`` where the graph cannot be read.

    Args:
        model: a model; copies of it are tried in double precision.
        geometry: what :func:`shiftscope.graphs.geometry.read_geometry` returned for it; read here by default.
        image: (channels, height, width) of the images to try; by default eight positions of the last map a side.

    >>> convolution = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular")
    >>> guarantee_of(nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))).status
    'guaranteed'
    """
    geometry = read_geometry(model, image) if geometry is None else geometry
    if isinstance(geometry, UntraceableError):
        return Guarantee("unknown", f"{geometry.problem} Only measured results are available.", "", None)
    image = image or probe_shape(model, geometry)
    status, sentence = _tried(*_invariance(geometry), model, image)
    return Guarantee(status, sentence, _tried_equivariance(model, geometry, image), geometry)


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


def _invariance(geometry: Geometry) -> tuple[Status, str]:
    if geometry.head == "flatten":
        return "impossible", (
            f"Invariance is impossible: the head (`{geometry.head_name}`) flattens the map, so that a fully connected layer has "
            "a weight for every position, and a shift of the map changes the output unless all these weights are alike."
        )
    if geometry.head == "other":
        return "possible", (
            "Invariance is possible, not guaranteed: the graph has neither a mean over positions nor a flattening, so that it is "
            "not known how the head uses positions."
        )
    conditions = [*_strides(geometry), *_borders(geometry), *_unknown_layers(geometry)]
    if conditions:
        return "possible", (
            "Invariance is possible, not guaranteed: the head averages over positions "
            f"(`{geometry.head_name}`), but {'; '.join(conditions)}."
        )
    samplings = "every subsampling follows the map (polyphase sampling)" if geometry.subsamplings else "nothing is subsampled"
    return "guaranteed", (
        "Invariance is guaranteed for every circular shift by whole pixels: every map is circular, "
        f"{samplings}, and the head averages over positions (`{geometry.head_name}`)."
    )


def _tried(status: Status, sentence: str, model: nn.Module, image: tuple[int, int, int]) -> tuple[Status, str]:
    """Return status and sentence, or weaker ones where random circular shifts refute them."""
    if status not in ("guaranteed", "impossible"):
        return status, sentence
    error = invariance_error(model, image)
    if status == "guaranteed" and error is None:
        reason = f"the graph promises it, but that cannot be tried on images of {image}"
        return "possible", f"Invariance is possible, not guaranteed: {reason}."
    if status == "guaranteed" and error is not None and error > TOLERANCE:
        return "possible", (
            "Invariance is possible, not guaranteed: the graph promises it, but circular shifts change the outputs "
            f"(by {error:.1g} of the largest), so that some layer does something else than its type says."
        )
    if status == "impossible" and error is not None and error <= TOLERANCE:
        return "possible", (
            "Invariance is possible, not guaranteed: the head flattens the map, yet no circular shift that was tried changes the "
            "outputs, with these weights or with random ones."
        )
    return status, sentence


def _tried_equivariance(model: nn.Module, geometry: Geometry, image: tuple[int, int, int]) -> str:
    """Return the sentence on equivariance, or that it is refuted or cannot be tried."""
    sentence = _equivariance(geometry)
    if _unknown_layers(geometry) or _borders(geometry) or not geometry.head_name:
        return sentence
    sides = (max(1, size // step) * step for size, step in zip(image[1:], geometry.lattice, strict=True))
    tried = (image[0], next(sides), next(sides))
    error = equivariance_error(model, geometry, tried)
    if error is not None and error <= TOLERANCE:
        return sentence
    found = "they are not on random images" if error is not None else f"that cannot be tried on images of {tried}"
    return (
        "It is not known at which shifts the layers before the head are exactly equivariant: by the graph they are to multiples "
        f"of {_pixels(geometry)}, but {found}."
    )


def _strides(geometry: Geometry) -> list[str]:
    plain = [each.name for each in geometry.subsamplings if not each.polyphase]
    return [f"{_names(plain)} sample other positions after shifts that are no multiples of {_pixels(geometry)}"] if plain else []


def _borders(geometry: Geometry) -> list[str]:
    """Return what keeps maps from being circular."""
    leaking = [name for name, border in geometry.borders.items() if border != "circular"]
    inside = [name for name in geometry.misfits if name not in leaking]
    kinds = "/".join(sorted({geometry.borders[name] for name in leaking}))
    found = [f"{_names(leaking)} pad with {kinds}, which the shift does not move"] if leaking else []
    if inside:
        found.append(f"{_names(inside)} do not pad by what their window reads, so that content near the border counts for less")
    return found


def _unknown_layers(geometry: Geometry) -> list[str]:
    unknown = ", ".join(geometry.unknown[:3])
    if not unknown and geometry.basis == "unknown":
        return ["the sizes of the maps contradict their strides"]
    return [f"it is not known how {unknown} treat positions"] if unknown else []


def _equivariance(geometry: Geometry) -> str:
    """Return a sentence on the shifts at which the layers before the head are exactly equivariant."""
    if unknown := _unknown_layers(geometry):
        return f"It is not known at which shifts the layers before the head are exactly equivariant: {unknown[0]}."
    polyphase = [each.polyphase for each in geometry.subsamplings]
    shifts = "every whole-pixel shift" if all(polyphase) else f"shifts by multiples of {_pixels(geometry)}"
    if not _borders(geometry):
        sides = "" if geometry.lattice == (1, 1) else f", on images whose sides are multiples of {_pixels(geometry)}"
        return f"The layers before the head are exactly equivariant to {shifts}, circular{sides}."
    if any(polyphase):
        return "The layers before the head are not exactly equivariant: polyphase sampling is so on circular maps only."
    down, right = geometry.last.receptive_field
    return (
        f"The layers before the head are exactly equivariant to {shifts}, as long as everything that differs from the background "
        f"stays farther from every edge than the receptive field ({down}x{right} pixels)."
    )


def _pixels(geometry: Geometry) -> str:
    down, right = geometry.lattice
    return f"{down} {_s(down, 'pixel')}" if down == right else f"{down} {_s(down, 'pixel')} down and {right} across"


def _s(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _names(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
