"""Find the largest radius at which every shift keeps an image's answer, without trying more shifts than that takes.

Rings of shifts are tried from the inside out, and within a ring first where the answer's lead was smallest one ring further in.
An image whose answer changes needs no more shifts. Where the engine can compute all shifts at once, it does, and only answers
that are too close to call are computed again, one by one, by the model itself.

An answer is *kept* where the class that is on top without a shift leads every other by more than rounding. So a tie counts as a
change, and a radius is true on any machine that computes in single precision, and for any size of batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from shiftscope.engine.checks import evaluating
from shiftscope.engine.runner import LEAST_SCALE, TOLERANCE, Runner
from shiftscope.errors import InputError

__all__ = ["NO_ANSWER", "Found", "ShiftGrid", "find_radii"]

#: The radius of an image without an answer: its two top outputs are equal within rounding.
NO_ANSWER = -1
#: A lead below this share of the output's norm is rounding: single precision rounds sums to about a tenth of it.
ROUNDING = 1e-5
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
        parts: points a pixel along an axis; 1 for whole pixels.
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
        tops: the answer without a shift.
        views: views that the model computed one by one.
        dense: whether all shifts were computed at once, too.
    """

    radii: Int[Tensor, " image"]
    tops: Int[Tensor, " image"]
    views: int
    dense: bool


def find_radii(runner: Runner, images: Float[Tensor, "image channel height width"], shifts: ShiftGrid, *, seed: int) -> Found:
    """Return the radius of each image.

    Args:
        runner: runs the model; opened with the grid's shifts.
        images: as the runner takes them.
        shifts: the grid.
        seed: draws what the engine compares.

    Raises:
        InputError: the model fails, or returns one value an image.
    """
    with evaluating(runner.direct.model), torch.inference_mode():
        reference = runner.direct.reference(images)
        if reference.shape[1] < 2:
            raise InputError("a certificate needs at least two classes, but the model returns one value an image.")
        search = _Search(shifts, reference)
        dense = runner.dense is not None and search.add_all(runner, images, seed)
        views = len(images)
        while len(pairs := search.next_pairs()):
            rows, columns = pairs.unbind(1)
            views += len(rows)
            search.add(rows, columns, _outputs(runner, images, rows, shifts.shifts[columns]))
    return Found(search.radii(), search.tops, views, dense)


def _outputs(runner: Runner, images: Tensor, rows: Tensor, steps: Tensor) -> Float[Tensor, "pair class"]:
    """Return the model's outputs on some images, each under a shift of its own."""
    moved = images[rows].to(runner.direct.device)
    return runner.direct.run(runner.direct.canvas.move(moved, steps.to(runner.direct.device)))


class _Search:
    """What is known about each image and shift.

    Args:
        shifts: the grid.
        reference: outputs of the unshifted images.
    """

    def __init__(self, shifts: ShiftGrid, reference: Float[Tensor, "image class"]) -> None:
        self.rings, self.inward, self.reach = shifts.rings, shifts.inward, shifts.reach
        self.tops = reference.argmax(dim=1)
        self.state = torch.full((len(reference), len(self.rings)), UNKNOWN, dtype=torch.int8)
        self.leads = torch.zeros(self.state.shape)
        rows = torch.arange(len(reference))
        self.add(rows, torch.full_like(rows, len(self.rings) // 2), reference)

    def add(self, rows: Int[Tensor, " pair"], columns: Int[Tensor, " pair"], outputs: Float[Tensor, "pair class"]) -> None:
        """Note outputs that the model computed itself."""
        lead = _leads(outputs, self.tops[rows])
        self.leads[rows, columns] = lead
        self.state[rows, columns] = torch.where(lead > ROUNDING * outputs.norm(dim=1), KEPT, CHANGED).to(torch.int8)

    def add_all(self, runner: Runner, images: Tensor, seed: int) -> bool:
        """Note the outputs of all shifts, except where they are too close to call; return whether they came all at once."""
        outputs = runner(images, runner.shifts, seed=seed)
        exact = outputs.method == "direct"
        scale = outputs.values.norm(dim=2)
        close = ROUNDING * scale if exact else APART * scale.clamp_min(LEAST_SCALE * float(images.norm()))
        leads = _leads(outputs.values, self.tops[:, None].expand(len(images), len(self.rings)))
        sure = torch.where(leads > close, KEPT, torch.where((leads < -close) | exact, CHANGED, UNKNOWN)).to(torch.int8)
        middle = len(self.rings) // 2  # known already
        known = self.state[:, middle].clone()
        self.state, self.leads = sure, leads
        self.state[:, middle] = known
        return not exact

    def failed_rings(self) -> Int[Tensor, " image"]:
        """Return the smallest radius of a shift that changes the answer; one more than the grid's without any."""
        return torch.where(self.state == CHANGED, self.rings, self.reach + 1).amin(dim=1)

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

    def radii(self) -> Int[Tensor, " image"]:
        """Return each image's radius, once all that it takes is known."""
        return self.failed_rings() - 1


def _leads(outputs: Float[Tensor, "*view class"], tops: Int[Tensor, "*view"]) -> Float[Tensor, "*view"]:
    """Return by how much a class leads all others; negative where another leads it."""
    own = outputs.gather(-1, tops[..., None])
    others: Bool[Tensor, "*view class"] = torch.zeros_like(outputs, dtype=torch.bool).scatter_(-1, tops[..., None], True)
    return own[..., 0] - outputs.masked_fill(others, float("-inf")).amax(dim=-1)
