"""Figures from tables, for publication. What is measured is decided elsewhere; fonts, colours and sizes in ``style``.

Every function takes a plain table (or maps over shifts) and gives a figure; :func:`save` writes it as PDF, SVG or PNG, and the
same table gives the same bytes.
"""

from shiftscope.figures.curves import bands
from shiftscope.figures.grids import heat_maps, sensitivity_maps
from shiftscope.figures.relations import before_after, causes, listed, pareto, relation, through_layers
from shiftscope.figures.style import COLUMN, PAGE, save

__all__ = [
    "COLUMN",
    "PAGE",
    "bands",
    "before_after",
    "causes",
    "heat_maps",
    "listed",
    "pareto",
    "relation",
    "save",
    "sensitivity_maps",
    "through_layers",
]
