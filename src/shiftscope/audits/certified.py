"""Certificates in an audit: radii of images at every shift of a grid, which the audit measures anyway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from shiftscope.audits.parts import Part
from shiftscope.engine.framing import Border
from shiftscope.radii import RadiusCurve
from shiftscope.radii.curve import CLASSES
from shiftscope.tables import Cell, Table
from shiftscope.tasks import Task

__all__ = ["curve_table", "curves_of", "without_radii"]


def curves_of(merged: Part, task: Task | None) -> dict[str, RadiusCurve]:
    """Return the radii of all images by grid, without grids whose radii are known for some images only.

    Args:
        merged: all parts.
        task: that read the outputs; None for classes.
    """
    found = {}
    for name, counts in merged.radius_counts.items():
        if counts.total == merged.cost.images > 0:
            border: Border = "circular" if name.startswith("circular") else "zero"
            radii = merged.radii.get(name)
            rule = CLASSES if task is None else task.rule(counts.limit)
            found[name] = RadiusCurve(counts, border, None if merged.moments else radii, rule)
    return found


def without_radii(merged: Part) -> Iterator[str]:
    """Yield why the audit has no certificate if some parts hold no radii."""
    if any(counts.total != merged.cost.images for counts in merged.radius_counts.values()):
        yield "Radii are not shown, because an earlier version of shiftscope measured some of the images."


def curve_table(curves: Mapping[str, RadiusCurve]) -> Table:
    """Return a table with a row for each grid and radius."""
    rows: list[dict[str, Cell]] = [{"grid": name, **row} for name, each in curves.items() for row in each.table().rows]
    right = any(each.counts.right is not None for each in curves.values())
    columns = ("grid", "border", "radius", "unchanged", *(["right"] if right else []))
    notes = tuple(dict.fromkeys(f"Unchanged: {each.rule}." for each in curves.values()))
    return Table("Share of images at every shift of up to r pixels", columns, tuple(rows), notes)
