"""Measure a task's answers of any model under shifts, always on the same images and shifts, so that models can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import nan
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shiftscope.engine.answers import FEW_IMAGES
from shiftscope.engine.checks import device_of, evaluating
from shiftscope.engine.direct import Canvas, ran_out_of_memory
from shiftscope.errors import InputError, ModelFailsError, first_line
from shiftscope.estimates import Estimate, mean
from shiftscope.measures import MEASURES
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.shifts import Mode
from shiftscope.tasks import Pair, Task, Truth, View, find_task, task_of
from shiftscope.tasks.embedding import NAMES as EMBEDDINGS
from shiftscope.tasks.reading import select_output
from shiftscope.tasks.segmentation import NAMES, Segmentation

__all__ = [
    "TaskTrial",
    "TaskValues",
    "apart",
    "graded",
    "reference_doubts",
    "reference_sums",
    "returns_embeddings",
    "run_model",
    "task_for",
    "the_change",
]

#: Images whose answers are kept together: those that an embedding's neighbours are looked for among.
BLOCK = 64
#: Views of a forward pass, and of inputs larger than so many pixels.
BATCH, LARGE, BATCH_OF_LARGE = 64, 96, 16
#: A copy of a model has collapsed if the answers of its images differ by less than this share of those of the model.
COLLAPSED = 0.01


@dataclass(frozen=True)
class TaskValues:
    """A task's measures of one model, image by image.

    Attributes:
        values: measure -> value at each shift, NaN where it is not defined; measures of ground truth too, where there is some.
        unshifted: measure of ground truth -> value without a shift.
        records: what numbers of all images together are made of, at all shifts, packed; None where the task has none.
        unshifted_records: those without a shift.
        apart: by how much an image's answer differs from that of the next image of its block, as :meth:`change` has it; NaN where
            there is none, or where that is not defined.
        answered: sums over unshifted answers, as :meth:`Task.tally_answers` returns them.
    """

    values: dict[str, Float[Tensor, "image shift"]]
    unshifted: dict[str, Float[Tensor, " image"]]
    records: Tensor | None = None
    unshifted_records: Tensor | None = None
    apart: Float[Tensor, " image"] | None = None
    answered: dict[str, Tensor] = field(default_factory=dict)

    def means(self, measure: str) -> Float[Tensor, " image"]:
        """Return each image's mean over its shifts, NaN where none has a value."""
        return self.values[measure].nanmean(dim=1)

    def change(self, task: Task) -> Float[Tensor, " image"]:
        """Return how much shifts change each image's answer by :func:`graded`: an error, or 1 minus an agreement."""
        return self.changes(task).nanmean(dim=1)

    def changes(self, task: Task) -> Float[Tensor, "image shift"]:
        """Return the same at each shift."""
        return MEASURES[graded(task)].as_change(self.values[graded(task)])

    def collapsed(self, before: TaskValues) -> bool:
        """Return whether a changed model gives all images much the same answer, and the model before the change does not."""
        if self.apart is None or before.apart is None:
            return False
        now, earlier = float(self.apart.nanmean()), float(before.apart.nanmean())
        return earlier > 0 and now < COLLAPSED * earlier

    @property
    def alike(self) -> bool:
        """Whether all images get the same answer."""
        known = self.apart[self.apart.isfinite()] if self.apart is not None else torch.empty(0)
        return len(known) > 0 and not known.any()


def graded(task: Task) -> str:
    """Return the measure of a task that explanations decompose: one that changes gradually, or else the leading one."""
    return task.graded or task.measures[0]


def the_change(task: Task, values: Float[Tensor, " image"]) -> Estimate:
    """Return the mean change of images, within the bounds of its measure."""
    return mean(values, bounds=MEASURES[graded(task)].change_bounds)


def apart(task: Task, answers: Sequence[Any], view: View, measure: str) -> Float[Tensor, " pair"]:
    """Return by how much each answer to an unshifted image differs from that to the next one; NaN where that is not defined.

    Args:
        task: what the answers are.
        answers: to all unshifted images of a block, in order.
        view: of the first one, without a shift.
        measure: one of the task's, as an error or as 1 minus an agreement.
    """
    pairs = [Pair(one, other, replace(view, image=place), None) for place, (one, other) in enumerate(pairwise(answers))]
    values = [each.get(measure, nan) for each in task.compare_all(pairs)]
    return MEASURES[measure].as_change(torch.tensor(values, dtype=torch.float64))


def reference_sums(task: Task, answers: Sequence[Any], view: View) -> dict[str, Tensor]:
    """Return sums over answers to unshifted images that :func:`reference_doubts` needs; those of several blocks are added.

    Args:
        task: what the answers are.
        answers: to all unshifted images of a block, in order.
        view: of the first one, without a shift.
    """
    found = apart(task, answers, view, task.measures[0])
    known = found[found.isfinite()]
    return {"pairs": torch.tensor(float(len(known))), "apart": known.sum(), **task.tally_answers(answers)}


def reference_doubts(task: Task, sums: Mapping[str, Tensor], count: int) -> list[str]:
    """Return why numbers of so many images say little: outputs are probably read wrongly, or answers are all the same."""
    found, pairs = task.doubts(sums), int(sums["pairs"])
    if pairs < FEW_IMAGES - 1 or float(sums["apart"]):
        return found
    if pairs == count - 1:
        return [*found, f"All {count:,} images get the same answer, so their stability says nothing about the model."]
    return [
        *found,
        f"All {pairs:,} images that were compared with the next one get the same answer as it, so their stability may say little "
        "about the model.",
    ]


@dataclass(frozen=True)
class TaskTrial:
    """Images, each with its own shifts, and the task that reads the outputs.

    Attributes:
        task: what the outputs are.
        images: unshifted images, canvas included; larger than the model's input where crops are taken from them.
        shifts: (dy, dx), whole pixels.
        size: (height, width) of the model's input.
        mode: what comes in at the border: the ``fill`` (``zero``), or what larger images hold there, or what left on the other
            side (``circular``).
        fill: colour of the canvas in mode ``zero``, one value or one per channel.
        truth: ground truth of each image, as the task takes it; None without.
        output: name or position of the output that the task reads, of a model with several.
        device: where to compute; None is the model's own.
        report: called with progress events.
    """

    task: Task
    images: Float[Tensor, "image channel tall wide"]
    shifts: Int[Tensor, "image shift 2"]
    size: tuple[int, int]
    mode: Mode = "zero"
    fill: Float[Tensor, " channel"] | float = 0.0
    truth: Truth | None = None
    output: str | int | None = None
    device: torch.device | str | None = None
    report: Report = silent

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width) of the model's input."""
        return (self.images.shape[1], *self.size)

    @property
    def inputs(self) -> Float[Tensor, "image channel height width"]:
        """The model's unshifted input: the images, or the centre of larger ones."""
        return Canvas(self.mode, self.fill, self.size).centre(self.images)

    def measure(self, model: Callable[[Tensor], Any], description: str) -> TaskValues:
        """Measure the task's answers.

        Args:
            model: images [image, channel, height, width] in [0, 1] -> what the task reads.
            description: of the model, for progress events.

        Raises:
            InputError: the model fails, its outputs are not the task's, or ground truth does not fit.
        """
        blocks = []
        with evaluating(model), torch.no_grad():
            for start in range(0, len(self.images), BLOCK):
                self.report(Stage(description, start, len(self.images)))
                blocks.append(self._block(model, start))
        self.report(Stage(description, len(self.images), len(self.images)))
        return _joined(blocks)

    def _block(self, model: Callable[[Tensor], Any], start: int) -> TaskValues:
        """Measure a block of images, one view of all of them at a time."""
        images, shifts = self.images[start : start + BLOCK], self.shifts[start : start + BLOCK]
        canvas = Canvas(self.mode, self.fill, self.size)
        references = self._answers(model, canvas.centre(images))
        gathered, truths = self.task.gather(references), self._truths(start, len(images))
        columns, records = list[list[dict[str, float]]](), list[Tensor | None]()
        for steps in (torch.zeros_like(shifts[:, 0]), *shifts.unbind(1)):
            answers = self._answers(model, canvas.move(images, steps)) if steps.any() else references
            views = [self._view(step, image, gathered) for image, step in enumerate(steps)]
            pairs = [Pair(*each) for each in zip(references, answers, views, truths, strict=True)]
            columns.append(self.task.compare_all(pairs))
            records.append(self._rows(pairs, start))
        found = self._values(columns, records)
        return replace(found, apart=self._apart(references, gathered), answered=self.task.tally_answers(references))

    def _apart(self, references: Sequence[Any], gathered: Any) -> Float[Tensor, " image"]:
        """Return by how much each unshifted answer differs from the next one's; NaN of the last."""
        view = self._view(torch.zeros(2, dtype=self.shifts.dtype), 0, gathered)
        return torch.cat([apart(self.task, references, view, graded(self.task)), torch.tensor([nan], dtype=torch.float64)])

    def _values(self, columns: Sequence[Sequence[dict[str, float]]], records: Sequence[Tensor | None]) -> TaskValues:
        """Return the measures of views, the first of which are unshifted."""
        names = (*self.task.measures, *(self.task.truth_measures if self.truth is not None else ()))
        tables = {
            name: torch.tensor([[each.get(name, nan) for each in column] for column in columns], dtype=torch.float64).T
            for name in names
        }
        return TaskValues(
            values={name: table[:, 1:] for name, table in tables.items()},
            unshifted={name: tables[name][:, 0] for name in names if name in self.task.truth_measures},
            records=None if (rows := _together(records[1:])) is None else self.task.pack(rows),
            unshifted_records=None if records[0] is None else self.task.pack(records[0]),
        )

    def _rows(self, pairs: Sequence[Pair], start: int) -> Tensor | None:
        """Return the records of a view of some images, each after the image's index and the shift; None without any."""
        found = []
        for number, (pair, rows) in enumerate(zip(pairs, self.task.records_all(pairs), strict=True)):
            if rows is not None:
                place = torch.tensor([[start + number, *pair.view.shift]], dtype=rows.dtype)
                found.append(torch.cat([place.expand(len(rows), 3), rows], dim=1))
        return torch.cat(found) if found else None

    def _view(self, step: Tensor, image: int, references: Any) -> View:
        down, right = step.tolist()
        reach = float(self.shifts.abs().max()) if self.shifts.numel() else 0.0
        return View((down, right), self.size, self.mode == "circular", reach=reach, image=image, references=references)

    def _truths(self, start: int, count: int) -> list[Any]:
        if self.truth is None:
            return [None] * count
        found = [self.truth[number] for number in range(start, start + count)]
        return [None if each is None else self.task.read_truth(each, self.size) for each in found]

    def _answers(self, model: Callable[[Tensor], Any], images: Tensor) -> list[Any]:
        batch = BATCH if max(self.size) <= LARGE else BATCH_OF_LARGE
        task = self.task.wrapping() if self.mode == "circular" else self.task
        found = []
        for part in images.split(batch):
            raw = run_model(model, part, self.device)
            chosen = raw if self.output is None else select_output(raw, self.output)
            found += task.read(chosen, len(part), self.size)
        return found

    def first(self, count: int) -> TaskTrial:
        """Return the trial with the first images only."""
        truth = None if self.truth is None else [self.truth[number] for number in range(min(count, len(self.images)))]
        return replace(self, images=self.images[:count], shifts=self.shifts[:count], truth=truth)


def _joined(blocks: Sequence[TaskValues]) -> TaskValues:
    return TaskValues(
        {name: torch.cat([each.values[name] for each in blocks]) for name in blocks[0].values},
        {name: torch.cat([each.unshifted[name] for each in blocks]) for name in blocks[0].unshifted},
        _cat([each.records for each in blocks]),
        _cat([each.unshifted_records for each in blocks]),
        _cat([each.apart for each in blocks]),
        {name: torch.stack([each.answered[name] for each in blocks]).sum(0) for name in blocks[0].answered},
    )


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [each for each in parts if each is not None]
    return torch.cat(known) if known else None


def _together(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return rows in the order of the images; None without any."""
    rows = _cat(parts)
    return None if rows is None else rows[rows[:, 0].argsort(stable=True)]


def run_model(model: Callable[[Tensor], Any], images: Tensor, device: torch.device | str | None) -> Any:
    """Return what a model returns for images, as it is.

    Raises:
        InputError: the model fails.
    """
    place = device_of(model, device)
    try:
        return model(images.to(place).clone())
    except InputError:
        raise
    except Exception as error:  # a model's code may raise anything
        shape = "x".join(map(str, images.shape[1:]))
        if ran_out_of_memory(error):
            raise InputError(f"out of memory on batches of {len(images)} images of {shape}.", "Measure fewer images.") from error
        reason = first_line(error).rstrip(".")
        raise ModelFailsError(
            f"the model fails on images of {shape} ({reason}).", "Check its input's size and channels."
        ) from error


def task_for(
    model: Callable[[Tensor], Any],
    example: Tensor,
    task: Task | str | None,
    *,
    output: str | int | None = None,
    embedding: bool = False,
) -> Task | None:
    """Return the task that the user chooses, else the one detected from a model's output; None for vectors of classes.

    Args:
        model: the model.
        example: [1, channel, height, width], an unshifted input.
        task: as the user says.
        output: name or position of one of several outputs.
        embedding: whether the user says that outputs are embeddings.

    Raises:
        InputError: there is no such task, the model fails, or its output is not the task's.
    """
    chosen = find_task(task) if isinstance(task, str) else task
    if chosen is None and (embedding or returns_embeddings(model, output)):
        return None
    with evaluating(model), torch.no_grad():
        raw = run_model(model, example, None)
    found = raw if output is None else select_output(raw, output)
    size = (example.shape[2], example.shape[3])
    if chosen is None:
        chosen = task_of(found, 1, size, model=model) or (Segmentation() if _is_map(found) else None)
    if chosen is not None:
        chosen = chosen.knowing(model)
        chosen.read(found, 1, size)
    return chosen


def returns_embeddings(model: Any, output: str | int | None = None) -> bool:
    """Return whether a model says that it returns features instead of class scores.

    A backbone of transformers as ``load_model`` returns it says so, a timm model without a head, and an output with the name of
    an embedding. A model that contains one of these says nothing: what comes behind it may be a classifier.

    Args:
        model: the model, or a sequence whose last part it is, as behind a normalisation.
        output: the chosen one of several outputs.
    """
    while type(model) is nn.Sequential and len(model):
        model = model[-1]
    headless = getattr(model, "num_classes", None) == 0 and isinstance(getattr(model, "pretrained_cfg", None), Mapping)
    return headless or getattr(model, "returns_embeddings", False) is True or output in EMBEDDINGS


def _is_map(found: Any) -> bool:
    """Return whether an output is, or names, a map of two or more classes."""
    try:
        chosen = select_output(found, None, NAMES)
    except InputError:
        return False
    return chosen.ndim == 4 and chosen.shape[1] > 1 and chosen.shape[2] * chosen.shape[3] > 1
