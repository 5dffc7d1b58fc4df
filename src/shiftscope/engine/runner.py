"""Run a model under shifts, batch after batch: dense where that is exact, compared with direct in every batch, else direct."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from shiftscope.engine.checks import evaluating
from shiftscope.engine.dense import Dense, Method, choose, not_exact
from shiftscope.engine.direct import Direct, ran_out_of_memory
from shiftscope.engine.precision import full_precision, is_reduced
from shiftscope.engine.sheets import NotDenseError
from shiftscope.errors import NotFiniteError

__all__ = ["Outputs", "Runner"]

#: Dense is compared on one image more for every so many of a batch, and on so many shifts of each.
IMAGES_A_CHECK, CHECKED_SHIFTS = 32, 2
#: Smaller batches than this are compared on one shift, so that the comparison stays cheap.
SMALL_BATCH = 8
#: Largest difference of dense to direct relative to the output's norm; single precision rounds to about 1e-6.
TOLERANCE = 1e-3
#: Outputs smaller than this share of the images' norm are compared relative to that share.
LEAST_SCALE = 1e-4


@dataclass(frozen=True)
class Outputs:
    """A model's outputs on images, unshifted and under each of their shifts.

    Attributes:
        values: [image, shift, class], outputs of the shifted images.
        reference: [image, class], outputs of the unshifted images.
        shifts: [shift, 2] if all images share them, [image, shift, 2] if each has its own; (dy, dx) in pixels, positive moves
            the content down and right.
        method: how they were computed.
        reason: why that method was chosen, in a sentence.
        fell_back: whether the graph allowed dense, but these images did not.
    """

    values: Float[Tensor, "image shift class"]
    reference: Float[Tensor, "image class"]
    shifts: Shaped[Tensor, "*each shift 2"]
    method: Literal["direct", "dense"] = "direct"
    reason: str = "Direct was requested."
    fell_back: bool = False

    def __repr__(self) -> str:
        images, shifts, classes = self.values.shape
        return f"<Outputs: {images} images, {shifts} shifts, {classes} classes; {self.method}>"


class Runner:
    """A model under shifts: its graph is read once, then it runs on batch after batch.

    Dense is compared with direct on images and shifts of every batch, drawn from a seed. Where they differ, or memory runs out,
    that batch is computed directly, with a warning. Nothing carries over from one batch to the next, so the results of a batch
    depend on no other.

    Args:
        direct: the model and where it runs.
        images: the first batch.
        shifts: [shift, 2], or [image, shift, 2] of the only batch.
        method: what the caller wants.
        batch_size: images per dense pass; chosen by the size of the maps if None.

    Raises:
        InputError: `method` is ``dense``, but dense is not exact.
    """

    def __init__(self, direct: Direct, images: Tensor, shifts: Tensor, *, method: Method, batch_size: int | None) -> None:
        self.direct, self.shifts, self.method = direct, shifts, method
        with evaluating(direct.model), torch.no_grad():
            self.dense, self.reason = choose(direct, images, shifts, method=method, batch_size=batch_size)
        same = (shifts == 0).all(dim=1).nonzero() if shifts.ndim == 2 else shifts.new_empty(0)
        self.unshifted = int(same[0]) if len(same) else None

    def __call__(self, images: Tensor, shifts: Tensor, *, seed: int) -> Outputs:
        """Return the outputs of a batch.

        Args:
            images: [image, channel, height, width].
            shifts: those of the runner, or of these images.
            seed: of the images and shifts on which dense is compared with direct.

        Raises:
            InputError: the model fails, or the caller wants dense and dense is not exact.
        """
        with evaluating(self.direct.model), torch.no_grad():
            values, problem = (None, "") if self.dense is None else self._verified(self.dense, images, seed)
            method: Literal["direct", "dense"] = "direct" if values is None else "dense"
            if values is None:
                values = self.direct(images, shifts)
            reference = self.direct.reference(images) if self.unshifted is None else values[:, self.unshifted]
        if problem:
            warnings.warn(f"Shifts are computed one by one for {len(images)} images, because {problem}.", stacklevel=3)
        reason = f"Direct, because {problem}." if problem else self.reason
        return Outputs(values.clone(), reference.clone(), shifts, method, reason, fell_back=bool(problem))

    def _verified(self, dense: Dense, images: Tensor, seed: int) -> tuple[Tensor | None, str]:
        """Return dense outputs, or None and why they cannot be used."""
        problem = ""
        try:
            values = _in_passes(dense, images)
            apart = self._apart(dense, images, values, seed)
            if not apart <= TOLERANCE:
                problem = f"dense and direct outputs differ by {apart:.1e} of their norm on sampled shifts"
        except NotDenseError as error:
            problem = str(error)
        except NotFiniteError:
            problem = "dense outputs are not finite"
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            problem = "out of memory in a dense pass"
        if problem and self.method == "dense":
            raise not_exact(problem)
        return (None, problem) if problem else (values, "")

    def _apart(self, dense: Dense, images: Tensor, values: Tensor, seed: int) -> float:
        """Return how far dense and direct outputs are apart on sampled images and shifts, relative to the outputs.

        Where products may be computed with fewer bits, both are computed again with all bits, for the comparison only.
        """
        generator = torch.Generator().manual_seed(seed)
        some = torch.randperm(len(images), generator=generator)[: -(-len(images) // IMAGES_A_CHECK)]
        shifts_checked = CHECKED_SHIFTS if len(images) >= SMALL_BATCH else 1
        steps = torch.randperm(len(self.shifts), generator=generator)[:shifts_checked]
        again = is_reduced(self.direct.device)
        with full_precision(self.direct.device):
            found = (dense(images[some]) if again else values[some])[:, steps]
            # Every image under every shift, in one pass: small networks take as long for one view as for four.
            views, each = images[some].repeat_interleave(len(steps), dim=0), self.shifts[steps].repeat(len(some), 1)
            expected = self.direct(views, each[:, None])[:, 0].unflatten(0, (len(some), len(steps)))
        # Where outputs cancel to almost nothing, what is left is rounding: relative to the images, not to the outputs.
        least = LEAST_SCALE * float(images[some].norm())
        scale = expected.norm(dim=-1).clamp_min(max(least, torch.finfo(torch.float32).tiny))
        return float(((found - expected).norm(dim=-1) / scale).max())


def _in_passes(dense: Dense, images: Tensor) -> Tensor:
    """Return dense outputs of images; where memory runs out, again in passes of half as many images, down to one.

    The next batch starts with the full number, so that no batch depends on another.
    """
    size = min(dense.batch_size, len(images))
    while True:
        try:
            return torch.cat([dense(part) for part in images.split(size)])
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error) or size <= 1:
                raise
        size //= 2
        warnings.warn(f"out of memory; continuing with dense passes of {size} images.", stacklevel=4)
