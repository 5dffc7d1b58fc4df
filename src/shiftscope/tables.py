"""Tables, from which everything that is shown is made. A table holds rows and the names of its columns, and no model.

A cell is text, a number, an :class:`Estimate` or empty. The same table is printed and written as Markdown with headings in words,
and as CSV and JSON with the short names. Measures are named in words, too, where they are cells of the column ``measure``.

A :class:`Summary` is what a command prints: the verdict, narrow tables, and the next command. Files hold the complete tables.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import floor, log10
from typing import Any

from shiftscope.estimates import Estimate
from shiftscope.measures import MEASURES
from shiftscope.runtime.text import markdown_text, plain_cell, printable

__all__ = ["FRACTIONS", "Cell", "Summary", "Table", "heading", "number_text", "percent", "plus_minus"]

Cell = str | int | float | Estimate | None

#: Column headings of settings and counts; those of measures come from :data:`shiftscope.measures.MEASURES`.
HEADINGS = {
    "factor": "subsampling factor",
    "pool_kernel": "pooling kernel",
    "antialias": "filter size",
    "seeds": "networks",
    "max_shift": "largest shift",
    "shifts_in_pixels": "shifts, pixels",
    "given_right": "of images classified correctly",
    "lost": "loss",
    "different_images": "cosine between different images",
    "ratio": "ratio of multiply-adds",
}


#: An interval whose shorter side is at least this part of its longer side is printed as ±, with the longer side.
SYMMETRIC = 0.75
#: Settings that are fractions: all of their digits count.
FRACTIONS = frozenset({"learning_rate", "learning_rate_decay", "target_train_accuracy"})
#: Numbers below this have more than three digits after the point.
SMALL = 0.0095


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


def plus_minus(estimate: Estimate) -> str:
    """Return an estimate as value ± half its interval's length, or as value [low, high] if one side is clearly longer.

    If the sides are about equal, ± shows the longer one, so that it covers the interval.

    >>> plus_minus(Estimate(0.5, 0.4, 0.59, count=9)), plus_minus(Estimate(1.0, 0.722, 1.0, count=10))
    ('0.500 ± 0.100', '1.000 [0.722, 1.000]')
    >>> plus_minus(Estimate(0.25, 0.071, 0.591, count=8))  # ± would reach below 0
    '0.250 [0.071, 0.591]'
    >>> plus_minus(Estimate(0.0024, 0.0016, 0.0032, count=9))  # small numbers have two significant digits
    '0.0024 ± 0.0008'
    """
    below, above = estimate.value - estimate.low, estimate.high - estimate.value
    longer, shorter = max(below, above), min(below, above)
    size = max(abs(estimate.value), longer)
    digits = min(6, 1 - floor(log10(size))) if 0 < size < SMALL else 3
    if shorter >= SYMMETRIC * longer:
        return f"{estimate.value:z.{digits}f} ± {longer:z.{digits}f}"
    return f"{estimate.value:z.{digits}f} [{estimate.low:z.{digits}f}, {estimate.high:z.{digits}f}]"


def number_text(column: str, value: float) -> str:
    """Return a fraction as it is printed: of a measurement three digits after the point, of a setting all that a user writes.

    >>> number_text("mcs", 0.0005), number_text("learning_rate", 0.0005), number_text("training.learning_rate", 0.12345678)
    ('0.001', '0.0005', '0.12345678')
    """
    return f"{value:.12g}" if column.rpartition(".")[2] in FRACTIONS else f"{value:z.3f}"


def percent(estimate: Estimate) -> str:
    """Return a share and its interval in percent, with a digit after the point where the interval is narrow.

    >>> percent(Estimate(0.271, 0.22, 0.331, count=256)), percent(Estimate(0.0123, 0.011, 0.0141, count=9000))
    ('27 % [22, 33]', '1.2 % [1.1, 1.4]')
    """
    digits = 0 if estimate.high - estimate.low >= 0.02 else 1
    value, low, high = (f"{100 * end:.{digits}f}" for end in (estimate.value, estimate.low, estimate.high))
    return f"{value} % [{low}, {high}]"


@dataclass(frozen=True)
class Table:
    """Rows with the same columns.

    Attributes:
        title: one line.
        columns: short names, in order.
        rows: column -> cell; a missing cell is empty.
        notes: sentences that a reader needs, each on its own.
        provenance: how the numbers were made, name -> value.
        brief: the columns that a narrow terminal shows, in order; by default all, as far as there is room.

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
    brief: tuple[str, ...] = ()

    def headings(self) -> list[str]:
        """Return the words for the columns."""
        return [heading(column) for column in self.columns]

    def texts(self, *, narrow: bool = False) -> list[list[str]]:
        """Return the cells as they are printed, row by row; measures in words, control characters escaped.

        Args:
            narrow: whether to write estimates as :func:`plus_minus` does.
        """
        return [[_text(column, row.get(column), narrow) for column in self.columns] for row in self.rows]

    def narrowed(self) -> Table:
        """Return the table with the columns of ``brief`` only."""
        return replace(self, columns=self.brief, brief=()) if self.brief else self

    def to_dicts(self) -> list[dict[str, str | int | float | None]]:
        """Return the rows as plain data; an estimate fills ``name``, ``name_low`` and ``name_high``."""
        wide = {column: self._is_wide(column) for column in self.columns}
        return [
            {
                name: value
                for column in self.columns
                for name, value in zip(_names(column, wide[column]), _values(row.get(column), wide[column]), strict=True)
            }
            for row in self.rows
        ]

    def __repr__(self) -> str:
        return f"<Table: {printable(self.title)}, {len(self.rows)} rows of {', '.join(self.columns)}>"

    def _is_wide(self, column: str) -> bool:
        return any(isinstance(row.get(column), Estimate) for row in self.rows)

    def to_csv(self) -> str:
        """Return comma-separated values in full precision; an estimate fills ``name``, ``name_low`` and ``name_high``."""
        wide = {column: self._is_wide(column) for column in self.columns}
        target = io.StringIO()
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow([name for column in self.columns for name in _names(column, wide[column])])
        for row in self.rows:
            writer.writerow([value for column in self.columns for value in _values(row.get(column), wide[column])])
        return target.getvalue()

    def to_markdown(self) -> str:
        """Return a Markdown page: title, table, notes, provenance."""
        lines = [f"# {markdown_text(self.title)}", "", _line(self.headings()), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.texts()]
        lines += [line for note in self.notes for line in ("", markdown_text(note))]
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


@dataclass(frozen=True)
class Summary:
    """What a command prints.

    Attributes:
        verdict: the result in one or two plain sentences.
        tables: narrow tables, the most important one first.
        notes: sentences after the tables.
        commands: complete commands to run next.
    """

    verdict: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


def _text(column: str, cell: Cell, narrow: bool = False) -> str:
    if cell is None:
        return ""
    if narrow and isinstance(cell, Estimate):
        return plus_minus(cell)
    if narrow and isinstance(cell, int):
        return f"{cell:,}"
    if column == "measure":
        name, comma, shifts = str(cell).partition(", ")  # "worst_case, radius 3"
        return heading(name) + comma + shifts
    return number_text(column, cell) if isinstance(cell, float) else printable(str(cell))


def _plain(cell: Cell) -> Any:
    return asdict(cell) if isinstance(cell, Estimate) else cell


def _names(column: str, wide: bool) -> list[str]:
    return [column, f"{column}_low", f"{column}_high"] if wide else [column]


def _values(cell: Cell, wide: bool) -> list[str | int | float | None]:
    if isinstance(cell, Estimate):
        return [cell.value, cell.low, cell.high]
    plain = plain_cell(cell) if isinstance(cell, str) else cell
    return [plain, None, None] if wide else [plain]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(re.sub(r"(\\*)\|", r"\1\1\\|", markdown_text(cell)) for cell in cells) + " |"
