"""An audit as a page: the answer in words, every measure, sensitivity maps, and the images that change most."""

from __future__ import annotations

from pathlib import Path

from shiftscope.audits import Audit
from shiftscope.report import Chart, Maps, Missing, Page, Rows, ShiftMap
from shiftscope.report.content import Section
from shiftscope.report.words import WORDS, bare
from shiftscope.surveys import Survey
from shiftscope.tables import Table

__all__ = ["audit_page"]

#: What is followed from ring to ring.
RINGS = {"mcs": "How similarity falls with the distance of a shift", "top1_change": "How often the answer changes with it"}


def audit_page(found: Audit) -> Page:
    """An audit's page, not rendered yet."""
    table = found.table()
    sections: list[Section] = [Rows("Every measure", "Each with its 95 % interval; press a heading to sort.", bare(table))]
    for name, survey in found.surveys.items():
        sections += [*_rings(name, survey), *_maps(name, survey)]
    if found.changed:
        caption = "Of all shifts that were run, the one that leaves the least of what the model answered without a shift."
        sections.append(Rows("Images that change most", caption, _changed(found)))
    if found.damaged:
        sections.append(Missing("Images that cannot be read", found.damaged))
    origin, cost = dict(found.provenance), found.cost
    facts = (
        Path(origin.get("model", "a model")).name,
        f"{cost.images:,} images",
        f"{cost.forward + cost.dense:,} views through the model",
        f"{cost.images_per_second:.3g} images a second",
    )
    return Page(
        title=f"How stable is {Path(origin.get('model', 'the model')).name} under shifts?",
        answer=_answer(found),
        sections=tuple(sections),
        facts=facts,
        words={**WORDS, "given_right": "of images classified correctly", "estimate": "value"},
        provenance=origin,
    )


def _answer(found: Audit) -> str:
    """The result in one sentence; the whole paragraph where an audit has neither of the usual measures."""
    told = {row.measure: row for row in reversed(found.rows)}
    change, cosine = told.get("top1_change"), told.get("mcs")
    effects = []
    if change is not None:
        effects.append(f"gives {change.estimate.value:.0%} of the images another answer".replace("%", " %"))
    if cosine is not None and (change is None or change.protocol == cosine.protocol):
        effects.append(f"leaves their outputs a mean cosine similarity of {cosine.estimate.value:.2f}")
    row = change or cosine
    return f"A shift of up to {row.max_shift:g} pixels {' and '.join(effects)}." if row is not None else found.words()


def _rings(name: str, survey: Survey) -> list[Chart]:
    """Measures against the distance of a shift."""
    rings = [over for measure, over in survey.values if measure == "mcs" and over.startswith("radius ")]
    rows = tuple(
        {"radius": int(over.removeprefix("radius ")), **{measure: survey.estimate(measure, over=over) for measure in RINGS}}
        for over in rings
    )
    table = Table(f"By distance, {name}", ("radius", *RINGS), rows)
    caption = f"All shifts whose larger part is that many pixels ({name}); bars are 95 % intervals."
    return [Chart(title, caption, table, "radius", measure) for measure, title in RINGS.items()] if len(rings) > 1 else []


def _maps(name: str, survey: Survey) -> list[Maps]:
    if len(survey.shifts) < 9:
        return []
    caption = "The mean cosine at every shift; the middle is no shift, right is right and down is down; light is more alike."
    return [Maps(f"Sensitivity map, {name}", caption, (ShiftMap("the model", survey.maps["mcs"].float(), 1),))]


def _changed(found: Audit) -> Table:
    columns = ("image", "down", "right", "border", "similarity", "before", "after")
    rows = tuple(
        {
            "image": each.image,
            "down": f"{each.shift[0]:g}",
            "right": f"{each.shift[1]:g}",
            "border": each.border,
            "similarity": round(each.similarity, 3),
            "before": each.before,
            "after": each.after,
        }
        for each in found.changed
    )
    classes = any(each.before is not None for each in found.changed)
    return Table("Images that change most", columns if classes else columns[:-2], rows)
