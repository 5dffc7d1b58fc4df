"""How shifted views are cut from images: the model's input in their centre, what comes in at its border, how far shifts go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from shiftscope.engine.checks import check_images
from shiftscope.engine.direct import Canvas
from shiftscope.errors import InputError, check_whole
from shiftscope.shifts import Mode

__all__ = ["Border", "Framed", "Shifting", "check_max_shift", "frame", "inner_size"]

#: What comes in at the border: the fill, what images larger than the model's input hold there, or what left on the other side.
Border = Literal["zero", "crop", "circular"]
#: The largest shift by default, pixels; without a margin, the input's size over the second number if that is less.
DEFAULT_SHIFT, SIZE_PER_SHIFT = 8, 8


@dataclass(frozen=True)
class Framed:
    """Images with all that is needed to shift them.

    Attributes:
        images: with their margin where crops are taken from it, else as large as the model's input.
        size: (height, width) of the model's input, pixels.
        border: what comes in at the border.
        max_shift: the largest shift along an axis, pixels.
    """

    images: Tensor
    size: tuple[int, int]
    border: Border
    max_shift: int

    @property
    def mode(self) -> Mode:
        """The engine's mode for this border: crops are zero-mode shifts of larger images."""
        return "circular" if self.border == "circular" else "zero"

    def settings(self, shifts: int, seed: int) -> dict[str, str]:
        """Return in words how an explanation was measured.

        Args:
            shifts: number of each image.
            seed: that drew them.
        """
        found = {"images": str(len(self.images)), "shifts of each image": str(shifts)}
        return found | {"largest shift": f"{self.max_shift} pixels", "border": self.border, "seed": str(seed)}


@dataclass(frozen=True)
class Shifting:
    """How images are to be shifted, as a caller chooses it.

    Attributes:
        size: (height, width) of the model's input, where images are larger; by default that of the images.
        max_shift: the largest shift along an axis, pixels; by default 8, or what larger images leave around the input, or an
            eighth of the input, if that is less.
        mode: what comes in at the border; by default ``crop`` for larger images, else ``zero``.
        fill: the canvas's colour in mode ``zero``, in [0, 1]: one value or one per channel.
        seed: draws the shifts, where not every shift is measured.
    """

    size: int | tuple[int, int] | None = None
    max_shift: int | None = None
    mode: Border | None = None
    fill: Tensor | float = 0.0
    seed: int = 0

    def frame(self, images: Tensor) -> Framed:
        """Return images [image, channel, height, width] framed for these shifts, see :func:`frame`."""
        return frame(images, self.size, self.mode, self.max_shift)

    def unshifted(self, images: Tensor) -> Tensor:
        """Return the model's inputs for images [image, channel, height, width] without a shift."""
        return frame(images, self.size, "zero", None).images


def frame(images: Tensor, size: int | tuple[int, int] | None, border: Border | None, max_shift: int | None) -> Framed:
    """Return images framed for shifts, with defaults filled in.

    Args:
        images: [image, channel, height, width].
        size: (height, width) of the model's input; None for that of the images.
        border: None for ``crop`` where images are larger than the input, else ``zero``.
        max_shift: None for 8 pixels, or the margin, or an eighth of the input without a margin, if that is less.

    Raises:
        InputError: images have another form or are smaller than the input, there is no such border, or the shift is too large.

    >>> import torch
    >>> framed = frame(torch.rand(2, 3, 36, 36), 32, None, None)
    >>> framed.border, framed.max_shift
    ('crop', 2)
    """
    check_images(images)
    outer = (images.shape[2], images.shape[3])
    inner = inner_size(size, outer)
    margin = min((there - part) // 2 for part, there in zip(inner, outer, strict=True))
    if border is None:
        border = "crop" if margin else "zero"
    room = margin if border == "crop" else 0
    if border == "crop" and not margin:
        raise InputError(
            f"`mode` 'crop' needs images larger than the model's input of {inner[0]}x{inner[1]}.", "Use 'zero' or 'circular'."
        )
    if max_shift is None:
        max_shift = min(DEFAULT_SHIFT, room or max(1, min(inner) // SIZE_PER_SHIFT))
    check_max_shift(max_shift, inner)
    if border == "crop" and max_shift > room:
        raise InputError(
            f"`max_shift` must be at most {room} pixels, which the images hold around the input of {inner[0]}x{inner[1]}, got "
            f"{max_shift}.",
            "Lower it or give larger images.",
        )
    images = images if border == "crop" else Canvas("zero", 0.0, inner).centre(images)
    return Framed(images, inner, border, max_shift)


def inner_size(size: int | tuple[int, int] | None, outer: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the model's input.

    Args:
        size: as the user gives it: one length for both, or (height, width); None for that of the images.
        outer: (height, width) of the images.

    Raises:
        InputError: it is none of these, or larger than the images.
    """
    given: Any = outer if size is None else (size, size) if isinstance(size, int) else size
    inner = tuple(given) if isinstance(given, Sequence) else ()
    if len(inner) != 2 or not all(isinstance(each, int) for each in inner):
        raise InputError(f"`size` must be a whole number, or (height, width), got {size!r}.", "Give it in pixels.")
    if any(part < 1 or part > there for part, there in zip(inner, outer, strict=True)):
        raise InputError(
            f"the model takes images of {inner[0]}x{inner[1]}, but `images` are {outer[0]}x{outer[1]}.", "Give larger images."
        )
    return inner


def check_max_shift(max_shift: int, size: tuple[int, ...], name: str = "max_shift") -> None:
    """Raise InputError unless the shift is 1 pixel to half of the model's input, beyond which little of the image is left.

    Args:
        max_shift: the largest shift, pixels.
        size: (height, width) of the input, pixels.
        name: of the parameter.
    """
    check_whole(max_shift, name)
    half = max(1, min(size) // 2)
    if not 1 <= max_shift <= half:
        raise InputError(
            f"`{name}` must be 1 to {half} pixels, half of the image's {min(size)}, got {max_shift}.",
            "Raise it." if max_shift < 1 else "Lower it.",
        )
