"""Where what a model saw lies in the images that it was given, to move its answers back there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

__all__ = ["Placing"]


@dataclass(frozen=True)
class Placing:
    """Where the part of each image lies that a model saw, moved by whole pixels and perhaps enlarged.

    Attributes:
        corners: [image, 2], (row, column) in the image of the first pixel that the model saw; may lie outside.
        seen: (height, width) of the part that it saw, pixels of the image; it was enlarged to ``size``.
        size: (height, width) of the image and of the model's input, pixels.
        circular: whether content that left on one side entered on the other.
    """

    corners: Int[Tensor, "image 2"]
    seen: tuple[int, int]
    size: tuple[int, int]
    circular: bool

    def maps_back(self, maps: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel height width"]:
        """Return maps of what the model saw as maps of the images. Pixels that it did not see repeat the nearest one that it saw.

        A map moves by whole pixels, so that its values stay the same bits.

        >>> place = Placing(torch.tensor([[0, 1]]), seen=(1, 4), size=(1, 4), circular=False)
        >>> place.maps_back(torch.tensor([[[[5.0, 6.0, 7.0, 8.0]]]])).flatten().tolist()
        [5.0, 5.0, 6.0, 7.0]
        """
        if self.seen != self.size:
            maps = functional.interpolate(maps, self.seen, mode="bilinear", align_corners=False)
        rows, columns = (self._sources(axis) for axis in (0, 1))
        return torch.stack([each[:, down][:, :, right] for each, down, right in zip(maps, rows, columns, strict=True)])

    def boxes_back(self, boxes: Float[Tensor, "*any 4"], image: int) -> Float[Tensor, "*any 4"]:
        """Return boxes (x1, y1, x2, y2) of what the model saw of an image as boxes of the image, in double precision.

        Adding whole pixels then rounds nothing that single precision shows. Of circular images a box lies where its centre is in
        the image.
        """
        scale = torch.tensor([part / side for part, side in zip(self.seen, self.size, strict=True)], dtype=torch.float64).flip(0)
        found = boxes.double() * scale.repeat(2).to(boxes.device) + self.corners[image].flip(0).repeat(2).to(boxes)
        if not self.circular:
            return found
        extent = torch.tensor(self.size, dtype=torch.float64, device=boxes.device).flip(0)
        centre = (found[..., :2] + found[..., 2:]) / 2
        return found - ((centre / extent).floor() * extent).repeat(*[1] * (found.ndim - 1), 2)

    def inside(self) -> Bool[Tensor, "image 1 height width"]:
        """Return which pixels of the images the model saw."""
        rows, columns = (self._places(axis) for axis in (0, 1))
        if self.circular:
            return torch.ones(len(rows), 1, *self.size, dtype=torch.bool, device=rows.device)
        known = [(each >= 0) & (each < side) for each, side in zip((rows, columns), self.seen, strict=True)]
        return (known[0][:, :, None] & known[1][:, None, :])[:, None]

    def _places(self, axis: int) -> Int[Tensor, "image position"]:
        """Return where each row or column of the image lies in what the model saw."""
        return torch.arange(self.size[axis], device=self.corners.device) - self.corners[:, axis, None]

    def _sources(self, axis: int) -> Int[Tensor, "image position"]:
        places = self._places(axis)
        return places % self.size[axis] if self.circular else places.clamp(0, self.seen[axis] - 1)
