"""Find the largest radius at which every shift keeps an image's answer, without trying more shifts than that takes.

Rings of shifts are tried from the inside out, and within a ring first where the answer's lead was smallest one ring further in.
An image whose answer changes needs no more shifts. Where the engine can compute all shifts at once, it does, and only answers
that are too close to call are computed again, one by one, by the model itself.

An answer is *kept* where the class that is on top without a shift leads every other by more than rounding. So a tie counts as a
change, and a radius is true wherever outputs differ by less than that: on any machine that computes in single precision, and for
any size of batches, unless the caller found that the model rounds more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from shiftscope.engine.checks import evaluating
from shiftscope.engine.runner import LEAST_SCALE, TOLERANCE, Outputs, Runner
from shiftscope.errors import InputError

__all__ = ["NOTHING", "NO_ANSWER", "ROUNDING", "Found", "Search", "ShiftGrid", "find_radii", "radii_from"]

#: The radius of an image without an answer: its two top outputs are equal within rounding.
NO_ANSWER = -1
#: The radius of an image whose answer holds nothing to keep, such as no detection; shares leave it out.
NOTHING = -2
#: A lead below this share of the output's norm is rounding by default: single precision rounds sums to about a tenth of it.
ROUNDING = 1e-5
#: Outputs so many times below those that are compared are masks, which say nothing of rounding.
MASKED = 1e4
#: Of two outputs that are off by the engine's tolerance, the difference is off by up to the square root of two times it.
APART = 1.5 * TOLERANCE
#: Views that run at once.
VIEWS = 64
UNKNOWN, KEPT, CHANGED = 0, 1, -1


@dataclass(frozen=True)
class ShiftGrid:
    """The shifts to try.

    Attributes:
        reach: the largest along an axis, pixels.
        parts: points per pixel along an axis; 1 for whole pixels.
    """

    reach: int
    parts: int = 1

    @property
    def shifts(self) -> Shaped[Tensor, "shift 2"]:
        """All shifts (dy, dx) in pixels, row by row; whole numbers if the grid has no other points."""
        return self._steps if self.parts == 1 else self._steps / self.parts

    @property
    def rings(self) -> Int[Tensor, " shift"]:
        """The radius of each shift: the larger of |dy| and |dx|, rounded up to whole pixels."""
        return torch.tensor([ceil(each / self.parts) for each in self._steps.abs().amax(dim=1).tolist()])

    @property
    def inward(self) -> Int[Tensor, " shift"]:
        """The index of the nearest shift of the next smaller radius; for the shift by zero its own."""
        edge = ((self.rings - 1).clamp_min(0) * self.parts)[:, None]
        nearest = torch.minimum(torch.maximum(self._steps, -edge), edge) + self.reach * self.parts
        return nearest[:, 0] * (2 * self.reach * self.parts + 1) + nearest[:, 1]

    @property
    def _steps(self) -> Int[Tensor, "shift 2"]:
        steps = torch.arange(-self.reach * self.parts, self.reach * self.parts + 1)
        return torch.cartesian_prod(steps, steps)


@dataclass(frozen=True)
class Found:
    """What is known about a batch of images.

    Attributes:
        radii: the largest radius within which every shift keeps the answer, up to the grid's; ``NO_ANSWER`` without an answer.
        tops: the answer without a shift; of a task, which has no classes of images, 0.
        views: views that the model computed one by one.
        dense: whether all shifts were computed at once, too.
        sums: of a task, over the answers without a shift, as :func:`shiftscope.engine.task_trials.reference_sums` has them.
    """

    radii: Int[Tensor, " image"]
    tops: Int[Tensor, " image"]
    views: int
    dense: bool
    sums: dict[str, Tensor] = field(default_factory=dict)


def find_radii(
    runner: Runner,
    images: Float[Tensor, "image channel height width"],
    shifts: ShiftGrid,
    *,
    seed: int,
    rounding: float = ROUNDING,
) -> Found:
    """Return the radius of each image.

    Args:
        runner: runs the model; opened with the grid's shifts.
        images: as the runner takes them.
        shifts: the grid.
        seed: draws what the engine compares.
        rounding: share of an output's norm below which a lead is rounding.

    Raises:
        InputError: the model fails, or returns one value an image.
    """
    if runner.dense is not None:
        return radii_from(runner(images, runner.shifts, seed=seed), runner, images, shifts, rounding=rounding)
    with evaluating(runner.direct.model), torch.no_grad():
        search = _ClassSearch.of_references(shifts, runner.direct.reference(images), rounding)
        return search.finished(runner, images, views=len(images), dense=False)


def radii_from(
    outputs: Outputs,
    runner: Runner,
    images: Float[Tensor, "image channel height width"],
    shifts: ShiftGrid,
    *,
    rounding: float = ROUNDING,
) -> Found:
    """Return the radius of each image from its outputs at every shift, which are those that :func:`find_radii` returns.

    The model runs again only where outputs that were computed all at once are too close to call.

    Args:
        outputs: of the images at all shifts of the grid.
        runner: that computed them.
        images: as the runner takes them.
        shifts: the grid.
        rounding: share of an output's norm below which a lead is rounding.

    Raises:
        InputError: the model fails, or returns one value an image.
    """
    with evaluating(runner.direct.model), torch.no_grad():
        search, views = _ClassSearch.of_outputs(shifts, outputs, runner, images, rounding)
        return search.finished(runner, images, views=views, dense=outputs.method == "dense")


def _outputs(runner: Runner, images: Tensor, rows: Tensor, steps: Tensor) -> Float[Tensor, "pair class"]:
    """Return the model's outputs on some images, each under a shift of its own."""
    moved = images[rows].to(runner.direct.device)
    return runner.direct.run(runner.direct.canvas.move(moved, steps.to(runner.direct.device)))


class Search:
    """What is known about each image and shift.

    Args:
        shifts: the grid.
        count: number of images.
    """

    def __init__(self, shifts: ShiftGrid, count: int) -> None:
        self.shifts, self.rings, self.inward, self.reach = shifts.shifts, shifts.rings, shifts.inward, shifts.reach
        self.state = torch.full((count, len(self.rings)), UNKNOWN, dtype=torch.int8)
        self.leads = torch.zeros(self.state.shape, dtype=torch.float32)

    @property
    def middle(self) -> int:
        """The index of the shift by zero."""
        return len(self.rings) // 2

    def note(
        self,
        rows: Int[Tensor, " pair"],
        columns: Int[Tensor, " pair"],
        leads: Float[Tensor, " pair"],
        kept: Bool[Tensor, " pair"],
    ) -> None:
        """Note some (image, shift) pairs: by how much the answer is kept, and whether it is."""
        self.leads[rows, columns] = leads
        self.state[rows, columns] = torch.where(kept, KEPT, CHANGED).to(torch.int8)

    def failed_rings(self) -> Int[Tensor, " image"]:
        """Return the smallest radius of a shift that changes the answer; one more than the grid's without any."""
        return torch.where(self.state == CHANGED, self.rings, self.reach + 1).amin(dim=1)

    def radii(self) -> Int[Tensor, " image"]:
        """Return the radius of each image, once enough is known."""
        return self.failed_rings() - 1

    def next_pairs(self) -> Int[Tensor, "pair 2"]:
        """Return (image, shift) pairs to compute next; none once every radius is known."""
        wanted = (self.state == UNKNOWN) & (self.rings < self.failed_rings()[:, None])
        images = wanted.any(dim=1).nonzero()[:, 0]
        if not len(images):
            return torch.empty(0, 2, dtype=torch.long)
        wanted = wanted[images]
        ring = torch.where(wanted, self.rings, self.reach + 1).amin(dim=1, keepdim=True)
        expected = self.leads[images][:, self.inward].masked_fill(~wanted | (self.rings != ring), float("inf"))
        count = min(max(1, VIEWS // len(images)), expected.shape[1])
        leads, columns = expected.topk(count, dim=1, largest=False)
        pairs = torch.stack([images[:, None].expand_as(columns), columns], dim=-1)
        chosen: Tensor = pairs[leads.isfinite()]
        return chosen


class _ClassSearch(Search):
    """What is known of answers that are classes.

    Args:
        shifts: the grid.
        tops: the answer to each unshifted image.
        rounding: share of an output's norm below which a lead is rounding.
    """

    def __init__(self, shifts: ShiftGrid, tops: Int[Tensor, " image"], rounding: float) -> None:
        super().__init__(shifts, len(tops))
        self.tops, self.rounding = tops, rounding

    @classmethod
    def of_references(cls, shifts: ShiftGrid, reference: Float[Tensor, "image class"], rounding: float) -> _ClassSearch:
        """Return what the outputs of the unshifted images tell, which the model computed itself."""
        search = cls(shifts, _checked(reference).argmax(dim=1), rounding)
        rows = torch.arange(len(reference))
        search.add(rows, torch.full_like(rows, search.middle), reference)
        return search

    @classmethod
    def of_outputs(
        cls, shifts: ShiftGrid, outputs: Outputs, runner: Runner, images: Tensor, rounding: float
    ) -> tuple[_ClassSearch, int]:
        """Return what outputs at every shift tell, and how many unshifted images the model computed again for it."""
        search = cls(shifts, _checked(outputs.reference).argmax(dim=1), rounding)
        exact = outputs.method == "direct"
        scale = outputs.values.norm(dim=2)
        close = rounding * _norms(outputs.values) if exact else APART * scale.clamp_min(LEAST_SCALE * float(images.norm()))
        rows = torch.arange(0)
        if not exact:  # which class is on top without a shift may itself be too close to call
            lead = _leads(outputs.values[:, search.middle], search.tops)
            rows = (lead <= close[:, search.middle]).nonzero()[:, 0]
        if len(rows):
            references = runner.direct.reference(images[rows])
            search.tops[rows] = references.argmax(dim=1)
        leads = _leads(outputs.values, search.tops[:, None].expand(len(images), len(search.rings)))
        search.state = torch.where(leads > close, KEPT, torch.where((leads < -close) | exact, CHANGED, UNKNOWN)).to(torch.int8)
        search.leads = leads
        if len(rows):
            search.add(rows, torch.full_like(rows, search.middle), references)
        return search, len(rows)

    def add(self, rows: Int[Tensor, " pair"], columns: Int[Tensor, " pair"], outputs: Float[Tensor, "pair class"]) -> None:
        """Note outputs that the model computed itself."""
        leads = _leads(outputs, self.tops[rows])
        self.note(rows, columns, leads, leads > self.rounding * _norms(outputs))

    def finished(self, runner: Runner, images: Tensor, *, views: int, dense: bool) -> Found:
        """Compute what is missing, and return the radii; ``views`` and ``dense`` say what was computed before."""
        while len(pairs := self.next_pairs()):
            rows, columns = pairs.unbind(1)
            views += len(rows)
            self.add(rows, columns, _outputs(runner, images, rows, self.shifts[columns]))
        return Found(self.radii(), self.tops, views, dense)


def _checked(reference: Float[Tensor, "image class"]) -> Float[Tensor, "image class"]:
    if reference.shape[1] < 2:
        raise InputError("a certificate needs at least two classes, but the model returns one value an image.")
    return reference


def _norms(outputs: Float[Tensor, "*view class"]) -> Float[Tensor, "*view"]:
    """Return the norm of the outputs, without those of masked classes.

    >>> _norms(torch.tensor([[3.0, 4.0, -1e9], [3.0, 4.0, -12.0]])).tolist()
    [5.0, 13.0]
    """
    compared = outputs.topk(2, dim=-1).values.abs().amax(dim=-1, keepdim=True).clamp_min(1)
    found: Tensor = outputs.masked_fill(outputs < -MASKED * compared, 0).norm(dim=-1)
    return found


def _leads(outputs: Float[Tensor, "*view class"], tops: Int[Tensor, "*view"]) -> Float[Tensor, "*view"]:
    """Return by how much a class leads all others; negative where another leads it."""
    own = outputs.gather(-1, tops[..., None])
    others: Bool[Tensor, "*view class"] = torch.zeros_like(outputs, dtype=torch.bool).scatter_(-1, tops[..., None], True)
    return own[..., 0] - outputs.masked_fill(others, float("-inf")).amax(dim=-1)
