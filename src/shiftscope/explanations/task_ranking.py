"""Try fixes on a task's answers, on the same images and shifts, without training: what each gains and costs, which comes first.

Fixes whose gain is above zero with its complete 95 % interval come first, ranked by the gain over the ratio of multiply-adds.
With ground truth, what a fix costs or gains without a shift stands beside it and does not count: weights of layers stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from shiftscope.engine.task_trials import TaskTrial, TaskValues, graded, the_change
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, difference, telling
from shiftscope.explanations.ranking import border_of
from shiftscope.explanations.task_causes import ALIKE
from shiftscope.graphs.geometry import Geometry
from shiftscope.measures import MEASURES
from shiftscope.surgery import WRAPPERS, FixKind, Wrapping, cost, operate
from shiftscope.tables import Cell, Table

__all__ = ["TaskFix", "TaskFixes", "try_task_fixes"]

#: Filter size of ``blur``, and the largest shift of ``average``, pixels: the defaults of ``shiftscope fix``.
FILTER_SIZE, REACH = 3, 1


@dataclass(frozen=True)
class TaskFix:
    """One fix and its effect.

    Attributes:
        kinds: short names of its operations, in order, as ``shiftscope fix --with`` takes them.
        command: makes the fixed model.
        gain: change before less change after, of the same images; None where the fix is impossible.
        after: the change with the fix.
        truth: without a shift, the first measure of ground truth with the fix less that before; None without ground truth.
        ratio: multiply-adds of one image with the fix over those of the unchanged model.
        promise: what holds whatever the weights, in words; empty where nothing is promised.
        reason: why the fix is impossible; empty otherwise.
    """

    kinds: tuple[FixKind, ...]
    command: str
    gain: Estimate | None = None
    after: Estimate | None = None
    truth: Estimate | None = None
    ratio: float = 1.0
    promise: str = ""
    reason: str = ""

    @property
    def works(self) -> bool:
        """Whether the complete interval of the gain is above zero."""
        return self.gain is not None and self.gain.low > 0


@dataclass(frozen=True)
class TaskFixes:
    """All fixes that were tried, the best first."""

    ranked: tuple[TaskFix, ...]

    def table(self) -> Table:
        """Return a row for each fix."""
        rows: list[dict[str, Cell]] = [
            {
                "fix": " + ".join(each.kinds),
                "gain": each.gain,
                "left": each.after,
                "without a shift": each.truth,
                "ratio": each.ratio if each.gain is not None else None,
                "promise": each.promise or None,
                "command": each.command if each.gain is not None else None,
                "reason": each.reason or None,
            }
            for each in self.ranked
        ]
        notes = (
            "gain: how much less shifts change the answers, of the same images and shifts, without training. left: the change "
            "with the fix. without a shift: what the fix does to the first measure against ground truth.",
        )
        brief = tuple(name for name in ("fix", "gain", "without a shift", "ratio") if any(row[name] is not None for row in rows))
        columns = ("fix", "gain", "left", "without a shift", "ratio", "promise", "command", "reason")
        return Table("Fixes, tried without training", columns, tuple(rows), notes, brief=brief)

    def sentence(self) -> str:
        """Return which fix to try first; empty where none works."""
        first = next((each for each in self.ranked if each.works), None)
        if first is None or first.gain is None:
            return ""
        promise = first.promise.partition(";")[0]
        sentence = f"Try first: {' + '.join(first.kinds)}, which lowers the change by {first.gain.value:.3g} without training"
        return f"{sentence}. It promises {promise}." if promise else f"{sentence}."


def try_task_fixes(
    model: nn.Module, trial: TaskTrial, found: TaskValues, geometry: Geometry | None, *, arguments: str, savable: bool = True
) -> TaskFixes:
    """Try every fix that applies to a task's model, and rank them.

    Args:
        model: in evaluation mode; it is not changed.
        trial: the images, their shifts and the task.
        found: the unchanged model in this trial.
        geometry: of the model's graph; None where it cannot be traced.
        arguments: of the command line that name the model, the images and the task.
        savable: whether the command line can save a copy of the model.
    """
    before = cost(model, trial.image).multiply_adds
    tried = [_try(kind, model, trial, found, before, arguments, savable) for kind in _candidates(trial, geometry)]
    return TaskFixes(tuple(sorted(tried, key=lambda each: (not each.works, each.gain is None, -_efficiency(each)))))


def _efficiency(each: TaskFix) -> float:
    return each.gain.value / each.ratio if each.gain is not None and each.ratio else float("-inf")


def _candidates(trial: TaskTrial, geometry: Geometry | None) -> Iterator[FixKind]:
    yield from ("blur", "circular")
    if geometry is not None and any(not each.polyphase for each in geometry.subsamplings):
        yield "aps"
    if trial.task.moves is not None:
        yield "canonical"
    if not trial.task.no_mean():
        yield "average"


def _try(
    kind: FixKind, model: nn.Module, trial: TaskTrial, found: TaskValues, before: int, arguments: str, savable: bool
) -> TaskFix:
    """Apply a fix to a copy and measure it."""
    mode = " --mode circular" if trial.mode == "circular" else ""
    command = f"shiftscope fix {arguments} --with {kind}{mode}{' --out fixed.safetensors' if savable else ''}"
    fill = tuple(trial.fill.tolist()) if isinstance(trial.fill, Tensor) else trial.fill
    output = None if trial.output is None else str(trial.output)
    wrapping = Wrapping(border_of(trial, kind), REACH if kind == "average" else None, fill, trial.task, output)
    try:
        surgery = operate(kind, model, filter_size=FILTER_SIZE if kind == "blur" else 1, wrapping=wrapping, image=trial.image)
        if not surgery.changed:
            return TaskFix((kind,), command, reason="there is nothing to change")
        after = trial.measure(surgery.model, f"with {kind}")
    except InputError as error:
        return TaskFix((kind,), command, reason=error.problem.rstrip("."))
    if after.collapsed(found):
        return TaskFix((kind,), command, reason=f"with it, {ALIKE}")
    gain = found.change(trial.task) - after.change(trial.task)
    known = gain.isfinite()
    if not known.any():
        return TaskFix((kind,), command, reason="no image has a value before and after")
    low, high = MEASURES[graded(trial.task)].change_bounds
    held = kind == "canonical" and (surgery.promise is None or surgery.promise.exact)
    return TaskFix(
        (kind,),
        command,
        gain=difference(gain[known], bounds=(low - high, high - low), same=telling(found.change(trial.task)[known])),
        after=the_change(trial.task, after.change(trial.task)[known]),
        truth=_truth(trial, found, after),
        ratio=surgery.after.multiply_adds / before if surgery.after and before else 1.0,
        promise=surgery.changes[0].why if held and kind in WRAPPERS else "",
    )


def _truth(trial: TaskTrial, before: TaskValues, after: TaskValues) -> Estimate | None:
    """Return what a fix does, without a shift, to average precision or else to the first measure against ground truth."""
    if before.unshifted_records is not None and after.unshifted_records is not None:
        return trial.task.total_differences(before.unshifted_records, after.unshifted_records).get("ap")
    name = next(iter(before.unshifted), None)
    if name is None:
        return None
    apart = after.unshifted[name] - before.unshifted[name]
    known = apart.isfinite()
    low, high = MEASURES[name].bounds
    same = telling(before.unshifted[name][known])
    return difference(apart[known], bounds=(low - high, high - low), same=same) if known.any() else None
