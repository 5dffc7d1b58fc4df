"""By lattice: how much answers change at shifts by multiples of the stride, and how much between these.

It needs no layer and no graph. Images move along both axes, circularly, so that all of their content stays. Each shift by a
multiple of the stride is held against the two that lie half a stride to either side of it, which are as far away on average.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shiftscope.engine.task_trials import TaskTrial, graded, the_change
from shiftscope.estimates import Estimate, mean
from shiftscope.explanations.task_causes import circular_trial
from shiftscope.measures import MEASURES
from shiftscope.tables import Cell, Table
from shiftscope.tasks.period import Period, find_period

__all__ = ["Lattice", "lattice_of", "path_shifts"]

#: Images that move along the path, and how far it reaches where no factor is known, and at most, pixels.
IMAGES, REACH, MOST = 8, 16, 32
#: Changes below this are rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Lattice:
    """How much answers change on and off the lattice of a stride.

    Attributes:
        step: multiples of so many pixels are on the lattice; None where neither a factor nor a period is known.
        source: where it comes from, in words.
        on: the change at multiples of the step, along both axes.
        off: the change at the shifts half a step to either side of these.
        gain: off less on, of the same images.
        period: of the mean change along the path.
        reach: the largest shift, pixels.
        images: that have a value.
        curve: the mean change at each shift, a row for each, with the axis along which images move.
    """

    step: int | None
    source: str
    on: Estimate | None
    off: Estimate | None
    gain: Estimate | None
    period: Period
    reach: int
    images: int
    curve: Table

    def table(self) -> Table:
        """Return rows of on, off, and the difference."""
        rows: list[dict[str, Cell]] = []
        if self.step is not None and self.on is not None:
            rows = [
                {"shifts": f"multiples of {self.step} pixels", "change": self.on},
                {"shifts": f"{self.step // 2} pixels to either side of these", "change": self.off},
                {"shifts": "difference", "change": self.gain},
            ]
        notes = (
            f"Circular shifts of up to {self.reach} pixels along each axis, {self.images} images. {self.source}".strip(),
            self.period.words(),
        )
        return Table("On and off the lattice of the stride", ("shifts", "change"), tuple(rows), notes)

    def sentence(self) -> str:
        """Return what the lattice says in a sentence; empty where nothing is known."""
        if self.gain is None or self.on is None or self.off is None or max(self.on.value, self.off.value) < ROUNDING:
            return ""
        on, off = f"{self.on.value:.3g}", f"{self.off.value:.3g}"
        if self.gain.low <= 0 <= self.gain.high:
            return f"Whether shifts by multiples of {self.step} pixels change the answer less is uncertain ({on} against {off})."
        return f"Shifts by multiples of {self.step} pixels change the answer by {on}, those between by {off}."


def path_shifts(reach: int) -> Int[Tensor, "shift 2"]:
    """Return shifts of up to so many pixels along each axis, without the zero shift."""
    steps = torch.tensor([step for step in range(-reach, reach + 1) if step])
    zero = torch.zeros_like(steps)
    return torch.cat([torch.stack([zero, steps], dim=1), torch.stack([steps, zero], dim=1)])


def lattice_of(model: Any, trial: TaskTrial, factor: int | None, source: str, *, traced: bool) -> Lattice:
    """Measure the change on and off the lattice of a stride.

    Args:
        model: in evaluation mode.
        trial: the images and the task; its shifts do not count.
        factor: the subsampling factor; None where it is not known.
        source: where it comes from, in words.
        traced: whether it is that of the model's graph; otherwise a period that the change shows is better known.
    """
    around = circular_trial(trial.first(IMAGES), (factor or 1, factor or 1))
    reach = min(max(8, (factor or REACH) * 3 // 2), MOST * 3 // 2, min(around.size) // 2)
    shifts = path_shifts(reach)
    moved = replace(around, shifts=shifts.expand(len(around.images), -1, -1))
    found = moved.measure(model, "along a path of shifts")
    change = found.changes(trial.task)
    known = change.isfinite().any(dim=1)
    values = change[known].nanmean(dim=0) if known.any() else torch.full((len(shifts),), float("nan"))
    period = find_period(values.numpy(), shifts.numpy())
    curve = _curve(trial, change, shifts)
    steps = [(factor, source), (period.pixels, "The step is the period.")]
    sides = [
        (step, words, _pairs(change[known], shifts, step) if step is not None and step > 1 and known.any() else None)
        for step, words in (steps if traced else steps[::-1])
    ]
    step, words, pairs = next((each for each in sides if each[2] is not None), (None, "", None))
    if pairs is None:
        return Lattice(None, "", None, None, None, period, reach, int(known.sum()), curve)
    on, off = pairs
    low, high = MEASURES[graded(trial.task)].change_bounds
    gain = mean(off - on, bounds=(low - high, high - low))
    means = [the_change(trial.task, each) for each in (on, off)]
    return Lattice(step, words, means[0], means[1], gain, period, reach, len(on), curve)


def _curve(trial: TaskTrial, change: Float[Tensor, "image shift"], shifts: Int[Tensor, "shift 2"]) -> Table:
    """Return the mean change at each shift that has one."""
    rows: list[dict[str, Cell]] = []
    for (down, right), values in zip(shifts.tolist(), change.T, strict=True):
        found = values[values.isfinite()]
        if len(found):
            moved = "images move down" if down else "images move right"
            rows.append({"axis": moved, "pixels": down or right, "change": the_change(trial.task, found)})
    return Table("Change along a path of shifts", ("axis", "pixels", "change"), tuple(rows))


def _pairs(
    change: Float[Tensor, "image shift"], shifts: Int[Tensor, "shift 2"], step: int
) -> tuple[Float[Tensor, " some"], Float[Tensor, " some"]] | None:
    """Return each image's change at multiples of a step, and half a step to either side; None where no image has both."""
    places = {tuple(shift): number for number, shift in enumerate(shifts.tolist())}
    half, on, off = step // 2, [], []
    for (down, right), number in places.items():
        along = down or right
        if along % step == 0:
            sides = [(along + half) * np.array([bool(down), bool(right)]), (along - half) * np.array([bool(down), bool(right)])]
            near = [places.get((int(y), int(x))) for y, x in sides]
            near = [each for each in near if each is not None]
            if len(near) == 2:
                on.append(change[:, number])
                off.append((change[:, near[0]] + change[:, near[1]]) / 2)
    if not on:
        return None
    one, other = torch.stack(on), torch.stack(off)
    both = one.isfinite() & other.isfinite()
    counted = both.any(dim=0)
    if not counted.any():
        return None
    nan = torch.full_like(one, float("nan"))
    means = [torch.where(both, each, nan).nanmean(dim=0)[counted] for each in (one, other)]
    return means[0], means[1]
