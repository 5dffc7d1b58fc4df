"""Shifts: which ones to apply, and how to move a batch of images by them.

A *shift* is (dy, dx) in pixels; positive values move the content down and right. Many shifts are a tensor ``[..., 2]``. The
caller passes the random generator. This module depends on no model and no data set.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor

from shiftscope.errors import InputError, check_whole

__all__ = ["Mode", "centre", "grid", "sample", "translate", "translate_by_parts"]

#: What comes in at the border: a fill (``zero``), or what left on the opposite side (``circular``).
Mode = Literal["zero", "circular"]


def grid(max_shift: int) -> Int[Tensor, "shift 2"]:
    """Return all (2 m + 1)^2 shifts of up to ``max_shift`` pixels along each axis, row by row.

    Raises:
        InputError: `max_shift` is negative.

    >>> grid(1)[:4].tolist()
    [[-1, -1], [-1, 0], [-1, 1], [0, -1]]
    """
    _check_max_shift(max_shift)
    steps = torch.arange(-max_shift, max_shift + 1)
    return torch.cartesian_prod(steps, steps)


def sample(count: int, max_shift: int, generator: torch.Generator) -> Int[Tensor, "count 2"]:
    """Draw ``count`` independent shifts, uniform on the square of up to ``max_shift`` pixels, on the generator's device.

    Raises:
        InputError: `max_shift` is negative.

    >>> sample(3, 8, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    _check_max_shift(max_shift)
    return torch.randint(-max_shift, max_shift + 1, (count, 2), generator=generator, device=generator.device)


def centre(images: Shaped[Tensor, "*each tall wide"], size: tuple[int, int]) -> Shaped[Tensor, "*each height width"]:
    """Return the centre of images, of a size (height, width) in pixels.

    >>> centre(torch.arange(9).reshape(1, 1, 3, 3), (1, 1)).item()
    4
    """
    top, left = ((outer - inner) // 2 for outer, inner in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def translate(
    images: Shaped[Tensor, "image channel height width"],
    shifts: Int[Tensor, "image 2"],
    *,
    mode: Mode = "zero",
    size: tuple[int, int] | None = None,
    fill: Shaped[Tensor, " channel"] | float = 0,
) -> Shaped[Tensor, "image channel tall wide"]:
    """Move each image of a batch by its own shift, optionally onto a larger canvas.

    One gather moves all images at once, on their device, without synchronising with it.

    Args:
        images: a batch of any dtype.
        shifts: (dy, dx) per image, whole pixels of any size.
        mode: what comes in at the border: the fill (``zero``) or what left on the opposite side (``circular``).
        size: (height, width) of the canvas, the images' own by default. The image lies in its centre; of unequal margins, the
            upper and left ones are the smaller.
        fill: the canvas's colour, one value or one per channel; not used in mode ``circular``.

    Returns:
        the moved batch, of the images' dtype.

    Raises:
        InputError: `mode` is unknown, `shifts` does not hold one shift per image, or `size` differs from the images' in mode
            ``circular``.

    >>> translate(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([[0, 1]])).tolist()
    [[[[0, 1], [0, 3]]]]
    """
    count, _, height, width = images.shape
    tall, wide = size or (height, width)
    if mode not in ("zero", "circular"):
        raise InputError(f"`mode` must be 'zero' or 'circular', got {mode!r}.")
    if shifts.shape != (count, 2):
        raise InputError(f"`shifts` must hold one (dy, dx) for each of {count} images, got shape {tuple(shifts.shape)}.")
    if mode == "circular" and (tall, wide) != (height, width):
        raise InputError(f"`size` must be the images' own {(height, width)} when `mode` is 'circular', got {(tall, wide)}.")
    down, right = shifts.to(images.device).unbind(1)
    rows = _sources(down, tall, height)
    columns = _sources(right, wide, width)
    if mode == "circular":
        return _gather(images, rows % height, columns % width)
    # A frame of one pixel holds the fill: every pixel from outside the image is looked up there.
    background = torch.as_tensor(fill, dtype=images.dtype, device=images.device)
    framed = background.reshape(-1, 1, 1).expand(count, images.shape[1], height + 2, width + 2).clone()
    framed[:, :, 1:-1, 1:-1] = images
    return _gather(framed, (rows + 1).clamp(0, height + 1), (columns + 1).clamp(0, width + 1))


def translate_by_parts(
    images: Float[Tensor, "image channel height width"],
    shifts: Float[Tensor, "image 2"],
    *,
    mode: Mode = "zero",
    fill: Float[Tensor, " channel"] | float = 0.0,
) -> Float[Tensor, "image channel height width"]:
    """Move each image by its own shift, in fractions of a pixel.

    Mode ``circular`` multiplies the image's Fourier transform by phases, which is exact for band-limited images and undone by the
    opposite shift (along an axis of even size the highest frequency, which has no direction, keeps its real part only). Mode
    ``zero`` interpolates bilinearly between the four neighbouring whole-pixel shifts, with the fill outside the image.

    Args:
        images: a batch of floating point.
        shifts: (dy, dx) per image, pixels.
        mode: what comes in at the border: the fill (``zero``) or what left on the opposite side (``circular``).
        fill: the canvas's colour, one value or one per channel; not used in mode ``circular``.

    Raises:
        InputError: `mode` is unknown, or `shifts` does not hold one shift per image.

    >>> translate_by_parts(torch.tensor([[[[0.0, 1.0, 0.0]]]]), torch.tensor([[0.0, 0.5]])).tolist()
    [[[[0.0, 0.5, 0.5]]]]
    """
    if mode == "circular" and images.element_size() < 4:  # transforms need single precision
        return translate_by_parts(images.float(), shifts, mode=mode).to(images.dtype)
    if mode == "circular":
        height, width = images.shape[2:]
        down, right = shifts.to(images).unbind(1)
        turns_y = down[:, None] * torch.fft.fftfreq(height, device=images.device, dtype=images.dtype)
        turns_x = right[:, None] * torch.fft.rfftfreq(width, device=images.device, dtype=images.dtype)
        factor_y, factor_x = _phases(turns_y, height), _phases(turns_x, width)
        spectrum = torch.fft.rfft2(images) * factor_y[:, None, :, None] * factor_x[:, None, None, :]
        moved: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
        return moved
    whole = shifts.floor()
    parts = (shifts - whole).to(images)
    moved = torch.zeros_like(images)
    for corner in torch.cartesian_prod(torch.arange(2), torch.arange(2)).to(shifts.device):
        weights = torch.where(corner.bool(), parts, 1 - parts).prod(dim=1)
        moved += weights[:, None, None, None] * translate(images, whole.long() + corner, mode=mode, fill=fill)
    return moved


def _phases(turns: Float[Tensor, "image frequency"], size: int) -> Complex[Tensor, "image frequency"]:
    """Return exp(-2 pi i turns), real at the highest frequency of an even size."""
    factors = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    if size % 2 == 0:
        highest = size // 2
        factors[:, highest] = factors[:, highest].real.to(factors.dtype)
    return factors


def _sources(steps: Int[Tensor, " image"], target: int, source: int) -> Int[Tensor, "image position"]:
    """Return, for each position along a canvas axis, the position along the image's axis that moves there."""
    positions = torch.arange(target, device=steps.device) - (target - source) // 2
    return positions - steps[:, None]


def _gather(
    images: Shaped[Tensor, "image channel height width"], rows: Int[Tensor, "image tall"], columns: Int[Tensor, "image wide"]
) -> Shaped[Tensor, "image channel tall wide"]:
    """Return ``images[i, :, rows[i], columns[i]]``, the two axes crossed, in one gather over flattened pixels."""
    count, channels, _, width = images.shape
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, pixels).reshape(count, channels, rows.shape[1], columns.shape[1])


def _check_max_shift(max_shift: int) -> None:
    check_whole(max_shift, "max_shift")
    if max_shift < 0:
        raise InputError(f"`max_shift` must be 0 or more pixels, got {max_shift}.")
