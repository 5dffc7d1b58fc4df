"""The look of all figures: sizes, colours, fonts, and files without a time stamp.

The palette is Okabe and Ito's, which colour-blind readers can tell apart; lines also differ in their markers. Colour scales are
viridis, and purple to orange where values diverge from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

from shiftscope.estimates import Estimate
from shiftscope.tables import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "COLUMN",
    "DIVERGING",
    "MARKERS",
    "PAGE",
    "SEQUENTIAL",
    "add_legend",
    "error_lengths",
    "new_figure",
    "remove_frame",
    "save",
    "with_fonts",
]

Arguments = ParamSpec("Arguments")
#: Width of a column and of a page with two columns, inches.
COLUMN, PAGE = 3.35, 6.9
#: Blue, vermilion, green, purple, orange, sky blue (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
SEQUENTIAL, DIVERGING = "viridis", "PuOr_r"
FONTS = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}
#: Names from a study or a data set are shown as they are: a pair of $ encloses no formula.
NO_FORMULAS = {"text.parse_math": False}


def new_figure(width: float, height: float, *, columns: int = 1, rows: int = 1, share: bool = False) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its axes, row by row.

    It is built without pyplot, so that no interactive backend is loaded whatever ``MPLBACKEND`` says.

    Args:
        width: inches.
        height: inches.
        columns: axes side by side.
        rows: axes one above the other.
        share: whether all axes share their scales.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    return figure, list(axes.ravel())


def with_fonts(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Decorate a drawing function to use this module's settings of texts, and matplotlib's defaults for the rest."""

    @wraps(draw)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(_own_settings(FONTS | NO_FORMULAS)):
            return draw(*args, **kwargs)

    return wrapper


def _own_settings(changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return matplotlib's defaults with changes, so that no matplotlibrc, of the user or beside the images, affects figures.

    The backend is left out, because setting it loads it; figures without pyplot need none.
    """
    import matplotlib

    return {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"} | dict(changed)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Add a legend above the axes, where it covers no data; nothing if no artist has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Two columns fit a figure as wide as a text column only while the labels are short.
        columns = 2 if max(map(len, labels)) < 30 or figure.get_figwidth() > COLUMN else 1
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)


def remove_frame(axes: Axes, *, grid: Literal["x", "y", "both"] = "y") -> None:
    """Remove the frame's upper and right side, and draw faint grid lines behind the data along ``grid``."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PDF, SVG or PNG, by the path's suffix; equal figures give equal bytes."""
    import matplotlib

    no_time_stamp: Mapping[str, dict[str, Any]] = {
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        ".png": {"Software": None},
    }
    settings = {"svg.hashsalt": "shiftscope", "svg.fonttype": "none", "pdf.fonttype": 42}
    with matplotlib.rc_context(_own_settings(settings)):
        figure.savefig(path, dpi=200, metadata=no_time_stamp[path.suffix])


def error_lengths(cell: Cell) -> tuple[float, float]:
    """Return how far an estimate's interval extends below and above its value; zeros for a bare number."""
    return (cell.value - cell.low, cell.high - cell.value) if isinstance(cell, Estimate) else (0.0, 0.0)
