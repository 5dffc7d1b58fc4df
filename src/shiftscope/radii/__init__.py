"""Radii: how far every shift keeps the answer to an image, and the share of images of which it does so up to each radius."""

from __future__ import annotations

from shiftscope.radii.curve import RadiusCounts, RadiusCurve
from shiftscope.radii.search import NO_ANSWER, NOTHING, ROUNDING, Found, ShiftGrid, find_radii, radii_from
from shiftscope.radii.tasks import find_task_radii, task_radii

__all__ = [
    "NOTHING",
    "NO_ANSWER",
    "ROUNDING",
    "Found",
    "RadiusCounts",
    "RadiusCurve",
    "ShiftGrid",
    "find_radii",
    "find_task_radii",
    "radii_from",
    "task_radii",
]
