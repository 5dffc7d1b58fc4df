"""Compare a task's answers under shifts before and after a fix, by its own measures, on the same images and shifts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from shiftscope.engine.dependence import model_warnings
from shiftscope.engine.framing import Framed, Shifting
from shiftscope.engine.task_trials import TaskTrial, TaskValues
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, changed, difference, telling
from shiftscope.measures import MEASURES
from shiftscope.runtime.progress import Report, silent
from shiftscope.surgery.plan import Surgery
from shiftscope.surgery.sampled import SHIFTS, TRAIN_AGAIN, changes_layers, described, framings, shifts_for
from shiftscope.tables import Cell, Summary, Table, percent, plus_minus
from shiftscope.tasks import Task, Truth

__all__ = ["UNSHIFTED", "compare_tasks", "summarise_tasks"]

#: What stands for the shifts of a measure without a shift.
UNSHIFTED = "none"
COLUMNS = ("shifts", "measure", "before", "after", "difference", "effect")
#: A terminal shows so many measures of each kind of shifts.
SHOWN = 6


def compare_tasks(
    before: Callable[[Tensor], Any],
    surgery: Surgery,
    task: Task,
    images: Tensor,
    under: Shifting,
    *,
    truth: Truth | None = None,
    output: str | int | None = None,
    provenance: Mapping[str, str] | None = None,
    report: Report = silent,
) -> Table:
    """Measure a task's answers before and after a fix, under the same shifts.

    Args:
        before: the model without the fix.
        surgery: the fixed model.
        task: what the outputs are.
        images: unshifted images in [0, 1], canvas included.
        under: how images are shifted; without a mode as by default and also circularly. Its seed draws the shifts of large
            inputs.
        truth: ground truth of each image, as the task takes it; None without.
        output: name or position of the output that the task reads, of a model with several.
        provenance: where the images come from, name to value, for the table.
        report: called with progress events.

    Returns:
        a row for each kind of shift and measure: before, after, and the difference of the same images, with 95 % intervals.

    Raises:
        InputError: a model does not take such images, outputs or truth are not the task's, or the shifts do not fit.
    """
    framed = framings(images, under)
    first = framed[0]
    if truth is not None and len(truth) != len(images):
        raise InputError(
            f"`truth` must hold one entry for each of {len(images)} images, got {len(truth)}.", "Give them in order."
        )
    shifts = shifts_for(first, under.seed)
    shifts = shifts[(shifts != 0).any(dim=1)]
    rows, left_out, doubts = list[dict[str, Cell]](), dict[str, int](), list[str]()
    for each in framed:
        trial = _trial(task, each, shifts, truth, output, under.fill, report)
        one = trial.measure(before, f"measuring before, {each.border} shifts")
        other = trial.measure(surgery.model, f"measuring after, {each.border} shifts")
        if each is first:
            rows += _unshifted(task, one, other)
            doubts += task.doubts(one.answered)
        rows += _shifted(task, one, other, each.border)
        left_out |= {name: lost for name in one.values if (lost := _lost(name, one, other))}
    measured = described(len(shifts), first.max_shift)
    notes = (
        *model_warnings(before, under.unshifted(images), fill=under.fill),
        *doubts,
        f"Intervals: 95 %, over {len(images)} images, each under {measured}; differences are of the same images.",
        *_left_out(left_out, len(images)),
        *([task.nothing()] if not rows and task.nothing() else []),
        *_definitions(rows),
        *([TRAIN_AGAIN] if changes_layers(surgery) else []),
    )
    found = {**(provenance or {}), "task": task.name, SHIFTS: measured}
    return Table("Before and after", COLUMNS, tuple(rows), notes, found, brief=COLUMNS)


def _trial(
    task: Task, each: Framed, shifts: Tensor, truth: Truth | None, output: str | int | None, fill: Tensor | float, report: Report
) -> TaskTrial:
    steps = shifts.expand(len(each.images), -1, -1)
    return TaskTrial(task, each.images, steps, each.size, each.mode, fill, truth, output, report=report)


def _unshifted(task: Task, before: TaskValues, after: TaskValues) -> Iterator[dict[str, Cell]]:
    """Yield what a fix does to answers without a shift, where there is ground truth."""
    for name in before.unshifted:
        yield from _row(UNSHIFTED, name, before.unshifted[name], after.unshifted[name], same=_same(before, after))
    yield from _totals(task, UNSHIFTED, before.unshifted_records, after.unshifted_records)


def _shifted(task: Task, before: TaskValues, after: TaskValues, border: str) -> Iterator[dict[str, Cell]]:
    for name in before.values:
        yield from _row(border, name, before.means(name), after.means(name), same=_same(before, after))
    yield from _totals(task, border, before.records, after.records)


def _same(before: TaskValues, after: TaskValues) -> bool:
    """Return whether a fix changes no value of any image, and one tells images apart: nothing changed."""
    pairs = [(before.means(name), after.means(name)) for name in before.values]
    return not any(changed(new - old) for old, new in pairs) and any(telling(old[old.isfinite()]) for old, _ in pairs)


def _row(shifts: str, measure: str, before: Tensor, after: Tensor, *, same: bool) -> Iterator[dict[str, Cell]]:
    """Yield the row of a measure, over the images that have a value before and after; none where no image has."""
    both = before.isfinite() & after.isfinite()
    if both.any():
        kind = MEASURES[measure]
        widest = kind.bounds[1] - kind.bounds[0]
        one, other = (kind.estimate(each[both]) for each in (before, after))
        gain = difference((after - before)[both], bounds=(-widest, widest), same=same or telling(before[both]))
        yield _cells(shifts, measure, one, other, gain)


def _totals(task: Task, shifts: str, before: Tensor | None, after: Tensor | None) -> Iterator[dict[str, Cell]]:
    """Yield the rows of numbers that all images give together."""
    if before is None or after is None:
        return
    one, other = task.totals(before).estimates, task.totals(after).estimates
    paired = task.total_differences(before, after)
    for name in one:
        if name in other:
            yield _cells(shifts, name, one[name], other[name], paired.get(name))


def _cells(shifts: str, measure: str, one: Estimate, other: Estimate, paired: Estimate | None) -> dict[str, Cell]:
    row: dict[str, Cell] = {"shifts": shifts, "measure": measure, "before": one, "after": other, "difference": paired}
    return {**row, "effect": _effect(measure, paired)}


def _effect(measure: str, paired: Estimate | None) -> str:
    """Return whether a measure is better or worse after the fix, as far as the interval says."""
    better = MEASURES[measure].better
    if paired is None or better is None:
        return ""
    if paired.low <= 0 <= paired.high:
        return "none" if paired.low == paired.high else "uncertain"
    return "better" if (paired.value > 0) == (better == "more") else "worse"


def _definitions(rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    measures = dict.fromkeys(MEASURES[str(row["measure"])] for row in rows)
    return [f"{each.label[:1].upper()}{each.label[1:]}: {each.sentence}" for each in measures]


def _left_out(lost: Mapping[str, int], images: int) -> Iterator[str]:
    """Yield which measures leave out how many images."""
    for count in sorted(set(lost.values())):
        labels = "; ".join(MEASURES[name].label for name, each in lost.items() if each == count)
        yield f"{count} of {images} images have no value before or after, and are left out: {labels}."


def _lost(name: str, before: TaskValues, after: TaskValues) -> int:
    """Return how many images have no value of a measure, before or after; 0 if none has one."""
    known = before.means(name).isfinite() & after.means(name).isfinite()
    return int((~known).sum()) if known.any() else 0


def summarise_tasks(surgery: Surgery, compared: Table | None, task: Task, *, commands: tuple[str, ...] = ()) -> Summary:
    """Return what ``shiftscope fix`` prints of a task: the effect in plain words, what changed, and the measures.

    Args:
        surgery: the fixed model.
        compared: what :func:`compare_tasks` returned; None where nothing was measured.
        task: what the outputs are.
        commands: to run next.
    """
    changes = surgery.narrow_table()
    if compared is None:
        return Summary("", (changes,), commands=commands)
    definitions = _definitions(compared.rows)
    notes = tuple(note for note in compared.notes if note not in definitions)
    title = "Before and after, weights unchanged"
    short = replace(compared, title=title, rows=tuple(_leading(compared.rows)), notes=notes, columns=COLUMNS)
    return Summary(task_verdict(compared, task), (changes, short), commands=commands)


def _leading(rows: Sequence[Mapping[str, Cell]]) -> Iterator[Mapping[str, Cell]]:
    """Yield the first measures of each kind of shifts."""
    seen = dict[str, int]()
    for row in rows:
        kind = str(row["shifts"])
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= SHOWN:
            yield row


def task_verdict(compared: Table, task: Task) -> str:
    """Return the effect of a fix on the leading measure, under the first kind of shifts, and on rightness, in two sentences."""
    lead = next((row for row in compared.rows if row["measure"] == task.measures[0] and row["shifts"] != UNSHIFTED), None)
    if lead is None:
        return task.nothing() or "Nothing could be measured: the leading measure is not defined for any image."
    return " ".join(filter(None, (_lead_sentence(lead, compared, task), _truth_sentence(compared.rows))))


def _lead_sentence(lead: Mapping[str, Cell], compared: Table, task: Task) -> str:
    before, after, paired = (lead[name] for name in ("before", "after", "difference"))
    if not isinstance(before, Estimate) or not isinstance(after, Estimate):
        return ""
    reach = compared.provenance[SHIFTS].rpartition("up to ")[2].partition(" ")[0]
    moved = f"by up to {reach} {'pixel' if reach == '1' else 'pixels'}"
    moved += {"circular": ", circularly", "crop": " in the frame"}.get(str(lead["shifts"]), "")
    sentence = task.words(percent(before), plus_minus(before), moved)
    name = MEASURES[task.measures[0]].label
    sentence = sentence or f"{name[:1].upper()}{name[1:]} when images move {moved}: {plus_minus(before)}."
    value = percent(after) if "%%" in task.words("%%", "", "") else plus_minus(after)
    gained = f" (difference {plus_minus(paired)})" if isinstance(paired, Estimate) else ""
    return f"{sentence.rstrip('.')}; with the fix, without training, {value}{gained}."


def _truth_sentence(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Return what a fix costs or gains without a shift, against ground truth; empty without."""
    known = [row for row in rows if row["shifts"] == UNSHIFTED and isinstance(row["difference"], Estimate)]
    row = next((each for each in known if each["measure"] == "ap"), next(iter(known), None))
    if row is None:
        return ""
    before, after, paired = (each for each in (row["before"], row["after"], row["difference"]) if isinstance(each, Estimate))
    label = MEASURES[str(row["measure"])].label
    return f"Without a shift: {label} {plus_minus(before)}, with the fix {plus_minus(after)} (difference {plus_minus(paired)})."
