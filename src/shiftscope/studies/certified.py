"""Certificates of a study's networks: the share of test images that keep their answer, or are right, at every shift up to r.

Runs store the radius of each test image. Those of earlier versions do not, and their cells have no row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from shiftscope.estimates import proportion_over_seeds
from shiftscope.studies.records import Finished
from shiftscope.studies.spec import Study
from shiftscope.tables import Cell, Table

__all__ = ["AT", "RADIUS", "certified", "certified_at"]

#: The measure that stores each test image's radius, pixels.
RADIUS = "certified_radius"
#: The radii of the narrow table, pixels, as far as they were tried; the largest one that was tried comes last.
AT = (1, 4, 8)
#: The columns of shares.
SHARES = ("unchanged", "right")
NOTES = (
    "Unchanged: the class on top without a shift leads all others, by more than rounding, at every shift (dy, dx) with |dy|, "
    "|dx| <= r. Right: unchanged, and equal to the label. Exact for the test images on their canvas. "
    "The background comes in. Intervals: 95 %, over networks and images.",
)


def certified(study: Study, cells: Sequence[Sequence[Finished]], names: Mapping[str, str]) -> Table:
    """Return the share of images at every shift up to each radius: a row for each cell and radius.

    Args:
        study: the study.
        cells: the measured runs of each cell, in the study's order. A cell of which a run stores no radii has no row.
        names: columns of the study's settings, by path.
    """
    rows: list[dict[str, Cell]] = []
    for settings, runs in zip(study.combinations(), cells, strict=True):
        if not runs or not all(RADIUS in run.values for run in runs):
            continue
        cell = {names[path]: value if isinstance(value, str | int | float) else str(value) for path, value in settings.items()}
        kept, right = _tables(runs)
        for radius in range(runs[0].record.spec.measure.max_shift + 1):
            held = kept >= radius
            shares = (proportion_over_seeds(held), proportion_over_seeds(held & right))
            rows.append({**cell, "radius": radius, "seeds": len(runs), **dict(zip(SHARES, shares, strict=True))})
    columns = (*names.values(), "radius", "seeds", *SHARES)
    return Table(f"{study.title}: images at every shift of up to r pixels", columns, tuple(rows), NOTES if rows else ())


def certified_at(curves: Table) -> Table:
    """Return the shares at a few radii: a row for each cell.

    Args:
        curves: of :func:`certified`.
    """
    largest = max((int(str(row["radius"])) for row in curves.rows), default=0)
    radii = sorted({radius for radius in AT if radius < largest} | {largest})
    settings = curves.columns[: curves.columns.index("radius")]
    rows: dict[tuple[Any, ...], dict[str, Cell]] = {}
    for row in curves.rows:
        key = tuple(row[name] for name in settings)
        found = rows.setdefault(key, {**dict(zip(settings, key, strict=True)), "seeds": row["seeds"]})
        if row["radius"] in radii:
            found |= {f"{name}_at_{row['radius']}": row[name] for name in SHARES}
    columns = (*settings, "seeds", *(f"{name}_at_{radius}" for name in reversed(SHARES) for radius in radii))
    return Table(curves.title, columns, tuple(rows.values()), curves.notes)


def _tables(runs: Sequence[Finished]) -> tuple[Tensor, Bool[Tensor, "seed image"]]:
    """Return the radii of a cell's networks, and whether each answers right without a shift: [seed, image]."""
    right = torch.stack([run.values["test_accuracy"] > 0 for run in runs])
    sample = runs[0].record.spec.measure.at_every_shift(right.shape[1])
    return torch.stack([run.values[RADIUS] for run in runs]), right[:, sample]
