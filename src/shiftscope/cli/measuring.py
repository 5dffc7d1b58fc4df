"""Helpers of the commands on models: open the model and its images, print the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftscope.cli.app import print_first, print_json
from shiftscope.cli.options import ModelOptions
from shiftscope.cli.printing import print_summary
from shiftscope.cli.progress import reporting
from shiftscope.errors import InputError, ModelFailsError

if TYPE_CHECKING:
    from shiftscope.audits.subject import Subject, SubjectSpec
    from shiftscope.datasets.images import Block
    from shiftscope.engine.framing import Shifting
    from shiftscope.tables import Summary, Table
    from shiftscope.tasks import Task, Truth

__all__ = [
    "FEW_IMAGES",
    "IMAGES",
    "open_spec",
    "opened",
    "print_found",
    "task_images",
    "task_of_subject",
    "task_words",
    "under_shifts",
    "valid_settings",
]

#: Number of images by default: of a command that measures one model, and of those that measure more than one.
IMAGES, FEW_IMAGES = 256, 64


@contextmanager
def valid_settings() -> Iterator[None]:
    """Turn the first invalid setting into an error of one sentence."""
    from pydantic import ValidationError

    from shiftscope.runtime.settings import validation_messages

    try:
        yield
    except ValidationError as error:
        raise InputError(validation_messages(error)[0]) from error


def opened(model: str, options: ModelOptions) -> Subject:
    """Open a model and a few of its images, and print what they are."""
    from shiftscope.audits.subject import SubjectSpec

    with valid_settings():
        spec = SubjectSpec(**options.subject(model, images=FEW_IMAGES))
    return open_spec(spec, options)


def open_spec(spec: SubjectSpec, options: ModelOptions) -> Subject:
    """Open the model and images of a specification, and print what they are."""
    from shiftscope.audits.subject import open_subject
    from shiftscope.runtime.executors import keep_freed_memory

    keep_freed_memory()
    with reporting("loading the model") as report:
        subject = open_subject(spec, report)
    print_first(subject.line, as_json=options.as_json)
    return subject


def under_shifts(subject: Subject, options: ModelOptions) -> Shifting:
    """Return how a model's images are shifted."""
    from shiftscope.engine.framing import Shifting

    return Shifting(
        size=subject.images.size,
        max_shift=subject.images.default_shift if options.max_shift is None else options.max_shift,
        mode=options.mode,
        fill=subject.fill,
        seed=options.seed,
    )


def task_words(subject: Subject, task: str | None, found: Task | None) -> str:
    """Return a subject's task as ``--task`` takes it, with the settings of the user or of the model's file; empty for classes."""
    if found is None:
        return "embedding" if subject.embedding else ""
    return task or subject.loaded.spec.task or found.name


def task_of_subject(subject: Subject, task: str | None, truth: Path | None) -> Task | None:
    """Return the task that the user chooses, else the one detected from the model's output; None for vectors of classes.

    Raises:
        InputError: there is no such task or ground truth, the model fails, or its output is not the task's.
    """
    from shiftscope.engine.task_trials import task_for
    from shiftscope.tasks import find_task

    task = task or subject.loaded.spec.task
    chosen = None if task is None else find_task(task)
    if truth is not None and not truth.exists():
        raise InputError(f"`truth` {truth} does not exist.", "Check the path.")
    example = subject.framed(subject.images.example())
    try:
        found = task_for(subject.loaded.model, example, chosen, output=subject.output, embedding=subject.embedding)
    except ModelFailsError:
        if chosen is not None:
            raise
        found = None  # measuring says what fails
    if found is None and truth is not None:
        raise InputError("`truth` is ground truth for a task, but the output does not tell which.", "Name the task with --task.")
    return found


def task_images(subject: Subject, task: Task, truth: Path | None) -> tuple[Block, Truth | None, tuple[str, ...]]:
    """Read all images, and the ground truth of each.

    Returns:
        the images; their ground truth, in their order, None without; and what a reader needs to know about both.
    """
    from shiftscope.audits.ground_truth import open_truth

    block = subject.images.read_all()
    known: Truth | None = None
    if truth is not None:
        opened_truth = open_truth(truth, subject.images, task)
        known = [opened_truth[int(number)] for number in block.numbers]
    labelled = block.labels is not None and truth is None
    why = task.ignores_labels(subject.images.classes) if labelled else ""
    if labelled and not why:
        known = block.labels
    return block, known, subject.notes(block, why)


def print_found(
    content: dict[str, Any], tables: Iterable[Table], options: ModelOptions, summary: Summary, saved: str = ""
) -> None:
    """Print what a command found: as JSON, or a summary and tables."""
    if options.as_json:
        print_json(content)
    else:
        print_summary(summary, tables, saved=saved, wide=options.wide)
