"""Draw charts as inline SVG. Colours are classes of the style sheet, which follow light and dark; only colour scales are literal.

Each mark carries its numbers in ``data-tip``, which the page's script shows; they are in the page's tables as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import Any

from markupsafe import Markup, escape

from shiftscope.estimates import Estimate
from shiftscope.figures.cells import Row, distinct, ends, number, pareto_front, row_name, setting
from shiftscope.report.colours import DIVERGING, SEQUENTIAL, hexadecimal, interpolate, text_colour
from shiftscope.report.content import Chart, Grid, Scatter
from shiftscope.tables import Cell, heading

__all__ = ["NARROW", "WIDE", "Drawing", "draw_chart", "draw_grid", "draw_scatter"]

#: Width of a drawing for a desktop, and for a telephone.
WIDE, NARROW = 720.0, 380.0
HEIGHT = 360.0
#: Margins around the axes, for ticks and labels.
LEFT, RIGHT, TOP, BOTTOM = 76.0, 18.0, 14.0, 50.0
#: Number of colours for lines.
COLOURS = 6
#: Approximate width of a character of a tick label.
CHARACTER = 7.5
Point = tuple[float, float]
#: Left, top, right and bottom.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Drawing:
    """A drawing and its legend: pairs of a swatch's class and its meaning."""

    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()


def draw_chart(chart: Chart, width: float = WIDE) -> Drawing | None:
    """Draw lines with bands and points, or points alone where the setting's values are words; None if nothing was measured.

    A chart with panels is drawn as one narrow drawing for each value of its panel column, in one scale.
    """
    rows = [row for row in chart.table.rows if number(row.get(chart.measure)) is not None]
    if not rows:
        return None
    printed = f"source_{chart.measure}"
    axis = _Axis([end for row in chart.table.rows for name in (chart.measure, printed) for end in _reach(row.get(name))])
    names = list(dict.fromkeys(row_name(row, chart.series) for row in rows))
    legend = [(_line_class(index), name or "measured, 95 % interval") for index, name in enumerate(names)]
    if any(number(row.get(printed)) is not None for row in chart.table.rows):
        legend.append(("source", f"the source's numbers{f' on {chart.source_data}' if chart.source_data else ''}"))
    if not chart.panel:
        return Drawing(_lines(chart, chart.table.rows, axis, width, names), tuple(legend))
    values = distinct(chart.table.rows, chart.panel)
    groups = [[row for row in chart.table.rows if row.get(chart.panel) == value] for value in values]
    drawn = [
        _tag("div", _tag("p", setting(chart.panel, value), class_="panelname"), _lines(chart, group, axis, NARROW, names))
        for value, group in zip(values, groups, strict=True)
    ]
    return Drawing(_tag("div", *drawn, class_="panels"), tuple(legend))


def _lines(chart: Chart, every: Sequence[Row], axis: _Axis, width: float, names: list[str]) -> Markup:
    """Draw the lines of some rows.

    Args:
        chart: the chart.
        every: the rows, of which some may not be measured.
        axis: the vertical axis.
        width: of the drawing.
        names: of all lines of the chart, in the order of their colours.
    """
    values = distinct(every, chart.x)
    step = (width - LEFT - RIGHT) / len(values)
    places = {value: LEFT + step * (index + 0.5) for index, value in enumerate(values)}
    ticks = [(place, str(value)) for value, place in places.items()]
    longest = max(len(text) for _, text in ticks) * CHARACTER
    if all(isinstance(value, int | float) for value in values):  # numbers may be left out between others
        ticks = ticks[:: max(1, ceil((longest + CHARACTER) / step))]
    room = longest * 0.5 if longest > step else 0.0
    marks = [_frame(axis, width, ticks, (chart.x, chart.measure), room_for_turned=room)]
    lines: dict[str, list[Row]] = {}
    for row in every:
        if number(row.get(chart.measure)) is not None:
            lines.setdefault(row_name(row, chart.series), []).append(row)
    for place, (name, group) in enumerate(lines.items()):
        # Lines are offset a little, so that equal values do not hide each other.
        offset = (place - (len(lines) - 1) / 2) * min(10.0, step / (len(lines) + 1))
        group = sorted(group, key=lambda row: values.index(row.get(chart.x)))
        at = [places[row.get(chart.x)] + offset for row in group]
        marks.append(_line(group, chart, axis, at, (_line_class(names.index(name)), name or "measured, 95 % interval")))
    sources = [row for row in every if number(row.get(f"source_{chart.measure}")) is not None]
    marks += [_source(row, chart, axis, places[row.get(chart.x)], names) for row in sources]
    return _svg(f"{heading(chart.measure)} against {heading(chart.x)}", width, HEIGHT + room, *marks)


def draw_grid(grid: Grid, width: float = WIDE) -> Drawing | None:
    """Draw heat maps side by side; None if a setting has only one value or nothing was measured."""
    columns, rows = distinct(grid.table.rows, grid.x), distinct(grid.table.rows, grid.y)
    numbers = {
        title: values
        for title, name in grid.panels.items()
        if (values := [value for row in grid.table.rows if (value := number(row.get(name))) is not None])
    }
    if len(columns) < 2 or len(rows) < 2 or not numbers:
        return None
    shared = [value for title, values in numbers.items() if title not in grid.diverging for value in values] or [0.0, 1.0]
    scale = (min(shared), max(shared) if max(shared) > min(shared) else min(shared) + 1)
    cell = (58.0, 42.0) if width == WIDE else (66.0, 46.0)
    size = (len(columns) * cell[0], len(rows) * cell[1] + 70)
    marks = []
    for index, title in enumerate(numbers):
        corner = (46 + index * (size[0] + 36), 0.0) if width == WIDE else (46.0, index * (size[1] + 24))
        named = index == 0 or width != WIDE
        marks.append(_panel(grid, title, (columns, rows), (corner, cell, scale), named=named))
    across, down = (len(numbers), 1) if width == WIDE else (1, len(numbers))
    title = f"{', '.join(numbers)} by {heading(grid.x)} and {heading(grid.y)}"
    return Drawing(_svg(title, 46 + across * (size[0] + 36) - 36, down * (size[1] + 24) - 24, *marks))


def draw_scatter(scatter: Scatter, width: float = WIDE) -> Drawing | None:
    """Draw a point per row, and the Pareto front; None with fewer than two points."""
    rows = [row for row in scatter.table.rows if all(number(row.get(name)) is not None for name in (scatter.x, scatter.y))]
    if len(rows) < 2:
        return None
    points = [(_value(row.get(scatter.x)), _value(row.get(scatter.y))) for row in rows]
    horizontal = _Axis([end for row in rows for end in _reach(row.get(scatter.x))], span=(LEFT, width - RIGHT - 12))
    vertical = _Axis([end for row in rows for end in _reach(row.get(scatter.y))])
    ticks = [(horizontal.at(tick), horizontal.text(tick)) for tick in horizontal.ticks[:: 1 if width == WIDE else 2]]
    front = pareto_front(points)
    path = [(horizontal.at(points[index][0]), vertical.at(points[index][1])) for index in front]
    marks = [_frame(vertical, width, ticks, (scatter.x, scatter.y), vertical_lines=True)]
    marks.append(_tag("polyline", points=_path(path), class_="front"))
    for index, row in enumerate(rows):
        look = "s0" if index in front else "beaten" if _clearly_beaten(row, rows, scatter) else "unclear"
        marks.append(_scatter_point(row, scatter, (horizontal, vertical), look))
    if width == WIDE:  # a telephone shows the names in tips alone
        short_names = [" \u00b7 ".join(str(rows[index].get(name)) for name in scatter.names) for index in front]
        marks += _point_names(path, short_names, width)
    title = f"{heading(scatter.y)} against {heading(scatter.x)}"
    legend = (
        ("s0", "no other is better on both"),
        ("unclear", "another is better on both, but within the intervals"),
        ("beaten", "another is better on both, beyond the intervals"),
    )
    return Drawing(_svg(title, width, HEIGHT, *marks), legend)


def _reach(cell: Cell) -> list[float]:
    """Return the numbers of a cell that an axis must hold: its value and the ends of its interval, without infinity."""
    value = number(cell)
    return [each for each in (*ends(cell), *(() if value is None else (value,))) if isfinite(each)]


class _Axis:
    """A scale from numbers to pixels, with round ticks; vertical by default. Infinity lies at its end."""

    def __init__(self, numbers: Sequence[float], span: Point = (HEIGHT - BOTTOM, TOP)) -> None:
        low, high = min(numbers), max(numbers)
        reach = (high - low) or max(abs(high), 1.0) * 0.1
        raw = reach * 1.1 / 4
        power = 10.0 ** floor(log10(raw))
        step = next(power * part for part in (1, 2, 2.5, 5, 10) if power * part >= raw)
        first = floor((low - reach * 0.04) / step)
        last = -floor(-(high + reach * 0.04) / step)
        if low >= 0:
            first = max(first, 0)
        if low >= -1 > first * step:
            first = floor(-1 / step)  # cosines end at -1
        if high <= 1 < last * step:
            last = -floor(-1 / step)  # shares and cosines end at 1
        self.ticks = [index * step for index in range(first, last + 1)]
        self.span = span
        self.digits = max(0, -floor(log10(step)) + (1 if step / power == 2.5 else 0))

    def at(self, value: float) -> float:
        start, end = self.span
        value = min(max(value, self.ticks[0]), self.ticks[-1])
        return start + (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0]) * (end - start)

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


def _frame(
    axis: _Axis,
    width: float,
    ticks: Sequence[tuple[float, str]],
    columns: tuple[str, str],
    *,
    vertical_lines: bool = False,
    room_for_turned: float = 0.0,
) -> Markup:
    """Draw grid lines, ticks and the names of both axes.

    Args:
        axis: the vertical axis.
        width: of the drawing.
        ticks: place and text of each tick of the horizontal axis.
        columns: the columns on the horizontal and the vertical axis.
        vertical_lines: whether the horizontal axis has grid lines as well.
        room_for_turned: additional height for tick labels too long for their places, which are turned; 0 where they fit.
    """
    bottom, marks = HEIGHT - BOTTOM, []
    for tick in axis.ticks:
        marks.append(_tag("line", x1=LEFT, x2=width - RIGHT, y1=axis.at(tick), y2=axis.at(tick), class_="rule"))
        marks.append(_text(axis.text(tick), LEFT - 10, axis.at(tick) + 4, "tick", "end"))
    for place, text in ticks:
        if vertical_lines:
            marks.append(_tag("line", x1=place, x2=place, y1=TOP, y2=bottom, class_="rule"))
        if room_for_turned:
            marks.append(_turned(text, place + 4, bottom + 16, "tick", "end", degrees=-30))
        else:
            marks.append(_text(text, place, bottom + 20, "tick", "middle"))
    marks.append(_text(heading(columns[0]), (LEFT + width - RIGHT) / 2, HEIGHT - 8 + room_for_turned, "label", "middle"))
    marks.append(_turned(heading(columns[1]), 14.0, (TOP + bottom) / 2, "label", "middle"))
    return _tag("g", *marks)


def _line(rows: list[Row], chart: Chart, axis: _Axis, places: list[float], look: tuple[str, str]) -> Markup:
    """Draw one line with its band, whiskers and points; between values that are words there is no line.

    Args:
        rows: the line's rows.
        chart: the chart.
        axis: the vertical axis.
        places: of the rows, along the horizontal axis.
        look: the line's colour and its label.
    """
    colour, label = look
    cells = [row.get(chart.measure) for row in rows]
    points = [(place, axis.at(_value(cell))) for place, cell in zip(places, cells, strict=True)]
    intervals = [tuple(axis.at(end) for end in _interval(cell)) for cell in cells]
    marks = []
    if not any(isinstance(row.get(chart.x), str) for row in rows):
        lower, upper = ([*zip(places, side, strict=True)] for side in zip(*intervals, strict=True))
        marks.append(_tag("polygon", points=_path([*lower, *reversed(upper)]), class_=f"band {colour}"))
        marks.append(_tag("polyline", points=_path(points), class_=f"line {colour}"))
    for row, (x, y), (low, high) in zip(rows, points, intervals, strict=True):
        tip = f"{label}\n{setting(chart.x, row.get(chart.x))}\n{_with_name(row, chart.measure)}"
        marks.append(_tag("line", x1=x, x2=x, y1=low, y2=high, class_=f"whisker {colour}"))
        marks.append(_tag("circle", cx=x, cy=y, r=5, class_=f"point {colour}", data_tip=tip))
    return _tag("g", *marks)


def _line_class(index: int) -> str:
    """Return the class of a line's marks: its colour, and dashes when the colours are used up."""
    return f"s{index % COLOURS}{' dashed' if index >= COLOURS else ''}"


def _source(row: Row, chart: Chart, axis: _Axis, x: float, lines: list[str]) -> Markup:
    """Draw the source's number as a hollow square, in the colour of its line."""
    cell = row.get(f"source_{chart.measure}")
    name = row_name(row, chart.series)
    colour = f" {_line_class(lines.index(name))}" if name in lines and len(lines) > 1 else ""
    tip = f"the source\n{row_name(row, (*chart.series, chart.x))}\n{heading(chart.measure)} {_number_text(cell)}"
    y = axis.at(_value(cell))
    return _tag("rect", x=x - 5, y=y - 5, width=10, height=10, class_=f"printed{colour}", data_tip=tip)


def _panel(
    grid: Grid, title: str, values: tuple[list[Any], list[Any]], layout: tuple[Point, Point, Point], *, named: bool
) -> Markup:
    """Draw one heat map.

    Args:
        grid: the heat maps.
        title: its heading.
        values: of both settings.
        layout: its upper left corner, the size of a cell, and the ends of the colour scale.
        named: whether to label the vertical axis.
    """
    (columns, rows), ((left, top), (wide, tall), scale) = values, layout
    cells = {(row.get(grid.x), row.get(grid.y)): row.get(grid.panels[title]) for row in grid.table.rows}
    top, bottom = top + 26, top + 26 + len(rows) * tall
    marks = [_text(title, left, top - 12, "heading", "start")]
    for column, x in enumerate(columns):
        marks.append(_text(str(x), left + (column + 0.5) * wide, bottom + 17, "tick", "middle"))
        for row, y in enumerate(rows):
            where = f"{title}: {setting(grid.x, x)}, {setting(grid.y, y)}"
            box = (left + column * wide, top + row * tall, wide, tall)
            marks.append(_heat_cell(cells.get((x, y)), box, scale, where, diverging=title in grid.diverging))
    marks.append(_text(heading(grid.x), left + len(columns) * wide / 2, bottom + 35, "label", "middle"))
    if named:
        marks += [_text(str(y), left - 8, top + (row + 0.5) * tall + 4, "tick", "end") for row, y in enumerate(rows)]
        marks.append(_turned(heading(grid.y), left - 34, (top + bottom) / 2, "label", "middle"))
    return _tag("g", *marks)


def _heat_cell(cell: Cell, box: tuple[float, float, float, float], scale: Point, where: str, *, diverging: bool) -> Markup:
    """Draw one cell of a heat map with its number, or a pale one if there is none."""
    x, y, wide, tall = box
    value = number(cell)
    shape: dict[str, Any] = {"x": x + 1, "y": y + 1, "width": wide - 2, "height": tall - 2, "rx": 3}
    if value is None:
        return _tag("rect", **shape, class_="absent", data_tip=f"{where}\nnot measured")
    low, high = scale
    fraction = 0.5 + value / (2 * (high - low)) if diverging else (value - low) / (high - low)
    colour = interpolate(fraction, DIVERGING if diverging else SEQUENTIAL)
    text = f"{value:+.2f}" if diverging else f"{value:.2f}"
    return _tag(
        "g",
        _tag("rect", **shape, fill=hexadecimal(colour), data_tip=f"{where}\n{_number_text(cell)}"),
        _text(text, x + wide / 2, y + tall / 2 + 4.5, "cell", "middle", fill=text_colour(colour)),
    )


def _clearly_beaten(row: Row, rows: Sequence[Row], scatter: Scatter) -> bool:
    """Return whether another row is better on both axes, its intervals beyond this row's."""
    return any(
        all(_interval(other.get(name))[0] > _interval(row.get(name))[1] for name in (scatter.x, scatter.y)) for other in rows
    )


def _scatter_point(row: Row, scatter: Scatter, axes: tuple[_Axis, _Axis], look: str) -> Markup:
    """Draw a row as a point with both its intervals."""
    horizontal, vertical = axes
    x, y = horizontal.at(_value(row.get(scatter.x))), vertical.at(_value(row.get(scatter.y)))
    left, right = (horizontal.at(end) for end in _interval(row.get(scatter.x)))
    low, high = (vertical.at(end) for end in _interval(row.get(scatter.y)))
    tip = "\n".join([row_name(row, scatter.names), *(_with_name(row, name) for name in (scatter.x, scatter.y))])
    return _tag(
        "g",
        _tag("line", x1=left, x2=right, y1=y, y2=y, class_="whisker quiet"),
        _tag("line", x1=x, x2=x, y1=low, y2=high, class_="whisker quiet"),
        _tag("circle", cx=x, cy=y, r=6 if look == "s0" else 5, class_=f"point {look}", data_tip=tip),
    )


def _point_names(points: list[Point], names: list[str], width: float) -> list[Markup]:
    """Write the points' names beside or below them, at the first place where a name covers neither a point nor another name."""
    marks: list[Markup] = []
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for (x, y), name in zip(points, names, strict=True):
        length = len(name) * CHARACTER
        places = [(left, y + dy - 12, left + length, y + dy) for dy in (-10, 20, 38, 56) for left in (x + 11, x - 11 - length)]
        inside = [box for box in places if box[0] > LEFT and box[2] < width - RIGHT] or places
        free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
        box = (free or inside)[0]
        taken.append(box)
        anchor, edge = ("start", box[0]) if box[0] > x else ("end", box[2])
        marks.append(_text(name, edge, box[3], "name", anchor))
    return marks


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _value(cell: Cell) -> float:
    return number(cell) or 0.0


def _interval(cell: Cell) -> Point:
    """Return the ends of an estimate's interval, or a bare number twice."""
    found = ends(cell)
    return found[0], found[-1]


def _number_text(cell: Cell) -> str:
    return str(cell) if isinstance(cell, Estimate) else f"{_value(cell):z.3f}"


def _with_name(row: Row, column: str) -> str:
    return f"{heading(column)} {_number_text(row.get(column))}"


def _path(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(text: str, x: float, y: float, kind: str, anchor: str, **attributes: str) -> Markup:
    return _tag("text", text, x=x, y=y, class_=kind, text_anchor=anchor, **attributes)


def _turned(text: str, x: float, y: float, kind: str, anchor: str, degrees: int = -90) -> Markup:
    return _tag("text", text, transform=f"translate({x:g} {y:g}) rotate({degrees})", class_=kind, text_anchor=anchor)


def _svg(title: str, width: float, height: float, *marks: Markup) -> Markup:
    box = f"0 0 {width:g} {height:g}"
    return _tag("svg", _tag("title", title), *marks, viewBox=box, role="img", aria_label=title, class_="drawing")


def _tag(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element; its texts and attributes are escaped."""
    parts = []
    for key, value in attributes.items():
        text = f"{value:.1f}" if isinstance(value, float) else str(value)
        parts.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), text))
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(parts), inside)
