"""One self-contained HTML page from tables, maps and images. It knows no study, no model and no measure.

``content`` says what a page consists of, ``charts`` and ``packing`` turn it into drawings and compact data, ``page`` puts all
into ``page.html`` with ``style.css`` and the scripts, which are files of their own.
"""

from shiftscope.report.content import Chart, Drag, Grid, Lesson, Maps, Missing, Network, Page, Rows, Scatter, ShiftMap
from shiftscope.report.page import render

__all__ = ["Chart", "Drag", "Grid", "Lesson", "Maps", "Missing", "Network", "Page", "Rows", "Scatter", "ShiftMap", "render"]
