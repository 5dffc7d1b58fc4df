"""The expected loss over all shifts of a grid, exactly, in one step.

Random shifts estimate that expectation from one shift an image. Where the dense method covers a network, all (2 m + 1)^2 shifts
of every image, and the gradient of their mean loss, cost about as much as a few passes.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.engine.checks import check_classes, check_labels
from shiftscope.engine.gradients import DifferentiableShifts
from shiftscope.errors import InputError
from shiftscope.shifts import Mode, grid

__all__ = ["AllShifts", "all_shifts_loss", "mean_loss"]

#: Outputs [view, class] and labels [view] -> one loss a view.
Loss = Callable[[Tensor, Tensor], Tensor]


class AllShifts:
    """The expected loss of a model over all shifts, for many batches: the model's graph is read once.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class], in evaluation mode, in which weights
            get gradients too. Batch norms use their running statistics; their scale and offset are trained.
        size: (height, width) of the images.
        max_shift: the largest shift along each axis, pixels.
        mode: what comes in at the border: the ``fill`` (``zero``) or what left on the other side (``circular``).
        fill: the canvas's colour in mode ``zero``, one value or one per channel.
        loss: outputs [view, class] and labels [view] -> one value a view.

    Raises:
        InputError: the model is in training mode, or its graph has an operator without an exact rule, such as zero padding.

    Source: the expectation that augmentation by random shifts samples (Chen, Dobriban and Lee, *A group-theoretic framework for
    data augmentation*, JMLR 2020), computed here in one pass.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3)).eval()
    >>> expected = AllShifts(model, size=(8, 8), max_shift=2)
    >>> expected(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])).backward()
    >>> model[0].weight.grad.shape
    torch.Size([2, 1, 3, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        size: tuple[int, int],
        max_shift: int,
        mode: Mode = "zero",
        fill: Float[Tensor, " channel"] | float = 0.0,
        loss: Loss | None = None,
    ) -> None:
        self.shifts = grid(max_shift)
        self.outputs = DifferentiableShifts(model, self.shifts, size=size, mode=mode, fill=fill)
        self.loss = loss

    def __call__(
        self, images: Float[Tensor, "image channel height width"], labels: Shaped[Tensor, " label"]
    ) -> Float[Tensor, ""]:
        """Return the mean loss over images and shifts.

        Args:
            images: unshifted, in [0, 1], canvas included.
            labels: class of each image.

        Raises:
            InputError: labels and images differ in number, labels are not classes of the model, or dense is not exact.
        """
        return mean_loss(self.outputs(images), labels, self.loss)


def all_shifts_loss(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    labels: Shaped[Tensor, " label"],
    *,
    max_shift: int,
    mode: Mode = "zero",
    fill: Float[Tensor, " channel"] | float = 0.0,
    loss: Loss | None = None,
) -> Float[Tensor, ""]:
    """Return the mean loss over images and all (2 ``max_shift`` + 1)^2 shifts, with gradients for the model's weights.

    :class:`AllShifts` is the same for many batches, and reads the model's graph once.

    Args:
        model: in evaluation mode; see :class:`AllShifts`.
        images: unshifted, in [0, 1], canvas included.
        labels: class of each image.
        max_shift: the largest shift along each axis, pixels.
        mode: what comes in at the border: the ``fill`` (``zero``) or what left on the other side (``circular``).
        fill: the canvas's colour in mode ``zero``, one value or one per channel.
        loss: outputs [view, class] and labels [view] -> one value a view; by default cross-entropy.

    Raises:
        InputError: the model is in training mode, dense is not exact for it, or the labels do not fit.

    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    >>> all_shifts_loss(model, torch.rand(2, 1, 4, 4), torch.tensor([0, 2]), max_shift=1).ndim
    0
    """
    size = (images.shape[-2], images.shape[-1])
    return AllShifts(model, size=size, max_shift=max_shift, mode=mode, fill=fill, loss=loss)(images, labels)


def mean_loss(outputs: Float[Tensor, "image shift class"], labels: Shaped[Tensor, " label"], loss: Loss | None = None) -> Tensor:
    """Return the mean loss of outputs over images and shifts.

    Args:
        outputs: of every image at every shift.
        labels: class of each image.
        loss: outputs [view, class] and labels [view] -> one value a view; by default cross-entropy.

    Raises:
        InputError: labels and images differ in number, or labels are not classes of the model.
    """
    check_labels(labels)
    if len(labels) != len(outputs):
        raise InputError(f"`labels` must hold one for each of {len(outputs)} images, got {len(labels)}.")
    check_classes(labels, outputs.shape[-1])
    each = labels.to(outputs.device)[:, None].expand(outputs.shape[:2]).flatten()
    values = outputs.flatten(0, 1)
    return functional.cross_entropy(values, each) if loss is None else loss(values, each).mean()
