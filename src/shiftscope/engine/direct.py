"""The direct method: the model run on each shifted copy of the images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftscope.engine.checks import Model
from shiftscope.engine.formats import as_channels_last
from shiftscope.errors import InputError, ModelFailsError, NotFiniteError, first_line
from shiftscope.shifts import Mode, centre, translate, translate_by_parts

__all__ = ["DIRECT_BATCH", "Canvas", "Direct", "finite", "ran_out_of_memory"]

#: Images per forward pass by default.
DIRECT_BATCH = 256


@dataclass(frozen=True)
class Canvas:
    """What surrounds the images when they are shifted.

    Attributes:
        mode: what comes in at the border: the fill (``zero``) or what left on the other side (``circular``).
        fill: the colour in mode ``zero``, one value or one per channel.
        size: (height, width) of the model's input. Images may be larger in mode ``zero``: then their content around the centre
            comes in at the border.
    """

    mode: Mode
    fill: Tensor | float
    size: tuple[int, int]

    def centre(self, images: Tensor) -> Tensor:
        """Return the model's input: the images, or the centre of larger ones."""
        return centre(images, self.size)

    def move(self, images: Tensor, steps: Tensor) -> Tensor:
        """Return the model's input with each image moved by its own shift, in whole pixels or fractions of them."""
        move = translate_by_parts if steps.is_floating_point() else translate
        return self.centre(move(images, steps, mode=self.mode, fill=self.background(images)))

    def background(self, images: Tensor) -> Tensor:
        """Return the fill as one value per channel, of the images' dtype and on their device."""
        return torch.as_tensor(self.fill, dtype=images.dtype, device=images.device).expand(images.shape[1])


@dataclass
class Direct:
    """The model, run on each shifted copy.

    Attributes:
        model: in evaluation mode.
        canvas: what surrounds the images.
        device: where to compute.
        batch_size: images per forward pass; halved when memory runs out.
        channels_last: whether the model receives images in that memory format.
        seen: called with the number of images of each forward pass; None to call nothing.
    """

    model: Model
    canvas: Canvas
    device: torch.device
    batch_size: int = DIRECT_BATCH
    channels_last: bool = False
    seen: Callable[[int], None] | None = None

    def reference(self, images: Tensor) -> Tensor:
        """Return the outputs [image, class] of the unshifted images."""
        return self.run(self.canvas.centre(images.to(self.device)).clone())

    def __call__(self, images: Tensor, shifts: Tensor) -> Tensor:
        """Return outputs [image, shift, class]; shifts are [shift, 2] or [image, shift, 2]."""
        images = images.to(self.device)
        alike = _shared_pixels(shifts) and tuple(images.shape[2:]) == self.canvas.size
        copies = self._windows(images, shifts) if alike else self._each(images, shifts)
        return torch.stack([self.run(copy) for copy in copies], dim=1)

    def run(self, batch: Tensor) -> Tensor:
        """Run the model in batches of ``batch_size``, halving it when memory runs out."""
        pieces = []
        start = 0
        while start < len(batch):
            piece = batch[start : start + self.batch_size]
            try:
                pieces.append(self.once(piece))
                start += len(piece)
            except (MemoryError, RuntimeError) as error:
                if not ran_out_of_memory(error) or len(piece) == 1:
                    raise
                self.batch_size = len(piece) // 2
                warnings.warn(f"out of memory; continuing with batches of {self.batch_size} images.", stacklevel=2)
        return torch.cat(pieces)

    def once(self, batch: Tensor) -> Tensor:
        """Run the model on the batch in one forward pass.

        Raises:
            InputError: the model does not return one finite vector per image, or raises an exception other than running out of
                memory, which passes through unchanged.
        """
        if self.seen is not None:
            self.seen(len(batch))
        try:
            output = self.model(as_channels_last(batch) if self.channels_last else batch)
        except Exception as error:  # a model's code may raise anything
            if ran_out_of_memory(error):
                raise
            raise ModelFailsError(f"`model` fails on images of shape {tuple(batch.shape)}: {first_line(error)}") from error
        return _checked(output, len(batch))

    def _windows(self, images: Tensor, shifts: Tensor) -> Iterator[Tensor]:
        """Yield windows of one enlarged batch; each its own copy, because a model may change its input in place."""
        height, width = self.canvas.size
        top, left = (int(reach) for reach in shifts.abs().amax(0))
        if self.canvas.mode == "circular":
            large = _wrapped(images, top, left)
        else:
            background = self.canvas.background(images)
            large = background[:, None, None].expand(len(images), -1, height + 2 * top, width + 2 * left).clone()
            large[:, :, top : top + height, left : left + width] = images
        for dy, dx in shifts.tolist():
            yield large[:, :, top - dy : top - dy + height, left - dx : left - dx + width].clone()

    def _each(self, images: Tensor, shifts: Tensor) -> Iterator[Tensor]:
        """Yield every image moved by its own shift, in whole pixels or fractions of them."""
        for steps in shifts.unbind(1) if shifts.ndim == 3 else (step.expand(len(images), 2) for step in shifts):
            yield self.canvas.move(images, steps.to(self.device))


def _shared_pixels(shifts: Tensor) -> bool:
    return shifts.ndim == 2 and not shifts.is_floating_point()


def _checked(output: object, count: int) -> Tensor:
    """Return one finite vector per image, on the CPU, in single precision."""
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count:
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"`model` must return one vector for each of {count} images, got {what}.", "Wrap it so that it does.")
    return finite(output).float().cpu()


def finite(output: Tensor) -> Tensor:
    """Return the output, or raise NotFiniteError if it holds NaN or infinity."""
    if not output.isfinite().all():
        wrong = int((~output.isfinite().flatten(1).all(1)).sum())
        raise NotFiniteError(
            f"`model` returned values that are not finite, for {wrong} of {len(output)} images.",
            "Check its weights and the range of its input.",
        )
    return output


def _wrapped(images: Tensor, reach_y: int, reach_x: int) -> Tensor:
    """Return the images continued circularly on every side, even by more than their own size."""
    rows = torch.arange(-reach_y, images.shape[2] + reach_y, device=images.device) % images.shape[2]
    columns = torch.arange(-reach_x, images.shape[3] + reach_x, device=images.device) % images.shape[3]
    return images[:, :, rows][:, :, :, columns]


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, of the machine or of a GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # PyTorch's CPU allocator, its MPS backend and CUDA libraries raise a plain RuntimeError: only its text tells it from others.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ("out of memory", "can't allocate memory"))
