"""Rank a study's variants by their distance to the source's printed numbers, with intervals.

If a publication does not state its training recipe, a study trains the same cells by several recipes, and ranks their distances
to the printed numbers. The distance is the root mean square of the differences over the printed cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from shiftscope.estimates import Estimate, confidence_interval, percentile_interval, variance_component
from shiftscope.studies.claims import CENTRED, MeasuredCell
from shiftscope.studies.sections import VARIANT
from shiftscope.tables import Cell, Table

__all__ = ["Closeness", "closeness", "closeness_table"]

#: Our measures that the source's mean cosine similarity may have been. Records written before one was measured lack it.
CANDIDATES = ("mcs", CENTRED, "mcs_softmax")


@dataclass(frozen=True)
class Closeness:
    """How far a variant's numbers lie from the printed ones.

    Attributes:
        variant: its name.
        measure: ours, compared with the source's ``mcs``.
        distance: root mean square of ours minus printed over the cells, with its interval.
        cells: printed cells that are measured.
        closest: share of the bootstrap draws in which no other pair of variant and measure with as many cells is closer.
    """

    variant: str
    measure: str
    distance: Estimate
    cells: int
    closest: float


def closeness(cells: Sequence[MeasuredCell], printed: Sequence[Mapping[str, float]]) -> tuple[Closeness, ...]:
    """Rank a study's variants by their distance to the printed mean cosine similarity, the closest first.

    Variants with fewer measured cells come after those with more, and are not compared with them.

    Args:
        cells: of the study, each with its variant among its settings.
        printed: the source's numbers for each of them, by measure.
    """
    known: dict[str, list[tuple[MeasuredCell, float]]] = {}
    for cell, numbers in zip(cells, printed, strict=True):
        if VARIANT in cell.settings and "mcs" in numbers and cell.values:
            known.setdefault(cell.settings[VARIANT], []).append((cell, numbers["mcs"]))
    pairs = [
        (name, measure) for name, some in known.items() for measure in CANDIDATES if all(measure in c.values for c, _ in some)
    ]
    draws = {(name, measure): _distances([(_draws(c, measure), number) for c, number in known[name]]) for name, measure in pairs}
    found = []
    for name, measure in pairs:
        rivals = [draws[other] for other in pairs if len(known[other[0]]) == len(known[name])]
        value = float(_distances([(np.array([c.mean(measure)]), number) for c, number in known[name]])[0])
        low, high = percentile_interval(draws[name, measure])
        count, seeds = len(known[name][0][0].values[measure][0]), min(c.networks for c, _ in known[name])
        distance = Estimate(value, min(float(low), value), max(float(high), value), count, seeds)
        closest = float((draws[name, measure] <= np.min(rivals, axis=0)).mean())
        found.append(Closeness(name, measure, distance, len(known[name]), closest))
    return tuple(sorted(found, key=lambda each: (-each.cells, each.distance.value)))


def closeness_table(title: str, found: Sequence[Closeness]) -> Table:
    """Return a table with a row for each variant and measure, the closest first."""
    rows: tuple[dict[str, Cell], ...] = tuple(
        {
            "variant": each.variant,
            "measure": each.measure,
            "cells": each.cells,
            "seeds": each.distance.seeds,
            "distance": each.distance,
            "closest": each.closest,
        }
        for each in found
    )
    note = (
        "distance: root mean square, over the printed cells that are measured, of ours minus the mean cosine similarity printed, "
        "with 95 % intervals; ours of raw outputs, of outputs minus their mean over classes, or of their softmax. closest: "
        "share of the bootstrap draws, widened by Student's t, in which no other row with as many cells is closer. Where a "
        "cell has a single network, nothing says how much another training would differ."
    )
    return Table(
        f"{title}: distance to the source", ("variant", "measure", "cells", "seeds", "distance", "closest"), rows, (note,)
    )


def _draws(cell: MeasuredCell, measure: str) -> Float[np.ndarray, " draw"]:
    """Return bootstrap draws of a cell's mean, spread as widely as Student's interval, because networks are few."""
    value, draws = cell.mean(measure), cell.draws(measure)
    low, high = percentile_interval(draws)
    ends = confidence_interval(value, draws, [variance_component(cell.values[measure])])
    spread = float((ends[1] - ends[0]) / (high - low)) if high > low else 1.0
    widened: np.ndarray = value + spread * (draws - value)
    return widened


def _distances(pairs: Sequence[tuple[Float[np.ndarray, " draw"], float]]) -> Float[np.ndarray, " draw"]:
    """Return the root mean square, for each draw, of numbers minus printed ones."""
    squares: np.ndarray = np.mean([(numbers - printed) ** 2 for numbers, printed in pairs], axis=0)
    distances: np.ndarray = np.sqrt(squares)
    return distances
