"""Find the largest radius at which every shift keeps a task's answer to an image, by the task's own rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shiftscope.engine.direct import Canvas
from shiftscope.engine.task_trials import reference_sums
from shiftscope.radii.search import NOTHING, Found, Search, ShiftGrid
from shiftscope.tasks import Pair, Task, View

__all__ = ["find_task_radii", "task_radii"]


def find_task_radii(
    read: Callable[[Tensor], list[Any]],
    task: Task,
    images: Float[Tensor, "image channel height width"],
    canvas: Canvas,
    shifts: ShiftGrid,
    *,
    batch_size: int,
) -> Found:
    """Return the radius of each image.

    Args:
        read: runs the model on its inputs and returns the task's answer to each.
        task: what the answers are.
        images: with the margin that the canvas takes crops from.
        canvas: what comes in at the border.
        shifts: the grid, in whole pixels.
        batch_size: views that run at once.

    Raises:
        InputError: the model fails, or the task has no rule.
    """
    search = _TaskSearch(task, _in_batches(read, canvas.centre(images), batch_size), canvas, shifts)
    views = len(images)
    while len(pairs := search.next_pairs()):
        for part in pairs.split(batch_size):
            rows, columns = part.unbind(1)
            search.add(rows, columns, read(canvas.move(images[rows], search.shifts[columns])))
        views += len(pairs)
    gathered = task.gather(search.references)
    view = View((0, 0), canvas.size, canvas.mode == "circular", reach=float(shifts.reach), references=gathered)
    sums = reference_sums(task, search.references, view)
    return Found(search.radii(), torch.zeros(len(images), dtype=torch.long), views, False, sums)


def _in_batches(read: Callable[[Tensor], list[Any]], inputs: Tensor, batch_size: int) -> list[Any]:
    return [answer for batch in inputs.split(batch_size) for answer in read(batch)]


class _TaskSearch(Search):
    """What is known of a task's answers.

    Args:
        task: what the answers are.
        references: answers to the unshifted images.
        canvas: what comes in at the border.
        shifts: the grid.
    """

    def __init__(self, task: Task, references: Sequence[Any], canvas: Canvas, shifts: ShiftGrid) -> None:
        super().__init__(shifts, len(references))
        self.task, self.references, self.canvas = task, references, canvas
        rows = torch.arange(len(references))
        self.add(rows, torch.full_like(rows, self.middle), references)
        self.empty = self.leads[:, self.middle].isnan()

    def add(self, rows: Int[Tensor, " pair"], columns: Int[Tensor, " pair"], answers: Sequence[Any]) -> None:
        """Note answers to some images, each under a shift of its own."""
        pairs = [
            Pair(self.references[row], answer, self._view(row, column), None)
            for row, column, answer in zip(rows.tolist(), columns.tolist(), answers, strict=True)
        ]
        leads = torch.tensor(self.task.leads(pairs))
        self.note(rows, columns, leads, leads >= 0)

    def radii(self) -> Int[Tensor, " image"]:
        """Return the radius of each image, once enough is known."""
        return super().radii().where(~self.empty, NOTHING)

    def _view(self, row: int, column: int) -> View:
        down, right = self.shifts[column].tolist()
        circular = self.canvas.mode == "circular"
        return View((down, right), self.canvas.size, circular, reach=float(self.reach), image=row)


def task_radii(leads: Float[Tensor, "image shift"], shifts: ShiftGrid) -> Int[Tensor, " image"]:
    """Return the radius of each image from how much its answer is kept at every shift, as :func:`find_task_radii` does.

    >>> leads = torch.zeros(2, 9)
    >>> leads[1, 0] = -1
    >>> task_radii(leads, ShiftGrid(1)).tolist()
    [1, 0]
    """
    failed = torch.where(leads >= 0, shifts.reach + 1, shifts.rings).amin(dim=1) - 1
    return failed.where(~leads[:, leads.shape[1] // 2].isnan(), NOTHING)
