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


def outlined(
    picture: Float[Tensor, "3 height width"], boxes: Float[np.ndarray, "box 4"], labels: Int[np.ndarray, " box"]
) -> Float[Tensor, "3 height width"]:
    """Return a picture with the outlines of boxes (x1, y1, x2, y2), each class in its colour; what lies outside is cut off."""
    drawn = picture.clone()
    height, width = picture.shape[1:]
    line = 1 + min(height, width) // PIXELS_PER_WIDTH
    for box, label in zip(boxes.round().astype(int).tolist(), labels.tolist(), strict=True):
        colour = torch.tensor(colorsys.hsv_to_rgb((label * GOLDEN + 0.08) % 1, 0.9, 1.0))[:, None, None]
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
