"""Circular padding of any width; padding wider than the map repeats it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["WrappingPad2d"]


class WrappingPad2d(nn.CircularPad2d):
    """Pad maps circularly by any width.

    ``torch.nn.CircularPad2d`` refuses padding wider than the map, which a window of 7 positions needs on a map of 2.

    Args:
        padding: positions left, right, above and below; or one number for all.

    Shape:
        [image, channel, height, width] -> [image, channel, height + above + below, width + left + right].

    >>> WrappingPad2d((3, 0, 0, 0))(torch.tensor([[[[1.0, 2.0]]]])).tolist()
    [[[[2.0, 1.0, 2.0, 1.0, 2.0]]]]
    """

    def forward(self, input: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel tall wide"]:  # noqa: A002 - torch's name
        """Return the maps with their continuation around them."""
        (left, right, above, below), (height, width) = self.padding, input.shape[-2:]
        if max(above, below) <= height and max(left, right) <= width:
            return super().forward(input)
        rows = torch.arange(-above, height + below, device=input.device) % height
        columns = torch.arange(-left, width + right, device=input.device) % width
        return input[..., rows, :][..., columns]
