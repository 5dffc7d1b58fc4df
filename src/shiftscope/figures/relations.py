"""Draw how measures relate: accuracy and invariance, layer by layer, homogeneity and gain, before and after a fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shiftscope.errors import InputError
from shiftscope.figures.cells import Row, number, pareto_front, row_name
from shiftscope.figures.style import (
    COLOURS,
    COLUMN,
    MARKERS,
    PAGE,
    add_legend,
    error_lengths,
    new_figure,
    remove_frame,
    with_fonts,
)
from shiftscope.tables import Table, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["dot_plot", "layer_plot", "paired_plot", "pareto_plot", "scatter_plot"]

GREY = "#777777"
#: Height of a name above a figure, inches.
NAME_HEIGHT = 0.16


@with_fonts
def pareto_plot(table: Table, *, x: str, y: str, names: tuple[str, ...], printed: Sequence[tuple[float, float]] = ()) -> Figure:
    """Draw one measure against another, and the Pareto front: the rows that no other beats on both. More is better on both axes.

    Args:
        table: rows with two columns of estimates.
        x: the column along the horizontal axis.
        y: the column along the vertical axis.
        names: the columns whose settings name a row of the front, above the axes.
        printed: a publication's points (x, y), drawn as crosses; they are not part of the front.

    Raises:
        InputError: no row holds both numbers.
    """
    from matplotlib import rc_context

    rows = _rows_with(table, x, y)
    points = [(_value(row, x), _value(row, y)) for row in rows]
    front = pareto_front(points)
    figure, (axes,) = new_figure(COLUMN, 2.6 + NAME_HEIGHT * len(front))
    for index, row in enumerate(rows):
        _draw_point(axes, row, (x, y), COLOURS[0] if index in front else GREY)
    axes.plot(*zip(*(points[index] for index in front), strict=True), linestyle="--", linewidth=0.9, color=COLOURS[0], zorder=1)
    for digit, index in enumerate(front, start=1):
        # Names do not fit between points: a number stands at the point, and the names above the axes.
        axes.annotate(str(digit), points[index], (4, 4), textcoords="offset points", color=COLOURS[0])
        label = row_name(rows[index], names)
        with rc_context({"text.parse_math": True}):
            axes.plot([], [], linestyle="none", marker=f"${digit}$", color=COLOURS[0], label=label, markersize=5)
    if printed:
        across, up = zip(*printed, strict=True)
        axes.scatter(across, up, marker="x", s=14, linewidths=0.8, color=GREY, label="printed by the source")
    if names or printed:
        add_legend(figure, axes)
    _finish(axes, heading(x), heading(y))
    return figure


@with_fonts
def scatter_plot(table: Table, *, x: str, y: str, series: tuple[str, ...] = ()) -> Figure:
    """Draw one measure against another, with a colour and a marker for each series.

    Args:
        table: a row for each network or data set.
        x: the column of estimates along the horizontal axis.
        y: the column of estimates along the vertical axis.
        series: the settings that distinguish the colours.

    Raises:
        InputError: no row holds both numbers.
    """
    rows = _rows_with(table, x, y)
    figure, (axes,) = new_figure(COLUMN, 2.6)
    for index, (name, group) in enumerate(_grouped(rows, series).items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        for row in group:
            _draw_point(axes, row, (x, y), colour, marker)
        if series:
            axes.plot([], [], marker, color=colour, label=name, markersize=4)
    add_legend(figure, axes)
    axes.axhline(0, color=GREY, linewidth=0.6)
    _finish(axes, heading(x), heading(y))
    return figure


@with_fonts
def layer_plot(table: Table, *, series: tuple[str, ...] = ()) -> Figure:
    """Draw the similarity and the movement of feature maps, layer by layer.

    Args:
        table: a row for each layer of each network, in the network's order, with the columns ``layer``, ``similarity`` and
            ``movement`` (positions of the map).
        series: the settings that distinguish the networks.

    Raises:
        InputError: no row holds both numbers.
    """
    rows = _rows_with(table, "similarity", "movement")
    layers = list(dict.fromkeys(str(row.get("layer")) for row in rows))
    figure, (above, below) = new_figure(PAGE, 3.6, rows=2)
    above.sharex(below)
    for axes, column, label in ((above, "similarity", "similarity"), (below, "movement", "movement, positions")):
        for index, (name, group) in enumerate(_grouped(rows, series).items()):
            places = [layers.index(str(row.get("layer"))) for row in group]
            _draw_estimates(axes, places, group, column, look=index, label=name)
        axes.set_ylabel(label)
        remove_frame(axes)
    if series:
        add_legend(figure, above)
    below.set_xticks(range(len(layers)), layers, rotation=35, ha="right")
    above.tick_params(labelbottom=False)
    return figure


@with_fonts
def paired_plot(table: Table, *, names: tuple[str, ...], before: str, after: str, measure: str) -> Figure:
    """Draw two estimates per row, joined by a line: before and after a change to a network.

    Args:
        table: a row for each network.
        names: the columns whose settings name a row.
        before: the column of estimates before the change.
        after: the column of estimates after it.
        measure: what both columns hold.

    Raises:
        InputError: no row holds both numbers.
    """
    rows = _rows_with(table, before, after)
    figure, (axes,) = new_figure(COLUMN, 0.75 + 0.3 * len(rows))
    for place, row in enumerate(rows):
        axes.plot([_value(row, before), _value(row, after)], [place, place], color="#aaaaaa", linewidth=1.2, zorder=1)
    for look, column in ((1, before), (0, after)):
        _draw_estimates(axes, range(len(rows)), rows, column, look=look, horizontal=True, label=heading(column))
    _name_rows(axes, rows, names)
    axes.set_xlabel(heading(measure))
    add_legend(figure, axes)
    return figure


@with_fonts
def dot_plot(table: Table, *, names: tuple[str, ...], measures: tuple[str, ...]) -> Figure:
    """Draw estimates of several measures on one axis, row by row: for settings that are words, which no line should join.

    Args:
        table: a row for each network.
        names: the columns whose settings name a row.
        measures: columns of estimates; those without a number are left out.

    Raises:
        InputError: no row holds a number in any of ``measures``.
    """
    columns = [column for column in measures if any(number(row.get(column)) is not None for row in table.rows)]
    rows = [row for row in table.rows if any(number(row.get(column)) is not None for column in columns)]
    if not rows:
        raise _no_numbers(table, " or ".join(measures))
    figure, (axes,) = new_figure(COLUMN, 0.75 + 0.22 * len(rows))
    for look, column in enumerate(columns):
        places = [place for place, row in enumerate(rows) if number(row.get(column)) is not None]
        label = heading(column) if len(columns) > 1 else ""
        _draw_estimates(axes, places, [rows[place] for place in places], column, look=look, horizontal=True, label=label)
    _name_rows(axes, rows, names)
    if len(columns) > 1:
        add_legend(figure, axes)
    else:
        axes.set_xlabel(heading(columns[0]))
    return figure


def _rows_with(table: Table, *columns: str) -> list[Row]:
    """Return the rows that hold a number in each of these columns; raise InputError if there are none."""
    rows = [row for row in table.rows if all(number(row.get(column)) is not None for column in columns)]
    if not rows:
        raise _no_numbers(table, " and ".join(columns))
    return rows


def _no_numbers(table: Table, columns: str) -> InputError:
    return InputError(f"No row of the table {table.title!r} holds a number in {columns}.", "Measure them first.")


def _grouped(rows: Sequence[Row], series: tuple[str, ...]) -> dict[str, list[Row]]:
    """Group rows by their settings in words."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row_name(row, series), []).append(row)
    return groups


def _value(row: Row, column: str) -> float:
    return number(row.get(column)) or 0.0


def _finish(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    remove_frame(axes, grid="both")


def _name_rows(axes: Axes, rows: Sequence[Row], names: tuple[str, ...]) -> None:
    """Label the vertical axis with the rows' settings, the first row on top."""
    axes.set_yticks(range(len(rows)), [row_name(row, names) for row in rows])
    axes.invert_yaxis()
    remove_frame(axes, grid="x")


def _draw_estimates(
    axes: Axes,
    places: Sequence[int],
    rows: Sequence[Row],
    column: str,
    *,
    look: int,
    label: str,
    horizontal: bool = False,
) -> None:
    """Draw a column of estimates with their intervals at these places: horizontal, or vertical and joined by a line."""
    values = [_value(row, column) for row in rows]
    lengths = list(zip(*(error_lengths(row.get(column)) for row in rows), strict=True))
    points: dict[str, Any] = (
        {"x": values, "y": places, "xerr": lengths} if horizontal else {"x": places, "y": values, "yerr": lengths}
    )
    axes.errorbar(
        **points,
        linestyle="none" if horizontal else "-",
        color=COLOURS[look % len(COLOURS)],
        marker=MARKERS[look % len(MARKERS)],
        markersize=4,
        linewidth=1.1,
        capsize=2,
        label=label,
    )


def _draw_point(axes: Axes, row: Row, columns: tuple[str, str], colour: str, marker: str = "o") -> None:
    """Draw a row as a point with both its intervals."""
    xerr, yerr = ([[length] for length in error_lengths(row.get(column))] for column in columns)
    x, y = (_value(row, column) for column in columns)
    axes.errorbar(x, y, xerr=xerr, yerr=yerr, fmt=marker, color=colour, markersize=4, linewidth=0.8, capsize=1.5)
