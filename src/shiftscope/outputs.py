"""The engine: a model's outputs on images and on their shifted copies. It knows no measure.

A model is any callable from a batch of images ``[image, channel, height, width]`` in [0, 1] to outputs ``[image, class]``
(the vectors before the softmax). Images are translated on the model's device, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.shifts import translate
from shiftscope.signals import Mode

__all__ = ["Model", "Outputs", "evaluating", "shift_outputs"]

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Outputs:
    """What a model said about every image, unshifted and under each of its shifts.

    Attributes:
        values: [image, shift, class], outputs of the shifted images.
        reference: [image, class], outputs of the unshifted images.
        shifts: [image, shift, 2], (dy, dx) in pixels, content moves down and right when positive.
    """

    values: Float[Tensor, "image shift class"]
    reference: Float[Tensor, "image class"]
    shifts: Int[Tensor, "image shift 2"]


def shift_outputs(
    model: Model,
    images: Float[Tensor, "image channel height width"],
    shifts: Int[Tensor, "image shift 2"],
    *,
    mode: Mode = "zero",
    fill: Float[Tensor, " channel"] | float = 0.0,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> Outputs:
    """Run a model on every image and on each of its shifted copies.

    A module in training mode is switched to evaluation for the duration; no gradient is recorded.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class]; already on ``device``.
        images: the unshifted images, canvas included.
        shifts: (dy, dx) in whole pixels, for each image its own list, all of one length.
        mode: what comes in at the border: the ``fill`` (``zero``) or what left on the other side (``circular``).
        fill: the canvas's colour, one value or one a channel.
        batch_size: images a forward pass.
        device: where the batches go.

    Returns:
        the outputs, on the CPU, in single precision.

    Raises:
        InputError: no image, integer images, or a model whose outputs are not finite vectors, one an image.

    >>> mean = lambda images: images.mean(dim=(2, 3))
    >>> shift_outputs(mean, torch.ones(2, 3, 4, 4), torch.tensor([[[1, 0]], [[0, 2]]])).values[:, 0, 0].tolist()
    [0.75, 0.5]
    """
    if len(images) == 0:
        raise InputError("`images` must hold at least one image, got none.")
    if not images.is_floating_point():
        raise InputError(f"`images` must be floating point in [0, 1], got {images.dtype}. Divide by 255 first.")
    batches, references = [], []
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(device)
            references.append(_outputs(model, batch))
            moved = [
                _outputs(model, translate(batch, steps, mode=mode, fill=fill))
                for steps in shifts[start : start + batch_size].to(device).unbind(1)
            ]
            batches.append(torch.stack(moved, dim=1))
    return Outputs(values=torch.cat(batches), reference=torch.cat(references), shifts=shifts)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode for a module, and every part's former mode again afterwards; nothing for any other callable."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _outputs(model: Model, batch: Tensor) -> Float[Tensor, "image class"]:
    """One forward pass, checked and brought to the CPU."""
    output = model(batch)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(batch):
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"`model` must return one vector for each of {len(batch)} images, got {what}. Wrap it so that it does.")
    if not output.isfinite().all():
        raise InputError("`model` returned values that are not finite. Check its weights and the range of its input.")
    return output.float().cpu()
