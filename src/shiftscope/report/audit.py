"""Gather the page of an audit: the result in one sentence, every measure, sensitivity maps, and the images that change most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shiftscope.audits import Audit
from shiftscope.audits.pictures import Answer, Picture
from shiftscope.audits.sequences import Frame, frame_table
from shiftscope.estimates import Estimate
from shiftscope.measures import MEASURES
from shiftscope.radii.curve import CLASSES, FILLED, RadiusCurve
from shiftscope.report import Chart, Drag, Maps, Missing, Page, Rows, ShiftMap
from shiftscope.report.certificate import certificate_chart
from shiftscope.report.content import BeforeAfter, Pairs, Section
from shiftscope.report.frames import film_section
from shiftscope.surveys import Survey
from shiftscope.tables import Cell, Table
from shiftscope.tasks import known_task
from shiftscope.videos.film import Film, shift_words

__all__ = ["audit_page"]

#: The measures that are drawn against the distance of a shift.
OVER_DISTANCE = ("mcs", "top1_change")
#: Most of a task's measures that a chart draws against it.
DRAWN = 2
#: What a task's value for each class is.
UNITS = {
    "segmentation": "Intersection over union before a shift and moved back, over all images and shifts of a protocol.",
    "multilabel": "Share of shifts at which each label flips, over all images.",
}
#: What a frame of a path is compared with, in words.
COMPARED = {"previous": "against the frame before", "unshifted": "against the unshifted image"}
#: What fills the border of a grid's shifts, in words.
BORDERS = {**{str(name): words for name, words in FILLED.items()}, "mean": "the mean colour comes in"}
#: A sensitivity map of fewer shifts is not worth a section.
MIN_SHIFTS = 9


def audit_page(audit: Audit, pictures: Sequence[Picture] = (), drag: Drag | None = None, film: Film | None = None) -> Page:
    """Return the content of an audit's page.

    Args:
        audit: the audit.
        pictures: of its images that change most; without them they are listed by number.
        drag: some of its images to drag, if there are any.
        film: frames of its pan, if it has one.
    """
    sections: list[Section] = [] if film is None else [film_section("Slide along the pan", film)]
    sections += [Pairs("Images that change most", _caption(pictures), tuple(map(_pair, pictures)))]
    sections += [drag] if drag is not None else []
    sections.append(Rows("Every measure", "Each with its 95 % interval. Click a heading to sort.", _in_words(audit.table())))
    leading = _leading(audit)
    for name, survey in audit.surveys.items():
        which = _GridWords.of(name, alone=len(audit.surveys) == 1)
        sections += [*_over_distance(which, survey, leading), *_maps(which, survey, leading[0])]
        for measure in _of_all_images(audit):
            sections += _maps(which, survey, measure, f"{_title(MEASURES[measure].label)} at every shift")
    sections += [*_certificates(audit), *_frames(audit), *_units(audit)]
    if audit.changed and not pictures:
        caption = (
            "Each under the measured shift that changes its outputs most. Images are numbered from 0, in the order measured."
        )
        sections.append(Rows("Images that change most", caption, _changed(audit)))
    if audit.damaged:
        sections.append(Missing("Images that cannot be read", "", audit.damaged))
    provenance, cost = dict(audit.provenance), audit.cost
    model = Path(provenance.get("model", "the model")).name
    facts = (
        model,
        f"{cost.images:,} images",
        f"{cost.forward + cost.dense:,} views through the model",
        f"{cost.images_per_second:.3g} images a second",
    )
    return Page(
        title=f"How stable is {model} under shifts?",
        answer=_answer(audit),
        sections=tuple(sections),
        facts=facts,
        provenance=provenance,
    )


@dataclass(frozen=True)
class _GridWords:
    """The shifts of a grid in words.

    Attributes:
        title: what a title adds, ": shifts of up to 8 pixels, the background comes in"; empty where no other grid is shown.
        sentence: the same as a sentence.
    """

    title: str
    sentence: str

    @staticmethod
    def of(name: str, *, alone: bool) -> _GridWords:
        """Return the words of a grid by its name, ``zero 8``; ``alone`` if the page shows no other."""
        border, _, reach = name.partition(" ")
        words = f"shifts of up to {reach} pixel{'' if reach == '1' else 's'}, {BORDERS.get(border, border)}"
        return _GridWords("" if alone else f": {words}", f"{_title(words)}.")


def _in_words(table: Table) -> Table:
    """Return a table of measures with their labels instead of their short names."""

    def words(name: str) -> str:
        measure, comma, over = name.partition(", ")
        return f"{MEASURES[measure].label if measure in MEASURES else measure}{comma}{over}"

    return replace(table, rows=tuple({**row, "measure": words(str(row["measure"]))} for row in table.rows))


def _caption(pictures: Sequence[Picture]) -> str:
    order = ", those whose answer changes first" if any(each.changes for each in pictures) else ""
    numbered = " Images are numbered from 0, in the order measured." if any(map(_is_numbered, pictures)) else ""
    measure = MEASURES.get(pictures[0].measure) if pictures else None
    if measure is not None:
        return f"Each before and after the measured shift that changes its answer most ({measure.label}){order}.{numbered}"
    return f"Each before and after the measured shift that makes its outputs least similar{order}.{numbered}"


def _is_numbered(picture: Picture) -> bool:
    """Return whether an image has no name but its number."""
    return picture.file.removeprefix("image ").isdecimal()


def _pair(picture: Picture) -> BeforeAfter:
    both = picture.before, picture.after
    answers = [_shown_answer(each) for each in both] if any(each.name is not None for each in both) else []
    drawn = [each.drawn for each in both if each.drawn is not None]
    what = MEASURES[picture.measure].label if picture.measure in MEASURES else "similarity of the outputs"
    label = [f"labelled {picture.label}"] if picture.label is not None else []
    return BeforeAfter(
        name=picture.file,
        moved=_moved(picture),
        pictures=(picture.before.picture, picture.after.picture),
        answers=tuple(answers),
        changes=picture.changes if answers else None,
        notes=(*label, f"{what} {picture.similarity:.3f}"),
        drawn=tuple(drawn) if len(drawn) == len(both) else (),
    )


def _shown_answer(answer: Answer) -> str:
    name = "no answer" if answer.name is None else answer.name
    return name if answer.probability is None else f"{name}, {_percent(answer.probability)}"


def _percent(share: float) -> str:
    """Return a probability in per cent, without rounding it to certainty."""
    return "> 99.9\u00a0%" if 0.999 < share < 1 else f"{100 * share:.1f}\u00a0%"


def _moved(picture: Picture) -> str:
    """Return a shift in words: ``3 pixels down, 1 left, circular``."""
    return ", ".join([shift_words((picture.down, picture.right)), *([picture.border] if picture.border == "circular" else [])])


def _answer(audit: Audit) -> str:
    """Return the audit's summary, and the mean cosine similarity if it does not hold it."""
    words = audit.words()
    cosine = next((row for row in audit.rows if row.measure == "mcs"), None)
    if audit.task or cosine is None or MEASURES["mcs"].label in words:
        return words
    return f"{words} The {MEASURES['mcs'].label} of the outputs is {cosine.estimate}."


def _leading(audit: Audit) -> tuple[str, ...]:
    """Return the measures to draw, those of a task or those of classes, the first one leading."""
    rows = dict.fromkeys(row.measure for row in audit.rows if row.protocol != "unshifted" and row.measure != "flicker")
    return tuple(rows)[:DRAWN] if audit.task and rows else OVER_DISTANCE


def _of_all_images(audit: Audit) -> tuple[str, ...]:
    """Return the first measure of a task that all images have together, such as average precision; none without one."""
    task = known_task(audit.task) if audit.task else None
    return () if task is None else task.total_measures[:1]


def _over_distance(which: _GridWords, survey: Survey, measures: Sequence[str]) -> list[Chart]:
    """Return charts of measures against the distance of a shift."""
    measures = [each for each in measures if each in survey.maps]
    if not measures:
        return []
    rings = [over for measure, over in survey.values if measure == measures[0] and over.startswith("radius ")]
    if len(rings) < 2:
        return []
    rows: list[dict[str, Cell]] = [
        {
            "distance": int(over.removeprefix("radius ")),
            **{measure: found for measure in measures if (found := _of_ring(survey, measure, over)) is not None},
        }
        for over in rings
    ]
    table = Table(f"By distance{which.title}", ("distance", *measures), tuple(rows))
    caption = f"All shifts with this many pixels along their longer axis, with 95 % intervals. {which.sentence}"
    return [
        Chart(f"{_title(MEASURES[measure].label)} against distance{which.title}", caption, table, "distance", measure)
        for measure in measures
        if all(measure in row for row in rows)
    ]


def _of_ring(survey: Survey, measure: str, over: str) -> Estimate | None:
    found = survey.estimate(measure, over=over)
    return found if found is None else _known(found, known=over == "radius 0")


def _known(estimate: Estimate, *, known: bool) -> Estimate:
    """Return an estimate, without its interval if it is known: an image that does not move equals itself."""
    return replace(estimate, low=estimate.value, high=estimate.value) if known else estimate


def _maps(which: _GridWords, survey: Survey, lead: str, title: str = "Sensitivity map") -> list[Maps]:
    if len(survey.shifts) < MIN_SHIFTS or lead not in survey.maps:
        return []
    values = survey.maps[lead].float()
    if values.isnan().any():
        return []
    light = "Light is more similar." if MEASURES[lead].better == "more" else "Light is a larger change."
    caption = (
        f"{_title(MEASURES[lead].label)} at every shift. The centre is no shift; to the right of it the image moves right, "
        f"below it down. {light} {which.sentence}"
    )
    return [Maps(f"{title}{which.title}", caption, (ShiftMap("the model", values, 1),))]


def _certificates(audit: Audit) -> list[Chart]:
    """Return a chart for each grid of the share of images that keep their answer, or are right, at every shift up to a radius."""
    alone = len(audit.certificates) == 1
    words = {name: _GridWords.of(name, alone=alone) for name in audit.certificates}
    return [
        certificate_chart(
            each.counts, each.border, f"{each.words()}{_rule(each)} {words[name].sentence}", suffix=words[name].title
        )
        for name, each in audit.certificates.items()
    ]


def _rule(curve: RadiusCurve) -> str:
    """Return what keeps a class, in a sentence; the words of a task's curve say it."""
    return f" Kept: {CLASSES}." if curve.rule == CLASSES else ""


def _frames(audit: Audit) -> list[Chart]:
    """Return charts of how much outputs change along each path: a line for each thing that frames are compared with."""
    charts = []
    for protocol in dict.fromkeys(each.protocol for each in audit.frames):
        frames = tuple(
            replace(each, estimate=_known(each.estimate, known=each.against == "unshifted" and not any(each.shift)))
            for each in audit.frames
            if each.protocol == protocol
        )
        rows = tuple(row | {"compared_with": COMPARED[str(row["compared_with"])]} for row in map(dict, frame_table(frames).rows))
        table = replace(frame_table(frames), title=f"Frame by frame, as the image moves ({protocol})", rows=rows)
        caption = f"{_path_words(frames)}, with 95 % intervals.{_change_words(audit)}"
        for measure in dict.fromkeys(each.measure for each in frames):
            title = f"{_title(MEASURES[measure].label if measure in MEASURES else measure)}, frame by frame ({protocol})"
            charts.append(Chart(title, caption, table, "frame", measure, ("compared_with",)))
    return charts


def _path_words(frames: Sequence[Frame]) -> str:
    """Return where a path begins and ends: ``From 4 pixels left (frame 1) to 4 pixels right (frame 9)``."""
    ends = min(frames, key=lambda each: each.number), max(frames, key=lambda each: each.number)
    first, last = (f"{shift_words(each.shift)} (frame {each.number})" for each in ends)
    return f"From {first} to {last}"


def _change_words(audit: Audit) -> str:
    """Return what the change of a task is, in a sentence; empty for classes and for a task of the user's own."""
    task = known_task(audit.task) if audit.task else None
    if task is None:
        return ""
    measure = MEASURES[task.measures[0]]
    return f" Change: {'1 less the ' if measure.better == 'more' else ''}{measure.label}, with answers moved back by the shift."


def _units(audit: Audit) -> list[Rows]:
    """Return a table with a task's value for each class or label."""
    if not audit.task or not audit.units:
        return []
    count = max(len(values) for values in audit.units.values())
    rows = tuple(
        {
            "class": number,
            **{
                protocol: round(float(values[number]), 3)
                for protocol, values in audit.units.items()
                if number < len(values) and not values[number].isnan()
            },
        }
        for number in range(count)
    )
    rows = tuple(row for row in rows if len(row) > 1)
    caption = UNITS.get(audit.task.partition(":")[0], "A value for each.")
    return [Rows("By class", caption, Table("By class", ("class", *audit.units), rows))] if len(rows) > 1 else []


def _title(label: str) -> str:
    return f"{label[:1].upper()}{label[1:]}"


def _changed(audit: Audit) -> Table:
    """Return a row for each image that changes most."""
    measure = audit.changed[0].measure or "similarity"
    columns = ("image", "down", "right", "border", measure, "before", "after")
    rows = tuple(
        {
            "image": each.image,
            "down": f"{each.shift[0]:g}",
            "right": f"{each.shift[1]:g}",
            "border": each.border,
            each.measure or "similarity": round(each.similarity, 3),
            "before": each.before,
            "after": each.after,
        }
        for each in audit.changed
    )
    has_classes = any(each.before is not None for each in audit.changed)
    return Table("Images that change most", columns if has_classes else columns[:-2], rows)
