"""A model's outputs at all shifts of a batch, with gradients for its weights: the dense method, recorded by autograd.

Measuring skips what is zero, writes in place and keeps transformed weights. None of that is allowed here: a background of 0 has a
gradient (that of the biases it is made of), autograd needs the values it saved, and weights change from step to step. The rules
ask ``torch.is_grad_enabled()``. Of equal values a maximum sends its gradient to the first in reading order, as PyTorch's pools
do, so that gradients equal the mean of those of the shifted copies also where maps tie.

Where the loss has no gradient, PyTorch takes one of its subgradients, and rounding may make dense take another. That needs a
value of exactly 0 before a ReLU at which the background is not 0: biases of exactly 0 on a canvas that is not black.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shiftscope.engine.checks import check_fill, check_images, check_options, check_shifts, device_of
from shiftscope.engine.dense import Dense, layout_of, not_exact
from shiftscope.engine.direct import Canvas, Direct
from shiftscope.engine.graph import trace
from shiftscope.engine.runner import LEAST_SCALE, TOLERANCE
from shiftscope.engine.sheets import NotDenseError
from shiftscope.errors import InputError
from shiftscope.shifts import Mode

__all__ = ["DifferentiableShifts"]

#: Images of a batch, and shifts of each, on which dense outputs are compared with direct ones.
CHECKED_IMAGES, CHECKED_SHIFTS = 2, 2


class DifferentiableShifts:
    """Compute a model's outputs at many shifts in one pass, with gradients for its weights.

    The model's graph is read once; every batch then runs with the weights of the moment, and a few of its outputs are compared
    with the model run on shifted copies.

    Args:
        model: in evaluation mode, in which gradients are recorded too: batch norms use their running statistics, whose scale and
            offset have gradients, and dropout does nothing.
        shifts: (dy, dx) in whole pixels, [shift, 2].
        size: (height, width) of the images.
        mode: what comes in at the border: the ``fill`` (``zero``) or what left on the other side (``circular``).
        fill: the canvas's colour in mode ``zero``, one value or one per channel.

    Raises:
        InputError: a part of the model is in training mode, the model's graph has an operator without an exact rule, or the
            shifts have another form.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3)).eval()
    >>> outputs = DifferentiableShifts(model, torch.tensor([[0, 0], [1, -1]]), size=(8, 8))(torch.rand(4, 1, 8, 8))
    >>> outputs.shape, outputs.requires_grad
    (torch.Size([4, 2, 3]), True)
    """

    def __init__(
        self,
        model: nn.Module,
        shifts: Int[Tensor, "shift 2"],
        *,
        size: tuple[int, int],
        mode: Mode = "zero",
        fill: Float[Tensor, " channel"] | float = 0.0,
    ) -> None:
        check_options(mode, "dense", None)
        if shifts.ndim != 2 or shifts.is_floating_point():
            raise InputError(f"`shifts` must be whole pixels, [shift, 2], got shape {tuple(shifts.shape)} of {shifts.dtype}.")
        check_shifts(shifts, shifts)
        _check_mode(model)
        self.model, self.shifts, self.calls = model, shifts, 0
        self.canvas = Canvas(mode, fill, size)
        device = device_of(model)
        layout, starts = layout_of(shifts, self.canvas, device)
        try:
            self.dense = Dense(trace(model), self.canvas, device, layout, starts, batch_size=1)
        except NotDenseError as reason:
            raise not_exact(str(reason)) from None

    def __call__(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image shift class"]:
        """Return the outputs at all shifts, on the model's device and in its precision.

        Args:
            images: unshifted, in [0, 1], [image, channel, *size]. They get no gradient.

        Raises:
            InputError: a part of the model is in training mode, or an operator has no exact rule for these images.
        """
        check_images(images, self.canvas.size)
        check_fill(images, self.canvas.fill)
        _check_mode(self.model)
        images = images.detach().to(self.dense.device)
        self.dense.tracer.spectra.clear()  # of weights that may have changed
        try:
            outputs = self.dense.outputs(images)
        except NotDenseError as reason:
            raise InputError(
                f"all shifts at once are not exact here: {reason}.", "Train on random shifts, or without zero padding."
            ) from None
        self._check(images, outputs.detach())
        return outputs

    def _check(self, images: Tensor, outputs: Tensor) -> None:
        """Compare a few outputs, others in every call, with those of shifted copies; leave infinite ones to the caller."""
        if not outputs.isfinite().all():
            return
        generator = torch.Generator().manual_seed(self.calls)
        self.calls += 1
        some = torch.randperm(len(images), generator=generator)[:CHECKED_IMAGES]
        steps = torch.randperm(len(self.shifts), generator=generator)[:CHECKED_SHIFTS]
        with torch.no_grad():
            expected = Direct(self.model, self.canvas, images.device)(images[some], self.shifts[steps])
        found = outputs[some][:, steps].float().cpu()
        scale = expected.norm(dim=-1).clamp_min(max(LEAST_SCALE * float(images[some].norm()), 1e-30))
        apart = float(((found - expected).norm(dim=-1) / scale).max())
        if not apart <= TOLERANCE:
            raise not_exact(f"dense and direct outputs differ by {apart:.1e} of their norm on sampled shifts")


def _check_mode(model: nn.Module) -> None:
    """Raise InputError if any part is in training mode: batch norm would depend on the batch, and dropout on chance."""
    if any(part.training for part in model.modules()):
        raise InputError(
            "`model` must be in evaluation mode: in training mode batch norm depends on the other images and shifts of a batch, "
            "and dropout on chance.",
            "Call model.eval() first; gradients are recorded all the same, and batch norms keep their running statistics.",
        )
