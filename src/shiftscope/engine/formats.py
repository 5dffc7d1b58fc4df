"""Choose a model's memory format by measuring: with channels last, convolutions on many processors are up to a third quicker."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor, nn

from shiftscope.engine.checks import evaluating

__all__ = ["as_channels_last", "channels_last_is_quicker", "module_is_quicker"]

#: Images of a trial, and how often each format is tried; the first time is not counted.
TRIAL, TRIES = 8, 3
#: Largest share of all passes that a trial may take.
SHARE = 0.007
#: Runs of fewer seconds gain too little to try.
LEAST_SECONDS = 20.0
#: Share of the time that channels last must save.
GAIN = 0.03


def as_channels_last(images: Tensor) -> Tensor:
    """Return the images with the channels of each pixel beside each other in memory; a model's layers keep that format."""
    return images.contiguous(memory_format=torch.channels_last)


def channels_last_is_quicker(run: Callable[[Tensor], object], image: Tensor, *, passes: int) -> bool:
    """Return whether a model is quicker on images in the format channels last.

    Which format is quicker depends on the model, the processor and the threads. Outputs of both differ in their last bits. A run
    of less than half a minute is not tried, and the answer is no, so that short runs give the same bits each time.

    Args:
        run: the model, from images [image, channel, height, width] to anything.
        image: [1, channel, height, width], one of them.
        passes: how many images the run will pass through the model.
    """
    count = min(TRIAL, int(SHARE * passes) // (2 * TRIES))
    if count < 1:
        return False
    images = image.expand(count, -1, -1, -1).contiguous()
    usual = _seconds(run, images)
    if min(usual) / count * passes < LEAST_SECONDS:
        return False
    return min(_seconds(run, as_channels_last(images))) < (1 - GAIN) * min(usual)


def module_is_quicker(model: object, run: Callable[[Tensor], object], image: Tensor, *, passes: int) -> bool:
    """Return :func:`channels_last_is_quicker` for a module with convolutions; False, without a trial, for anything else.

    Args:
        model: the model.
        run: calls it, and whatever else a pass needs.
        image: [1, channel, height, width], one of them.
        passes: how many images the run will pass through the model.
    """
    if not isinstance(model, nn.Module) or not any(isinstance(part, nn.Conv2d) for part in model.modules()):
        return False
    with evaluating(model), torch.no_grad():
        return channels_last_is_quicker(run, image, passes=passes)


def _seconds(run: Callable[[Tensor], object], images: Tensor) -> list[float]:
    found = []
    for _ in range(TRIES):
        started = perf_counter()
        run(images)  # returns its outputs on the CPU, so that a GPU has finished
        found.append(perf_counter() - started)
    return found[1:]
