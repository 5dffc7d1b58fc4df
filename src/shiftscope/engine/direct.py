"""What surrounds the images, and the model run on each shifted copy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.shifts import translate, translate_by_parts

__all__ = ["Direct", "Model", "World", "finite", "ran_out_of_memory"]

Model = Callable[[Tensor], Tensor]

DIRECT_BATCH = 256


@dataclass(frozen=True)
class World:
    """What surrounds the images.

    Attributes:
        mode: see :func:`shift_outputs`.
        crop: size of the model's input in mode ``crop``.
        fill: the colour of the surroundings in mode ``zero``.
        shape: (height, width) of the images.
    """

    mode: str
    crop: tuple[int, int] | None
    fill: Tensor | float
    shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the model's input."""
        return self.crop if self.crop is not None else (self.shape[0], self.shape[1])

    def background(self, images: Tensor) -> Tensor:
        """The fill as one value a channel, on the images' device and of their type."""
        return torch.as_tensor(self.fill, dtype=images.dtype, device=images.device).expand(images.shape[1])

    @property
    def corner(self) -> tuple[int, int]:
        """Where the unshifted window starts in the image."""
        return (self.shape[0] - self.size[0]) // 2, (self.shape[1] - self.size[1]) // 2


@dataclass
class Direct:
    """The model, run on each shifted copy."""

    model: Model
    world: World
    device: torch.device
    batch_size: int | None
    precision: str
    block: int = field(init=False)

    def __post_init__(self) -> None:
        self.block = self.batch_size or DIRECT_BATCH

    def reference(self, images: Tensor) -> Tensor:
        """Outputs of the unshifted images."""
        top, left = self.world.corner
        height, width = self.world.size
        return self.run(images.to(self.device)[:, :, top : top + height, left : left + width].clone())

    def __call__(self, images: Tensor, shifts: Tensor) -> Tensor:
        """Outputs [image, shift, class]; shifts [shift, 2] or [image, shift, 2]."""
        images = images.to(self.device)
        if shifts.is_floating_point():
            copies = self._in_parts(images, shifts)
        elif shifts.ndim == 3:
            copies = (self._each(images, steps) for steps in shifts.unbind(1))
        else:
            copies = self._windows(images, shifts)
        return torch.stack([self.run(copy) for copy in copies], dim=1)

    def run(self, batch: Tensor) -> Tensor:
        """One forward pass; in halves if memory runs out."""
        pieces = []
        start = 0
        while start < len(batch):
            piece = batch[start : start + self.block]
            try:
                pieces.append(self.once(piece))
                start += len(piece)
            except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not ran_out_of_memory(error) or len(piece) == 1:
                    raise
                self.block = len(piece) // 2
                warnings.warn(f"out of memory; going on with batches of {self.block} images.", stacklevel=2)
        return torch.cat(pieces)

    def once(self, batch: Tensor) -> Tensor:
        """One forward pass of the whole batch, and nothing where memory runs out but the error."""
        autocast: AbstractContextManager[object] = nullcontext()
        if self.precision == "bf16":
            autocast = torch.autocast(self.device.type, torch.bfloat16)
        try:
            with autocast:
                output = self.model(batch)
        except Exception as error:  # whatever a model's Python code raises
            if ran_out_of_memory(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"`model` fails on images of shape {tuple(batch.shape)}: {reason}") from error
        return _checked(output, len(batch))

    def _windows(self, images: Tensor, shifts: Tensor) -> Iterator[Tensor]:
        """Windows of one enlarged batch; each its own copy, because a model may work on its input in place."""
        top, left = self.world.corner
        height, width = self.world.size
        reach_y, reach_x = (int(most) for most in shifts.abs().amax(0))
        if self.world.mode == "crop":
            large, top, left = images, top, left
        elif self.world.mode == "circular":
            large, top, left = _wrapped(images, reach_y, reach_x), reach_y, reach_x
        else:
            background = self.world.background(images)
            large = background[:, None, None].expand(len(images), -1, height + 2 * reach_y, width + 2 * reach_x).clone()
            large[:, :, reach_y : reach_y + height, reach_x : reach_x + width] = images
            top, left = reach_y, reach_x
        for dy, dx in shifts.tolist():
            yield large[:, :, top - dy : top - dy + height, left - dx : left - dx + width].clone()

    def _each(self, images: Tensor, shifts: Tensor) -> Tensor:
        """Every image by its own shift."""
        shifts = shifts.to(self.device)
        if self.world.mode != "crop":
            return translate(images, shifts, mode=self.world.mode, fill=self.world.background(images))  # type: ignore[arg-type]  # checked before
        return self._cut(translate(images, shifts))

    def _in_parts(self, images: Tensor, shifts: Tensor) -> Iterator[Tensor]:
        """Shifts in parts of pixels."""
        lists = shifts.unbind(1) if shifts.ndim == 3 else (step.expand(len(images), 2) for step in shifts)
        for steps in lists:
            steps = steps.to(self.device)
            if self.world.mode == "crop":
                yield self._cut(translate_by_parts(images, steps))
            else:
                yield translate_by_parts(images, steps, mode=self.world.mode, fill=self.world.background(images))  # type: ignore[arg-type]

    def _cut(self, images: Tensor) -> Tensor:
        top, left = self.world.corner
        return images[:, :, top : top + self.world.size[0], left : left + self.world.size[1]]


def _checked(output: object, count: int) -> Tensor:
    """One vector an image, finite, on the CPU."""
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count:
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"`model` must return one vector for each of {count} images, got {what}. Wrap it so that it does.")
    return finite(output).float().cpu()


def finite(output: Tensor) -> Tensor:
    """The output, or an InputError where a value is not finite."""
    if not output.isfinite().all():
        wrong = int((~output.isfinite().flatten(1).all(1)).sum())
        raise InputError(
            f"`model` returned values that are not finite, for {wrong} of {len(output)} images. Check its weights and the range "
            "of its input."
        )
    return output


def _wrapped(images: Tensor, reach_y: int, reach_x: int) -> Tensor:
    """The images continued circularly, however far."""
    rows = torch.arange(-reach_y, images.shape[2] + reach_y, device=images.device) % images.shape[2]
    columns = torch.arange(-reach_x, images.shape[3] + reach_x, device=images.device) % images.shape[3]
    return images[:, :, rows][:, :, :, columns]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, of the machine or of a GPU."""
    known = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
    return known or "out of memory" in str(error) or "can't allocate memory" in str(error)
