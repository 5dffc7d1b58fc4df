"""Draw a certificate: the share of images that keep their answer, or are right, at every shift of up to r pixels."""

from __future__ import annotations

from shiftscope.engine.framing import Border
from shiftscope.radii import RadiusCounts
from shiftscope.radii.curve import BORDERS
from shiftscope.report.content import Chart
from shiftscope.tables import Table

__all__ = ["certificate_chart"]

#: The curves, in words.
CURVES = {"unchanged": "keep their answer", "right": "are answered right"}


def certificate_chart(counts: RadiusCounts, border: Border, caption: str, *, name: str = "") -> Chart:
    """Return the curves over radii as a chart.

    Args:
        counts: how many images have each radius.
        border: what comes in at the border.
        caption: sentences below the title.
        name: of the grid, where a page has several.
    """
    rows = tuple(
        {"radius": row["radius"], "images": words, "share_of_images": row[name]}
        for name, words in CURVES.items()
        for row in counts.rows()
        if row[name] is not None
    )
    table = Table(f"Every shift of up to r pixels, border {BORDERS[border]}", ("images", "radius", "share_of_images"), rows)
    title = f"How far every shift keeps the answer{', ' if name else ''}{name}"
    return Chart(title, f"{caption} With Wilson's 95 % intervals.", table, "radius", "share_of_images", ("images",))
