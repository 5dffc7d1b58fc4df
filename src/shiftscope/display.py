"""Show a result in a notebook or a script: as a line, an HTML table, rows, a plot or files."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.runtime.files import write_text, writing
from shiftscope.runtime.text import json_text, printable
from shiftscope.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["Shown"]

#: Most characters of a result's line, and most rows of its HTML table.
LETTERS, ROWS = 160, 30
#: Height of a row of a plot, and of what surrounds all of them, inches.
ROW_HEIGHT, AROUND = 0.28, 0.8


class Shown:
    """Base of a result with words and tables, the most important table first.

    Attributes:
        json_file: name of its JSON file, without the ending.
        table_files: names of its tables' files, without the ending.
    """

    json_file: ClassVar[str] = "result"
    table_files: ClassVar[tuple[str, ...]] = ("table",)

    def words(self) -> str:
        """Return the result in a sentence or two."""
        raise NotImplementedError

    def tables(self) -> tuple[Table, ...]:
        """Return its tables, the most important one first."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {"tables": [table.to_json() for table in self.tables()]}

    def __repr__(self) -> str:
        words = printable(self.words())
        return f"<{type(self).__name__}: {words if len(words) <= LETTERS else words[: LETTERS - 3] + '...'}>"

    def _repr_html_(self) -> str:
        """Return the words and the first table, for a notebook."""
        return f"<p>{escape(printable(self.words()))}</p>\n{_html(self.tables()[0])}"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows of the first table; an estimate fills ``name``, ``name_low`` and ``name_high``.

        Data frames of pandas and polars take these rows.
        """
        return self.tables()[0].to_dicts()

    def to_pandas(self) -> DataFrame:
        """Return the first table as a data frame.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ModuleNotFoundError as error:
            raise InputError("`to_pandas` needs pandas, which is not installed.", "pip install 'shiftscope[pandas]'") from error
        return DataFrame(self.to_dicts())

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the first estimate of each row of the first table, with its interval.

        Args:
            axes: of matplotlib, to draw into; by default those of a new figure, which a notebook shows below the cell.

        Raises:
            InputError: the table holds no estimate.
        """
        labelled = _labelled(self.tables()[0])
        if not labelled:
            raise InputError(f"this {type(self).__name__} holds no number with an interval to draw.")
        if axes is None:
            axes = _figure((6.4, AROUND + ROW_HEIGHT * len(labelled))).subplots()
        places = range(len(labelled))
        values = [each.value for _, each in labelled]
        errors = [[each.value - each.low for _, each in labelled], [each.high - each.value for _, each in labelled]]
        axes.errorbar(values, places, xerr=errors, fmt="o")
        axes.set_yticks(places, [label for label, _ in labelled])
        axes.invert_yaxis()
        return axes

    def save(self, folder: Path | str) -> Path:
        """Write the result as JSON, and each table as CSV and Markdown; return the folder.

        Args:
            folder: created if it does not exist.

        Raises:
            InputError: it cannot be written.
        """
        target = Path(folder)
        with writing(f"`folder` {target}", "Choose another."):
            write_text(target / f"{self.json_file}.json", json_text(self.to_json()))
            for name, table in zip(self.table_files, self.tables(), strict=False):
                write_text(target / f"{name}.csv", table.to_csv())
                write_text(target / f"{name}.md", table.to_markdown())
        return target


def _figure(size: tuple[float, float]) -> Figure:
    """Return a new figure of so many inches: one of pyplot in a notebook, whose kernel shows these alone, else one without it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        from matplotlib import pyplot

        figure: Figure = pyplot.figure(figsize=size, layout="constrained")
        return figure
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _html(table: Table) -> str:
    """Return a table in HTML, its first rows only if it is long."""
    shown = table.narrowed()
    head = "".join(f"<th>{escape(name)}</th>" for name in shown.headings())
    rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in shown.texts(narrow=True)]
    more = f"<p>and {len(rows) - ROWS} more rows</p>" if len(rows) > ROWS else ""
    body = "\n".join(f"<tr>{row}</tr>" for row in rows[:ROWS])
    return f"<table><caption>{escape(printable(table.title))}</caption>\n<tr>{head}</tr>\n{body}\n</table>{more}"


def _labelled(table: Table) -> list[tuple[str, Estimate]]:
    """Return the first estimate of each row that has one within finite bounds, and the row's texts before it."""
    found = []
    for row, texts in zip(table.rows, table.texts(), strict=True):
        cells = list(zip(table.columns, texts, strict=True))
        for place, (name, _) in enumerate(cells):
            cell = row.get(name)
            if isinstance(cell, Estimate) and _is_finite(cell):
                before = [text for column, text in cells[:place] if isinstance(row.get(column), str) and text]
                found.append((", ".join(before), cell))
                break
    return found


def _is_finite(estimate: Estimate) -> bool:
    """Return whether value and interval can be drawn."""
    return all(abs(end) < float("inf") for end in (estimate.value, estimate.low, estimate.high))
