"""Print results on standard output, within the width of the terminal: the verdict, narrow tables, and the next command.

On a pipe lines have at most 100 columns, or as many as the environment variable COLUMNS says. A table that does not fit drops its
last columns and names them; ``wide`` prints them all. Commands are never broken, so that they can be copied.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from shiftscope.runtime.text import printable

if TYPE_CHECKING:
    from shiftscope.tables import Summary, Table
    from shiftscope.theory import WorkedTable

__all__ = ["print_summary", "print_table", "print_text", "print_worked", "rendered"]

#: Width of output to a file or a pipe, unless COLUMNS sets another.
PLAIN_WIDTH = 100
#: Width of a wide table on a pipe: as wide as it is.
UNLIMITED = 10_000
#: Columns between two columns of a table.
GAP = 2


def print_summary(summary: Summary, tables: Iterable[Table] = (), *, saved: str = "", wide: bool = False) -> None:
    """Print a result: verdict, tables, notes, what was saved, next commands.

    Args:
        summary: what to print.
        tables: the complete tables, which ``wide`` prints instead of the summary's.
        saved: a sentence on the files that were written.
        wide: whether to print complete tables.
    """
    console = _console()
    _print_text(console, summary.verdict)
    for number, table in enumerate(tables if wide else summary.tables):
        if number or summary.verdict:
            console.print()
        print_table(table, wide=wide)
    if summary.notes and not wide:
        console.print()
        for note in summary.notes:
            _print_text(console, note)
    if saved:
        console.print()
        _print_text(console, saved)
    if summary.commands:
        console.print(Text("\nNext:"))
    for command in summary.commands:
        console.print(Text(f"  {printable(command)}"), soft_wrap=True)


def print_table(table: Table, *, wide: bool = False) -> None:
    """Print title, table and notes.

    Args:
        table: the table.
        wide: whether to print every column with complete intervals, as a list of rows where a terminal is too narrow for that.
    """
    console = _console()
    _print_text(console, table.title)
    shown, left_out = (table, ()) if wide else _fitted(table.narrowed(), console.width)
    names, rows = shown.headings(), shown.texts(narrow=not wide)
    if wide and sys.stdout.isatty() and _natural_width(names, rows) > console.width:
        _print_list(console, names, rows)
    else:
        console.print(_drawn(names, rows, UNLIMITED if wide else console.width), soft_wrap=True)
    if left_out or table.notes:
        console.print()
    if left_out:
        _print_text(console, f"No room for {', '.join(left_out)}: --wide shows all columns.")
    for note in table.notes:
        _print_text(console, note)


def rendered(table: Table, width: int) -> Text:
    """Return a table for rich, with the columns that fit.

    Args:
        table: the table.
        width: that it may take, columns; headings and words wrap.
    """
    shown, _ = _fitted(table.narrowed(), width)
    return _drawn(shown.headings(), shown.texts(narrow=True), width)


def _drawn(names: list[str], rows: list[list[str]], width: int) -> Text:
    """Return headings, a rule and rows as lines; texts to the left, numbers to the right."""
    columns = [[row[place] for row in rows] for place in range(len(names))]
    widths = _widths(names, columns, room=_room(width, len(names)))
    left = [any(map(_is_text, cells)) for cells in columns]
    head = _row_lines(names, widths, left)
    bodies = [_row_lines(row, widths, left) for row in rows]
    # Where the first column wraps, only an empty line shows where a row ends.
    space = [""] if any(len(_folded(row[0], widths[0])) > 1 for row in rows) else []
    body = [line for lines in bodies for line in (*lines, *space)][: -1 if space else None]
    rule = "─" * (sum(widths) + GAP * (len(widths) - 1))
    drawn = Text("\n".join([*head, rule, *body]), no_wrap=True)
    drawn.stylize("bold", 0, sum(len(line) + 1 for line in head))
    return drawn


def _row_lines(cells: list[str], widths: list[int], left: list[bool]) -> list[str]:
    """Return the lines of a row whose cells wrap."""
    folded = [_folded(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for parts in zip_longest(*folded, fillvalue=""):
        padded = (part.ljust(width) if text else part.rjust(width) for part, width, text in zip(parts, widths, left, strict=True))
        lines.append((" " * GAP).join(padded).rstrip())
    return lines


def _fitted(table: Table, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return the table with as many of its first columns as fit, and the headings of the others."""
    names, rows = table.headings(), table.texts(narrow=True)
    least = [max(map(_least_width, (name, *(row[place] for row in rows)))) for place, name in enumerate(names)]
    count = len(names)
    while count > 1 and sum(least[:count]) > _room(width, count):
        count -= 1
    return replace(table, columns=table.columns[:count]), tuple(names[count:])


def _room(width: int, columns: int) -> int:
    """Return how many characters the cells of a row may have together."""
    return width - GAP * (columns - 1)


def _natural_width(names: list[str], rows: list[list[str]]) -> int:
    return sum(max(map(len, column)) + GAP for column in zip(names, *rows, strict=True))


def _widths(names: list[str], columns: list[list[str]], *, room: int) -> list[int]:
    """Return the columns' widths.

    Headings and texts may wrap, and intervals go below their value. The room that is left goes, letter by letter, to the column
    whose heading and texts have most lines.
    """
    least = [max(map(_least_width, (name, *cells))) for name, cells in zip(names, columns, strict=True)]
    full = [max(map(len, (name, *cells))) for name, cells in zip(names, columns, strict=True)]
    if sum(full) <= room:
        return full
    widths = list(least)
    for _ in range(room - sum(least)):
        lines = [
            0 if width == most else max(len(_folded(text, width)) for text in (name, *cells))
            for name, cells, width, most in zip(names, columns, widths, full, strict=True)
        ]
        widths[lines.index(max(lines))] += 1
    return widths


def _folded(cell: str, width: int) -> list[str]:
    """Return a cell's lines; an interval goes below its value if it does not fit beside it."""
    lines: list[str] = []
    for part in _parts(cell):
        fits = lines and len(lines[-1]) + 1 + len(part) <= width
        lines = [*lines[:-1], f"{lines[-1]} {part}"] if fits else [*lines, *wrap(part, width)]
    return lines


def _parts(text: str) -> list[str]:
    """Return the parts of a text that stay together: words, intervals, values with their ± or %."""
    return re.split(r" (?![^\[\]]{0,30}\])(?![±%])(?<!± )", text)


def _least_width(text: str) -> int:
    """Return the smallest width at which no part of a text is broken."""
    return max(map(len, _parts(text)))


def _is_text(cell: str) -> bool:
    return any(letter.isalpha() for letter in cell)


def _print_list(console: Console, names: list[str], rows: list[list[str]]) -> None:
    """Print each row as lines of name and cell."""
    indent = max(map(len, names))
    for row in rows:
        lines = [f"  {name:<{indent}}  {cell}" for name, cell in zip(names, row, strict=True) if cell]
        console.print(Text("\n" + "\n".join(lines)), soft_wrap=True)
    console.print()


def _print_text(console: Console, text: str) -> None:
    """Print a text in lines that fit; nothing for an empty one."""
    if text:
        console.print(Text("\n".join(_folded(printable(text), console.width))), soft_wrap=True)


def print_text(text: str, *, error: bool = False) -> None:
    """Print a text, in lines that fit, at once.

    Args:
        text: what to print.
        error: whether to print on standard error.
    """
    file = sys.stderr if error else sys.stdout
    print("\n".join(_folded(printable(text), _console(error=error).width)), file=file, flush=True)


def print_worked(table: WorkedTable) -> None:
    """Print a worked example: its setting, its rows, and what they show."""
    console = _console()
    rows = [[" ".join(map(str, cell)) if isinstance(cell, list) else f"{cell:g}" for cell in row.values()] for row in table.rows]
    _print_text(console, f"{table.name}: {table.setting}")
    console.print(_drawn(list(table.columns), rows, console.width), soft_wrap=True)
    _print_text(console, table.shows)
    console.print()


def _console(*, error: bool = False) -> Console:
    if (sys.stderr if error else sys.stdout).isatty():
        return Console(stderr=error)
    columns = os.environ.get("COLUMNS", "")
    return Console(width=int(columns) if columns.isdecimal() and int(columns) > 0 else PLAIN_WIDTH)
