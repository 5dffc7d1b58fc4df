"""The shifts that a model is compared under before and after a fix, and what comparisons of any output say about them."""

from __future__ import annotations

import torch
from torch import Tensor

from shiftscope.engine.framing import Framed, Shifting, frame
from shiftscope.shifts import grid
from shiftscope.surgery.plan import Surgery
from shiftscope.surgery.wrappers import AROUND

__all__ = ["SHIFTS", "TRAIN_AGAIN", "changes_layers", "described", "framings", "shifts_for"]

#: A note on fixes that change layers.
TRAIN_AGAIN = "A network trained without the fix usually loses accuracy by it until it is trained again."
#: The provenance's entry of the shifts.
SHIFTS = "measured under"
#: Inputs up to so many pixels are measured under every shift, larger ones under so many random shifts.
SMALL, DRAWN = 64, 8


def framings(images: Tensor, under: Shifting) -> tuple[Framed, ...]:
    """Return images framed for shifts of the chosen kind; by default of two kinds, the second circular.

    Args:
        images: [image, channel, height, width].
        under: how they are to be shifted.

    Raises:
        InputError: what :func:`shiftscope.engine.framing.frame` says.
    """
    first = under.frame(images)
    return (first,) if under.mode else (first, frame(images, first.size, "circular", first.max_shift))


def shifts_for(framed: Framed, seed: int) -> Tensor:
    """Return every shift, or for large inputs some without the zero shift, as many as the note says."""
    every = grid(framed.max_shift)
    if max(framed.size) <= SMALL or len(every) <= DRAWN + 1:
        return every
    others = every[(every != 0).any(dim=1)]
    return others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:DRAWN]]


def described(shifts: int, max_shift: int) -> str:
    """Return so many shifts in words: "the same 8 random shifts of up to 4 pixels"."""
    every = shifts >= (2 * max_shift + 1) ** 2 - 1
    return f"{'all' if every else 'the same'} {shifts} {'' if every else 'random '}shifts of up to {max_shift} pixels"


def changes_layers(surgery: Surgery) -> bool:
    """Return whether a fix changes layers instead of only wrapping the model."""
    return not all(each.layer == AROUND for each in surgery.changes)
