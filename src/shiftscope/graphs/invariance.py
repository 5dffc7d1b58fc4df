"""Test by trial whether circular shifts change a model's outputs."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from shiftscope.graphs.sites import Pair

__all__ = ["INVARIANT", "output_change", "outputs_in_double", "random_steps"]

#: Relative changes below this are rounding in double precision, also behind layers that compute in single precision inside.
INVARIANT = 1e-6


def output_change(model: nn.Module, images: Tensor, steps: list[Pair], *, expected: Tensor | None = None) -> float | None:
    """Return how much circular shifts change a model's outputs, relative to the largest output.

    Each step shifts one of the images, in turn. The first that changes the outputs ends the trial.

    Args:
        model: in evaluation mode; a copy in double precision is tried.
        images: [image, channel, height, width].
        steps: shifts (dy, dx) in pixels.
        expected: outputs of the unshifted images; by default the model's own.

    Returns:
        the largest relative change; None if the model cannot be copied or run in double precision, or if all images get the same
        output, which proves nothing.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    >>> output_change(model, torch.rand(2, 1, 4, 4), [(1, 0)]) > 1e-3
    True
    """
    try:
        copy = deepcopy(model).double().eval()
        place = next((value.device for value in copy.parameters()), images.device)
        images, largest_change = images.double().to(place), 0.0
        with torch.no_grad():
            before = copy(images) if expected is None else expected
            largest = float(before.abs().max())
            if float((before - before[:1]).abs().max()) <= INVARIANT * largest:
                return None
            for number, step in enumerate(steps):
                one = slice(number % len(images), number % len(images) + 1)
                change = float((copy(images[one].roll(step, (2, 3))) - before[one]).abs().max()) / largest
                if not change < INVARIANT:
                    return change
                largest_change = max(largest_change, change)
        return largest_change
    except Exception:  # whatever the model raises on a copy or in double precision
        return None


def outputs_in_double(model: nn.Module, images: Tensor) -> Tensor | None:
    """Return a model's outputs in double precision; None if it cannot be copied or run in it."""
    try:
        copy = deepcopy(model).double().eval()
        place = next((value.device for value in copy.parameters()), images.device)
        with torch.no_grad():
            found: Tensor = copy(images.double().to(place))
        return found
    except Exception:  # whatever the model raises on a copy or in double precision
        return None


def random_steps(count: int, size: Pair, step: Pair, *, seed: int = 0) -> list[Pair]:
    """Return random non-zero shifts by multiples of a step; empty if the image is too small for one.

    The first is by the step itself along both axes, where the image has room, so that it changes the phase of every stride.
    """
    counts = [side // each for side, each in zip(size, step, strict=True)]
    if max(counts) < 2:
        return []
    generator = torch.Generator().manual_seed(seed)
    picks = (1 + torch.randperm(counts[0] * counts[1] - 1, generator=generator))[:count].tolist()
    first = min(1, counts[0] - 1) * counts[1] + min(1, counts[1] - 1)
    picks = [first, *(pick for pick in picks if pick != first)][:count]
    return [(pick // counts[1] * step[0], pick % counts[1] * step[1]) for pick in picks]
