"""Gather the page of an explanation: the verdict, what shifts cost by cause, every layer, and the fixes that were tried."""

from __future__ import annotations

from dataclasses import replace

from shiftscope.explanations import Explanation
from shiftscope.report.content import Chart, Page, Rows, Section
from shiftscope.tables import Table

__all__ = ["explanation_page"]

#: Fewer layers are not worth a chart.
MIN_LAYERS = 3


def explanation_page(found: Explanation) -> Page:
    """Return the content of an explanation's page.

    Args:
        found: the explanation.
    """
    settings = found.settings
    images, shifts, largest = (settings[name] for name in ("images", "shifts of each image", "largest shift"))
    facts = (f"{images} images", f"{shifts} shifts of each, up to {largest}", f"border {settings['border']}")
    return Page(
        title=f"Why does {found.name} change under shifts?",
        answer=found.summary().verdict,
        sections=(*_causes(found), *_layers(found), _fixes(found)),
        facts=facts,
        warning=" ".join(found.notes),
        provenance={name: value for name, value in settings.items() if name not in ("images", "shifts of each image")},
    )


def _causes(found: Explanation) -> list[Section]:
    table = found.table()
    parts = tuple(row for row in table.rows if row["cause"] != "total" and not str(row["cause"]).startswith("of "))
    caption = "1 - mean cosine of the outputs that each cause accounts for, removed one after the other on the same weights."
    return [
        Chart("What shifts cost, by cause", caption, replace(table, rows=parts), "cause", "lost"),
        Rows("Causes in numbers", "Each with its 95 % interval.", table),
    ]


def _layers(found: Explanation) -> list[Section]:
    table = found.layers.table()
    rows = tuple({**row, "layer number": number} for number, row in enumerate(table.rows) if row["similarity"] is not None)
    caption = (
        "Largest cosine of each layer's feature maps before and after a shift, over all displacements, from the image (0) to the "
        "output. Where the line falls, shifts start to matter; the table names the layers."
    )
    chart = Chart(
        "Similarity, layer by layer",
        caption,
        Table(table.title, ("layer number", "similarity"), rows),
        "layer number",
        "similarity",
    )
    numbered = tuple({"layer number": number, **row} for number, row in enumerate(table.rows))
    all_layers = Rows("Every layer", "", replace(table, columns=("layer number", *table.columns), rows=numbered))
    return [*([chart] if len(rows) >= MIN_LAYERS else []), all_layers]


def _fixes(found: Explanation) -> Rows:
    best = next((each for each in found.fixes.ranked if each.works), None)
    advice = f"Try first: {best.command}" if best is not None else "No fix that was tried gains beyond doubt without training."
    return Rows("Fixes, tried without training", advice, found.fixes.table())
