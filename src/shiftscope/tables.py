"""Tables: the one border between measuring and showing. A table knows no model, only rows, and what their columns are called.

A cell is text, a number, an :class:`Estimate` or empty. The same table is printed and written as Markdown with headings in words,
and as CSV and JSON with the short names. Measures are named in words, too, where they are cells of the column ``measure``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shiftscope.estimates import Estimate
from shiftscope.measures import MEASURES

__all__ = ["Cell", "Table", "heading"]

Cell = str | int | float | Estimate | None

#: Column headings of settings and counts; those of measures come from :data:`shiftscope.measures.MEASURES`.
HEADINGS = {
    "factor": "subsampling factor",
    "pool_kernel": "pooling kernel",
    "antialias": "filter size",
    "seeds": "networks",
    "max_shift": "largest shift",
    "given_right": "of images classified correctly",
    "lost": "loss",
    "different_images": "cosine between different images",
    "ratio": "ratio of multiply-adds",
}


def heading(column: str) -> str:
    """Return the words for a column.

    >>> heading("mcs"), heading("source_mcs"), heading("pool_kernel"), heading("multiply_adds")
    ('mean cosine similarity', 'source: mean cosine similarity', 'pooling kernel', 'multiply adds')
    """
    prefix, _, rest = column.partition("_")
    if prefix in ("source", "difference") and rest:
        return f"{prefix}: {heading(rest)}"
    if column in MEASURES:
        return MEASURES[column].label
    return HEADINGS.get(column, column.replace("_", " "))


@dataclass(frozen=True)
class Table:
    """Rows with the same columns.

    Attributes:
        title: one line.
        columns: short names, in order.
        rows: column -> cell; a missing cell is empty.
        notes: sentences that a reader needs, each on its own.
        provenance: how the numbers were made, name -> value.

    >>> table = Table("Two networks", ("factor", "mcs"), ({"factor": 1, "mcs": 0.5},))
    >>> print(table.to_markdown())
    # Two networks
    <BLANKLINE>
    | subsampling factor | mean cosine similarity |
    | --- | --- |
    | 1 | 0.500 |
    <BLANKLINE>
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Cell], ...]
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    def headings(self) -> list[str]:
        """Return the words for the columns."""
        return [heading(column) for column in self.columns]

    def texts(self) -> list[list[str]]:
        """Return the cells as they are printed, row by row; measures in words."""
        return [[_text(column, row.get(column)) for column in self.columns] for row in self.rows]

    def to_csv(self) -> str:
        """Return comma-separated values in full precision; an estimate fills ``name``, ``name_low`` and ``name_high``."""
        wide = {column: any(isinstance(row.get(column), Estimate) for row in self.rows) for column in self.columns}
        target = io.StringIO()
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow([name for column in self.columns for name in _names(column, wide[column])])
        for row in self.rows:
            writer.writerow([value for column in self.columns for value in _values(row.get(column), wide[column])])
        return target.getvalue()

    def to_markdown(self) -> str:
        """Return a Markdown page: title, table, notes, provenance."""
        lines = [f"# {self.title}", "", _line(self.headings()), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.texts()]
        lines += [line for note in self.notes for line in ("", note)]
        if self.provenance:
            lines += ["", "## Provenance", "", "| what | value |", "|---|---|"]
            lines += [_line([name, value]) for name, value in self.provenance.items()]
        return "\n".join(lines) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain data, estimates as objects."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": [{column: _plain(row.get(column)) for column in self.columns} for row in self.rows],
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }


def _text(column: str, cell: Cell) -> str:
    if cell is None:
        return ""
    if column == "measure":
        name, comma, shifts = str(cell).partition(", ")  # "worst_case, radius 3"
        return heading(name) + comma + shifts
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _plain(cell: Cell) -> Any:
    return asdict(cell) if isinstance(cell, Estimate) else cell


def _names(column: str, wide: bool) -> list[str]:
    return [column, f"{column}_low", f"{column}_high"] if wide else [column]


def _values(cell: Cell, wide: bool) -> list[Cell]:
    if isinstance(cell, Estimate):
        return [cell.value, cell.low, cell.high]
    return [cell, None, None] if wide else [cell]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
