"""What a fine-tuning step minimises: cross-entropy on shifted images, and how much outputs differ between shifts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.engine.direct import Canvas
from shiftscope.engine.gradients import DifferentiableShifts
from shiftscope.shifts import grid, sample
from shiftscope.training.all_shifts import mean_loss

__all__ = ["Consistency", "EveryShift", "Objective", "RandomShifts", "inconsistency"]

Consistency = Literal["none", "kl", "cosine"]
#: Images as they are stored, labels and a generator of shifts -> the loss, and outputs [image, class] for the running accuracy.
Objective = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def inconsistency(
    unshifted: Float[Tensor, "image class"], shifted: Float[Tensor, "image shift class"], kind: Consistency
) -> Float[Tensor, ""]:
    """Return how much outputs change under shifts, averaged over images and shifts.

    Args:
        unshifted: outputs before the softmax.
        shifted: of the same images.
        kind: ``kl``, the divergence KL(p || q) of the shifted image's probabilities q from the unshifted one's p, which is held
            fixed, so that the shifted output follows (Xie et al., *Unsupervised data augmentation*, NeurIPS 2020); ``cosine``, 1
            less the cosine of the outputs, whose mean is 1 less the mean cosine similarity; ``none``, 0.

    >>> one = torch.tensor([[1.0, 0.0]])
    >>> inconsistency(one, torch.tensor([[[0.0, 1.0], [2.0, 0.0]]]), "cosine").item()
    0.5
    """
    if kind == "none":
        return shifted.new_zeros(())
    if kind == "cosine":
        return 1 - functional.cosine_similarity(unshifted[:, None], shifted, dim=-1).mean()
    fixed = unshifted.detach().log_softmax(-1)[:, None].expand_as(shifted)
    each = functional.kl_div(shifted.log_softmax(-1), fixed, reduction="none", log_target=True)
    return each.sum(-1).mean()


@dataclass(frozen=True)
class RandomShifts:
    """Cross-entropy on random shifts of each image; with a consistency term also on the unshifted image.

    Attributes:
        model: in training mode.
        canvas: what surrounds the images.
        max_shift: the largest shift along each axis, pixels.
        shifts: random shifts of each image in a step.
        consistency: the term that is added.
        weight: of that term.
    """

    model: nn.Module
    canvas: Canvas
    max_shift: int
    shifts: int = 1
    consistency: Consistency = "none"
    weight: float = 1.0

    def __call__(
        self, images: Float[Tensor, "image channel tall wide"], labels: Int[Tensor, " image"], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and the outputs of the first view."""
        views = [] if self.consistency == "none" else [self.canvas.centre(images)]
        views += [self.canvas.move(images, sample(len(images), self.max_shift, generator)) for _ in range(self.shifts)]
        outputs = self.model(torch.cat(views).contiguous(memory_format=torch.channels_last)).unflatten(0, (len(views), -1))
        loss = functional.cross_entropy(outputs.flatten(0, 1), labels.repeat(len(views)))
        if self.consistency != "none":
            loss = loss + self.weight * inconsistency(outputs[0], outputs[1:].transpose(0, 1), self.consistency)
        return loss, outputs[0]


class EveryShift:
    """Expected cross-entropy over all shifts, exactly, plus the consistency of all of them with the unshifted image.

    Args:
        model: in evaluation mode, covered by the dense method.
        canvas: what surrounds the images, which are of its size.
        max_shift: the largest shift along each axis, pixels.
        consistency: the term that is added.
        weight: of that term.

    Raises:
        InputError: the dense method is not exact for the model.
    """

    def __init__(
        self, model: nn.Module, canvas: Canvas, max_shift: int, *, consistency: Consistency = "none", weight: float = 1.0
    ) -> None:
        shifts = grid(max_shift)
        self.outputs = DifferentiableShifts(model, shifts, size=canvas.size, mode=canvas.mode, fill=canvas.fill)
        self.unshifted = len(shifts) // 2
        self.consistency, self.weight = consistency, weight

    def __call__(
        self, images: Float[Tensor, "image channel height width"], labels: Int[Tensor, " image"], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and the outputs of the unshifted images."""
        del generator  # nothing is drawn
        outputs = self.outputs(images)
        unshifted = outputs[:, self.unshifted]
        term = inconsistency(unshifted, outputs, self.consistency)
        return mean_loss(outputs, labels) + self.weight * term, unshifted
