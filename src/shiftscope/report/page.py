"""Render a page's content as one HTML text. Every name and number is escaped; only the page's own script and style may run."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from shiftscope.estimates import Estimate
from shiftscope.figures.cells import number
from shiftscope.report.charts import NARROW, WIDE, Drawing, draw_chart, draw_grid, draw_scatter
from shiftscope.report.colours import SEQUENTIAL
from shiftscope.report.content import Chart, Drag, Film, Grid, Lesson, Maps, Missing, Page, Pairs, Rows, Scatter, Section, Signal
from shiftscope.report.packing import colour_range, drag_data, map_picture
from shiftscope.tables import Cell, heading, number_text

__all__ = ["json_text", "render"]

STYLES = ("style.css",)
SCRIPTS = ("report.js", "drag.js", "film.js", "lesson.js")
#: A cell with more characters gets a wide column, in which it wraps.
LONG = 30
#: A scale that ends below this shows as many digits as tell its numbers apart.
SMALL = 0.1
#: The colours of verdicts.
BADGES = {"holds": "good", "does not hold": "bad", "undecided": "open"}


def render(page: Page) -> str:
    """Return a page as HTML that loads nothing from anywhere.

    Args:
        page: its content. Text in it is shown as text, whatever it contains.

    Raises:
        InputError: a network's outputs belong to other images, shifts or classes than its section's.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("shiftscope", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    lead, rest = _first_sentence(page.answer)
    styles, scripts = [_asset(name) for name in STYLES], [_asset(name) for name in SCRIPTS]
    policy = (
        f"default-src 'none'; style-src {_hashes(styles)}; script-src {_hashes(scripts)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    sections = [data for index, section in enumerate(page.sections) if (data := _section_data(section, f"section-{index}"))]
    return environment.get_template("page.html").render(
        page=page,
        lead=lead,
        rest=rest,
        policy=policy,
        styles=[Markup(style) for style in styles],  # noqa: S704 - the package's own files
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - the package's own files
        sections=sections,
        scale=json_text([list(stop) for stop in SEQUENTIAL]),
    )


def json_text(content: Any) -> Markup:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704 - escaped here


def _unbroken(text: str) -> str:
    """Return a text whose lines do not break between a number and its per cent sign."""
    return text.replace(" %", "\u00a0%")


def _first_sentence(text: str) -> tuple[str, str]:
    """Return a text's first sentence, which is written large, and the rest."""
    end = re.search(r"(?<=[.!?]) +(?=\S)", text)
    return (text[: end.start()], text[end.end() :]) if end else (text, "")


def _asset(name: str) -> str:
    return (files("shiftscope.report") / name).read_text(encoding="utf-8")


def _hashes(texts: list[str]) -> str:
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)


def _section_data(section: Section, name: str) -> dict[str, Any] | None:
    """Return what the template needs of a section; None if there is nothing to show."""
    data = _DATA[type(section)](section)
    kind = type(section).__name__.lower()
    return data and {"id": name, "kind": kind, "title": section.title, "caption": section.caption, **data}


def _drawings(draw: Callable[[Any, float], Drawing | None]) -> Callable[[Any], dict[str, Any] | None]:
    """Return a function that draws a section for a desktop and for a telephone, of which the style sheet shows one."""

    def data(section: Section) -> dict[str, Any] | None:
        wide, narrow = draw(section, WIDE), draw(section, NARROW)
        if wide is None or narrow is None:
            return None
        svgs = [{"width": "wide", "svg": wide.svg}, {"width": "narrow", "svg": narrow.svg}]
        return {"kind": "figure", "svgs": svgs, "legend": wide.legend}

    return data


def _maps_data(section: Maps) -> dict[str, Any] | None:
    if not section.maps:
        return None
    low, high = colour_range(section.maps)
    maps = [
        {
            "name": each.name,
            "factor": each.factor,
            "picture": map_picture(each.values, low, high),
            "values": " ".join(f"{value:z.3f}" if high >= SMALL else f"{value:.3g}" for value in each.values.tolist()),
            "side": round(len(each.values) ** 0.5),
            "least": _end(float(each.values.min()), high),
            "most": _end(float(each.values.max()), high),
        }
        for each in section.maps
    ]
    return {"maps": maps, "low": _end(low, high), "high": _end(high, high)}


def _end(value: float, largest: float) -> str:
    """Return an end of a scale with two digits, or with as many as tell small numbers apart."""
    return f"{value:.2f}" if abs(largest) >= SMALL else f"{value:.2g}"


def _rows_data(section: Rows) -> dict[str, Any]:
    table = section.table
    columns = [
        {"name": heading(column), "numeric": all(not isinstance(row.get(column), str) for row in table.rows)}
        for column in table.columns
    ]
    return {
        "columns": columns,
        "rows": [
            [_cell(column, row.get(column), badge=column in section.verdicts) for column in table.columns] for row in table.rows
        ],
        "notes": table.notes,
        "csv": json_text(table.to_csv()),
        "file": _file_name(table.title),
    }


def _drag_data(section: Drag) -> dict[str, Any]:
    data = drag_data(section)
    return {"data": json_text(data), "reach": section.reach}


def _film_data(section: Film) -> dict[str, Any] | None:
    strips = [{"name": name, "frames": list(map(asdict, frames))} for name, frames in section.strips.items() if frames]
    return {"data": json_text({"strips": strips, "change": section.change})} if strips else None


def _lesson_data(section: Lesson) -> dict[str, Any]:
    def plain(signals: tuple[Signal, ...]) -> list[dict[str, Any]]:
        return [{"name": each.name, "values": list(each.values)} for each in signals]

    return {"data": json_text({"signals": plain(section.signals), "kernels": plain(section.kernels)})}


#: What the template needs of each kind of section.
_DATA: dict[type[Section], Callable[[Any], dict[str, Any] | None]] = {
    Chart: _drawings(draw_chart),
    Grid: _drawings(draw_grid),
    Scatter: _drawings(draw_scatter),
    Maps: _maps_data,
    Rows: _rows_data,
    Drag: _drag_data,
    Film: _film_data,
    Lesson: _lesson_data,
    Missing: lambda section: {"sentences": section.sentences},
    Pairs: lambda section: {"pairs": section.pairs} if section.pairs else None,
}


def _cell(column: str, cell: Cell, *, badge: bool) -> dict[str, Any]:
    """Return a cell's text, its interval, and the key it is sorted by."""
    value = number(cell)
    interval, text = "", "" if cell is None else str(cell)
    if isinstance(cell, Estimate):
        text, interval = f"{cell.value:z.3f}", f"{cell.low:z.3f} to {cell.high:z.3f}"
    elif isinstance(cell, float):
        text = number_text(column, cell)
    return {
        "text": text,
        "interval": interval,
        "order": text if value is None else repr(value),
        "badge": BADGES.get(text.removesuffix(" here"), "none") if badge else "",
        "long": len(text) > LONG,
    }


def _file_name(title: str) -> str:
    """Return a CSV file's name made from a title."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in title.lower())
    return ("-".join(part for part in letters.split("-") if part)[:60] or "table") + ".csv"
