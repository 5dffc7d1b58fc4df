"""By cause, for answers of any task: what the head, borders and aliasing cost, on the same weights.

The *change* under shifts is a measure of the task: 1 less an agreement (of pixels), or an error (of depth, of confidences, of
probabilities). Causes are removed in order, and a cause's part is the change before its step less the change after it:

1. **head**, of answers that a shift should leave as they are (embeddings, labels): the head sees the mean over positions. Maps
   and boxes keep their positions, so that they have no such step;
2. **borders**: padding is circular, and so are the shifts: nothing enters or leaves;
3. **aliasing**: shifts are multiples of the subsampling factor, at which every stride keeps the same samples of the moved map. An
   output at a coarser resolution than the image can follow no other shifts, so that no layer has to be replaced;
4. **other**: what is left.

The step *borders* counts only if the circular copy then follows shifts by multiples of the factor; otherwise its part and that of
aliasing are unknown. A copy that gives all images much the same answer says nothing either: no shift could change that. Copies
with circular padding need no traced graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.engine.task_trials import TaskTrial, TaskValues, graded, the_change
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean
from shiftscope.explanations.causes import pooled_head
from shiftscope.explanations.decomposition import reason_of
from shiftscope.explanations.heads import begins_with, head_change, tokens_go_on
from shiftscope.explanations.trial import share
from shiftscope.explanations.wording import PHRASES, head_phrase
from shiftscope.graphs.invariance import INVARIANT
from shiftscope.measures import MEASURES
from shiftscope.surgery import circular
from shiftscope.tables import Cell, Table

__all__ = ["ALIKE", "TaskCause", "TaskCauses", "lattice_shifts", "task_causes"]

#: The circular copy follows shifts by multiples of the factor if they change its answers by no more than this, or by no more than
#: this share of the change to explain: what is left is a part of its own. Maps that are enlarged bilinearly end at their edges.
FOLLOWS, FOLLOWS_SHARE = 1e-4, 0.25
#: Why a changed copy says nothing about the model.
ALIKE = "all images get much the same answer, so that nothing can be compared"
#: Images on which the head is tried.
PROBES = 2
STEPS = {
    "head": "the head sees the mean over positions instead of a weight for each",
    "borders": "then circular padding and circular shifts",
    "aliasing": "then shifts by multiples of the subsampling factor only",
    "other": "the change after all steps",
}


@dataclass(frozen=True)
class TaskCause:
    """One cause's part of the change.

    Attributes:
        name: head, borders, aliasing or other.
        part: of the change; None where its step is impossible.
        share: ``part`` as a share of the total; None where the total is zero.
        left: the change after the step; None where the step was not measured.
        reason: why the step is impossible or changes nothing; empty otherwise.
        phrase: what sentences call the cause; empty where it has no part.
        by_image: ``part`` of each image; None where it is unknown or nothing.
    """

    name: str
    part: Estimate | None
    share: Estimate | None = None
    left: Estimate | None = None
    reason: str = ""
    phrase: str = ""
    by_image: Float[Tensor, " image"] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class TaskCauses:
    """All parts of the change.

    Attributes:
        total: the change of the unchanged model, over the images that have a value in every step.
        causes: in the order of the steps.
        factor: subsampling factor along height and width, whose multiples are the lattice; None where it is not known.
    """

    total: Estimate | None
    causes: tuple[TaskCause, ...]
    factor: tuple[int, int] | None

    @property
    def main(self) -> str:
        """The name of the cause with the largest part; empty where there is none, or its part is not sure to be the largest."""
        return "" if self.main_cause is None else self.main_cause.name

    @property
    def main_cause(self) -> TaskCause | None:
        """The cause with the largest part above zero; None where the part of one beyond the head is unknown."""
        known = [each for each in self.causes if each.part is not None and each.part.value > 0]
        if any(each.part is None for each in self.causes):
            return None
        return max(known, key=lambda each: each.part.value if each.part else 0.0, default=None)

    @property
    def followed(self) -> bool:
        """Whether the copy with circular padding follows shifts by multiples of the factor, which confirms the factor."""
        return any(each.name == "borders" and each.left is not None for each in self.causes)

    def table(self) -> Table:
        """Return a row for each cause, and one for the total."""
        rows: list[dict[str, Cell]] = [
            {
                "cause": each.name,
                "change": each.part,
                "share": each.share,
                "left": each.left,
                "step": STEPS[each.name],
                "reason": f"unknown: {each.reason}" if each.part is None else each.reason or None,
            }
            for each in self.causes
        ]
        rows.append({"cause": "total", "change": self.total, "step": "the unchanged model"})
        count = 0 if self.total is None else self.total.count
        notes = (f"The parts sum to the total, over {count} images that have a value in every step; intervals: 95 %.",)
        columns = ("cause", "change", "share", "left", "step", "reason")
        return Table("What shifts change, by cause", columns, tuple(rows), notes, brief=("cause", "change", "share", "reason"))


def lattice_shifts(
    like: Int[Tensor, "image shift 2"], size: Sequence[int], factor: Sequence[int], generator: torch.Generator
) -> Int[Tensor, "image shift 2"] | None:
    """Return as many random shifts, multiples of the factor along both axes and not zero, as far as others or one multiple.

    Args:
        like: the other shifts.
        size: (height, width) of the images, pixels.
        factor: along height and width.
        generator: draws them.

    Returns:
        None where no such shift is smaller than the image.
    """
    reach = int(like.abs().max())
    counts = [max(reach // step, 1) if step < side else 0 for side, step in zip(size, factor, strict=True)]
    places = [(y, x) for y in range(-counts[0], counts[0] + 1) for x in range(-counts[1], counts[1] + 1) if y or x]
    if not places:
        return None
    picks = torch.randint(len(places), like.shape[:2], generator=generator)
    return torch.tensor(places)[picks] * torch.tensor(factor)


def circular_trial(trial: TaskTrial, factor: Sequence[int]) -> TaskTrial:
    """Return the trial with circular shifts; the canvas is extended to multiples of the factor, as circular maps need it."""
    images = trial.inputs
    (height, width), (down, right) = trial.size, factor
    fill = torch.as_tensor(trial.fill, dtype=images.dtype).reshape(-1, 1, 1)
    images = functional.pad(images - fill, (0, -width % right, 0, -height % down)) + fill
    return replace(trial, images=images, mode="circular", size=(images.shape[2], images.shape[3]), truth=None)


def task_causes(
    model: nn.Module,
    trial: TaskTrial,
    before: TaskValues,
    factor: tuple[int, int] | None,
    *,
    traced: bool,
    seed: int = 0,
) -> TaskCauses:
    """Remove one cause of a task's change at a time, and measure what is left.

    Args:
        model: in evaluation mode; it is not changed.
        trial: the images, their shifts and the task.
        before: the unchanged model in this trial.
        factor: subsampling factor along height and width; None where it is not known.
        traced: whether the model's graph could be traced.
        seed: draws the shifts by multiples of the factor.
    """
    return _Steps(model, trial, before, factor, traced, seed).run()


class _Steps:
    """Removes the causes, one after the other."""

    def __init__(
        self, model: nn.Module, trial: TaskTrial, before: TaskValues, factor: tuple[int, int] | None, traced: bool, seed: int
    ) -> None:
        self.model, self.trial, self.before, self.factor, self.traced, self.seed = model, trial, before, factor, traced, seed
        self.total = before.change(trial.task)
        self.left: dict[str, Tensor] = {}
        self.reasons: dict[str, str] = {}
        self.phrases = dict(PHRASES)

    def run(self) -> TaskCauses:
        names = ["borders", "aliasing"] if self.trial.task.moves is not False else ["head", "borders", "aliasing"]
        if self.trial.task.moves is False:
            self._head()
        self._borders()
        known = torch.stack([self.total, *self.left.values()]).isfinite().all(dim=0)
        if not known.any():
            reason = "no image has a value in every step"
            return TaskCauses(None, tuple(TaskCause(name, None, reason=reason) for name in (*names, "other")), self.factor)
        return TaskCauses(the_change(self.trial.task, self.total[known]), tuple(self._causes(names, known)), self.factor)

    def _causes(self, names: Sequence[str], known: Tensor) -> list[TaskCause]:
        """Return each cause's part; what a step that is not possible would remove is contained in later parts."""
        before, whole, causes = self.total[known], self.total[known], list[TaskCause]()
        for name in names:
            after = self.left.get(name)
            if after is None:
                nothing = self.reasons[name].startswith("nothing")
                zero = Estimate(0.0, 0.0, 0.0, count=int(known.sum())) if nothing else None
                causes.append(TaskCause(name, zero, reason=self.reasons[name].removeprefix("nothing: ")))
                continue
            part = before - after[known]
            left = the_change(self.trial.task, after[known])
            found = TaskCause(name, self._part(part), share(part, whole), left, phrase=self.phrases[name], by_image=part)
            causes.append(found)
            before = after[known]
        unknown = [each.name for each in causes if each.part is None]
        rest = f"contains {' and '.join(unknown)}" if unknown else ""
        left = self._part(before) if self.left else the_change(self.trial.task, before)  # without a step, all of the change
        return [*causes, TaskCause("other", left, share(before, whole), reason=rest, by_image=before)]

    def _part(self, values: Tensor) -> Estimate:
        """Return the mean part over images. Where a step changes nothing, this is no sample of zeros: the part is zero."""
        if float(values.abs().max()) < FOLLOWS * 1e-3:
            return Estimate(0.0, 0.0, 0.0, count=len(values))
        low, high = MEASURES[graded(self.trial.task)].change_bounds
        return mean(values, bounds=(low - high, high - low))

    def _head(self) -> None:
        probes = self.trial.inputs[:PROBES]
        change = head_change(self.model, probes) if self.traced else None
        if change is None:
            why = "its use of positions cannot be tried in double precision"
            self.reasons["head"] = why if self.traced else "the model's graph cannot be traced"
        elif change < INVARIANT:
            self.reasons["head"] = "nothing: rolling the maps that reach the head changes no output"
        elif tokens_go_on(self.model, probes):
            self.reasons["head"] = "behind the last map its positions go through further layers as tokens"
        else:
            self.phrases["head"] = head_phrase(begins_with(self.model, probes)) or PHRASES["head"]
            self._pool(pooled_head(self.model, probes))

    def _pool(self, pooled: nn.Module) -> None:
        """Measure the copy whose head sees the mean over positions, and go on with it."""
        found = self.trial.measure(pooled, "without head")
        if found.collapsed(self.before):
            self.reasons["head"] = f"with the mean over positions, {ALIKE}"
        else:
            self.model, self.left["head"] = pooled, found.change(self.trial.task)

    def _borders(self) -> None:
        """Measure the circular copy under circular shifts, and under those by multiples of the factor alone."""
        try:
            self._measure_circular()
        except InputError as error:
            self.reasons |= dict.fromkeys(("borders", "aliasing"), reason_of(error))

    def _measure_circular(self) -> None:
        if self.factor is None:
            raise InputError("the subsampling factor is not known")
        trial = circular_trial(self.trial, self.factor)
        steps = lattice_shifts(trial.shifts, trial.size, self.factor, torch.Generator().manual_seed(self.seed))
        if steps is None:
            raise InputError(f"no multiple of the subsampling factor {max(self.factor)} is smaller than the image")
        copy = circular(self.model, image=trial.image).model
        found = trial.measure(copy, "without borders")
        if found.collapsed(self.before):
            raise InputError(f"with circular padding, {ALIKE}")
        around = found.change(self.trial.task)
        on = replace(trial, shifts=steps).measure(copy, "shifts by multiples of the factor").change(self.trial.task)
        both = on.isfinite() & around.isfinite() & self.total.isfinite()
        if not both.any():
            raise InputError("no image has a value under circular shifts")
        if float(on[both].mean()) > max(FOLLOWS, FOLLOWS_SHARE * float(self.total[both].mean())):
            which = f"shifts by multiples of {max(self.factor)} pixels" if max(self.factor) > 1 else "shifts of any size"
            raise InputError(f"with circular padding, circular {which} still change the answers")
        self.left["borders"] = around
        if self.factor == (1, 1):
            self.reasons["aliasing"] = "nothing: nothing is subsampled"
        else:
            self.left["aliasing"] = on
