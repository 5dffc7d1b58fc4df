"""What a protocol is: which shifted views each image gets, what comes in at the border, and what is counted.

The draw is part of it: the same seed gives every network the same shifts, so that differences between networks are not
differences between draws. The shifts of an image depend on its place in the data and the seed alone, so that images can be
measured in any portions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from shiftscope.shifts import Mode, sample

__all__ = ["Border", "Protocol"]

#: What comes in at the border: black or the canvas's colour, the mean colour, what left on the other side, what lies around the
#: crop in a larger image, or the image mirrored or continued.
Border = Literal["zero", "mean", "circular", "crop", "reflect", "replicate"]
#: (dy, dx) in pixels.
Step = tuple[int | float, int | float]


@dataclass(frozen=True)
class Protocol:
    """One way of measuring.

    Attributes:
        name: the source's short name.
        max_shift: the largest shift along an axis, in pixels.
        mode: how the content moves, and what comes in at the border where ``around`` does not say otherwise.
        seed: of the draw of shifts.
        scores: what is counted over an image's views, names of :data:`shiftscope.audits.scores.SCORES`.
        drawn: how many shifts each image draws, uniform on the square of up to ``max_shift`` pixels; 0 where all follow ``path``.
        offsets: (dy, dx) added to each drawn shift, a view for each.
        path: (dy, dx) of the views of every image, where none is drawn.
        around: what comes in at the border, where it is not the mode's.
        surveyed: (measure, over) counted by :mod:`shiftscope.surveys` over every shift up to ``max_shift``; ``radius`` for each
            ring.
    """

    name: str
    max_shift: int | float
    mode: Mode
    seed: int
    scores: tuple[str, ...] = ()
    drawn: int = 1
    offsets: tuple[Step, ...] = ((0, 0),)
    path: tuple[Step, ...] = ()
    around: Literal["mean", "crop", "reflect", "replicate"] | None = None
    surveyed: tuple[tuple[str, str], ...] = ()

    @property
    def border(self) -> Border:
        """What comes in at the border."""
        return self.around or self.mode

    def draw(self, count: int, *, first: int = 0) -> Shaped[Tensor, "image view 2"]:
        """The shifts of ``count`` images from number ``first`` on, whole pixels as integers.

        >>> every = Protocol("x", 3, "zero", 0, drawn=2).draw(5)
        >>> torch.equal(Protocol("x", 3, "zero", 0, drawn=2).draw(2, first=3), every[3:])
        True
        """
        if self.path or not self.drawn:
            return torch.tensor(self.path).reshape(1, -1, 2).expand(count, -1, 2)
        generator = torch.Generator().manual_seed(self.seed)
        # Drawn in the order of images, so that the first ones are the same however many follow.
        steps = sample((first + count) * self.drawn, int(self.max_shift), generator).reshape(-1, self.drawn, 2)[first:]
        if self.offsets == ((0, 0),):
            return steps
        return (steps[:, :, None] + torch.tensor(self.offsets)).reshape(count, -1, 2)
