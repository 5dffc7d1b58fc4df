"""Gather the page of an explanation: the verdict, what shifts cost by cause, every layer, and the fixes that were tried.

Of a task also the lattice of the stride: the change at each shift along both axes.
"""

from __future__ import annotations

from dataclasses import replace

from shiftscope.explanations import Explanation, TaskExplanation
from shiftscope.explanations.layers import Layers
from shiftscope.report.content import Chart, Missing, Page, Rows, Section
from shiftscope.tables import Table

__all__ = ["explanation_page"]

#: Fewer layers are not worth a chart.
MIN_LAYERS = 3
#: What the fixes' section says without one that works.
NO_FIX = "No fix that was tried gains beyond doubt without training."


def explanation_page(found: Explanation | TaskExplanation) -> Page:
    """Return the content of an explanation's page.

    Args:
        found: the explanation, of classes or of a task.
    """
    settings = found.settings
    images, shifts, largest = (settings[name] for name in ("images", "shifts of each image", "largest shift"))
    facts: tuple[str, ...] = (f"{images} images", f"{shifts} shifts of each, up to {largest}", f"border {settings['border']}")
    if isinstance(found, TaskExplanation):
        answer, sections, warnings = found.headline, _task_sections(found), found.warnings
        facts = (*facts, f"task {settings['task']}")
    else:
        answer, sections, warnings = found.summary().verdict, [*_causes(found), *_layers(found.layers), _fixes(found)], ()
    return Page(
        title=f"Why does {found.name} change under shifts?",
        answer=answer,
        sections=tuple(sections),
        facts=facts,
        warning=" ".join((*warnings, *found.notes)),
        provenance={name: value for name, value in settings.items() if name not in ("images", "shifts of each image")},
    )


def _task_sections(found: TaskExplanation) -> list[Section]:
    """Return the sections of a task: by cause, by lattice, by layer, and the fixes."""
    table, lattice = found.causes.table(), found.lattice.table()
    parts = replace(table, rows=tuple(row for row in table.rows if row["cause"] != "total"))
    curve = Chart("Change at each shift", _path_caption(found), found.lattice.curve, "pixels", "change", ("axis",))
    caption = f"What each cause accounts for, removed one after the other on the same weights. {found.measure_words()}"
    why = "Their maps cannot be compared; the notes at the top say why."
    known = any(row["change"] is not None for row in parts.rows if row["cause"] != "other")
    return [
        *([Chart("What shifts change, by cause", caption, parts, "cause", "change")] if known else []),
        Rows("Causes in numbers", "" if known else caption, table),
        *([curve] if found.lattice.curve.rows else []),
        *([Rows(lattice.title, found.lattice.sentence(), lattice)] if lattice.rows else []),
        *(_layers(found.layers, found.layer_sentence()) if found.layers is not None else [Missing("Every layer", "", (why,))]),
        _fixes(found),
    ]


def _path_caption(found: TaskExplanation) -> str:
    return (
        f"Images move circularly along each axis, so that all of their content stays; 95 % intervals over images. "
        f"{found.lattice.period.words()}"
    )


def _causes(found: Explanation) -> list[Section]:
    table = found.table()
    parts = tuple(row for row in table.rows if row["cause"] != "total" and not str(row["cause"]).startswith("of "))
    caption = "1 - mean cosine of the outputs that each cause accounts for, removed one after the other on the same weights."
    return [
        Chart("What shifts cost, by cause", caption, replace(table, rows=parts), "cause", "lost"),
        Rows("Causes in numbers", "Each with its 95 % interval.", table),
    ]


def _layers(layers: Layers, where: str = "") -> list[Section]:
    table = layers.table()
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
    all_layers = Rows("Every layer", where, replace(table, columns=("layer number", *table.columns), rows=numbered))
    return [*([chart] if len(rows) >= MIN_LAYERS else []), all_layers]


def _fixes(found: Explanation | TaskExplanation) -> Rows:
    best = next((each for each in found.fixes.ranked if each.works), None)
    advice = f"Try first: {best.command}" if best is not None else NO_FIX
    return Rows("Fixes, tried without training", advice, found.fixes.table())
