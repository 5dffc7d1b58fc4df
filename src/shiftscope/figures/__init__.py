"""Draw tables as figures for publication.

Every function takes a plain table, or maps over shifts, and returns a matplotlib figure; :func:`save` writes it as PDF, SVG or
PNG. Columns are labelled with :func:`shiftscope.tables.heading`. The same table gives the same bytes.
"""

from shiftscope.figures.curves import line_plot
from shiftscope.figures.grids import heat_maps, sensitivity_maps
from shiftscope.figures.relations import dot_plot, layer_plot, paired_plot, pareto_plot, scatter_plot
from shiftscope.figures.style import COLUMN, PAGE, save

__all__ = [
    "COLUMN",
    "PAGE",
    "dot_plot",
    "heat_maps",
    "layer_plot",
    "line_plot",
    "paired_plot",
    "pareto_plot",
    "save",
    "scatter_plot",
    "sensitivity_maps",
]
