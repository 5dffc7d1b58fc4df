"""Read from a table what figures and pages draw: numbers, ends of intervals, settings in words, the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shiftscope.estimates import Estimate
from shiftscope.tables import Cell, heading

__all__ = ["distinct", "ends", "number", "pareto_front", "row_name", "setting"]

Row = Mapping[str, Cell]


def number(cell: Cell) -> float | None:
    """Return a cell's number or the value of its estimate; None for text and empty cells."""
    if isinstance(cell, Estimate):
        return cell.value
    return float(cell) if isinstance(cell, int | float) else None


def ends(cell: Cell) -> list[float]:
    """Return the two ends of an estimate's interval, or a bare number alone; nothing for other cells.

    >>> ends(Estimate(0.5, 0.4, 0.7, count=9)), ends(2), ends("plain")
    ([0.4, 0.7], [2.0], [])
    """
    if isinstance(cell, Estimate):
        return [cell.low, cell.high]
    value = number(cell)
    return [] if value is None else [value]


def distinct(rows: Sequence[Row], column: str) -> list[Any]:
    """Return a column's distinct values: numbers in ascending order, anything else in order of appearance."""
    values = list(dict.fromkeys(row.get(column) for row in rows))
    return sorted(values, key=float) if all(isinstance(value, int | float) for value in values) else values


def setting(column: str, value: Cell) -> str:
    """Return a setting in words: a text is its own name, a number needs its column's.

    >>> setting("factor", 4), setting("variant", "plain")
    ('subsampling factor 4', 'plain')
    """
    return value if isinstance(value, str) else f"{heading(column)} {value}"


def row_name(row: Row, columns: Sequence[str]) -> str:
    """Return the settings in these columns in words, separated by commas."""
    return ", ".join(setting(column, row.get(column)) for column in columns)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other beats on both axes, from left to right; more is better.

    >>> pareto_front([(0.1, 0.9), (0.2, 0.5), (0.3, 0.8), (0.3, 0.7)])
    [0, 2]
    """

    def beaten(x: float, y: float) -> bool:
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)

    return sorted((index for index, (x, y) in enumerate(points) if not beaten(x, y)), key=lambda index: points[index])
