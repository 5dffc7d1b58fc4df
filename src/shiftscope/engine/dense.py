"""The dense method: from images and shifts to a sheet, through the traced model, and back to one output for each shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from shiftscope.engine.checks import Model
from shiftscope.engine.direct import Canvas, Direct, finite, ran_out_of_memory
from shiftscope.engine.graph import Tracer, trace
from shiftscope.engine.sheets import Layout, NotDenseError
from shiftscope.errors import InputError, NotFiniteError

__all__ = ["Dense", "Method", "choose", "layout_of", "not_exact"]

Method = Literal["auto", "direct", "dense"]

#: Most values in the widest map of a dense pass, so that it fits the processor's cache.
DENSE_VALUES = 4_000_000
DENSE_BATCH = 32
#: With fewer shifts, running the model on each copy costs less than dense's larger maps.
FEWEST_DENSE_SHIFTS = 6


@dataclass
class Dense:
    """The traced model, run once for all shifts.

    Attributes:
        tracer: the model's graph.
        canvas: what surrounds the images.
        device: where to compute.
        layout: where the windows of all shifts start.
        starts: for each shift, the index of its window's row and column among the layout's.
        batch_size: images per pass.
    """

    tracer: Tracer
    canvas: Canvas
    device: torch.device
    layout: Layout
    starts: tuple[Tensor, Tensor]
    batch_size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Return outputs [image, shift, class], on the CPU, in single precision."""
        return finite(self.outputs(images)).float().cpu()

    def outputs(self, images: Tensor) -> Tensor:
        """Return outputs [image, shift, class], on the device, in the images' precision."""
        images = images.to(self.device)
        maps, background, corner = self._box(images)
        outputs = self.tracer(maps.contiguous(memory_format=torch.channels_last), background, corner, self.layout)
        rows, columns = self.starts
        return outputs[:, rows, columns]

    def _box(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Return the images less the background, cut to the box where any of them differs from it, and the box's corner."""
        if self.canvas.mode != "zero":
            return images, images.new_zeros(images.shape[1]), (0, 0)
        background = self.canvas.background(images)
        rest = images - background[:, None, None]
        content = (rest != 0).any(dim=0).any(dim=0)
        rows, columns = (content.any(dim=axis).nonzero().flatten() for axis in (1, 0))
        if len(rows) == 0:
            return rest[:, :, :1, :1], background, (0, 0)
        (top, bottom), (left, right) = ((int(places[0]), int(places[-1]) + 1) for places in (rows, columns))
        return rest[:, :, top:bottom, left:right], background, (top, left)


def choose(direct: Direct, images: Tensor, shifts: Tensor, *, method: Method, batch_size: int | None) -> tuple[Dense | None, str]:
    """Return the dense method if the model's graph shows that it is exact and it pays, otherwise None; and the reason.

    Args:
        direct: the model and where it runs.
        images: the first batch, of which dense runs on one image.
        shifts: [shift, 2] or [image, shift, 2].
        method: what the caller wants.
        batch_size: images per dense pass; chosen by the size of the maps if None.

    Raises:
        InputError: `method` is ``dense``, but dense is not exact.
    """
    if method == "direct":
        return None, "Direct was requested."
    try:
        if method == "auto" and len(shifts) < FEWEST_DENSE_SHIFTS and shifts.ndim == 2 and not shifts.is_floating_point():
            raise NotDenseError(f"{len(shifts)} shifts are too few for it to pay")
        dense = _dense(direct, images, shifts, batch_size)
    except NotDenseError as reason:
        if method == "dense":
            raise not_exact(str(reason)) from None
        return None, f"Direct, because {reason}."
    return dense, "Dense, because every operator before the head is stationary, which the traced graph shows."


def not_exact(reason: str) -> InputError:
    """Return the error for a caller who wants dense where it is not exact."""
    return InputError(f"`method` 'dense' is not exact here: {reason}.", "Use 'auto' or 'direct'.")


def _dense(direct: Direct, images: Tensor, shifts: Tensor, batch_size: int | None) -> Dense:
    """Return the dense method; raise NotDenseError with the reason where the graph does not show it exact."""
    if shifts.is_floating_point():
        raise NotDenseError("shifts by fractions of pixels are interpolated")
    if shifts.ndim == 3:
        raise NotDenseError("each image has shifts of its own")
    if not _is_single(direct.model, images):
        raise NotDenseError("its weights or images are not in single precision")
    layout, starts = layout_of(shifts, direct.canvas, direct.device)
    extent = [each[-1] - each[0] + size for each, size in zip(layout.starts, layout.size, strict=True)]
    fitting = max(1, min(DENSE_BATCH, DENSE_VALUES // (16 * extent[0] * extent[1])))
    dense = Dense(trace(direct.model), direct.canvas, direct.device, layout, starts, batch_size or fitting)
    try:
        dense(images[:1])  # raises where an operator has no rule
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise NotDenseError("out of memory in a dense pass") from error
    except NotFiniteError:
        pass  # the model's own outputs decide
    return dense


def layout_of(shifts: Tensor, canvas: Canvas, device: torch.device) -> tuple[Layout, tuple[Tensor, Tensor]]:
    """Return where the windows start, in the images' coordinates, and each shift's index among these starts."""
    torus = canvas.size if canvas.mode == "circular" else None
    starts = -shifts.cpu() if torus is None else -shifts.cpu() % torch.tensor(torus)
    rows, row_of = starts[:, 0].unique(return_inverse=True)
    columns, column_of = starts[:, 1].unique(return_inverse=True)
    layout = Layout(canvas.size, tuple(rows.tolist()), tuple(columns.tolist()), torus)
    return layout, (row_of.to(device), column_of.to(device))


def _is_single(model: Model, images: Tensor) -> bool:
    """Return whether images and weights are in single precision, for which the rules are written."""
    weights = model.parameters() if isinstance(model, nn.Module) else iter(())
    return images.dtype == torch.float32 and all(weight.dtype == torch.float32 for weight in weights)
