"""What an audit found: estimates, sensitivity maps, the images that change most, the cost, and a summary in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from jaxtyping import Float
from torch import Tensor

from shiftscope.audits.measuring import Kind, grid_name, supported_measures
from shiftscope.audits.parts import Changed, Cost, Part
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.scores import SCORES, estimate, normalised_variance
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, proportion
from shiftscope.measures import MEASURES
from shiftscope.surveys import Survey
from shiftscope.tables import Table

__all__ = ["Audit", "Row", "assemble"]

#: The measures of the summary, in order; each from the first protocol that has it.
SUMMARY = ("mcs", "top1_change", "all_agree", "neighbour_change", "worst_case", "mASSC")
#: What a view is called, by what fills its border; else a shift.
NOUNS = {"circular": "circular shift", "crop": "crop"}
#: So many damaged files, and so many of the images that change most, are listed in notes.
DAMAGED, CHANGED = 10, 5


@dataclass(frozen=True)
class Row:
    """One measure of one protocol.

    Attributes:
        protocol: its name; ``unshifted`` for the accuracy on unshifted images.
        measure: its name in :data:`shiftscope.measures.MEASURES`; for a ring of shifts with ``, radius r``.
        border: what fills the border.
        max_shift: the largest shift along an axis, pixels.
        views: shifted views per image.
        estimate: over all images.
        given_right: over the images that are classified correctly unshifted; None without labels or without such images.
    """

    protocol: str
    measure: str
    border: str
    max_shift: int | float
    views: int
    estimate: Estimate
    given_right: Estimate | None


@dataclass(frozen=True)
class Audit:
    """How stable a model is.

    Attributes:
        rows: one per protocol and measure.
        changed: the images that change most, the largest change first.
        cost: what it took.
        surveys: by grid (``zero 8``), what every shift gave, with the sensitivity maps.
        units: by protocol, a value for each unit of the output.
        damaged: names of the files that could not be read and were left out.
        notes: what a reader needs to know.
        provenance: how it was made, name -> value.
    """

    rows: tuple[Row, ...]
    changed: tuple[Changed, ...]
    cost: Cost
    surveys: Mapping[str, Survey] = field(default_factory=dict)
    units: Mapping[str, Float[Tensor, " unit"]] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    def estimate(self, protocol: str, measure: str) -> Estimate:
        """Return one number with its interval.

        Args:
            protocol: its name.
            measure: its name.

        Raises:
            InputError: the audit did not measure it.
        """
        for row in self.rows:
            if (row.protocol, row.measure) == (protocol, measure):
                return row.estimate
        known = ", ".join(f"{row.measure} of {row.protocol}" for row in self.rows)
        raise InputError(f"the audit holds no {measure!r} of {protocol!r}.", f"It holds {known}.")

    def table(self) -> Table:
        """Return a table with a row for each protocol and measure."""
        given_right = any(row.given_right is not None for row in self.rows)
        columns = ("protocol", "measure", "border", "max_shift", "views", "estimate", *(["given_right"] if given_right else []))
        rows = tuple({name: _cell(row, name) for name in columns} for row in self.rows)
        notes = (self.words(), self._definitions(), *self.notes, self._cost_in_words(), self._changed_in_words())
        return Table("Stability under shifts", columns, rows, tuple(note for note in notes if note), dict(self.provenance))

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
            "summary": self.words(),
            "rows": [_plain(asdict(row)) for row in self.rows],
            "changed": [_plain(asdict(each)) for each in self.changed],
            "cost": _plain({**asdict(self.cost), "images_per_second": self.cost.images_per_second}),
            "maps": {name: _plain(values.tolist()) for name, values in self.maps().items()},
            "units": {name: _plain(values.tolist()) for name, values in self.units.items()},
            "damaged": list(self.damaged),
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }

    def words(self) -> str:
        """Return a summary in plain words, with intervals."""
        sentences = [f"{self.cost.images:,} images."]
        first = {row.measure: row for row in reversed(self.rows)}
        if any(row.protocol == "unshifted" for row in self.rows):
            sentences.append(f"Accuracy on unshifted images: {_percent(self.estimate('unshifted', 'accuracy'))}.")
        sentences += [_sentence(first[measure]) for measure in SUMMARY if measure in first]
        return " ".join(sentences)

    def _definitions(self) -> str:
        measures = dict.fromkeys(row.measure.partition(",")[0] for row in self.rows if row.protocol != "unshifted")
        return " ".join(f"{MEASURES[name].label.capitalize()}: {MEASURES[name].sentence}" for name in measures)

    def _cost_in_words(self) -> str:
        cost = self.cost
        together = f", the engine computed all shifts together for {cost.dense:,} images" if cost.dense else ""
        return (
            f"The protocols need {cost.asked:,} views, {cost.distinct:,} of them different; {cost.forward:,} images went through "
            f"the model{together}, {cost.checks:,} more as checks. {cost.seconds:.1f} s, {cost.images_per_second:.3g} images/s."
        )

    def _changed_in_words(self) -> str:
        if not self.changed:
            return ""
        listed = ", ".join(
            f"{each.image} (shift ({each.shift[0]:g}, {each.shift[1]:g}) {each.border}: {each.similarity:.3f})"
            for each in self.changed[:CHANGED]
        )
        return f"Images that change most, with shift (dy, dx) and similarity: {listed}."


def assemble(
    merged: Part,
    protocols: Sequence[Protocol],
    *,
    kind: Kind,
    borders: Mapping[str, str],
    notes: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> Audit:
    """Return the audit of all parts.

    Args:
        merged: all parts, merged by :func:`shiftscope.audits.merge_parts`.
        protocols: that were measured.
        kind: of the model's outputs.
        borders: protocol -> what filled its border.
        notes: what a reader needs to know.
        provenance: how it was made, name -> value.
    """
    rows = [] if merged.correct is None else [Row("unshifted", "accuracy", "", 0, 1, proportion(merged.correct), None)]
    units: dict[str, Tensor] = {}
    for protocol in protocols:
        scores, surveyed = supported_measures(protocol, kind=kind, labels=merged.correct is not None)
        for name in scores:
            if name in SCORES:
                rows.append(_score_row(merged, protocol, name, borders[protocol.name]))
            else:
                found, units[protocol.name] = normalised_variance(merged.sums[protocol.name])
                views = len(protocol.draw(1)[0])
                rows.append(Row(protocol.name, name, borders[protocol.name], protocol.max_shift, views, found, None))
        for measure, over in surveyed:
            rows += _survey_rows(merged.surveys[grid_name((protocol.mode, int(protocol.max_shift)))], protocol, measure, over)
    damaged = list(merged.damaged[:DAMAGED])
    if len(merged.damaged) > DAMAGED:
        damaged.append(f"and {len(merged.damaged) - DAMAGED} more")
    unreadable = [f"{len(merged.damaged)} images cannot be read and are left out: {', '.join(damaged)}."] if damaged else []
    return Audit(
        rows=tuple(rows),
        changed=merged.changed,
        cost=merged.cost,
        surveys=merged.surveys,
        units=units,
        damaged=merged.damaged,
        notes=(*notes, *unreadable),
        provenance=dict(provenance or {}),
    )


def _score_row(merged: Part, protocol: Protocol, measure: str, border: str) -> Row:
    values = merged.scores[protocol.name, measure]
    right = None if merged.correct is None else values[merged.correct]
    given = None if right is None or len(right) == 0 else estimate(measure, right)
    return Row(protocol.name, measure, border, protocol.max_shift, len(protocol.draw(1)[0]), estimate(measure, values), given)


def _survey_rows(survey: Survey, protocol: Protocol, measure: str, over: str) -> list[Row]:
    """Return a row over all shifts, or one per ring."""
    parts = [over]
    if over == "radius":
        parts = [part for name, part in survey.values if name == measure and part.startswith("radius") and part != "radius 0"]
    rows = []
    for part in parts:
        found = survey.estimate(measure, over=part)
        assert found is not None  # noqa: S101 - over all images there is always one
        given = survey.estimate(measure, over=part, given="right") if survey.right is not None else None
        views = len(survey.shifts) if part == "all" else 8 * int(part.removeprefix("radius "))
        name = measure if part == "all" else f"{measure}, {part}"
        rows.append(Row(protocol.name, name, protocol.mode, protocol.max_shift, views, found, given))
    return rows


def _sentence(row: Row) -> str:
    """Build a sentence from the measure's label: ``Top-1 change: 12.5% [...] (mouton2020, 1 shift of up to 8 pixels).``."""
    measure = MEASURES[row.measure]
    value = _percent(row.estimate) if measure.bounds == (0.0, 1.0) else str(row.estimate)
    views = f"{row.views} {NOUNS.get(row.border, 'shift')}{'s' if row.views > 1 else ''}"
    label = measure.label[:1].upper() + measure.label[1:]
    return f"{label}: {value} ({row.protocol}, {views} of up to {row.max_shift:g} pixels)."


def _percent(found: Estimate) -> str:
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


def _cell(row: Row, name: str) -> Any:
    value = getattr(row, name)
    return f"{value:g}" if isinstance(value, float) else value


def _plain(value: Any) -> Any:
    """Return data that JSON can hold."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
