"""A measure against a setting: a line with its band for each kind of network, the source's numbers beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shiftscope.figures.style import COLOURS, COLUMN, MARKS, blank, key, named, ordered, reach, styled, tidy, value
from shiftscope.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bands"]


@styled
def bands(table: Table, *, across: str, measure: str, label: str, series: tuple[str, ...] = ()) -> Figure:
    """A line with its 95 % band for each combination of settings; the source's numbers as hollow marks of the same colour.

    Args:
        table: rows with the columns named here and, where the source printed it, ``source_`` + ``measure``.
        across: the setting on the horizontal axis.
        measure: the column of estimates.
        label: what the measure is called on the axis.
        series: the settings that tell lines apart.
    """
    places = {place: index for index, place in enumerate(ordered(table, across))}
    lines: dict[str, list[Mapping[str, Cell]]] = {}
    for row in table.rows:
        if value(row.get(measure)) is not None or value(row.get(f"source_{measure}")) is not None:
            lines.setdefault(named(row, series), []).append(row)
    figure, (axes,) = blank(COLUMN, 2.5)
    for number, (name, rows) in enumerate(lines.items()):
        _band(axes, sorted(rows, key=lambda row: places[row.get(across)]), (across, measure, name), number, places)
    if any(value(row.get(f"source_{measure}")) is not None for row in table.rows):
        axes.plot([], [], "o:", color="#555555", markerfacecolor="none", markersize=4, linewidth=0.8, label="the source")
    key(figure, axes)
    axes.set(xlabel=across.replace("_", " "), ylabel=label)
    axes.set_xticks(list(places.values()), [str(place) for place in places])
    tidy(axes)
    return figure


def _band(
    axes: Axes, rows: list[Mapping[str, Cell]], names: tuple[str, str, str], number: int, places: Mapping[Any, int]
) -> None:
    """One line, its band and the source's marks."""
    across, measure, name = names
    colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
    held = [
        (places[row.get(across)], found, reach(row.get(measure)))
        for row in rows
        if (found := value(row.get(measure))) is not None
    ]
    if held:
        at, middle, ends = zip(*held, strict=True)
        axes.plot(at, middle, marker=mark, color=colour, markersize=3.5, linewidth=1.2, label=name or "ours")
        low = [each - below for each, (below, _) in zip(middle, ends, strict=True)]
        high = [each + above for each, (_, above) in zip(middle, ends, strict=True)]
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    printed = [(places[row.get(across)], found) for row in rows if (found := value(row.get(f"source_{measure}"))) is not None]
    if printed:
        axes.plot(
            *zip(*printed, strict=True),
            marker=mark,
            color=colour,
            markerfacecolor="none",
            linestyle=":",
            linewidth=0.8,
            markersize=4,
            label=None if held else name,
        )
