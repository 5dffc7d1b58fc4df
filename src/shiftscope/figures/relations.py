"""How measures hang together: accuracy and invariance, layers, homogeneity and gain, before and after a fix, causes.

The tables are plain: each function names the columns it reads, and whoever measures fills them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shiftscope.errors import InputError
from shiftscope.figures.style import COLOURS, COLUMN, MARKS, PAGE, blank, key, named, ordered, reach, styled, tidy, value
from shiftscope.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["before_after", "causes", "listed", "pareto", "relation", "through_layers"]

#: A line with more bars is too tall for a column.
BAR_INCHES = 0.24


@styled
def pareto(table: Table, *, across: str, up: str, names: tuple[str, ...], labels: tuple[str, str]) -> Figure:
    """One measure against another, more being better on both, with the front of rows that no other beats on both.

    Args:
        table: rows with two columns of estimates.
        across: the one along the horizontal axis.
        up: the other.
        names: the columns that name a row of the front.
        labels: of the axes.
    """
    rows = _with(table, across, up)
    figure, (axes,) = blank(COLUMN, 2.6)
    points = [(_number(row, across), _number(row, up)) for row in rows]
    best = [index for index, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)]
    for index, row in enumerate(rows):
        _crossed(axes, row, (across, up), COLOURS[0] if index in best else "#777777")
    front = sorted(points[index] for index in best)
    axes.plot(*zip(*front, strict=True), linestyle="--", linewidth=0.9, color=COLOURS[0], zorder=1)
    middle = sum(axes.get_xlim()) / 2
    for index in best:
        right = points[index][0] > middle
        axes.annotate(
            named(rows[index], names),
            points[index],
            (-4 if right else 4, 5),
            textcoords="offset points",
            fontsize=6.5,
            ha="right" if right else "left",
        )
    axes.set(xlabel=labels[0], ylabel=labels[1])
    tidy(axes, grid="both")
    return figure


@styled
def relation(table: Table, *, across: str, up: str, series: tuple[str, ...], labels: tuple[str, str]) -> Figure:
    """A cloud of points of two measures, as of homogeneity against what subsampling gains; a colour and a mark a series.

    Args:
        table: a row a network or data set.
        across: the column along the horizontal axis.
        up: the other column.
        series: the columns that tell colours apart.
        labels: of the axes.
    """
    rows = _with(table, across, up)
    figure, (axes,) = blank(COLUMN, 2.6)
    kinds = list(dict.fromkeys(named(row, series) for row in rows))
    for row in rows:
        place = kinds.index(named(row, series))
        _crossed(axes, row, (across, up), COLOURS[place % len(COLOURS)], MARKS[place % len(MARKS)])
    for place, kind in enumerate(kinds):
        axes.plot([], [], MARKS[place % len(MARKS)], color=COLOURS[place % len(COLOURS)], label=kind, markersize=4)
    if series:
        key(figure, axes)
    axes.axhline(0, color="#777777", linewidth=0.6)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    tidy(axes, grid="both")
    return figure


@styled
def through_layers(
    table: Table,
    *,
    layer: str = "layer",
    similarity: str = "similarity",
    movement: str = "movement",
    unit: str = "pixels",
    series: tuple[str, ...] = (),
) -> Figure:
    """Similarity and movement from layer to layer, in the table's order.

    Args:
        table: a row a layer, and a network where there are several.
        layer: the column of layers' names.
        similarity: the column of similarities.
        movement: the column of movements.
        unit: of these.
        series: the columns that tell networks apart.
    """
    rows = _with(table, similarity, movement)
    names = list(dict.fromkeys(str(row.get(layer)) for row in rows))
    figure, (above, below) = blank(PAGE, 3.6, rows=2)
    above.sharex(below)
    kinds: dict[str, list[Mapping[str, Cell]]] = {}
    for row in rows:
        kinds.setdefault(named(row, series), []).append(row)
    for axes, column, label in ((above, similarity, "similarity"), (below, movement, f"movement, {unit}")):
        for place, (kind, held) in enumerate(kinds.items()):
            at = [names.index(str(row.get(layer))) for row in held]
            _whiskers(axes, at, held, column, look=place, label=kind)
        axes.set_ylabel(label)
        tidy(axes)
    if series:
        key(figure, above)
    below.set_xticks(range(len(names)), names, rotation=35, ha="right")
    above.tick_params(labelbottom=False)
    return figure


@styled
def before_after(table: Table, *, name: tuple[str, ...], before: str, after: str, label: str) -> Figure:
    """Two estimates a row, joined by a line: without and with anti-aliasing, before and after a fix.

    Args:
        table: a row a network.
        name: the columns that name it.
        before: the column of estimates without.
        after: the column of estimates with.
        label: what the measure is called.
    """
    rows = _with(table, before, after)
    figure, (axes,) = blank(COLUMN, 0.75 + 0.3 * len(rows))
    for place, row in enumerate(rows):
        axes.plot([_number(row, before), _number(row, after)], [place, place], color="#aaaaaa", linewidth=1.2, zorder=1)
    for look, column in ((1, before), (0, after)):
        _whiskers(axes, range(len(rows)), rows, column, look=look, lying=True, label=column.replace("_", " "))
    axes.set_yticks(range(len(rows)), [named(row, name) for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    key(figure, axes)
    tidy(axes, grid="x")
    return figure


@styled
def listed(table: Table, *, name: tuple[str, ...], measures: Mapping[str, str]) -> Figure:
    """Estimates of measures on one scale, a line a row: for settings that are words, which no curve joins.

    Args:
        table: a row a network.
        name: the columns that name it.
        measures: columns of estimates, and what they are called; those that no row holds are left out.
    """
    held = {column: label for column, label in measures.items() if any(value(row.get(column)) is not None for row in table.rows)}
    rows = [row for row in table.rows if any(value(row.get(column)) is not None for column in held)]
    if not rows:
        raise InputError(f"no row of {table.title!r} holds a number in {' or '.join(measures)}. Measure them first.")
    figure, (axes,) = blank(COLUMN, 0.75 + 0.22 * len(rows))
    for number, (column, label) in enumerate(held.items()):
        places = [place for place, row in enumerate(rows) if value(row.get(column)) is not None]
        _whiskers(axes, places, [rows[place] for place in places], column, look=number, lying=True, label=label)
    axes.set_yticks(range(len(rows)), [named(row, name) for row in rows])
    axes.invert_yaxis()
    if len(held) == 1:
        axes.set_xlabel(next(iter(held.values())))
    else:
        key(figure, axes)
    tidy(axes, grid="x")
    return figure


@styled
def causes(
    table: Table,
    *,
    cause: str = "cause",
    share: str = "share",
    series: tuple[str, ...] = (),
    label: str = "share of what is lost",
) -> Figure:
    """How much of the loss each cause makes up, a bar a cause, with intervals where they are known.

    Args:
        table: a row a cause, and a network where there are several.
        cause: the column of causes' names.
        share: the column of their shares or sizes.
        series: the columns that tell networks apart.
        label: what the share is of.
    """
    rows = _with(table, share)
    names = ordered(Table("", table.columns, tuple(rows)), cause)
    kinds = list(dict.fromkeys(named(row, series) for row in rows))
    figure, (axes,) = blank(COLUMN, 0.7 + BAR_INCHES * len(names) * max(len(kinds), 1))
    tall = 0.8 / max(len(kinds), 1)
    for row in rows:
        kind = kinds.index(named(row, series))
        place = names.index(row.get(cause)) + (kind - (len(kinds) - 1) / 2) * tall
        low, high = reach(row.get(share))
        axes.barh(
            place,
            _number(row, share),
            height=tall * 0.9,
            color=COLOURS[kind % len(COLOURS)],
            xerr=[[low], [high]],
            error_kw={"linewidth": 0.8},
            label=named(row, series) if row.get(cause) == names[0] else None,
        )
    axes.set_yticks(range(len(names)), [str(each) for each in names])
    axes.invert_yaxis()
    axes.axvline(0, color="#777777", linewidth=0.6)
    axes.set_xlabel(label)
    if series:
        key(figure, axes)
    tidy(axes, grid="x")
    return figure


def _with(table: Table, *columns: str) -> list[Mapping[str, Cell]]:
    """The rows that hold a number in each of these columns; none is bad input."""
    rows = [row for row in table.rows if all(value(row.get(name)) is not None for name in columns)]
    if not rows:
        raise InputError(f"no row of {table.title!r} holds a number in {' and '.join(columns)}. Measure them first.")
    return rows


def _number(row: Mapping[str, Cell], column: str) -> float:
    return value(row.get(column)) or 0.0


def _whiskers(
    axes: Axes,
    places: Sequence[int],
    rows: Sequence[Mapping[str, Cell]],
    column: str,
    *,
    look: int,
    label: str,
    lying: bool = False,
) -> None:
    """Estimates of a column with their intervals, one a place: upright and joined by a line, or lying."""
    numbers = [_number(row, column) for row in rows]
    reaches = list(zip(*(reach(row.get(column)) for row in rows), strict=True))
    axes.errorbar(
        numbers if lying else places,
        places if lying else numbers,
        xerr=reaches if lying else None,
        yerr=None if lying else reaches,
        linestyle="none" if lying else "-",
        color=COLOURS[look % len(COLOURS)],
        marker=MARKS[look % len(MARKS)],
        markersize=4,
        linewidth=1.1,
        capsize=2,
        label=label,
    )


def _crossed(axes: Axes, row: Mapping[str, Cell], columns: tuple[str, str], colour: str, mark: str = "o") -> None:
    """A point with its two intervals."""
    across, up = columns
    xerr, yerr = ([[end] for end in reach(row.get(column))] for column in columns)
    axes.errorbar(
        _number(row, across),
        _number(row, up),
        xerr=xerr,
        yerr=yerr,
        fmt=mark,
        color=colour,
        markersize=4,
        linewidth=0.8,
        capsize=1.5,
    )
