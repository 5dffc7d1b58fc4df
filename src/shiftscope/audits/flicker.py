"""Flicker along videos: by how much a model's answers change from one frame to the next, where no shift is known.

Frames are compared as they are: an answer that should move, such as a box, counts as changed by what really moves in the video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.audits.model import CountedModel
from shiftscope.audits.sequences import as_change
from shiftscope.engine.checks import device_of, evaluating
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean
from shiftscope.measures import MEASURES
from shiftscope.shown import Shown
from shiftscope.tables import Table, plus_minus
from shiftscope.tasks import Task, View, find_task, task_of

__all__ = ["Flicker", "frames_flicker"]

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
    """

    json_file: ClassVar[str] = "flicker"

    changes: tuple[Tensor, ...]  # of several lengths
    estimate: Estimate | None
    measure: str
    task: str = ""

    def words(self) -> str:
        """Return the result in a sentence."""
        if self.estimate is None:
            return "Nothing could be measured: no step has a value."
        return f"From one frame to the next, answers change by {plus_minus(self.estimate)} ({MEASURES[self.measure].label})."

    def tables(self) -> tuple[Table, ...]:
        """Return a table with a row for each step of each sequence."""
        rows = tuple(
            {"sequence": number, "frame": frame, "change": None if value != value else value}
            for number, changes in enumerate(self.changes, start=1)
            for frame, value in enumerate(changes.tolist(), start=2)
        )
        return (Table("Change from the frame before", ("sequence", "frame", "change"), rows, (self.words(),)),)


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
        task: what the outputs are, as :func:`shiftscope.audit` takes it; by default what they show.
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
    counted = CountedModel(model, output=output, device=device_of(model) if device is None else torch.device(device))
    with evaluating(model), torch.inference_mode():
        known = _task(counted, sequences[0], task)
        changes = tuple(_changes(counted, sequence, known, batch_size) for sequence in sequences)
    lead = TOP_CLASS if known is None else known.measures[0]
    return Flicker(changes, _estimate(lead, changes), lead, "" if known is None else known.name)


def _check(sequences: Sequence[Tensor], batch_size: int) -> None:
    if not sequences:
        raise InputError("`frames` must hold at least one sequence, got none.", "Give a tensor, or a list of tensors.")
    if batch_size < 1:
        raise InputError(f"`batch_size` must be 1 or more frames, got {batch_size}.", "Leave it out.")
    for each in sequences:
        if each.ndim != 4 or len(each) < 2:
            raise InputError(
                f"`frames` must be [frame, channel, height, width] of two frames or more, got shape {tuple(each.shape)}.",
                "Stack the frames of a video along the first axis.",
            )
        if not each.is_floating_point() or not bool(each.isfinite().all()):
            found = "NaN or infinity" if each.is_floating_point() else str(each.dtype)
            raise InputError(f"`frames` must be finite floating point in [0, 1], got {found}.", "Divide by 255 first.")


def _task(model: CountedModel, frames: Tensor, task: str | Task | None) -> Task | None:
    """Return the task that is chosen or that the output for a frame shows; None for classes."""
    size = (int(frames.shape[2]), int(frames.shape[3]))
    raw = model.raw(frames[:1])
    chosen = find_task(task) if isinstance(task, str) else task
    if chosen is None and model.output is None:
        chosen = task_of(raw, 1, size)
    if chosen is None and model.checked(raw, 1).ndim == 4:
        chosen = find_task("segmentation")
    return None if chosen is None else chosen.knowing(model.model)


def _changes(model: CountedModel, frames: Tensor, task: Task | None, batch_size: int) -> Float[Tensor, " step"]:
    """Return the change of each frame but the first; no more answers than those of a batch are in memory."""
    size = (int(frames.shape[2]), int(frames.shape[3]))
    found: list[float] = []
    before: Any = None
    for number, after in enumerate(_answers(model, frames, task, batch_size)):
        if number and task is None:
            found.append(float(after != before))
        elif number and task is not None:
            view = View((0, 0), size, circular=False, references=task.gather([before]))
            found.append(task.compare(before, after, view, None).get(task.measures[0], float("nan")))
        before = after
    values = torch.tensor(found, dtype=torch.float64)
    return values if task is None else as_change(task.measures[0], values)


def _answers(model: CountedModel, frames: Tensor, task: Task | None, batch_size: int) -> Iterator[Any]:
    for batch in frames.split(batch_size):
        if task is None:
            yield from model(batch).argmax(dim=1).tolist()
        else:
            yield from model.read(batch, task, (int(frames.shape[2]), int(frames.shape[3])))


def _estimate(lead: str, changes: Sequence[Tensor]) -> Estimate | None:
    """Return the mean over sequences, with an interval over sequences."""
    means = torch.stack([each.nanmean() for each in changes])
    known = means[~means.isnan()]
    low, high = sorted(as_change(lead, torch.tensor(MEASURES[lead].bounds)).tolist())
    return mean(known, bounds=(low, high)) if len(known) else None
