"""Tasks: what a model's output is, how it is moved back by a shift, and how two outputs are compared. One file per task."""

from __future__ import annotations

from shiftscope.tasks.placing import Placing
from shiftscope.tasks.registry import TASKS, find_task, known_task, read_alike, task_of, text_of
from shiftscope.tasks.task import Pair, Task, Totals, Truth, View

__all__ = [
    "TASKS",
    "Pair",
    "Placing",
    "Task",
    "Totals",
    "Truth",
    "View",
    "find_task",
    "known_task",
    "read_alike",
    "task_of",
    "text_of",
]
