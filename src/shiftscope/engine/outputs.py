"""A model's outputs on images and on their shifted copies: the engine's public interface. It depends on no measure.

A model is any callable from a batch of images ``[image, channel, height, width]`` in [0, 1] to outputs ``[image, class]``
(the logits). Two methods compute the same outputs:

- ``direct`` shifts the images and runs the model on each copy. It works for every model.
- ``dense`` runs each operator of the model once for all shifts (:mod:`shiftscope.engine`). It is exact for stationary spatial
  parts, and tens of times cheaper for many shifts.

``auto`` chooses dense where the model's graph proves it exact, and gives the reason where it does not. Dense is compared with
direct on a few images and shifts of every block; where they differ, that block and the rest go direct, with a warning.

:func:`stream_outputs` yields blocks of images, so that memory does not grow with images x shifts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TypedDict, Unpack

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from shiftscope.engine.checks import (
    Model,
    check_fill,
    check_images,
    check_options,
    check_shifts,
    check_size,
    device_of,
)
from shiftscope.engine.dense import Method
from shiftscope.engine.direct import DIRECT_BATCH, Canvas, Direct
from shiftscope.engine.runner import Outputs, Runner
from shiftscope.errors import InputError
from shiftscope.shifts import Mode

__all__ = ["Method", "Model", "Outputs", "Runner", "open_runner", "shift_outputs", "stream_outputs", "track"]


class RunOptions(TypedDict, total=False):
    """Options of :func:`shift_outputs`, which describes them, and of :func:`stream_outputs`."""

    mode: Mode
    method: Method
    batch_size: int | None
    device: torch.device | str | None
    fill: Float[Tensor, " channel"] | float
    size: tuple[int, int] | None
    seen: Callable[[int], None]


def shift_outputs(
    model: Model,
    images: Float[Tensor, "image channel height width"],
    shifts: Shaped[Tensor, "*each shift 2"],
    *,
    mode: Mode = "zero",
    method: Method = "auto",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    fill: Float[Tensor, " channel"] | float = 0.0,
    size: tuple[int, int] | None = None,
) -> Outputs:
    """Run a model on every image and on each of its shifted copies.

    A module in training mode is evaluated, with a warning, and returned to training mode. No gradient is recorded.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class].
        images: the unshifted images, canvas included.
        shifts: (dy, dx) in pixels, [shift, 2] for all images or [image, shift, 2] for each its own. Floating-point shifts may be
            fractions of pixels: by Fourier transform in mode ``circular``, bilinear in mode ``zero``.
        mode: what comes in at the border: the ``fill`` (``zero``) or what left on the other side (``circular``).
        method: ``direct``, ``dense`` or, depending on the model's graph, ``auto``.
        batch_size: images per forward pass; chosen automatically if None. When memory runs out, it is halved with a warning.
        device: where to compute; the model's own by default.
        fill: the canvas's colour in mode ``zero``, one value or one per channel.
        size: (height, width) of the model's input, where images are larger, so that real content comes in at the border; by
            default that of the images.

    Returns:
        the outputs, on the CPU, in single precision.

    Raises:
        InputError: `images` are empty, integers or not finite; the shifts have another form; or `method` is ``dense`` where
            dense is not exact.
        ModelFailsError: the model raises an exception on these images.
        NotFiniteError: the model's outputs hold NaN or infinity.

    >>> mean = lambda images: images.mean(dim=(2, 3))
    >>> shift_outputs(mean, torch.ones(2, 3, 4, 4), torch.tensor([[1, 0], [0, 2]])).values[0, :, 0].tolist()
    [0.75, 0.5]
    """
    blocks = list(
        stream_outputs(
            model, images, shifts, mode=mode, method=method, batch_size=batch_size, device=device, fill=fill, size=size
        )
    )
    values, reference = torch.cat([block.values for block in blocks]), torch.cat([block.reference for block in blocks])
    return Outputs(values, reference, shifts, blocks[0].method, blocks[0].reason)


def stream_outputs(
    model: Model,
    images: Float[Tensor, "image channel height width"] | Iterable[Tensor],
    shifts: Shaped[Tensor, "*each shift 2"],
    **options: Unpack[RunOptions],
) -> Iterator[Outputs]:
    """Yield the outputs of :func:`shift_outputs`, a block of images at a time.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class].
        images: a batch, or an iterable of batches that are held one at a time; one batch if each image has its own shifts.
        shifts: (dy, dx) in pixels, [shift, 2] or [image, shift, 2].
        options: ``mode``, ``method``, ``batch_size`` (which is also the size of a block), ``device``, ``fill`` and ``size`` of
            :func:`shift_outputs`; and ``seen``, called with the number of images of each forward pass of the direct method.

    Yields:
        outputs of successive images.

    Raises:
        InputError: see :func:`shift_outputs`; ModelFailsError and NotFiniteError are two kinds of it.
    """
    batches = iter([images] if isinstance(images, Tensor) else images)
    first = next(batches, None)
    if first is None or len(first) == 0:
        raise InputError("`images` must hold at least one image, got none.")
    runner = open_runner(model, first, shifts, **options)
    outer = (first.shape[2], first.shape[3])
    done = 0
    for number, batch in enumerate(chain([first], batches)):
        if number and shifts.ndim == 3:
            raise InputError("`images` must be one batch where each image has shifts of its own.")
        check_images(batch, outer)
        start = 0
        while start < len(batch):
            part = batch[start : start + (runner.dense or runner.direct).batch_size]
            block = runner(part, shifts if shifts.ndim == 2 else shifts[start : start + len(part)], seed=done)
            start, done = start + len(part), done + len(part)
            if block.fell_back:
                runner.dense, runner.reason = None, block.reason
            yield block


def open_runner(
    model: Model,
    images: Tensor,
    shifts: Shaped[Tensor, "*each shift 2"],
    **options: Unpack[RunOptions],
) -> Runner:
    """Return a runner, which computes the outputs of :func:`shift_outputs` for batch after batch.

    Args:
        model: as for :func:`stream_outputs`, and all that follows.
        images: the first batch.
        shifts: (dy, dx) in pixels, [shift, 2] or [image, shift, 2].
        options: as for :func:`stream_outputs`.

    Raises:
        InputError: see :func:`shift_outputs`.
    """
    mode, method, batch_size = options.get("mode", "zero"), options.get("method", "auto"), options.get("batch_size")
    device, fill = options.get("device"), options.get("fill", 0.0)
    check_images(images)
    check_shifts(images, shifts)
    check_options(mode, method, batch_size)
    check_fill(images, fill)
    if isinstance(model, nn.Module) and model.training:
        warnings.warn("the model was in training mode; it is evaluated and then returned to training mode.", stacklevel=3)
    outer = (images.shape[2], images.shape[3])
    canvas = Canvas(mode, fill, check_size(outer, options.get("size"), mode))
    method = "direct" if canvas.size != outer else method
    direct = Direct(model, canvas, device_of(model, device), batch_size or DIRECT_BATCH, seen=options.get("seen"))
    return Runner(direct, images, shifts, method=method, batch_size=batch_size)


def track(blocks: Iterable[Outputs], progress: Callable[[int], None]) -> Iterator[Outputs]:
    """Yield blocks of outputs, and call ``progress`` with the number of images done after each."""
    done = 0
    for block in blocks:
        yield block
        done += len(block.reference)
        progress(done)
