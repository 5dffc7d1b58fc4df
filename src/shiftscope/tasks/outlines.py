"""Draw boxes over a picture."""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["outlined"]

#: Width of an outline: 1 pixel, and one more for each so many pixels of the picture's shorter side.
PIXELS_PER_WIDTH = 150
#: The golden ratio spreads the hues of neighbouring classes.
GOLDEN = 0.618034

WHITE = (1.0, 1.0, 1.0)


def _colour(label: int) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb((label * GOLDEN + 0.08) % 1, 0.9, 1.0)


def outlined(
    picture: Float[Tensor, "3 height width"], boxes: Float[np.ndarray, "box 4"], labels: Int[np.ndarray, " box"] | None = None
) -> Float[Tensor, "3 height width"]:
    """Return a picture with the outlines of boxes; what lies outside is cut off.

    Args:
        picture: in [0, 1].
        boxes: (x1, y1, x2, y2), pixels.
        labels: class of each, which has its colour; None draws all in white.
    """
    drawn = picture.clone()
    height, width = picture.shape[1:]
    line = 1 + min(height, width) // PIXELS_PER_WIDTH
    colours = [WHITE] * len(boxes) if labels is None else [_colour(label) for label in labels.tolist()]
    for box, rgb in zip(boxes.round().astype(int).tolist(), colours, strict=True):
        colour = torch.tensor(rgb)[:, None, None]
        x1, y1, x2, y2 = box
        for left, top, right, bottom in (
            (x1, y1, x2, y1 + line),
            (x1, y2 - line, x2, y2),
            (x1, y1, x1 + line, y2),
            (x2 - line, y1, x2, y2),
        ):
            rows, columns = slice(max(top, 0), max(min(bottom, height), 0)), slice(max(left, 0), max(min(right, width), 0))
            drawn[:, rows, columns] = colour
    return drawn
