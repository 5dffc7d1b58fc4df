"""How figures look: sizes, colours, fonts, and files without a time stamp.

The palette is Okabe and Ito's, which colour-blind readers can tell apart; lines also differ in their marks. Scales of colour are
viridis, and blue to orange where values part at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from shiftscope.estimates import Estimate
from shiftscope.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "COLUMN",
    "DIVERGING",
    "MARKS",
    "PAGE",
    "SEQUENTIAL",
    "blank",
    "key",
    "named",
    "ordered",
    "reach",
    "save",
    "styled",
    "tidy",
    "value",
]

Given = ParamSpec("Given")
#: Widths of a column and of a page of two columns, inches.
COLUMN, PAGE = 3.35, 6.9
#: Blue, vermilion, green, purple, orange, sky blue (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "P")
COLUMNS_OF_A_KEY = 2
SEQUENTIAL, DIVERGING = "viridis", "PuOr_r"
FONTS = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}


def blank(width: float, height: float, *, columns: int = 1, rows: int = 1, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of a width and height, inches, with its axes row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    return figure, list(axes.ravel())


def styled(draw: Callable[Given, Figure]) -> Callable[Given, Figure]:
    """A function that draws, with our fonts."""

    @wraps(draw)
    def drawn(*given: Given.args, **named: Given.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(FONTS):
            return draw(*given, **named)

    return drawn


def key(figure: Figure, axes: Axes) -> None:
    """The legend above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=COLUMNS_OF_A_KEY, frameon=False)


def tidy(axes: Axes, *, grid: str = "y") -> None:
    """Axes without a frame and with quiet lines behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.3, linewidth=0.6)  # type: ignore[arg-type]  # known to matplotlib as one of three words
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PDF, SVG or PNG, by the path's suffix; equal figures give equal bytes."""
    import matplotlib

    unstamped: Mapping[str, dict[str, Any]] = {
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        ".png": {"Software": None},
    }
    with matplotlib.rc_context({"svg.hashsalt": "shiftscope", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(path, dpi=200, metadata=unstamped[path.suffix])


def value(cell: Cell) -> float | None:
    """A cell's number; None where it holds none."""
    if isinstance(cell, Estimate):
        return cell.value
    return float(cell) if isinstance(cell, int | float) else None


def reach(cell: Cell) -> tuple[float, float]:
    """How far an estimate's interval goes below and above it; nothing for a bare number."""
    return (cell.value - cell.low, cell.high - cell.value) if isinstance(cell, Estimate) else (0.0, 0.0)


def ordered(table: Table, column: str) -> list[Any]:
    """A column's different values: numbers by size, all else as they come."""
    found = list(dict.fromkeys(row.get(column) for row in table.rows))
    return sorted(found, key=float) if all(isinstance(each, int | float) for each in found) else found


def named(row: Mapping[str, Cell], columns: tuple[str, ...]) -> str:
    """The settings of a row in words."""
    return ", ".join(
        str(row.get(name)) if isinstance(row.get(name), str) else f"{name.replace('_', ' ')} {row.get(name)}" for name in columns
    )
