"""Figures from tables. Fonts, colours and sizes live here; what is measured does not.

The palette is Okabe and Ito's, which colour-blind readers can tell apart. Files carry no time stamp: the same table gives the
same bytes.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from shiftscope.measures import Estimate
from shiftscope.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["estimates", "save"]

OURS, SOURCE = "#0072B2", "#D55E00"
COLUMN_INCHES = (5.0, 3.2)
TITLE_CHARACTERS = 60


def estimates(table: Table, *, across: str, measure: str, label: str) -> Figure:
    """One measure against one setting, each estimate with its interval, the source's numbers beside it.

    Args:
        table: rows with the columns ``across``, ``measure`` and, where the source printed it, ``source_`` + ``measure``.
        across: the setting on the horizontal axis.
        measure: the column of estimates.
        label: what the measure is called on the axis.
    """
    from matplotlib.figure import Figure

    rows = [row for row in table.rows if isinstance(row.get(measure), Estimate)]
    found = [row[measure] for row in rows]
    values = [cell.value for cell in found if isinstance(cell, Estimate)]
    reach = [[cell.value - cell.low, cell.high - cell.value] for cell in found if isinstance(cell, Estimate)]
    places = range(len(rows))
    figure = Figure(figsize=COLUMN_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(places, values, yerr=list(zip(*reach, strict=True)), fmt="o-", color=OURS, capsize=4, label="measured, 95 %")
    printed = [(place, row[f"source_{measure}"]) for place, row in zip(places, rows, strict=True) if row.get(f"source_{measure}")]
    if printed:
        axes.plot(*zip(*printed, strict=True), "s--", color=SOURCE, label=_source_label(table))
        axes.legend(frameon=False)
    axes.set_title(fill(table.title, TITLE_CHARACTERS), fontsize="medium", loc="left")
    axes.set(xlabel=across, ylabel=label, xlim=(-0.4, len(rows) - 0.6))
    axes.set_xticks(list(places), [str(row[across]) for row in rows])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the path's suffix."""
    import matplotlib

    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "shiftscope", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, metadata=metadata)


def _source_label(table: Table) -> str:
    printed = [note.partition("as printed, ")[2].rstrip(".") for note in table.notes if note.startswith("source_")]
    return printed[0] if printed else "source"
