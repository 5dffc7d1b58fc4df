"""A page's content as one HTML text: every name and number escaped, script and style allowed by their hashes and nothing else."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from shiftscope.estimates import Estimate
from shiftscope.report.charts import NARROW, WIDE, Drawn, draw_chart, draw_grid, draw_scatter, number
from shiftscope.report.colours import SEQUENTIAL
from shiftscope.report.content import Chart, Drag, Grid, Lesson, Maps, Missing, Page, Rows, Scatter, Section, ShiftMap
from shiftscope.report.packing import drag_data, map_picture, spread
from shiftscope.tables import Cell, Table

__all__ = ["render"]

STYLES = ("style.css",)
SCRIPTS = ("report.js", "drag.js", "lesson.js")
#: Letters from which a cell is given room for lines.
LONG = 30


def render(page: Page) -> str:
    """The page as HTML that needs nothing from anywhere.

    Args:
        page: its content; any text in it is shown as text.

    Raises:
        InputError: outputs that do not belong to the images they are to answer for.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("shiftscope", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles, scripts = [_asset(name) for name in STYLES], [_asset(name) for name in SCRIPTS]
    policy = (
        f"default-src 'none'; style-src {_hashes(styles)}; script-src {_hashes(scripts)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    sections = [shown for place, each in enumerate(page.sections) if (shown := _section(each, f"section-{place}", page.words))]
    return environment.get_template("page.html").render(
        page=page,
        policy=policy,
        styles=[Markup(style) for style in styles],  # noqa: S704 - the package's own files
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - the package's own files
        sections=sections,
        scale=json_text([list(stop) for stop in SEQUENTIAL]),
    )


def json_text(content: Any) -> Markup:
    """JSON that cannot leave the script element it stands in."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704 - escaped here


def _asset(name: str) -> str:
    return (files("shiftscope.report") / name).read_text(encoding="utf-8")


def _hashes(texts: list[str]) -> str:
    return " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)


def _section(section: Section, name: str, words: Mapping[str, str]) -> dict[str, Any] | None:
    """What the template needs of a section; None where there is nothing to draw."""
    shared = {"id": name, "kind": type(section).__name__.lower(), "title": section.title}
    match section:
        case Missing(sentences=sentences):
            return shared | {"sentences": sentences, "caption": ""}
        case Chart() | Grid() | Scatter():
            drawn = [_drawn(section, words, width) for width in (WIDE, NARROW)]
            if drawn[0] is None:
                return None
            svgs = [{"width": name, "svg": each.svg} for name, each in zip(("wide", "narrow"), drawn, strict=True) if each]
            return shared | {"caption": section.caption, "kind": "figure", "svgs": svgs, "legend": drawn[0].legend}
        case Rows():
            return shared | {"caption": section.caption, **_rows(section.table, words, section.verdicts)}
        case Maps():
            return shared | {"caption": section.caption, **_maps(section.maps)} if section.maps else None
        case Drag():
            data = drag_data(section)
            return shared | {"caption": section.caption, "data": json_text(data), "plain": data}
        case Lesson():
            signals = [{"name": each.name, "values": list(each.values)} for each in section.signals]
            kernels = [{"name": each.name, "values": list(each.values)} for each in section.kernels]
            return shared | {"caption": section.caption, "data": json_text({"signals": signals, "kernels": kernels})}


def _drawn(section: Chart | Grid | Scatter, words: Mapping[str, str], width: float) -> Drawn | None:
    match section:
        case Chart():
            return draw_chart(section, words, width)
        case Grid():
            return draw_grid(section, words, width)
        case Scatter():
            return draw_scatter(section, words, width)


def _maps(maps: tuple[ShiftMap, ...]) -> dict[str, Any]:
    low, high = spread(maps)
    shown = [
        {
            "name": each.name,
            "factor": each.factor,
            "picture": map_picture(each.values, low, high),
            "values": " ".join(f"{value:.3f}" for value in each.values.tolist()),
            "side": round(len(each.values) ** 0.5),
            "least": f"{float(each.values.min()):.2f}",
            "most": f"{float(each.values.max()):.2f}",
        }
        for each in maps
    ]
    return {"maps": shown, "low": f"{low:.2f}", "high": f"{high:.2f}"}


def _rows(table: Table, words: Mapping[str, str], verdicts: tuple[str, ...]) -> dict[str, Any]:
    columns = [
        {
            "name": words.get(column, column.replace("_", " ")),
            "numeric": all(not isinstance(row.get(column), str) for row in table.rows),
        }
        for column in table.columns
    ]
    body = [[_cell(row.get(column), badge=column in verdicts) for column in table.columns] for row in table.rows]
    return {
        "columns": columns,
        "rows": body,
        "notes": table.notes,
        "csv": json_text(table.to_csv()),
        "file": _file_name(table.title),
    }


def _cell(cell: Cell, *, badge: bool) -> dict[str, Any]:
    """A cell's text, its interval apart, and what it is sorted by."""
    value = number(cell)
    order = "" if value is None else repr(value)
    if isinstance(cell, Estimate):
        return {
            "text": f"{cell.value:.3f}",
            "interval": f"{cell.low:.3f} to {cell.high:.3f}",
            "order": order,
            "badge": "",
            "long": False,
        }
    text = "" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell)
    kind = {"holds": "good", "does not hold": "bad", "undecided": "open"}.get(text, "none") if badge else ""
    return {"text": text, "interval": "", "order": order or text, "badge": kind, "long": len(text) > LONG}


def _file_name(title: str) -> str:
    """A title as the name of a CSV file."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in title.lower())
    return ("-".join(part for part in kept.split("-") if part)[:60] or "table") + ".csv"
