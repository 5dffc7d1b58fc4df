"""Draw a measure against a setting: a line with its interval for each series, and the source's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shiftscope.figures.cells import Row, distinct, number, row_name
from shiftscope.figures.style import COLOURS, COLUMN, MARKERS, add_legend, error_lengths, new_figure, remove_frame, with_fonts
from shiftscope.tables import Table, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["line_plot"]


@with_fonts
def line_plot(table: Table, *, x: str, measure: str, series: tuple[str, ...] = (), source: str = "the source") -> Figure:
    """Draw a line with its 95 % band for each series; the source's numbers are hollow markers of the same colour.

    Args:
        table: rows with the columns named here and, where the source printed the measure, ``source_`` + ``measure``.
        x: the setting on the horizontal axis; its values are spaced evenly.
        measure: the column of estimates.
        series: the settings that distinguish the lines.
        source: what the legend calls the source's numbers.
    """
    positions = {value: index for index, value in enumerate(distinct(table.rows, x))}
    lines: dict[str, list[Row]] = {}
    for row in table.rows:
        if number(row.get(measure)) is not None or number(row.get(f"source_{measure}")) is not None:
            lines.setdefault(row_name(row, series), []).append(row)
    figure, (axes,) = new_figure(COLUMN, 2.5)
    for index, (name, rows) in enumerate(lines.items()):
        look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        rows = sorted(rows, key=lambda row: positions[row.get(x)])
        at = [positions[row.get(x)] for row in rows]
        ours = _draw_ours(axes, at, [row.get(measure) for row in rows], name or "ours", look)
        _draw_source(axes, at, [number(row.get(f"source_{measure}")) for row in rows], None if ours else name, look)
    if any(number(row.get(f"source_{measure}")) is not None for row in table.rows):
        axes.plot([], [], "o:", color="#555555", markerfacecolor="none", markersize=4, linewidth=0.8, label=source)
    add_legend(figure, axes)
    axes.set(xlabel=f"{heading(x)}, pixels" if x == "max_shift" else heading(x), ylabel=heading(measure))
    axes.set_xticks(list(positions.values()), [str(value) for value in positions])
    remove_frame(axes)
    return figure


def _draw_ours(axes: Axes, at: list[int], cells: list[Any], label: str, look: Mapping[str, Any]) -> bool:
    """Draw one line and its band; return whether there was any number to draw."""
    points = [
        (place, value, error_lengths(cell)) for place, cell in zip(at, cells, strict=True) if (value := number(cell)) is not None
    ]
    if not points:
        return False
    places, values, lengths = zip(*points, strict=True)
    axes.plot(places, values, **look, markersize=3.5, linewidth=1.2, label=label)
    low = [value - below for value, (below, _) in zip(values, lengths, strict=True)]
    high = [value + above for value, (_, above) in zip(values, lengths, strict=True)]
    axes.fill_between(places, low, high, color=look["color"], alpha=0.18, linewidth=0)
    return True


def _draw_source(axes: Axes, at: list[int], values: list[float | None], label: str | None, look: Mapping[str, Any]) -> None:
    """Draw the source's numbers of one line."""
    points = [(place, value) for place, value in zip(at, values, strict=True) if value is not None]
    if points:
        hollow: dict[str, Any] = {"markerfacecolor": "none", "linestyle": ":", "linewidth": 0.8, "markersize": 4}
        axes.plot(*zip(*points, strict=True), **look, **hollow, label=label)
