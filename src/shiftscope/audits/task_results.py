"""What a task's parts give: rows, values per class, notes on images without a value, and the images that change most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf, nan

import torch
from torch import Tensor

from shiftscope.audits.measuring import grid_name
from shiftscope.audits.parts import Changed, Part
from shiftscope.audits.periods import period_sentences
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.scores import estimate
from shiftscope.audits.task_measuring import REFERENCES, UNSHIFTED, task_measures
from shiftscope.audits.wording import Row
from shiftscope.engine.task_trials import reference_doubts
from shiftscope.estimates import Estimate
from shiftscope.measures import MEASURES
from shiftscope.surveys import Survey
from shiftscope.tasks import Task, Totals

__all__ = ["surveys_of_totals", "task_changed", "task_notes", "task_rows", "task_totals", "task_units", "task_warnings"]


def task_totals(merged: Part, task: Task | None) -> dict[str, Totals]:
    """Return by protocol the numbers of all images together, where the task has some."""
    return {} if task is None else {protocol: task.totals(records) for protocol, records in merged.records.items()}


def surveys_of_totals(
    surveys: Mapping[str, Survey], protocols: Sequence[Protocol], totals: Mapping[str, Totals]
) -> dict[str, Survey]:
    """Return surveys with the maps of numbers of all images together."""
    found = dict(surveys)
    for protocol in protocols:
        name, each = grid_name((protocol.mode, int(protocol.max_shift))), totals.get(protocol.name, Totals())
        known = found.get(name)
        if known is not None and each.shifts is not None and torch.equal(known.shifts.double(), each.shifts.double()):
            maps = {measure: values.float() for measure, values in each.maps.items()}
            ends = {measure: values.float() for measure, values in each.intervals.items()}
            found[name] = replace(known, maps={**known.maps, **maps}, intervals={**known.intervals, **ends})
    return found


def task_rows(
    merged: Part, protocols: Sequence[Protocol], task: Task, borders: Mapping[str, str], totals: Mapping[str, Totals]
) -> list[Row]:
    """Return a row for each protocol and measure of a task that is defined for some image.

    Args:
        merged: all parts.
        protocols: that were measured.
        task: what the outputs are.
        borders: protocol -> what filled its border.
        totals: of :func:`task_totals`.
    """
    rows = _all_rows(merged, protocols, task, borders, totals)
    return [row for row in rows if row.estimate.count]


def _all_rows(
    merged: Part, protocols: Sequence[Protocol], task: Task, borders: Mapping[str, str], totals: Mapping[str, Totals]
) -> list[Row]:
    unshifted = [measure for measure in task.truth_measures if (UNSHIFTED, measure) in merged.scores]
    rows = [
        Row(UNSHIFTED, measure, "", 0, 1, _estimate(measure, merged.scores[UNSHIFTED, measure]), None) for measure in unshifted
    ]
    for protocol in protocols:
        scores, surveyed = task_measures(task, protocol, truth=bool(unshifted))
        border, reach = borders[protocol.name], protocol.max_shift
        views = len(protocol.draw(1)[0]) if protocol.scores else 0
        for measure in scores:
            values = merged.scores[protocol.name, measure]
            rows.append(Row(protocol.name, measure, border, reach, views, _estimate(measure, values), None))
        survey = merged.surveys.get(grid_name((protocol.mode, int(reach))))
        if survey is not None:
            found = [(measure, survey.estimate(measure) or _undefined()) for measure in surveyed]
            rows += [Row(protocol.name, name, protocol.mode, reach, len(survey.shifts), each, None) for name, each in found]
        if protocol.name in totals:
            shifts, found_together = views or (len(survey.shifts) if survey is not None else 0), totals[protocol.name].estimates
            rows += [Row(protocol.name, name, border, reach, shifts, each, None) for name, each in found_together.items()]
    return rows


def task_units(merged: Part, task: Task) -> dict[str, Tensor]:
    """Return by protocol a value for each class or unit, where the task has some."""
    found = {protocol: task.units(sums) for protocol, sums in merged.sums.items() if sums and protocol != REFERENCES}
    return {protocol: units for protocol, units in found.items() if units is not None}


def task_changed(merged: Part, task: Task) -> tuple[Changed, ...]:
    """Return the images that change most, with the leading measure's own values, which parts hold as agreements."""
    lead = task.measures[0]
    sign = 1 if MEASURES[lead].better == "more" else -1
    return tuple(replace(each, similarity=sign * each.similarity, measure=lead) for each in merged.changed)


def task_notes(merged: Part, task: Task | None, surveys: Mapping[str, Survey]) -> Iterator[str]:
    """Yield the periods of the maps over shifts, and which measures are not defined for some images, or for none."""
    # Of average precision, that of all sizes and overlaps tells; the others repeat it.
    yield from period_sentences(surveys, without=task.total_measures[1:]) if task is not None else ()
    missing: dict[str, tuple[int, int]] = {}
    for (_, measure), values in merged.scores.items() if task is not None else ():
        if values.isnan().any():
            missing.setdefault(measure, (int(values.isnan().sum()), len(values)))
    none = [MEASURES[measure].label for measure, (count, total) in missing.items() if count == total]
    some = [(count, MEASURES[measure].label) for measure, (count, total) in missing.items() if count < total]
    if none:
        yield f"No image has a value for {'; '.join(sorted(none))}."
    for count in sorted({count for count, _ in some}):
        total = next(total for each, total in missing.values() if each == count)
        labels = "; ".join(sorted(label for each, label in some if each == count))
        yield f"{count:,} of {total:,} images have no value, and means leave them out: {labels}."


def task_warnings(merged: Part, task: Task | None) -> Iterator[str]:
    """Yield why numbers say little: outputs are probably read wrongly, or answers are all the same, or there is none."""
    if task is None:
        return
    if known := merged.sums.get(REFERENCES):
        yield from reference_doubts(task, known, merged.cost.images)
    right = merged.scores.get((UNSHIFTED, task.truth_measures[0])) if task.truth_measures else None
    if right is not None and right.isfinite().any() and not right.nansum() and task.all_wrong():
        yield task.all_wrong()
    found = [values for (_, measure), values in merged.scores.items() if measure == task.measures[0]]
    found += [
        each.values[task.measures[0], "all"] for each in merged.surveys.values() if (task.measures[0], "all") in each.values
    ]
    if found and all(values.isnan().all() for values in found) and task.nothing():
        yield task.nothing()


def _estimate(measure: str, values: Tensor) -> Estimate:
    known = values[~values.isnan()]
    return estimate(measure, known) if len(known) else _undefined()


def _undefined() -> Estimate:
    return Estimate(nan, -inf, inf, 0)
