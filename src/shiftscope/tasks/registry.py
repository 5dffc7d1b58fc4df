"""Every task by name, and how a task is chosen: by the user, or by what a model returns."""

from __future__ import annotations

from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from torch import nn

from shiftscope.errors import InputError
from shiftscope.tasks.answers import Answers
from shiftscope.tasks.binary import Binary, MultiLabel
from shiftscope.tasks.boxes import Boxes
from shiftscope.tasks.dense_values import Depth, Flow, is_one_value_map
from shiftscope.tasks.embedding import Embedding
from shiftscope.tasks.keypoints import Keypoints
from shiftscope.tasks.regression import Regression
from shiftscope.tasks.segmentation import Segmentation
from shiftscope.tasks.task import Task

__all__ = ["TASKS", "find_task", "known_task", "read_alike", "task_of", "text_of"]

#: Every task by name. Of several that an output shows, the first one is chosen.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Segmentation(),
        Keypoints(),
        Boxes(),
        Depth(),
        Flow(),
        Embedding(),
        Binary(),
        MultiLabel(),
        Regression(),
        Answers(),
    )
}
#: What a Hugging Face classifier's configuration says its outputs are -> the task that reads them.
PROBLEM_TYPES = {"multi_label_classification": "multilabel", "regression": "regression"}
#: Fields of a task that are no settings.
FIXED = ("name", "measures", "truth_measures", "total_measures", "takes_labels", "wraps")


def find_task(text: str) -> Task:
    """Return the task with a name, with its settings: ``boxes`` or ``boxes:threshold=0.3``.

    Raises:
        InputError: there is no such task or setting.

    >>> find_task("segmentation:ignored=0").ignored
    0
    """
    name, _, settings = text.partition(":")
    if name not in TASKS:
        close = get_close_matches(name, TASKS, n=1)
        raise InputError(
            f"there is no task {name!r}.", f"Did you mean {close[0]!r}?" if close else f"Choose from {', '.join(TASKS)}."
        )
    task = TASKS[name]
    return replace(task, **dict(_setting(task, each) for each in settings.split(",") if each))


def known_task(text: str) -> Task | None:
    """Return the task of a result, with its settings; None if it is the user's own, or of a later version.

    >>> known_task("keypoints:near=0.5").near, known_task("mine") is None
    (0.5, True)
    """
    try:
        return find_task(text)
    except InputError:
        return None


def text_of(task: Task) -> str:
    """Return a task's name with the settings that are not its defaults, as :func:`find_task` takes it.

    The number of classes is left out: models say it themselves (:meth:`Task.knowing`).

    >>> text_of(find_task("boxes")), text_of(find_task("boxes:threshold=0.3"))
    ('boxes', 'boxes:threshold=0.3')
    """
    defaults = {**_settings(TASKS.get(task.name, task)), "classes": getattr(task, "classes", None)}
    changed = [f"{name}={value}" for name, value in _settings(task).items() if value != defaults.get(name)]
    return f"{task.name}:{','.join(changed)}" if changed else task.name


def read_alike(one: str, two: str) -> bool:
    """Return whether two tasks, as :func:`find_task` takes them, read outputs in the same way.

    >>> read_alike("boxes", "boxes:threshold=0.5"), read_alike("boxes", "boxes:threshold=0.3")
    (True, False)
    """
    try:
        return one == two or bool(find_task(one) == find_task(two))
    except InputError:  # of classes, or of a later version
        return False


def _settings(task: Task) -> dict[str, int | float | str]:
    """Return a task's settings by name."""
    known = {each.name: getattr(task, each.name) for each in fields(task) if each.name not in FIXED}
    return {name: value for name, value in known.items() if isinstance(value, int | float | str)}


def _setting(task: Task, text: str) -> tuple[str, Any]:
    """Return a setting's name and value, of the type of its default."""
    name, _, value = text.partition("=")
    known = _settings(task)
    if name not in known:
        options = f"Its settings are {', '.join(known)}." if known else "It has no settings."
        raise InputError(f"task {task.name!r} has no setting {name!r}.", options)
    try:
        return name, type(known[name])(value)
    except ValueError:
        raise InputError(f"{name!r} of task {task.name!r} must be a number, got {value!r}.", f"Like {known[name]}.") from None


def task_of(output: Any, count: int, size: tuple[int, int], *, model: Any = None) -> Task | None:
    """Return the task that a model's configuration says, or that its raw output shows; None if it is none in particular.

    Args:
        output: what the model returned for a batch.
        count: images in the batch.
        size: (height, width) of the model's input, pixels.
        model: the model; without it, only the output decides.

    Raises:
        InputError: it is one value per pixel, which may be several things.
    """
    parts = model.modules() if isinstance(model, nn.Module) else [model]
    problems = (getattr(getattr(part, "config", None), "problem_type", None) for part in parts)
    stated = next((PROBLEM_TYPES[each] for each in problems if each in PROBLEM_TYPES), None)
    if stated is not None:
        return TASKS[stated]
    found = next((task for task in TASKS.values() if task.shows(output, count, size)), None)
    if found is None and is_one_value_map(output, count, size):
        raise InputError(
            "the model returns one real number for each pixel, which may be a depth, a logit or a probability.",
            "Name it with --task depth, segmentation or segmentation:given=probabilities; return classes as whole numbers.",
        )
    return found
