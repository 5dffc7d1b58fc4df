"""Inline SVG from tables. Colours are classes of the style sheet, so that they follow light and dark; only scales are written in.

What a mark stands for is in its ``data-tip``, which the page's script shows; the numbers are in the page's tables as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from markupsafe import Markup, escape

from shiftscope.estimates import Estimate
from shiftscope.report.colours import DIVERGING, SEQUENTIAL, hexadecimal, ink, mixed
from shiftscope.report.content import Chart, Grid, Scatter
from shiftscope.tables import Cell

__all__ = ["NARROW", "WIDE", "Drawn", "draw_chart", "draw_grid", "draw_scatter", "front", "number"]

#: Of a page on a desk, and on a telephone.
WIDE, NARROW = 720.0, 380.0
HEIGHT = 360.0
LEFT, RIGHT, TOP, BOTTOM = 76.0, 18.0, 14.0, 50.0
SERIES = 6
#: About what a character of a tick takes.
CHARACTER = 7.5
Words = Mapping[str, str]


@dataclass(frozen=True)
class Drawn:
    """A drawing and the key to it: class of a swatch -> what it means."""

    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()


def draw_chart(chart: Chart, words: Words, width: float = WIDE) -> Drawn | None:
    """Lines with bands and points, points alone where the setting is one of words; None where no row holds the measure."""
    rows = [row for row in chart.table.rows if number(row.get(chart.measure)) is not None]
    if not rows:
        return None
    places = _in_order(chart.table.rows, chart.across)
    lines: dict[tuple[str, ...], list[Mapping[str, Cell]]] = {}
    for row in rows:
        lines.setdefault(tuple(_named(name, row.get(name), words) for name in chart.series), []).append(row)
    printed = f"source_{chart.measure}"
    numbers = [each for row in chart.table.rows for name in (chart.measure, printed) for each in _ends(row.get(name))]
    axis = _Axis(numbers)
    step = (width - LEFT - RIGHT) / len(places)
    across = {place: LEFT + step * (index + 0.5) for index, place in enumerate(places)}
    below = [(across[place], str(place)) for place in places]
    longest = max(len(text) for _, text in below) * CHARACTER
    turned = longest * 0.5 if longest > step else 0.0
    marks = [_frame(axis, width, below, _word(chart.across, words), _word(chart.measure, words), turned=turned)]
    legend = []
    for index, (names, held) in enumerate(lines.items()):
        # Lines stand a little apart, so that equal values do not hide each other.
        offset = (index - (len(lines) - 1) / 2) * min(10.0, step / (len(lines) + 1))
        colour = f"s{index % SERIES}"
        label = ", ".join(names) or "measured, 95 % interval"
        ordered = sorted(held, key=lambda row: places.index(row.get(chart.across)))
        marks.append(_line(ordered, chart, axis, across, offset, colour, label, words))
        legend.append((colour, label))
    sources = [row for row in chart.table.rows if number(row.get(printed)) is not None]
    if sources:
        marks.append(_sources(sources, chart, axis, across, list(lines), words))
        legend.append(("source", "the source's numbers"))
    title = f"{_word(chart.measure, words)} against {_word(chart.across, words)}"
    return Drawn(_svg(title, width, HEIGHT + turned, *marks), tuple(legend))


def draw_grid(grid: Grid, words: Words, width: float = WIDE) -> Drawn | None:
    """Heat maps side by side; None where a setting has one value only or nothing was measured."""
    columns, rows = _in_order(grid.table.rows, grid.across), _in_order(grid.table.rows, grid.down)
    cells = {(row.get(grid.across), row.get(grid.down)): row for row in grid.table.rows}
    panels = {
        heading: name
        for heading, name in grid.panels.items()
        if any(number(row.get(name)) is not None for row in grid.table.rows)
    }
    if len(columns) < 2 or len(rows) < 2 or not panels:
        return None
    plain = [
        number(row.get(name)) for heading, name in panels.items() if heading not in grid.diverging for row in grid.table.rows
    ]
    known = [value for value in plain if value is not None] or [0.0, 1.0]
    ends = (min(known), max(known) if max(known) > min(known) else min(known) + 1)
    side = (58.0, 42.0) if width == WIDE else (66.0, 46.0)
    each = (len(columns) * side[0], len(rows) * side[1] + 62)
    marks = []
    for place, (heading, name) in enumerate(panels.items()):
        start = (46 + place * (each[0] + 36), 0.0) if width == WIDE else (46.0, place * (each[1] + 24))
        found = {(x, y): cells.get((x, y), {}).get(name) for x in columns for y in rows}
        names = place == 0 or width != WIDE
        marks.append(_panel(grid, heading, found, (columns, rows), start, side, ends, words, names=names))
    count = (len(panels), 1) if width == WIDE else (1, len(panels))
    size = (46 + count[0] * (each[0] + 36) - 36, count[1] * (each[1] + 24) - 24)
    title = f"{', '.join(panels)} by {_word(grid.across, words)} and {_word(grid.down, words)}"
    return Drawn(_svg(title, *size, *marks))


def _panel(
    grid: Grid,
    heading: str,
    found: Mapping[tuple[Any, Any], Cell],
    settings: tuple[list[Any], list[Any]],
    start: tuple[float, float],
    side: tuple[float, float],
    ends: tuple[float, float],
    words: Words,
    *,
    names: bool,
) -> Markup:
    """One heat map with its heading and ticks; the names of the rows where asked for."""
    (columns, rows), (x, y), (wide, tall) = settings, start, side
    top, bottom = y + 26, y + 26 + len(rows) * tall
    marks = [_tag("text", heading, x=x, y=y + 14, class_="heading")]
    for column, across in enumerate(columns):
        marks.append(_tag("text", str(across), x=x + (column + 0.5) * wide, y=bottom + 17, class_="tick", text_anchor="middle"))
        for row, down in enumerate(rows):
            where = f"{heading}: {_named(grid.across, across, words)}, {_named(grid.down, down, words)}"
            place = (x + column * wide, top + row * tall)
            marks.append(_heat(found[across, down], place, side, ends, where, parted=heading in grid.diverging))
    middle = x + len(columns) * wide / 2
    marks.append(_tag("text", _word(grid.across, words), x=middle, y=bottom + 35, class_="label", text_anchor="middle"))
    if names:
        for row, down in enumerate(rows):
            marks.append(_tag("text", str(down), x=x - 8, y=top + (row + 0.5) * tall + 4, class_="tick", text_anchor="end"))
        marks.append(_turned(_word(grid.down, words), x - 34, (top + bottom) / 2))
    return _tag("g", *marks)


def draw_scatter(scatter: Scatter, words: Words, width: float = WIDE) -> Drawn | None:
    """A point a row, and the front of those that no other beats on both axes; None with fewer than two points."""
    rows = [row for row in scatter.table.rows if all(number(row.get(name)) is not None for name in (scatter.across, scatter.up))]
    if len(rows) < 2:
        return None
    points = [(_number(row.get(scatter.across)), _number(row.get(scatter.up))) for row in rows]
    flat = _Axis([end for row in rows for end in _ends(row.get(scatter.across))], span=(LEFT, width - RIGHT - 12))
    axis = _Axis([end for row in rows for end in _ends(row.get(scatter.up))])
    below = [(flat.at(tick), flat.text(tick)) for tick in flat.ticks[:: 1 if width == WIDE else 2]]
    marks = [_frame(axis, width, below, _word(scatter.across, words), _word(scatter.up, words), upright=True)]
    best = front(points)
    path = [(flat.at(points[index][0]), axis.at(points[index][1])) for index in best]
    marks.append(_tag("polyline", points=_path(path), class_="front"))
    for index, (row, (x, y)) in enumerate(zip(rows, points, strict=True)):
        name = ", ".join(_named(column, row.get(column), words) for column in scatter.names)
        tip = "\n".join([name, *(f"{_word(column, words)} {_shown(row.get(column))}" for column in (scatter.across, scatter.up))])
        marks.append(_whiskers(row, scatter, flat, axis))
        marks.append(
            _tag(
                "circle",
                cx=flat.at(x),
                cy=axis.at(y),
                r=6 if index in best else 5,
                class_="point s0" if index in best else "point beaten",
                data_tip=tip,
            )
        )
        if index in best and width == WIDE:
            marks.append(_beside(name, flat.at(x), axis.at(y), width, above=best.index(index) % 2 == 0))
    title = f"{_word(scatter.up, words)} against {_word(scatter.across, words)}"
    return Drawn(
        _svg(title, width, HEIGHT, *marks), (("s0", "no other is better on both"), ("beaten", "another is better on both"))
    )


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats on both axes (Pareto's front), from left to right.

    >>> front([(0.1, 0.9), (0.2, 0.5), (0.3, 0.8), (0.3, 0.7)])
    [0, 2]
    """

    def beaten(x: float, y: float) -> bool:
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)

    return sorted((index for index, (x, y) in enumerate(points) if not beaten(x, y)), key=lambda index: points[index])


def number(cell: Cell) -> float | None:
    """A cell's value; None where it holds none."""
    if isinstance(cell, Estimate):
        return cell.value
    return float(cell) if isinstance(cell, int | float) else None


def _number(cell: Cell) -> float:
    value = number(cell)
    return 0.0 if value is None else value


class _Axis:
    """A scale from numbers to places, with round ticks; upright unless ``span`` says from where to where."""

    def __init__(self, numbers: Sequence[float], span: tuple[float, float] = (HEIGHT - BOTTOM, TOP)) -> None:
        low, high = min(numbers), max(numbers)
        reach = (high - low) or max(abs(high), 1.0) * 0.1
        raw = reach * 1.1 / 4
        power = 10.0 ** floor(log10(raw))
        step = next(power * part for part in (1, 2, 2.5, 5, 10) if power * part >= raw)
        first = floor((low - reach * 0.04) / step)
        last = -floor(-(high + reach * 0.04) / step)
        if low >= 0:
            first = max(first, 0)
        if high <= 1 < last * step:
            last = -floor(-1 / step)  # a share or a cosine ends there
        self.ticks = [index * step for index in range(first, last + 1)]
        self.span = span
        self.digits = max(0, -floor(log10(step)) + (1 if step / power == 2.5 else 0))

    def at(self, value: float) -> float:
        start, end = self.span
        return start + (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0]) * (end - start)

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


def _frame(
    axis: _Axis,
    width: float,
    below: Sequence[tuple[float, str]],
    across: str,
    up: str,
    *,
    upright: bool = False,
    turned: float = 0.0,
) -> Markup:
    """Grid lines, ticks and the axes' names; long names below are turned, for which they get so much more room."""
    marks = []
    for tick in axis.ticks:
        marks.append(_tag("line", x1=LEFT, x2=width - RIGHT, y1=axis.at(tick), y2=axis.at(tick), class_="rule"))
        marks.append(_tag("text", axis.text(tick), x=LEFT - 10, y=axis.at(tick) + 4, class_="tick", text_anchor="end"))
    for place, text in below:
        if upright:
            marks.append(_tag("line", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM, class_="rule"))
        if turned:
            how = {"transform": f"translate({place + 4:g} {HEIGHT - BOTTOM + 16:g}) rotate(-30)", "text_anchor": "end"}
        else:
            how = {"transform": f"translate({place:g} {HEIGHT - BOTTOM + 20:g})", "text_anchor": "middle"}
        marks.append(_tag("text", text, class_="tick", **how))
    middle, bottom = (LEFT + width - RIGHT) / 2, HEIGHT - 8 + turned
    marks.append(_tag("text", across, x=middle, y=bottom, class_="label", text_anchor="middle"))
    marks.append(_turned(up, 14.0, (TOP + HEIGHT - BOTTOM) / 2))
    return _tag("g", *marks)


def _line(
    rows: list[Mapping[str, Cell]],
    chart: Chart,
    axis: _Axis,
    across: Mapping[Any, float],
    offset: float,
    colour: str,
    label: str,
    words: Words,
) -> Markup:
    """One line: its band, its whiskers, its points; words have no line between them."""
    places = [across[row.get(chart.across)] + offset for row in rows]
    cells = [row.get(chart.measure) for row in rows]
    middles = [axis.at(_number(cell)) for cell in cells]
    ends = [(axis.at(_ends(cell)[0]), axis.at(_ends(cell)[-1])) for cell in cells]
    band = [
        *zip(places, (low for low, _ in ends), strict=True),
        *reversed([*zip(places, (high for _, high in ends), strict=True)]),
    ]
    marks = []
    if not any(isinstance(row.get(chart.across), str) for row in rows):
        marks.append(_tag("polygon", points=_path(band), class_=f"band {colour}"))
        marks.append(_tag("polyline", points=_path([*zip(places, middles, strict=True)]), class_=f"line {colour}"))
    for row, place, middle, (low, high) in zip(rows, places, middles, ends, strict=True):
        where, found = _named(chart.across, row.get(chart.across), words), _shown(row.get(chart.measure))
        tip = f"{label}\n{where}\n{_word(chart.measure, words)} {found}"
        marks.append(_tag("line", x1=place, x2=place, y1=low, y2=high, class_=f"whisker {colour}"))
        marks.append(_tag("circle", cx=place, cy=middle, r=5, class_=f"point {colour}", data_tip=tip))
    return _tag("g", *marks)


def _sources(
    rows: list[Mapping[str, Cell]],
    chart: Chart,
    axis: _Axis,
    across: Mapping[Any, float],
    lines: list[tuple[str, ...]],
    words: Words,
) -> Markup:
    """The source's numbers as hollow squares, in the colour of the line they belong to."""
    marks = []
    for row in rows:
        x, y = across[row.get(chart.across)], axis.at(_number(row.get(f"source_{chart.measure}")))
        names = ", ".join(_named(name, row.get(name), words) for name in (*chart.series, chart.across))
        of = tuple(_named(name, row.get(name), words) for name in chart.series)
        colour = f" s{lines.index(of) % SERIES}" if of in lines and len(lines) > 1 else ""
        tip = f"the source\n{names}\n{_word(chart.measure, words)} {_shown(row.get(f'source_{chart.measure}'))}"
        marks.append(_tag("rect", x=x - 5, y=y - 5, width=10, height=10, class_=f"printed{colour}", data_tip=tip))
    return _tag("g", *marks)


def _heat(
    value: Cell, place: tuple[float, float], side: tuple[float, float], ends: tuple[float, float], where: str, *, parted: bool
) -> Markup:
    """One cell of a heat map with its number; pale where there is none."""
    (x, y), (wide, tall) = place, side
    found = number(value)
    shape: dict[str, Any] = {"x": x + 1, "y": y + 1, "width": wide - 2, "height": tall - 2, "rx": 3}
    if found is None:
        return _tag("rect", **shape, class_="absent", data_tip=f"{where}\nnot measured")
    low, high = ends
    share = 0.5 + found / (2 * (high - low)) if parted else (found - low) / (high - low)
    colour = mixed(share, DIVERGING if parted else SEQUENTIAL)
    text = f"{found:+.2f}" if parted else f"{found:.2f}"
    return _tag(
        "g",
        _tag("rect", **shape, fill=hexadecimal(colour), data_tip=f"{where}\n{_shown(value)}"),
        _tag("text", text, x=x + wide / 2, y=y + tall / 2 + 4.5, fill=ink(colour), class_="cell", text_anchor="middle"),
    )


def _whiskers(row: Mapping[str, Cell], scatter: Scatter, flat: _Axis, axis: _Axis) -> Markup:
    across, up = _ends(row.get(scatter.across)), _ends(row.get(scatter.up))
    x, y = flat.at(_number(row.get(scatter.across))), axis.at(_number(row.get(scatter.up)))
    return _tag(
        "g",
        _tag("line", x1=flat.at(across[0]), x2=flat.at(across[-1]), y1=y, y2=y, class_="whisker quiet"),
        _tag("line", x1=x, x2=x, y1=axis.at(up[0]), y2=axis.at(up[-1]), class_="whisker quiet"),
    )


def _beside(name: str, x: float, y: float, width: float, *, above: bool) -> Markup:
    """A point's name on the side where there is room."""
    left = x > width * 0.6
    return _tag(
        "text",
        name,
        x=x - 11 if left else x + 11,
        y=y - 10 if above else y + 20,
        class_="name",
        text_anchor="end" if left else "start",
    )


def _turned(text: str, x: float, y: float) -> Markup:
    return _tag("text", text, transform=f"translate({x:g} {y:g}) rotate(-90)", class_="label", text_anchor="middle")


def _in_order(rows: Sequence[Mapping[str, Cell]], column: str) -> list[Any]:
    """A column's values: numbers by size, all else as they come."""
    values = list(dict.fromkeys(row.get(column) for row in rows))
    return sorted(values, key=float) if all(isinstance(value, int | float) for value in values) else values


def _ends(cell: Cell) -> list[float]:
    if isinstance(cell, Estimate):
        return [cell.low, cell.high]
    value = number(cell)
    return [] if value is None else [value]


def _shown(cell: Cell) -> str:
    return str(cell) if isinstance(cell, Estimate) else f"{_number(cell):.3f}"


def _word(column: str, words: Words) -> str:
    return words.get(column, column.replace("_", " "))


def _named(column: str, value: Cell, words: Words) -> str:
    """A setting with its value; a text says by itself what it is."""
    return str(value) if isinstance(value, str) else f"{_word(column, words)} {value}"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(title: str, width: float, height: float, *marks: Markup) -> Markup:
    return _tag(
        "svg", _tag("title", title), *marks, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title, class_="drawing"
    )


def _tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element, its texts and attributes escaped."""
    parts = []
    for key, value in attributes.items():
        shown = f"{value:.1f}" if isinstance(value, float) else str(value)
        parts.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), shown))
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(parts), inside)
