"""The literature's ways of measuring shift stability, as named values.

A protocol says which shifts each image gets and what comes in at the border. The draw is part of it: the same seed gives
every network the same shifts, so that differences between networks are not differences between draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from shiftscope.shifts import sample
from shiftscope.signals import Mode

__all__ = ["Protocol", "mouton2020"]


@dataclass(frozen=True)
class Protocol:
    """One way of measuring.

    Attributes:
        name: the source's short name.
        max_shift: the largest shift along an axis, in pixels.
        mode: what comes in at the border.
        seed: of the draw of shifts.
    """

    name: str
    max_shift: int
    mode: Mode
    seed: int

    def draw(self, count: int) -> Int[Tensor, "image shift 2"]:
        """The shifts of ``count`` images: one each, uniform on the square of up to ``max_shift`` pixels."""
        return sample(count, self.max_shift, torch.Generator().manual_seed(self.seed))[:, None, :]


def mouton2020(max_shift: int = 8, *, seed: int = 0) -> Protocol:
    """Mouton, Myburgh and Davel 2020: each image shifted once, uniformly on [-m, m]^2, zero fill on a padded canvas.

    The source leaves m open; 8 pixels lands in its range. Ours draws from a fixed seed.

    >>> mouton2020().draw(5).shape
    torch.Size([5, 1, 2])
    """
    return Protocol("mouton2020", max_shift, "zero", seed)
