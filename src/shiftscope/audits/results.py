"""What an audit found: estimates, sensitivity maps, the images that change most, the cost, and a summary in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from shiftscope.audits.certified import curve_table, curves_of, without_radii
from shiftscope.audits.measuring import ANSWERS, OutputKind, grid_name, supported_measures
from shiftscope.audits.parts import ACCURACY, Changed, Cost, Part
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.scores import SCORES, estimate, normalised_variance
from shiftscope.audits.sequences import Frame, frame_table, frames_of
from shiftscope.audits.task_results import (
    surveys_of_totals,
    task_changed,
    task_notes,
    task_rows,
    task_totals,
    task_units,
    task_warnings,
)
from shiftscope.audits.wording import Row, changed_images, cost_sentence, shifts_of, verdict
from shiftscope.datasets.images import left_out
from shiftscope.display import Shown
from shiftscope.engine.answers import output_warnings
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, proportion
from shiftscope.measures import MEASURES
from shiftscope.radii import RadiusCurve
from shiftscope.surveys import Survey
from shiftscope.tables import Cell, Summary, Table
from shiftscope.tasks import Task, text_of

__all__ = ["AUDIT_VERSION", "Audit", "Row", "assemble"]

#: The version of ``audit.json``. Files without one were written before 2; 3 added the task, the frames and the certificates.
AUDIT_VERSION = 3
#: An audit of more images keeps no values per image: its file would grow by some ten bytes for each image and measure.
MOST_VALUES = 2**18


@dataclass(frozen=True, repr=False)
class Audit(Shown):
    """How stable a model is.

    Attributes:
        rows: one per protocol and measure.
        changed: the images that change most: those whose top class changes, and then the others, the largest change first.
        cost: what it took.
        surveys: by grid (``zero 8``), what every shift gave, with the sensitivity maps.
        units: by protocol, a value for each unit of the output.
        damaged: names of the files that could not be read and were left out.
        notes: what a reader needs to know.
        provenance: how it was made, name -> value.
        warnings: reasons why the numbers say little about the model.
        values: (protocol, measure) -> one value per image, in the order of the images, for comparisons in pairs;
            none of more than 262,144 images.
        settings: what was asked for, as :class:`shiftscope.audits.folder.AuditSpec` takes it; empty if it was no command.
        task: the name of the task that the outputs were read as; empty for classes, embeddings and maps without one.
        classes: names of the images' classes, by number; empty without labels or names.
        frames: how much outputs change at each position along the paths of protocols that have one.
        certificates: by grid (``zero 8``), for every image the largest radius within which every shift keeps the answer, and the
            share of images that keep it, or are right, at every shift up to each radius.
    """

    json_file: ClassVar[str] = "audit"

    rows: tuple[Row, ...]
    changed: tuple[Changed, ...]
    cost: Cost
    surveys: Mapping[str, Survey] = field(default_factory=dict)
    units: Mapping[str, Float[Tensor, " unit"]] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    values: Mapping[tuple[str, str], Float[Tensor, " image"]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    classes: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()
    certificates: Mapping[str, RadiusCurve] = field(default_factory=dict)

    def estimate(self, measure: str, protocol: str | None = None) -> Estimate:
        """Return one number with its interval.

        Args:
            measure: its name.
            protocol: its name; it may be left out if only one protocol has the measure.

        Raises:
            InputError: the audit did not measure it, or several protocols did and none is named.
        """
        found = [row for row in self.rows if row.measure == measure and protocol in (None, row.protocol)]
        if not found:
            known = ", ".join(f"{row.measure} of {row.protocol}" for row in self.rows)
            wanted = repr(measure) if protocol is None else f"{measure!r} of {protocol!r}"
            raise InputError(f"the audit holds no {wanted}.", f"It holds {known}.")
        if len(found) > 1:
            protocols = ", ".join(row.protocol for row in found)
            raise InputError(f"{len(found)} protocols have {measure!r}: {protocols}.", "Name one of them, too.")
        return found[0].estimate

    def table(self) -> Table:
        """Return a table with a row for each protocol and measure."""
        given_right = any(row.given_right is not None for row in self.rows)
        columns = ("protocol", "measure", "border", "max_shift", "views", "estimate", *(["given_right"] if given_right else []))
        rows = tuple({name: _cell(row, name) for name in columns} for row in self.rows)
        known = (self.words(), self._definitions(), *self._certified(), *self.notes)
        notes = (*known, cost_sentence(self.cost), changed_images(self.changed))
        return Table("Stability under shifts", columns, rows, tuple(note for note in notes if note), dict(self.provenance))

    def tables(self) -> tuple[Table, ...]:
        """Return the table alone."""
        return (self.table(),)

    def frame_table(self) -> Table:
        """Return a table with a row for each frame of a path and what it is compared with; without rows if there is no path."""
        return frame_table(self.frames)

    def certificate_table(self) -> Table:
        """Return a table with a row for each grid and radius; without rows if no grid was measured at every shift."""
        return curve_table(self.certificates)

    def maps(self) -> dict[str, Float[Tensor, "dy dx"]]:
        """Return sensitivity maps by ``grid/measure``: means at each shift, (0, 0) in the middle; and ``/low``, ``/high``."""
        found = {}
        for grid, survey in self.surveys.items():
            side = round(len(survey.shifts) ** 0.5)
            for measure, values in survey.maps.items():
                found[f"{grid}/{measure}"] = values.reshape(side, side)
                for place, bound in enumerate(("low", "high")):
                    bounds = survey.intervals[measure][:, place]
                    found[f"{grid}/{measure}/{bound}"] = bounds.reshape(side, side).contiguous()
        return found

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data, with None for infinity and NaN."""
        return {
            "schema_version": AUDIT_VERSION,
            "summary": self.words(),
            "settings": dict(self.settings),
            "task": self.task,
            "classes": list(self.classes),
            "rows": [_plain(asdict(row)) for row in self.rows],
            "changed": [_plain(asdict(each)) for each in self.changed],
            "cost": _plain({**asdict(self.cost), "images_per_second": self.cost.images_per_second}),
            "maps": {name: _plain(values.tolist()) for name, values in self.maps().items()},
            "units": {name: _plain(values.tolist()) for name, values in self.units.items()},
            "frames": [_plain(asdict(each)) for each in self.frames],
            "certificates": {name: _plain(each.to_json()) for name, each in self.certificates.items()},
            "values": {"/".join(name): _plain(_short(values)) for name, values in self.values.items()},
            "warnings": list(self.warnings),
            "damaged": list(self.damaged),
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }

    def words(self) -> str:
        """Return the main result in one or two plain sentences, after what makes it say little."""
        return " ".join((*self.warnings, verdict(self.rows, self.task)))

    def summary(self, *, commands: tuple[str, ...] = ()) -> Summary:
        """Return the result for a terminal: verdict, a narrow table, and what a reader needs to know.

        Args:
            commands: to run next.
        """
        rows: list[dict[str, Cell]] = [
            {"measure": row.measure, "value": row.estimate, "protocol": row.protocol, "shifts_in_pixels": shifts_of(row)}
            for row in self.rows
            if row.protocol != "unshifted"
        ]
        table = Table("", ("measure", "value", "protocol", "shifts_in_pixels"), tuple(rows))
        notes = (
            *self._certified(),
            f"Intervals: 95 %, over {self.cost.images:,} images.",
            *self.notes,
            cost_sentence(self.cost),
        )
        return Summary(self.words(), (table,), notes, commands)

    def _certified(self) -> tuple[str, ...]:
        return tuple(each.words() for each in self.certificates.values())

    def _definitions(self) -> str:
        measures = dict.fromkeys(row.measure.partition(",")[0] for row in self.rows if row.protocol != "unshifted")
        return " ".join(f"{MEASURES[name].label.capitalize()}: {MEASURES[name].sentence}" for name in measures)


def assemble(
    merged: Part,
    protocols: Sequence[Protocol],
    *,
    kind: OutputKind,
    borders: Mapping[str, str],
    notes: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    task: Task | None = None,
) -> Audit:
    """Return the audit of all parts.

    Args:
        merged: all parts, merged by :func:`shiftscope.audits.merge_parts`.
        protocols: that were measured.
        kind: of the model's outputs.
        borders: protocol -> what filled its border.
        notes: what a reader needs to know.
        provenance: how it was made, name -> value.
        warnings: reasons why the numbers say little about the model.
        settings: what was asked for.
        task: of the model's outputs, where their kind is ``task``.
    """
    rows = _accuracy_rows(merged)
    units: dict[str, Tensor] = {}
    totals = task_totals(merged, task)
    surveys = surveys_of_totals(merged.surveys, protocols, totals)
    if task is not None:
        rows, units = task_rows(merged, protocols, task, borders, totals), task_units(merged, task)
    for protocol in () if task is not None else protocols:
        scores, surveyed = supported_measures(protocol, kind=kind, labels=merged.labelled)
        for name in scores:
            if name in SCORES:
                rows.append(_score_row(merged, protocol, name, borders[protocol.name]))
            else:
                found, units[protocol.name] = normalised_variance(merged.sums[protocol.name])
                views = len(protocol.draw(1)[0])
                rows.append(Row(protocol.name, name, borders[protocol.name], protocol.max_shift, views, found, None))
        for measure, over in surveyed:
            rows += _survey_rows(merged, grid_name((protocol.mode, int(protocol.max_shift))), protocol, measure, over)
    return Audit(
        rows=tuple(rows),
        changed=merged.changed if task is None else task_changed(merged, task),
        cost=merged.cost,
        surveys=surveys,
        units=units,
        damaged=merged.damaged,
        notes=(
            *notes,
            *task_notes(merged, task, surveys),
            *filter(None, [left_out(merged.damaged)]),
            *_fallen_back(merged.cost.fallen_back),
            *_without_frames(merged),
            *without_radii(merged),
        ),
        provenance=dict(provenance or {}),
        warnings=(
            *warnings,
            *task_warnings(merged, task),
            *output_warnings(merged.sums.get(ANSWERS, {}), classes=kind == "classes"),
            *_guessing(merged, rows),
        ),
        values=_values(merged, rows, {each.name: grid_name((each.mode, int(each.max_shift))) for each in protocols}),
        settings=dict(settings or {}),
        task="" if task is None else text_of(task),
        frames=tuple(
            frame
            for protocol in protocols
            for frame in frames_of(protocol, merged.frames, images=merged.cost.images, changes=task is not None)
        ),
        certificates=curves_of(merged, task),
    )


def _guessing(merged: Part, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return a sentence where fewer answers are right than by guessing: labels then mean something else than outputs."""
    classes = len(merged.sums.get(ANSWERS, {}).get("tops", ()))
    accuracy = next((row.estimate for row in rows if (row.protocol, row.measure) == ("unshifted", "accuracy")), None)
    if accuracy is None or not classes or accuracy.high >= 1 / classes:
        return ()
    return (f"Fewer answers are right than by guessing among {classes} classes: check how labels are numbered.",)


def _values(merged: Part, rows: Sequence[Row], grids: Mapping[str, str]) -> dict[tuple[str, str], Tensor]:
    """Return the values per image of each row that is a mean over images; none of very many images."""
    if merged.cost.images > MOST_VALUES:
        return {}
    found = {} if merged.correct is None else {("unshifted", "accuracy"): merged.correct.float()}
    for row in rows:
        measure, _, ring = row.measure.partition(", ")
        if (row.protocol, measure) in merged.scores:
            found[row.protocol, measure] = merged.scores[row.protocol, measure]
        elif (survey := merged.surveys.get(grids.get(row.protocol, ""))) and (measure, ring or "all") in survey.values:
            found[row.protocol, row.measure] = survey.values[measure, ring or "all"]
    return found


def _fallen_back(images: int) -> list[str]:
    if not images:
        return []
    return [
        f"For {images:,} images, outputs for all shifts together differed from the model's own on sampled shifts, or memory ran "
        "out: these images were computed shift by shift."
    ]


def _without_frames(merged: Part) -> list[str]:
    """Return why paths are not shown frame by frame, where some parts hold no frames."""
    if all(int(each["images"]) == merged.cost.images for each in merged.frames.values()):
        return []
    return ["Paths are not shown frame by frame, because an earlier version of shiftscope measured some of the images."]


def _accuracy_rows(merged: Part) -> list[Row]:
    """Return the row of the accuracy without a shift; none without labels."""
    known = merged.moments.get(ACCURACY)
    found = known[0].estimate("accuracy") if known else None if merged.correct is None else proportion(merged.correct)
    return [] if found is None else [Row("unshifted", "accuracy", "", 0, 1, found, None)]


def _score_row(merged: Part, protocol: Protocol, measure: str, border: str) -> Row:
    known = merged.moments.get((protocol.name, measure, ""))
    if known is not None:
        found, given = (each.estimate(measure) for each in known)
        assert found is not None  # over all images there is always one
    else:
        values = merged.scores[protocol.name, measure]
        right = None if merged.correct is None else values[merged.correct]
        found, given = estimate(measure, values), None if right is None or len(right) == 0 else estimate(measure, right)
    return Row(protocol.name, measure, border, protocol.max_shift, len(protocol.draw(1)[0]), found, given)


def _survey_rows(merged: Part, grid: str, protocol: Protocol, measure: str, over: str) -> list[Row]:
    """Return a row over all shifts, or one per ring."""
    survey, parts = merged.surveys[grid], [over]
    if over == "radius":
        known = [*survey.values, *(key[1:] for key in merged.moments if key[0] == grid)]
        parts = [part for name, part in known if name == measure and part.startswith("radius") and part != "radius 0"]
    rows = []
    for part in parts:
        found, given = _surveyed(merged, grid, measure, part)
        assert found is not None  # over all images there is always one
        views = len(survey.shifts) if part == "all" else 8 * int(part.removeprefix("radius "))
        name = measure if part == "all" else f"{measure}, {part}"
        rows.append(Row(protocol.name, name, protocol.mode, protocol.max_shift, views, found, given))
    return rows


def _surveyed(merged: Part, grid: str, measure: str, over: str) -> tuple[Estimate | None, Estimate | None]:
    """Return a measure over some shifts of a grid, over all images and over those classified correctly."""
    known = merged.moments.get((grid, measure, over))
    if known is not None:
        return known[0].estimate(measure), known[1].estimate(measure)
    survey = merged.surveys[grid]
    given = survey.estimate(measure, over=over, given="right") if survey.right is not None else None
    return survey.estimate(measure, over=over), given


def _cell(row: Row, name: str) -> Any:
    value = getattr(row, name)
    return f"{value:g}" if isinstance(value, float) else value


def _short(values: Tensor) -> list[float]:
    """Return numbers in single precision with the digits that tell them apart."""
    return [float(f"{value:.9g}") for value in values.float().tolist()]


def _plain(value: Any) -> Any:
    """Return data that JSON can hold."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
