"""Split a source into training, validation and test images, and place images on a canvas.

The validation split is drawn once with its own seed, so that every network and every training seed sees the same one. If the
source has no test split, one is drawn in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from shiftscope.datasets.sources import Labelled, Source, is_folder, read
from shiftscope.errors import InputError
from shiftscope.runtime.progress import Report, silent
from shiftscope.runtime.seeds import stream
from shiftscope.runtime.settings import Count, Pixels, Settings, Text
from shiftscope.shifts import translate

__all__ = ["Canvas", "DataSpec", "Dataset", "load"]


class DataSpec(Settings):
    """Which images, how many, and on what canvas.

    Attributes:
        name: ``digits``, ``mnist``, ``cifar10``, a Hugging Face id (owner/name), or the path of an image folder.
        image_size: height and width to bring every image to, pixels; by default the images' own.
        canvas: height and width of the canvas, pixels. The margin around the image is the largest possible shift.
        background: colour of the canvas: ``black`` (0 before normalisation) or ``mean`` (the mean colour of the training images,
            0 after normalisation).
        allow_cut: accept shifts larger than the margin, which push an image's edge off the canvas; the record then gives the
            share of test images whose content was cut.
        train_images: number of training images, picked with ``split_seed``; by default all.
        validation_images: number of training images to hold out for early stopping; if it is more than half of them, a fifth.
        test_images: number of test images; by default all, or a fifth of a source without a test split.
        split_seed: seed of the splits.
    """

    name: Text = "digits"
    image_size: Pixels | None = None
    canvas: Pixels = 40
    background: Literal["black", "mean"] = "black"
    allow_cut: bool = False
    train_images: Count | None = None
    validation_images: Count = 5000
    test_images: Count | None = None
    split_seed: int = Field(0, gt=-(2**63), lt=2**63)


@dataclass(frozen=True)
class Canvas:
    """A square of one colour with the image in its centre.

    Attributes:
        size: height and width, pixels.
        colour: of the background, one value in [0, 1] per channel.
    """

    size: int
    colour: Float[Tensor, " channel"]

    def place(
        self, images: UInt8[Tensor, "image channel height width"], shifts: Int[Tensor, "image 2"] | None = None
    ) -> Float[Tensor, "image channel size size"]:
        """Place images on the canvas.

        Args:
            images: of at most the canvas's size.
            shifts: (dy, dx) of each image from the centre, pixels; None for no shift.

        Returns:
            the canvases in [0, 1], on the images' device.
        """
        background = self.colour.mul(255).round().to(images.device, images.dtype)
        if shifts is not None:
            return translate(images, shifts, size=(self.size, self.size), fill=background).float().div_(255)
        count, channels, height, width = images.shape
        canvas = background.reshape(-1, 1, 1).float().expand(count, channels, self.size, self.size).clone()
        top, left = (self.size - height) // 2, (self.size - width) // 2
        canvas[:, :, top : top + height, left : left + width] = images
        return canvas.div_(255)

    def margin(self, image_size: Sequence[int]) -> int:
        """Return the largest shift, in pixels, that keeps an image of (height, width) on the canvas."""
        return (self.size - max(image_size)) // 2


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits on a canvas.

    Attributes:
        train, validation, test: images and labels, without canvas.
        classes: names, by label.
        canvas: to place the images on.
        mean: of the training images' pixels in [0, 1], per channel, without canvas.
        deviation: standard deviation of the same.
        origin: where the images came from.
        checksum: SHA-256 of the decoded source, all splits.
    """

    train: Labelled
    validation: Labelled
    test: Labelled
    classes: tuple[str, ...]
    canvas: Canvas
    mean: Float[Tensor, " channel"]
    deviation: Float[Tensor, " channel"]
    origin: str
    checksum: str


def load(spec: DataSpec, *, data_dir: Path | None = None, online: bool = True, report: Report = silent) -> Dataset:
    """Read and split the images of a specification.

    Args:
        spec: which images.
        data_dir: a local folder that holds the data set; by default the environment's ``SHIFTSCOPE_DATA``, else the hub.
        online: whether to use the network.
        report: called with each progress event.

    Raises:
        InputError: :func:`shiftscope.datasets.sources.read` fails, images are larger than the canvas, or too few for the splits.

    >>> data = load(DataSpec(image_size=20, validation_images=100))
    >>> len(data.train), len(data.validation), len(data.test), data.canvas.margin((20, 20))
    (1338, 100, 359, 10)
    """
    known = os.environ.get("SHIFTSCOPE_DATA")
    if data_dir is None and known and not is_folder(spec.name):
        data_dir = Path(known)
    source = read(spec.name, image_size=spec.image_size, data_dir=data_dir, online=online, report=report)
    height, width = source.splits["train"].images.shape[2:]
    if max(height, width) > spec.canvas:
        raise InputError(
            f"`data.canvas` must be at least as large as the image, got {spec.canvas} for images of {height}x{width}.",
            "Use a larger canvas or a smaller `data.image_size`.",
        )
    train, validation, test = _splits(source, spec)
    mean, deviation = _statistics(train.images)
    # The nearest colour of 8 bits, so that a shift fills with the canvas's colour exactly.
    colour = mean.mul(255).round().div(255) if spec.background == "mean" else torch.zeros_like(mean)
    canvas = Canvas(spec.canvas, colour)
    return Dataset(train, validation, test, source.classes, canvas, mean, deviation, source.origin, source.checksum)


def _splits(source: Source, spec: DataSpec) -> tuple[Labelled, Labelled, Labelled]:
    """Return training, validation and test images."""
    pool = source.splits["train"]
    order = torch.randperm(len(pool), generator=stream(spec.split_seed, "splits"))
    if "test" in source.splits:
        test = source.splits["test"]
        if spec.test_images is not None:
            test = test[torch.randperm(len(test), generator=stream(spec.split_seed, "test"))[: spec.test_images]]
    else:
        held_out = spec.test_images or len(pool) // 5
        test, order = pool[order[:held_out]], order[held_out:]
    held_out = spec.validation_images if spec.validation_images <= len(order) // 2 else len(order) // 5
    validation, order = pool[order[:held_out]], order[held_out:]
    train = pool[order[: spec.train_images]]
    wanted = {"train": spec.train_images or 1, "test": spec.test_images or 1}
    for name, split in (("test", test), ("train", train)):
        if len(split) < wanted[name]:
            raise InputError(
                f"`data.{name}_images` asks for {wanted[name]} images, but only {len(split)} of {len(pool)} are left beside "
                f"{held_out} for validation.",
                "Lower one of them.",
            )
    return train, validation, test


def _statistics(images: UInt8[Tensor, "image channel height width"]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, from exact counts of the 256 values."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(colour.flatten(), minlength=256) for colour in images.unbind(1)]).double()
    shares = counts / counts.sum(dim=1, keepdim=True)
    mean = shares @ levels
    deviation = (shares @ levels.square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), deviation.where(deviation > 0, 1.0).float()
