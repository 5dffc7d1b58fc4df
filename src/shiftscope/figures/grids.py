"""Draw heat maps: a measure over two settings, and over every shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.figures.cells import distinct, number
from shiftscope.figures.style import COLUMN, DIVERGING, PAGE, SEQUENTIAL, new_figure, with_fonts
from shiftscope.tables import Table, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["heat_maps", "sensitivity_maps"]

#: Maps side by side on a page.
MAPS_A_ROW = 4
#: From this number of settings on, numbers no longer fit into the cells.
TOO_MANY_FOR_NUMBERS = 9
#: Two decimals would hide differences within this range, of our numbers or of the source's.
NARROW_RANGE = 0.05
#: Height of a further line of a title, inches.
TITLE_LINE = 0.14


@with_fonts
def heat_maps(table: Table, *, x: str, y: str, measure: str) -> Figure:
    """Draw our numbers, the source's and their difference over two settings; panels without numbers are left out.

    Our numbers and the source's share one colour scale.

    Args:
        table: rows with the columns named here and, where the source printed the measure, ``source_`` + ``measure``.
        x: the setting along the horizontal axis.
        y: the setting along the vertical axis.
        measure: the column of estimates.

    Raises:
        InputError: no row holds a number of ours or of the source's.
    """
    columns, rows = distinct(table.rows, x), distinct(table.rows, y)
    ours, source = (_grid(table, (x, y, name), columns, rows) for name in (measure, f"source_{measure}"))
    in_common_scale = {"ours": ours, "the source": source}
    known = np.concatenate([grid[np.isfinite(grid)] for grid in in_common_scale.values()])
    panels = [
        (name, grid)
        for name, grid in (in_common_scale | {"ours minus the source": ours - source}).items()
        if np.isfinite(grid).any()
    ]
    if not panels:
        raise InputError(f"No row of the table {table.title!r} holds a number in {measure}.", "Measure it first.")
    ranges = [np.nanmax(grid) - np.nanmin(grid) for _, grid in panels[:2]]
    digits = 2 if min((each for each in ranges if each > 0), default=0) > NARROW_RANGE else 3
    figure, axes = new_figure(PAGE if len(panels) > 1 else COLUMN, 0.95 + 0.32 * len(rows), columns=len(panels))
    figure.suptitle(heading(measure), x=0.01, ha="left", fontsize=9, fontweight="bold")
    for panel, (name, grid) in zip(axes, panels, strict=True):
        if name in in_common_scale:
            image = panel.imshow(grid, cmap=SEQUENTIAL, vmin=known.min(), vmax=known.max(), aspect="auto")
        else:
            most = float(np.nanmax(np.abs(grid)))
            image = panel.imshow(grid, cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto")
        _write_numbers(panel, grid, image, digits)
        panel.set_title(name, loc="left")
        panel.set_xlabel(heading(x))
        panel.set_xticks(range(len(columns)), [str(value) for value in columns])
        panel.set_yticks(range(len(rows)), [str(value) for value in rows])
        panel.spines[:].set_visible(False)
    axes[0].set_ylabel(heading(y))
    return figure


@with_fonts
def sensitivity_maps(maps: Mapping[str, Float[Tensor, " shift"]], *, measure: str = "mcs") -> Figure:
    """Draw a map over shifts for each name, all in one colour scale (Myburgh, Mouton and Davel 2021).

    Args:
        maps: name -> a value for each shift of a square grid, row by row from the shift furthest up and left.
        measure: what the values are.
    """
    grids = {name: values.reshape(round(len(values) ** 0.5), -1).numpy() for name, values in maps.items()}
    low, high = min(float(grid.min()) for grid in grids.values()), max(float(grid.max()) for grid in grids.values())
    columns = min(len(grids), MAPS_A_ROW)
    rows = -(-len(grids) // columns)
    lines = max(name.count(", ") for name in grids)  # beside the first, in a title
    height = 0.6 + rows * ((PAGE - 1.1) / columns * 1.12 + TITLE_LINE * lines)
    figure, axes = new_figure(PAGE, height, columns=columns, rows=rows, share=True)
    for panel, (name, grid) in zip(axes, grids.items(), strict=False):
        edge = grid.shape[0] // 2 + 0.5
        image = panel.imshow(grid, cmap=SEQUENTIAL, vmin=low, vmax=high, extent=(-edge, edge, edge, -edge))
        panel.set_title(name.replace(", ", ",\n"), loc="left")
    for panel in axes[len(grids) :]:
        panel.set_visible(False)
    figure.supxlabel("shift right, pixels", fontsize=8)
    figure.supylabel("shift down, pixels", fontsize=8)
    figure.colorbar(image, ax=axes, label=heading(measure), shrink=0.8, pad=0.01)
    return figure


def _grid(
    table: Table, names: tuple[str, str, str], columns: Sequence[Any], rows: Sequence[Any]
) -> Float[np.ndarray, "row column"]:
    """Arrange a column of a table over two settings; NaN where it holds no number."""
    x, y, measure = names
    grid = np.full((len(rows), len(columns)), np.nan)
    for row in table.rows:
        value = number(row.get(measure))
        if value is not None:
            grid[rows.index(row.get(y)), columns.index(row.get(x))] = value
    return grid


def _write_numbers(panel: Axes, grid: Float[np.ndarray, "row column"], image: Any, digits: int) -> None:
    """Write the numbers into the cells, black or white, whichever contrasts more."""
    if max(grid.shape) >= TOO_MANY_FOR_NUMBERS:
        return
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
            colour = "white" if dark else "black"
            panel.text(column, row, f"{value:z.{digits}f}", ha="center", va="center", fontsize=7, color=colour)
