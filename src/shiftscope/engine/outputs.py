"""The engine: a model's outputs on images and on their shifted copies. It knows no measure.

A model is any callable from a batch of images ``[image, channel, height, width]`` in [0, 1] to outputs ``[image, class]``
(the vectors before the softmax). Two ways lead to the same outputs:

- ``direct`` shifts the images and runs the model on each copy. It works for everything.
- ``dense`` runs the model's operators once on what all shifts see together (:mod:`shiftscope.engine`). It is exact for stationary
  spatial parts, and tens of times cheaper where many shifts are asked for.

``auto`` takes dense where the model's graph proves that it is exact, and says why where it does not. Every use of dense is
compared with direct on a sample: a few shifts of the fullest images of the first batch.

Nothing of size images x shifts need be held: :func:`stream_outputs` hands out blocks of images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from shiftscope.engine.dense import Method, choose
from shiftscope.engine.direct import Direct, Model, World
from shiftscope.errors import InputError
from shiftscope.shifts import Mode

__all__ = ["Method", "Model", "Outputs", "counted", "evaluating", "shift_outputs", "stream_outputs"]


@dataclass(frozen=True)
class Outputs:
    """What a model said about images, unshifted and under each of their shifts.

    Attributes:
        values: [image, shift, class], outputs of the shifted images.
        reference: [image, class], outputs of the unshifted images.
        shifts: [shift, 2] where all images share them, [image, shift, 2] where each has its own; (dy, dx) in pixels,
            content moves down and right when positive.
        method: the way they were computed.
        reason: why that way, in a sentence.
    """

    values: Float[Tensor, "image shift class"]
    reference: Float[Tensor, "image class"]
    shifts: Shaped[Tensor, "*each shift 2"]
    method: Literal["direct", "dense"] = "direct"
    reason: str = "Direct was asked for."


def shift_outputs(
    model: Model,
    images: Float[Tensor, "image channel height width"],
    shifts: Shaped[Tensor, "*each shift 2"],
    *,
    mode: Mode | Literal["crop"] = "zero",
    method: Method = "auto",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    fill: Float[Tensor, " channel"] | float = 0.0,
    crop: int | tuple[int, int] | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Outputs:
    """Run a model on every image and on each of its shifted copies.

    A module in training mode is switched to evaluation for the duration (said as a warning); no gradient is recorded.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class].
        images: the unshifted images, canvas included; in mode ``crop`` the larger images that are cropped from.
        shifts: (dy, dx) in pixels, [shift, 2] for all images or [image, shift, 2] for each its own. Parts of pixels where they
            are floating point: by Fourier transform in mode ``circular``, bilinear otherwise.
        mode: what comes in at the border: the ``fill`` (``zero``), what left on the other side (``circular``), or what
            lies there in the larger image (``crop``).
        method: ``direct``, ``dense`` or, by the model's graph, ``auto``.
        batch_size: images a forward pass; found by itself if None. Halved, and said, when memory runs out.
        device: where to compute; the model's own by default.
        fill: the canvas's colour in mode ``zero``, one value or one a channel.
        crop: (height, width) of the model's input in mode ``crop``, cut from the images' centre.
        precision: ``bf16`` runs direct in mixed precision.

    Returns:
        the outputs, on the CPU, in single precision.

    Raises:
        InputError: no image, integer images, values that are not finite; a model whose outputs are not finite vectors, one an
            image, or that fails on such images; shifts of another form, beyond the margin of ``crop``, or in
            parts of pixels where only whole ones make sense; ``dense`` asked for where it is not exact.
        RuntimeError: dense and direct disagree, which they must not.

    >>> mean = lambda images: images.mean(dim=(2, 3))
    >>> shift_outputs(mean, torch.ones(2, 3, 4, 4), torch.tensor([[1, 0], [0, 2]])).values[0, :, 0].tolist()
    [0.75, 0.5]
    """
    blocks = list(
        stream_outputs(
            model,
            images,
            shifts,
            mode=mode,
            method=method,
            batch_size=batch_size,
            device=device,
            fill=fill,
            crop=crop,
            precision=precision,
        )
    )
    values, reference = torch.cat([block.values for block in blocks]), torch.cat([block.reference for block in blocks])
    return Outputs(values, reference, shifts, blocks[0].method, blocks[0].reason)


def stream_outputs(
    model: Model,
    images: Float[Tensor, "image channel height width"] | Iterable[Tensor],
    shifts: Shaped[Tensor, "*each shift 2"],
    *,
    mode: Mode | Literal["crop"] = "zero",
    method: Method = "auto",
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    fill: Float[Tensor, " channel"] | float = 0.0,
    crop: int | tuple[int, int] | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[Outputs]:
    """The outputs of :func:`shift_outputs`, a block of images at a time.

    Args:
        model: as there.
        images: a batch, or an iterable of batches, held one at a time; one batch where images have shifts of their own.
        shifts: as there, like all that follows.
        mode: as there.
        method: as there.
        batch_size: as there.
        device: as there.
        fill: as there.
        crop: as there.
        precision: as there.

    Yields:
        outputs of successive images.

    Raises:
        InputError: as there.
        RuntimeError: as there.
    """
    batches = iter([images] if isinstance(images, Tensor) else images)
    first = next(batches, None)
    if first is None or len(first) == 0:
        raise InputError("`images` must hold at least one image, got none.")
    world = World(mode, _pair(crop), fill, tuple(first.shape[2:]) if first.ndim == 4 else ())
    _check_options(method, precision, batch_size)
    check_images(first, world)
    check_shifts(first, shifts, world)
    check_fill(first, world)
    place = torch.device(device) if device else device_of(model)
    if isinstance(model, nn.Module) and model.training:
        warnings.warn("the model was in training mode; it is evaluated, and handed back as it was.", stacklevel=2)
    direct = Direct(model, world, place, batch_size, precision)
    with evaluating(model), torch.inference_mode():
        dense, reason = choose(model, first, shifts, world, place, method, direct, batch_size)
    unshifted = _unshifted(shifts) if shifts.ndim == 2 else None
    for number, batch in enumerate(chain([first], batches)):
        if number and shifts.ndim == 3:
            raise InputError("`images` must be one batch where each image has shifts of its own.")
        check_images(batch, world)
        start = 0
        while start < len(batch):
            part = batch[start : start + (dense or direct).block]
            steps = shifts if shifts.ndim == 2 else shifts[start : start + len(part)]
            start += len(part)
            # Neither mode may reach whoever takes the block.
            with evaluating(model), torch.inference_mode():
                values = dense(part) if dense else direct(part, steps)
                reference = direct.reference(part) if unshifted is None else values[:, unshifted]
            yield Outputs(values.clone(), reference.clone(), steps, "dense" if dense else "direct", reason)


def counted(blocks: Iterable[Outputs], tell: Callable[[int], None]) -> Iterator[Outputs]:
    """Blocks of outputs as they come; ``tell`` hears after each how many images are done."""
    done = 0
    for block in blocks:
        yield block
        done += len(block.reference)
        tell(done)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode for a module, and every part's former mode again afterwards; nothing for any other callable."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def check_labels(labels: Tensor | None) -> None:
    """Labels are whole numbers, one an image."""
    if labels is not None and (labels.ndim != 1 or labels.is_floating_point()):
        raise InputError(f"`labels` must be whole numbers, one an image, got shape {tuple(labels.shape)} of {labels.dtype}.")


def check_images(images: Tensor, world: World) -> None:
    if images.ndim != 4 or tuple(images.shape[2:]) != world.shape:
        raise InputError(f"`images` must be [image, channel, height, width], all of one size, got shape {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise InputError(f"`images` must be floating point in [0, 1], got {images.dtype}. Divide by 255 first.")
    if not images.isfinite().all():
        raise InputError("`images` must be finite, got NaN or infinity.")


def _check_options(method: str, precision: str, batch_size: int | None) -> None:
    if method not in ("auto", "direct", "dense"):
        raise InputError(f"`method` must be 'auto', 'direct' or 'dense', got {method!r}.")
    if precision not in ("fp32", "bf16"):
        raise InputError(f"`precision` must be 'fp32' or 'bf16', got {precision!r}.")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"`batch_size` must be 1 or more images, got {batch_size}.")


def check_fill(images: Tensor, world: World) -> None:
    fill = torch.as_tensor(world.fill)
    if fill.ndim > 1 or fill.numel() not in (1, images.shape[1]):
        raise InputError(
            f"`fill` must be one value or one for each of {images.shape[1]} channels, got shape {tuple(fill.shape)}."
        )


def check_shifts(images: Tensor, shifts: Tensor, world: World) -> None:
    if shifts.ndim not in (2, 3) or shifts.shape[-1] != 2 or 0 in shifts.shape:
        raise InputError(f"`shifts` must be [shift, 2] or [image, shift, 2], at least one, got shape {tuple(shifts.shape)}.")
    if shifts.ndim == 3 and len(shifts) != len(images):
        raise InputError(f"`shifts` must hold a list for each of {len(images)} images, got {len(shifts)}.")
    if world.mode not in ("zero", "circular", "crop"):
        raise InputError(f"`mode` must be 'zero', 'circular' or 'crop', got {world.mode!r}.")
    if (world.mode == "crop") != (world.crop is not None):
        raise InputError("`crop` is the size of the model's input in mode 'crop', and belongs to that mode only.")
    if shifts.is_floating_point() and not shifts.isfinite().all():
        raise InputError("`shifts` must be finite.")
    if world.crop is not None:
        margins = [
            min(start, whole - start - part) for start, whole, part in zip(world.corner, world.shape, world.crop, strict=True)
        ]
        reach = shifts.abs().reshape(-1, 2).amax(0).ceil().int().tolist()
        if min(margins) < 0 or reach[0] > margins[0] or reach[1] > margins[1]:
            raise InputError(
                f"`shifts` of up to {tuple(reach)} pixels exceed the margin {tuple(margins)} that images of {world.shape} leave "
                f"around a crop of {world.crop}. Use smaller shifts or larger images."
            )


def _unshifted(shifts: Tensor) -> int | None:
    """Where among shared shifts the shift of zero is."""
    found = (shifts == 0).all(dim=1).nonzero()
    return int(found[0]) if len(found) else None


def device_of(model: object) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _pair(value: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (value, value) if isinstance(value, int) else value
