"""Flicker along videos: by how much a model's answers change from one frame to the next, where no shift is known.

Frames are compared as they are: an answer that should move, such as a box, counts as changed by what really moves in the video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.audits.model import CountedModel
from shiftscope.display import Shown
from shiftscope.engine.answers import LOOKED_AT, image_warnings
from shiftscope.engine.checks import device_of, evaluating
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean
from shiftscope.measures import MEASURES
from shiftscope.runtime.text import number_of
from shiftscope.tables import Cell, Summary, Table, percent, plus_minus
from shiftscope.tasks import Task, View, find_task, task_of, text_of

__all__ = [
    "FLICKER_VERSION",
    "Flicker",
    "frames_flicker",
    "leading_measure",
    "mean_change",
    "measure_flicker",
    "measures_of",
    "reads_as",
    "step_change",
    "video_means",
]

#: Version of the schema of ``flicker.json``.
FLICKER_VERSION = 1
#: Frames per forward pass by default.
FRAMES = 16
#: What is compared of classes.
TOP_CLASS = "top1_change"


@dataclass(frozen=True, repr=False)
class Flicker(Shown):
    """How much a model's answers change from frame to frame.

    Attributes:
        changes: for each sequence, [step], the change between each frame and the next one; NaN where the task defines none.
        estimate: mean over sequences of each one's mean change, with its 95 % interval over sequences; None without a value.
            Steps of one sequence are not independent, so that the interval of a single one is all that is possible.
        measure: whose change it is: ``top1_change`` of classes, or the leading measure of a task.
        task: the task's name; empty for classes.
        names: of the sequences; by default their numbers, from 1.
        notes: what a reader needs to know.
        provenance: how it was measured, name -> value.
    """

    json_file: ClassVar[str] = "flicker"
    table_files: ClassVar[tuple[str, ...]] = ("frames",)

    changes: tuple[Tensor, ...]  # of several lengths
    estimate: Estimate | None
    measure: str
    task: str = ""
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> str:
        """Return the result in a sentence."""
        if self.estimate is None:
            return "Nothing could be measured: no step has a value."
        several, measure = len(self.changes) > 1, MEASURES[self.measure]
        within = measure.bounds == (0.0, 1.0)
        value = percent(self.estimate) if within else plus_minus(self.estimate)
        if not several:
            value = f"{100 * self.estimate.value:.3g} %" if within else f"{self.estimate.value:.3g}"
        if self.measure == TOP_CLASS:
            return f"From one frame to the next, the top class changes in {value} of steps{self._of_videos()}."
        less = "1 less the " if measure.better == "more" else ""
        return f"From one frame to the next, answers change by {value} ({less}{measure.label}){self._of_videos()}."

    def _of_videos(self) -> str:
        steps = sum(map(len, self.changes))
        if len(self.changes) > 1:
            return f", a mean over {len(self.changes)} videos"
        return f", over {number_of(steps, 'step')} of one video, which says nothing about others"

    def numbers(self) -> dict[str, Estimate]:
        """Return the estimate by the names of the measures that it is a number of; empty without a value.

        An agreement is 1 less the change.
        """
        if self.estimate is None:
            return {}
        lead = as_estimate_of(self.measure, self.estimate)
        return {name: lead if name == self.measure else self.estimate for name in measures_of(self.measure)}

    def name(self, number: int) -> str:
        """Return what to call a sequence, by its place."""
        return self.names[number] if self.names else str(number + 1)

    def tables(self) -> tuple[Table, ...]:
        """Return a table with a row for each step of each sequence."""
        rows = tuple(
            {"sequence": self.name(number), "frame": frame, "change": None if value != value else value}
            for number, changes in enumerate(self.changes)
            for frame, value in enumerate(changes.tolist(), start=2)
        )
        title, notes = "Change from the frame before", (self.words(), *self.notes)
        return (Table(title, ("sequence", "frame", "change"), rows, notes, dict(self.provenance)),)

    def sequence_table(self) -> Table:
        """Return a table with a row for each sequence: its frames, mean and largest change, and where that is."""
        columns = ("sequence", "frames", "mean_change", "largest_change", "at_frame")
        return Table("", columns, tuple(self._row(number) for number in range(len(self.changes))))

    def _row(self, number: int) -> dict[str, Cell]:
        changes = self.changes[number]
        row: dict[str, Cell] = {"sequence": self.name(number), "frames": len(changes) + 1}
        if changes.isnan().all():
            return row
        worst = int(changes.nan_to_num(nan=-1.0).argmax())
        values = f"{float(changes.nanmean()):.3g}", f"{float(changes[worst]):.3g}"
        return row | {"mean_change": values[0], "largest_change": values[1], "at_frame": worst + 2}

    def summary(self, *, commands: tuple[str, ...] = ()) -> Summary:
        """Return the result for a terminal; arguments as of :meth:`shiftscope.audits.Audit.summary`."""
        missing = sum(int(each.isnan().sum()) for each in self.changes)
        steps = sum(map(len, self.changes))
        undefined = [f"{missing:,} of {steps:,} steps have no value, and means leave them out."] if missing else []
        compared = "Frames are compared as they are: what really moves in a video counts as change."
        several = ["Interval: 95 %, over videos."] if len(self.changes) > 1 else []
        return Summary(self.words(), (self.sequence_table(),), (*several, compared, *undefined, *self.notes), commands)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data, with None where a step has no value."""
        found = self.estimate
        return {
            "schema_version": FLICKER_VERSION,
            "summary": self.words(),
            "task": self.task,
            "measure": self.measure,
            "estimate": None
            if found is None
            else {"value": found.value, "low": found.low, "high": found.high, "count": found.count},
            "sequences": [
                {"name": self.name(number), "changes": [None if value != value else value for value in changes.tolist()]}
                for number, changes in enumerate(self.changes)
            ],
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
        }


def frames_flicker(
    model: Callable[[Tensor], Any],
    frames: Tensor | Sequence[Tensor],
    *,
    task: str | Task | None = None,
    output: str | int | None = None,
    batch_size: int = FRAMES,
    device: torch.device | str | None = None,
) -> Flicker:
    """Measure how much a model's answers change between successive frames of videos, compared as they are.

    Args:
        model: any callable from images to what :func:`shiftscope.audit` takes.
        frames: a sequence [frame, channel, height, width] in [0, 1], of two frames or more; or several sequences, of any lengths.
        task: what the outputs are, as :func:`shiftscope.audit` takes it; by default detected from them.
        output: name or position of the output to measure, if the model returns several.
        batch_size: frames per forward pass.
        device: where to compute; the model's own by default.

    Raises:
        InputError: there is no sequence, or one is no such tensor; the model fails, or returns what cannot be measured.

    >>> video = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 1, 4, 4)
    >>> found = frames_flicker(lambda batch: [str(bool(each.mean() > 0.4)) for each in batch], video)
    >>> found.changes[0].tolist(), found.estimate.value
    ([0.0, 1.0, 0.0, 0.0], 0.25)
    """
    sequences = [frames] if isinstance(frames, Tensor) else list(frames)
    _check(sequences, batch_size)
    counted = CountedModel(model, output=output, device=device_of(model, device))
    with evaluating(model), torch.no_grad():
        known = reads_as(counted, sequences[0][:1], task)
        found = measure_flicker(counted, (each.split(batch_size) for each in sequences), known)
    return replace(found, notes=image_warnings(model, sequences[0][:LOOKED_AT]))


def measure_flicker(model: CountedModel, sequences: Iterable[Iterable[Tensor]], task: Task | None) -> Flicker:
    """Return the flicker of videos whose frames come in batches; those of one batch are in memory at a time.

    Args:
        model: the model.
        sequences: the batches of each video, [frame, channel, height, width].
        task: that reads the outputs; None for classes.

    Raises:
        InputError: the model fails, or returns what cannot be measured.
    """
    changes = tuple(_changes(model, batches, task) for batches in sequences)
    lead = leading_measure(task)
    return Flicker(changes, mean_change(lead, changes), lead, "" if task is None else text_of(task))


def _check(sequences: Sequence[Tensor], batch_size: int) -> None:
    if not sequences:
        raise InputError("`frames` must hold at least one sequence, got none.", "Give a tensor, or a list of tensors.")
    if batch_size < 1:
        raise InputError(f"`batch_size` must be 1 or more frames, got {batch_size}.", "Leave it out.")
    for each in sequences:
        if not isinstance(each, Tensor):
            raise InputError(
                f"`frames` must be tensors, got {type(each).__name__}.", "Convert each video: torch.from_numpy(frames)."
            )
        if each.ndim == 5:
            raise InputError(
                f"a sequence of `frames` must be [frame, channel, height, width], got shape {tuple(each.shape)}.",
                "Of several videos, give a list: list(videos).",
            )
        if each.ndim != 4 or len(each) < 2:
            raise InputError(
                f"`frames` must be [frame, channel, height, width] of two frames or more, got shape {tuple(each.shape)}.",
                "Stack the frames of a video along the first axis.",
            )
        if not each.is_floating_point() or not bool(each.isfinite().all()):
            found = "NaN or infinity" if each.is_floating_point() else str(each.dtype)
            raise InputError(f"`frames` must be finite floating point in [0, 1], got {found}.", "Divide by 255 first.")


def reads_as(model: CountedModel, frame: Float[Tensor, "1 channel height width"], task: str | Task | None) -> Task | None:
    """Return the task that is chosen, or that the output for a frame shows; None for classes.

    Raises:
        InputError: there is no such task, the model fails, or its output is no classes and shows no task.
    """
    size = (int(frame.shape[2]), int(frame.shape[3]))
    raw = model.raw(frame)
    chosen = find_task(task) if isinstance(task, str) else task
    if chosen is None and model.output is None:
        chosen = task_of(raw, 1, size, model=model.model)
    if chosen is None and model.checked(raw, 1).ndim == 4:
        chosen = find_task("segmentation")
    return None if chosen is None else chosen.knowing(model.model)


def step_change(task: Task, before: Any, after: Any, view: View) -> float:
    """Return by how much an answer changes from one view to the next; NaN where the task defines no change.

    Args:
        task: that reads the answers.
        before: the answer to the first view.
        after: the answer to the second view.
        view: how the second lies relative to the first.
    """
    found = task.compare(before, after, view, None).get(task.measures[0], float("nan"))
    return float(MEASURES[task.measures[0]].as_change(torch.tensor(found, dtype=torch.float64)))


def _changes(model: CountedModel, batches: Iterable[Tensor], task: Task | None) -> Float[Tensor, " step"]:
    """Return the change of each frame but the first; no more answers than those of a batch are in memory."""
    found, before = list[float](), None
    for number, (after, size) in enumerate(_answers(model, batches, task)):
        if number and task is None:
            found.append(float(after != before))
        elif number and task is not None:
            view = View((0, 0), size, circular=False, references=task.gather([before]))
            found.append(step_change(task, before, after, view))
        before = after
    return torch.tensor(found, dtype=torch.float64)


def _answers(model: CountedModel, batches: Iterable[Tensor], task: Task | None) -> Iterator[tuple[Any, tuple[int, int]]]:
    """Yield the answer to each frame, and (height, width) of the frame."""
    for batch in batches:
        size = (int(batch.shape[2]), int(batch.shape[3]))
        answers = model(batch).argmax(dim=1).tolist() if task is None else model.read(batch, task, size)
        yield from ((answer, size) for answer in answers)


def leading_measure(task: Task | None) -> str:
    """Return the name of the measure whose change flicker is; of classes without a task."""
    return TOP_CLASS if task is None else task.measures[0]


def measures_of(lead: str) -> tuple[str, ...]:
    """Return the names of the measures that flicker is a number of, by the measure whose change it is.

    >>> measures_of("top1_change"), measures_of("depth_error")
    (('top1_change', 'neighbour_change', 'flicker'), ('depth_error', 'flicker'))
    """
    return (lead, *(("neighbour_change",) if lead == TOP_CLASS else ()), "flicker")


def as_estimate_of(lead: str, change: Estimate) -> Estimate:
    """Return the estimate of a measure from that of its change."""
    if MEASURES[lead].better != "more":
        return change
    return replace(change, value=1 - change.value, low=1 - change.high, high=1 - change.low)


def video_means(changes: Sequence[Tensor]) -> Float[Tensor, " video"]:
    """Return the mean change of each video over its steps; NaN where no step has a value."""
    return torch.stack([each.nanmean() for each in changes])


def mean_change(lead: str, changes: Sequence[Tensor]) -> Estimate | None:
    """Return the mean over videos of each one's mean change, with an interval over videos; None without a value.

    Args:
        lead: the measure whose change it is.
        changes: of each video, [step].
    """
    means = video_means(changes)
    known = means[~means.isnan()]
    return mean(known, bounds=MEASURES[lead].change_bounds) if len(known) else None
