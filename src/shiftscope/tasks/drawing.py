"""Draw maps over pictures, moved back by a shift."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from shiftscope.tasks.task import View

__all__ = ["blended", "class_colours", "heat"]

#: How much of the picture shines through a map.
THROUGH = 0.35
#: Colour of what the second view does not see.
UNSEEN = 0.5


def heat(values: Float[Tensor, "height width"], scale: Float[Tensor, "height width"]) -> Float[Tensor, "3 height width"]:
    """Return values as colours from dark blue over green to yellow, from the least to the largest value of ``scale``."""
    low, high = float(scale.min()), float(scale.max())
    share = ((values - low) / (high - low)).clamp(0, 1) if high > low else torch.zeros_like(values)
    stops = torch.tensor([[0.27, 0.0, 0.33], [0.23, 0.32, 0.55], [0.13, 0.57, 0.55], [0.37, 0.79, 0.38], [0.99, 0.91, 0.14]])
    place = share * (len(stops) - 1)
    lower = place.floor().long().clamp(max=len(stops) - 2)
    part = (place - lower)[..., None]
    return (stops[lower] * (1 - part) + stops[lower + 1] * part).permute(2, 0, 1)


def class_colours(classes: Integer[Tensor, "height width"]) -> Float[Tensor, "3 height width"]:
    """Return a colour for each class, the same for the same class in every map."""
    label = classes.long()
    hue = (label * 0.618034 + 0.6) % 1.0  # the golden ratio spreads the hues
    channels = [((hue * 6 - offset).abs() - 1).clamp(0, 1) for offset in (3.0, 2.0, 4.0)]
    colours = torch.stack([channels[0], 1 - channels[1], 1 - channels[2]])
    return 0.15 + 0.7 * colours


def blended(
    picture: Float[Tensor, "3 height width"], colours: Float[Tensor, "3 height width"], view: View
) -> Float[Tensor, "3 height width"]:
    """Return a map's colours over a picture, the map moved back; grey where its view does not see the picture."""
    down, right = (round(step) for step in view.shift)
    moved = torch.roll(colours, (-down, -right), dims=(1, 2))
    over = THROUGH * picture + (1 - THROUGH) * moved
    if not view.circular:
        height, width = view.size
        rows, columns = torch.arange(height) + down, torch.arange(width) + right
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None]
        over = torch.where(inside, over, torch.full_like(over, UNSEEN))
    return over.clamp(0, 1)
