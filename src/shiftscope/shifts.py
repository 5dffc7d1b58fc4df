"""Shifts of a batch of images: which ones, and how to carry them out.

A *shift* is (dy, dx) in whole pixels; the content moves down and right when they are positive. Many shifts are a tensor
``[..., 2]``. Randomness enters as a generator that the caller passes in. This module knows no model and no data set.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor

__all__ = ["Mode", "grid", "sample", "translate", "translate_by_parts"]

Mode = Literal["zero", "circular"]


def grid(max_shift: int) -> Int[Tensor, "shift 2"]:
    """All (2 m + 1)^2 shifts of up to ``max_shift`` pixels, row by row.

    Raises:
        ValueError: the maximum is negative.

    >>> grid(1)[:4].tolist()
    [[-1, -1], [-1, 0], [-1, 1], [0, -1]]
    """
    _check_max_shift(max_shift)
    steps = torch.arange(-max_shift, max_shift + 1)
    return torch.cartesian_prod(steps, steps)


def sample(count: int, max_shift: int, generator: torch.Generator) -> Int[Tensor, "count 2"]:
    """``count`` independent shifts, uniform on the square of up to ``max_shift`` pixels, on the generator's device.

    Raises:
        ValueError: the maximum is negative.

    >>> sample(3, 8, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2])
    """
    _check_max_shift(max_shift)
    return torch.randint(-max_shift, max_shift + 1, (count, 2), generator=generator, device=generator.device)


def translate(
    images: Shaped[Tensor, "image channel height width"],
    shifts: Int[Tensor, "image 2"],
    *,
    mode: Mode = "zero",
    size: tuple[int, int] | None = None,
    fill: Shaped[Tensor, " channel"] | float = 0,
) -> Shaped[Tensor, "image channel tall wide"]:
    """Move each image of a batch by its own shift, and onto a larger canvas if one is asked for.

    Each pixel of the result looks up where it comes from; one gather moves all images at once, on their device, without
    waiting for it.

    Args:
        images: a batch of any dtype.
        shifts: (dy, dx) per image, whole pixels of any size.
        mode: ``zero`` lets the fill come in, ``circular`` lets what leaves on one side come back on the other.
        size: (height, width) of the canvas, the images' own by default. The image lies in its centre; where the margins
            cannot be equal, the upper and left one is the smaller.
        fill: what the canvas is made of, one value or one a channel; not used where ``mode`` is circular.

    Returns:
        the moved batch, of the images' dtype.

    Raises:
        ValueError: unknown mode, one shift per image is missing, or a circular canvas of another size than the image.

    >>> translate(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([[0, 1]])).tolist()
    [[[[0, 1], [0, 3]]]]
    """
    count, _, height, width = images.shape
    tall, wide = size or (height, width)
    if mode not in ("zero", "circular"):
        raise ValueError(f"`mode` must be 'zero' or 'circular', got {mode!r}.")
    if shifts.shape != (count, 2):
        raise ValueError(f"`shifts` must hold one (dy, dx) for each of {count} images, got shape {tuple(shifts.shape)}.")
    if mode == "circular" and (tall, wide) != (height, width):
        raise ValueError(f"`size` must be the images' own {(height, width)} when `mode` is 'circular', got {(tall, wide)}.")
    down, right = shifts.to(images.device).unbind(1)
    rows = _sources(down, tall, height)
    columns = _sources(right, wide, width)
    if mode == "circular":
        return _gather(images, rows % height, columns % width)
    # A frame of one pixel holds the fill; whatever comes from outside the image is looked up there.
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
    """Move each image by its own shift, in parts of a pixel.

    ``circular`` turns the phases of the image's Fourier transform, which is exact for band-limited images and undone by the
    opposite shift (along an axis of even size the highest frequency, which has no direction, keeps its real part only).
    ``zero`` interpolates bilinearly between the four whole-pixel shifts around, as if the fill went on forever outside.

    Args:
        images: a batch of floating point.
        shifts: (dy, dx) per image, pixels.
        mode: what comes in at the border.
        fill: the canvas's colour, one value or one a channel; not used where ``mode`` is circular.

    Raises:
        ValueError: what :func:`translate` says.

    >>> translate_by_parts(torch.tensor([[[[0.0, 1.0, 0.0]]]]), torch.tensor([[0.0, 0.5]])).tolist()
    [[[[0.0, 0.5, 0.5]]]]
    """
    if mode == "circular":
        height, width = images.shape[2:]
        down, right = shifts.to(images).unbind(1)
        turns_y = down[:, None] * torch.fft.fftfreq(height, device=images.device, dtype=images.dtype)
        turns_x = right[:, None] * torch.fft.rfftfreq(width, device=images.device, dtype=images.dtype)
        factor_y, factor_x = _turned(turns_y, height), _turned(turns_x, width)
        spectrum = torch.fft.rfft2(images) * factor_y[:, None, :, None] * factor_x[:, None, None, :]
        turned: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
        return turned
    whole = shifts.floor()
    parts = (shifts - whole).to(images)
    moved = torch.zeros_like(images)
    for corner in torch.cartesian_prod(torch.arange(2), torch.arange(2)).to(shifts.device):
        weights = torch.where(corner.bool(), parts, 1 - parts).prod(dim=1)
        moved += weights[:, None, None, None] * translate(images, whole.long() + corner, mode=mode, fill=fill)
    return moved


def _turned(turns: Float[Tensor, "image frequency"], size: int) -> Complex[Tensor, "image frequency"]:
    """exp(-2 pi i turns); real at the highest frequency of an even size."""
    factors = torch.polar(torch.ones_like(turns), -2 * torch.pi * turns)
    if size % 2 == 0:
        highest = size // 2
        factors[:, highest] = factors[:, highest].real.to(factors.dtype)
    return factors


def _sources(steps: Int[Tensor, " image"], target: int, source: int) -> Int[Tensor, "image position"]:
    """For each position of a centred canvas axis, the position of the image's axis that lands there."""
    positions = torch.arange(target, device=steps.device) - (target - source) // 2
    return positions - steps[:, None]


def _gather(
    images: Shaped[Tensor, "image channel height width"], rows: Int[Tensor, "image tall"], columns: Int[Tensor, "image wide"]
) -> Shaped[Tensor, "image channel tall wide"]:
    """``images[i, :, rows[i], columns[i]]``, the two axes crossed, in one gather over flattened pixels."""
    count, channels, _, width = images.shape
    pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, pixels).reshape(count, channels, rows.shape[1], columns.shape[1])


def _check_max_shift(max_shift: int) -> None:
    if max_shift < 0:
        raise ValueError(f"`max_shift` must be 0 or more pixels, got {max_shift}.")
