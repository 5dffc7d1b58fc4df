"""Try a Hugging Face image processor: some classes do more to pixels than their configuration says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from shiftscope.datasets.preprocessing import INTERPOLATION, Preprocessing
from shiftscope.runtime.sizes import both

__all__ = ["image_processor", "tried"]

#: Values in [0, 1] of a sloping image that differ by more were scaled or cropped in another way; interpolation moves them less.
TOLERANCE = 0.02
#: Rounding of a mean or deviation, and the least difference between black and white.
ROUNDING, LEAST_SCALE = 1e-3, 1e-6
BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)
#: Side of the image that is tried where the model does not say, pixels.
SIDE = 64


def image_processor(transformers: ModuleType, folder: Path) -> Any:
    """Return the image processor that a folder describes, without code of the folder's own; None if there is none.

    Args:
        transformers: the library.
        folder: of the model.
    """
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False, local_files_only=True
        )
    except Exception:  # the library, or one that it needs, raises anything
        return None


def tried(processor: Any, found: Preprocessing, *, swapped: bool = False) -> Preprocessing:
    """Return how a processor prepares images: as its configuration says, with a source that says where that does not hold.

    Args:
        processor: applied to plain images, and to one that is redder to the right and greener downwards.
        found: what its configuration says, for three channels.
        swapped: whether its configuration says that it swaps red and blue.

    Returns:
        the preprocessing, with the mean and deviation that the processor applies; the same if it cannot be tried.
    """
    if processor is None:
        return found
    size, name = both(found.size or SIDE), type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    slope = _slope(3 * size[0] // 2, 3 * size[1] // 2)
    try:
        black, white, red = (_pixels(processor, np.full((*size, 3), colour, np.uint8)) for colour in (BLACK, WHITE, RED))
        sloping = _pixels(processor, slope)
    except Exception:  # it takes other images, or returns anything but one tensor of each
        return found
    if swapped:
        black, white, red, sloping = (each[::-1] for each in (black, white, red, sloping))
    low, high, reddish = (each[:, each.shape[1] // 2, each.shape[2] // 2] for each in (black, white, red))
    if np.abs(high - low).min() < LEAST_SCALE:
        return found
    std, told = 1 / (high - low), ""
    mean = -low * std
    ours = found.mean or (0.0,) * 3, found.std or (1.0,) * 3
    if not np.allclose(ours, (mean, std), rtol=ROUNDING, atol=ROUNDING):
        plain = np.allclose((mean, std), ((0.0,) * 3, (1.0,) * 3), atol=ROUNDING)
        found = replace(found, mean=None if plain else tuple(mean.tolist()), std=None if plain else tuple(std.tolist()))
        told = f", normalised as {name} does"
    if int(np.argmax((reddish - low) / (high - low))) != 0:
        told += f", but {name} reorders the colours"
    elif getattr(processor, "do_resize", True) and found.size is not None:
        shown = sloping * std[:, None, None] + mean[:, None, None]
        told += "" if _difference(shown, slope, found) <= TOLERANCE else f", but {name} scales or crops otherwise"
    return replace(found, source=found.source + told) if told else found


def _pixels(processor: Any, image: np.ndarray) -> np.ndarray:
    """Return what a processor makes of an image: [channel, height, width]."""
    found = np.asarray(processor(images=image, return_tensors="np")["pixel_values"], np.float64)
    if found.ndim != 4 or found.shape[:2] != (1, 3):
        raise ValueError(f"pixel_values of shape {found.shape}")
    only: np.ndarray = found[0]
    return only


def _slope(height: int, width: int) -> np.ndarray:
    """Return an image that is redder to the right, greener downwards, and evenly blue: [height, width, channel]."""
    down, right = (np.linspace(0, 255, side).round().astype(np.uint8) for side in (height, width))
    even = np.full((height, width), 128, np.uint8)
    return np.stack([np.tile(right, (height, 1)), np.tile(down[:, None], (1, width)), even], 2)


def _difference(theirs: np.ndarray, image: np.ndarray, found: Preprocessing) -> float:
    """Return the largest difference between a prepared image and our own preparation, in [0, 1]; 1 for another size."""
    import PIL.Image

    height, width = both(found.size or 0)
    side = min(height, width)
    shorter = found.shorter_side() or side
    how = PIL.Image.Resampling[(found.interpolation or INTERPOLATION).upper()]
    tall, wide = (round(length * shorter / max(side, 1)) for length in (height, width))
    scaled = PIL.Image.fromarray(image).resize((wide, tall), how)
    top, left = (tall - height) // 2, (wide - width) // 2
    ours = np.asarray(scaled.crop((left, top, left + width, top + height)), np.float64).transpose(2, 0, 1) / 255
    return float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else 1.0
