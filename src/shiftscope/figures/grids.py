"""Heat maps: a measure over two settings, and over every shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from shiftscope.figures.style import COLUMN, DIVERGING, PAGE, SEQUENTIAL, blank, ordered, styled, value
from shiftscope.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["heat_maps", "sensitivity_maps"]

#: Maps side by side on a page.
ABREAST = 4
#: Settings from which numbers no longer fit into the cells.
CROWDED = 9
#: A range within which two decimals would hide the differences.
CLOSE = 0.05


@styled
def heat_maps(table: Table, *, across: str, down: str, measure: str, label: str) -> Figure:
    """Ours, the source's and their difference over two settings, the first two in one scale; empty panels are left out.

    Args:
        table: rows with the columns named here and, where the source printed it, ``source_`` + ``measure``.
        across: the setting along the horizontal axis.
        down: the setting along the vertical axis.
        measure: the column of estimates.
        label: what the measure is called.
    """
    columns, rows = ordered(table, across), ordered(table, down)
    ours, theirs = (_grid(table, (across, down, name), columns, rows) for name in (measure, f"source_{measure}"))
    panels = [("ours", ours), ("the source", theirs), ("ours less the source's", ours - theirs)]
    shown = [(name, grid) for name, grid in panels if np.isfinite(grid).any()]
    both = np.concatenate([grid.ravel() for name, grid in shown if "less" not in name])
    ends = (float(np.nanmin(both)), float(np.nanmax(both)))
    figure, axes = blank(PAGE if len(shown) > 1 else COLUMN, 0.95 + 0.32 * len(rows), columns=max(len(shown), 1))
    figure.suptitle(label, x=0.01, ha="left", fontsize=9, fontweight="bold")
    for place, (panel, (name, grid)) in enumerate(zip(axes, shown, strict=True)):
        most = float(np.nanmax(np.abs(grid)))
        image = panel.imshow(
            grid,
            cmap=DIVERGING if "less" in name else SEQUENTIAL,
            vmin=-most if "less" in name else ends[0],
            vmax=most if "less" in name else ends[1],
            aspect="auto",
        )
        _write(panel, grid, image)
        panel.set_title(name, loc="left")
        panel.set(xlabel=across.replace("_", " "), ylabel=down.replace("_", " ") if place == 0 else "")
        panel.set_xticks(range(len(columns)), [str(each) for each in columns])
        panel.set_yticks(range(len(rows)), [str(each) for each in rows])
        panel.spines[:].set_visible(False)
    return figure


@styled
def sensitivity_maps(maps: Mapping[str, Float[Tensor, " shift"]], *, label: str) -> Figure:
    """A map over shifts for each name, all in one scale (Myburgh, Mouton and Davel 2021).

    Args:
        maps: name -> a value for each shift of a square grid, row by row from (-reach, -reach).
        label: what the measure is called.
    """
    grids = {name: values.reshape(round(len(values) ** 0.5), -1).numpy() for name, values in maps.items()}
    low, high = (float(pick([pick_in(grid) for grid in grids.values()])) for pick, pick_in in ((min, np.min), (max, np.max)))
    columns = min(len(grids), ABREAST)
    rows = -(-len(grids) // columns)
    figure, axes = blank(PAGE, 0.6 + (PAGE - 1.1) / columns * rows * 1.12, columns=columns, rows=rows, share=True)
    for panel, (name, grid) in zip(axes, grids.items(), strict=False):
        reach = grid.shape[0] // 2
        image = panel.imshow(
            grid, cmap=SEQUENTIAL, vmin=low, vmax=high, extent=(-reach - 0.5, reach + 0.5, reach + 0.5, -reach - 0.5)
        )
        panel.set_title(name, loc="left")
    for panel in axes[len(grids) :]:
        panel.set_visible(False)
    figure.supxlabel("shift right, pixels", fontsize=8)
    figure.supylabel("shift down, pixels", fontsize=8)
    figure.colorbar(image, ax=axes, label=label, shrink=0.8, pad=0.01)
    return figure


def _grid(
    table: Table, names: tuple[str, str, str], columns: Sequence[Any], rows: Sequence[Any]
) -> Float[np.ndarray, "row column"]:
    """A column of a table as a grid; not a number where there is none."""
    across, down, measure = names
    grid = np.full((len(rows), len(columns)), np.nan)
    for row in table.rows:
        found = value(row.get(measure))
        if found is not None:
            grid[rows.index(row.get(down)), columns.index(row.get(across))] = found
    return grid


def _write(panel: Axes, grid: np.ndarray, image: Any) -> None:
    """The numbers into the cells, black or white, whichever can be read."""
    if max(grid.shape) >= CROWDED:
        return
    digits = 2 if np.nanmax(grid) - np.nanmin(grid) > CLOSE else 3
    for (row, column), number in np.ndenumerate(grid):
        if np.isfinite(number):
            red, green, blue, _ = image.cmap(image.norm(number))
            dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5
            panel.text(
                column, row, f"{number:.{digits}f}", ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )
