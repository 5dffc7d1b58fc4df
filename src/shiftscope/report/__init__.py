"""Render tables, maps and images as one self-contained HTML page.

``content`` defines what a page consists of; ``charts`` and ``packing`` turn it into drawings and compact data; ``page`` fills
``page.html`` with these, ``style.css`` and the scripts. None of these knows a study or a model: ``study``, ``audit`` and
``gallery`` gather the content of their pages, and ``write`` writes them.
"""

from shiftscope.report.content import Chart, Drag, Grid, Lesson, Maps, Missing, Network, Page, Rows, Scatter, ShiftMap
from shiftscope.report.page import render

__all__ = ["Chart", "Drag", "Grid", "Lesson", "Maps", "Missing", "Network", "Page", "Rows", "Scatter", "ShiftMap", "render"]
