"""What a study trains and measures on: splits of a source, and the canvas the images are put on.

The validation split is drawn once with a seed of its own, so that every network and every training seed sees the same one.
A source without a test split gives up a share of its images for one, in the same way.
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

from shiftscope.datasets.sources import Labelled, Progress, Source, is_image_folder, read
from shiftscope.errors import InputError
from shiftscope.runtime.seeds import stream
from shiftscope.runtime.settings import Spec
from shiftscope.shifts import translate

__all__ = ["Canvas", "DataSpec", "Dataset", "load"]


class DataSpec(Spec):
    """Which images, how many, and on what canvas.

    Attributes:
        name: ``digits``, ``mnist``, ``cifar10``, a Hugging Face id (owner/name), or the path of an image folder.
        image_size: height and width to bring every image to, pixels; left out keeps the images' own.
        canvas: height and width of the canvas, pixels. Half of what is left around the image is the largest possible shift.
        background: the canvas's colour: ``black`` (0 before normalisation) or ``mean`` (the training images' mean colour, 0
            after it).
        allow_cut: accept shifts larger than the margin, which push an image's edge off the canvas; the record then says for
            what share of the test images content was cut.
        train_images: use so many training images only, picked with ``split_seed``.
        validation_images: how many training images are held out to stop early by.
        test_images: use so many test images only; of a source without a test split, hold out so many (a fifth by default).
        split_seed: draws the splits.
    """

    name: str = "digits"
    image_size: int | None = Field(None, ge=1)
    canvas: int = Field(40, ge=1)
    background: Literal["black", "mean"] = "black"
    allow_cut: bool = False
    train_images: int | None = Field(None, ge=1)
    validation_images: int = Field(5000, ge=1)
    test_images: int | None = Field(None, ge=1)
    split_seed: int = 0


@dataclass(frozen=True)
class Canvas:
    """A square of one colour with the image in its centre.

    Attributes:
        size: height and width, pixels.
        colour: of the background, one value in [0, 1] for each colour of the image.
    """

    size: int
    colour: Float[Tensor, " channel"]

    def place(
        self, images: UInt8[Tensor, "image channel height width"], shifts: Int[Tensor, "image 2"] | None = None
    ) -> Float[Tensor, "image channel size size"]:
        """Images in [0, 1] on the canvas, each moved by its own (dy, dx); on the images' device."""
        background = self.colour.mul(255).round().to(images.device, images.dtype)
        if shifts is not None:
            return translate(images, shifts, size=(self.size, self.size), fill=background).float().div_(255)
        count, channels, height, width = images.shape
        canvas = background.reshape(-1, 1, 1).float().expand(count, channels, self.size, self.size).clone()
        top, left = (self.size - height) // 2, (self.size - width) // 2
        canvas[:, :, top : top + height, left : left + width] = images
        return canvas.div_(255)

    def margin(self, image_size: Sequence[int]) -> int:
        """The largest shift that cuts nothing of an image of (height, width), pixels."""
        return (self.size - max(image_size)) // 2


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits on a canvas.

    Attributes:
        train, validation, test: images as they came, without canvas.
        classes: names, by label.
        canvas: what to put the images on.
        mean, deviation: of the training images' pixels in [0, 1], colour by colour, without canvas.
        origin: where the images came from.
        checksum: of the whole decoded source.
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


def load(spec: DataSpec, *, data_dir: Path | None = None, progress: Progress = lambda *_: None) -> Dataset:
    """Read, split and describe the images of a specification.

    Args:
        spec: which images.
        data_dir: a local folder that holds the data set; else the environment's ``SHIFTSCOPE_DATA``; else the hub.
        progress: told what is going on (sentence, done, of how many).

    Raises:
        InputError: what ``sources.read`` says, an image larger than the canvas, or too few images for the splits.

    >>> data = load(DataSpec(image_size=20, validation_images=100))
    >>> len(data.train), len(data.validation), len(data.test), data.canvas.margin((20, 20))
    (1338, 100, 359, 10)
    """
    chosen, known = data_dir, os.environ.get("SHIFTSCOPE_DATA")
    if chosen is None and known and not is_image_folder(spec.name):
        chosen = Path(known)
    source = read(spec.name, image_size=spec.image_size, data_dir=chosen, progress=progress)
    height, width = source.splits["train"].images.shape[2:]
    if max(height, width) > spec.canvas:
        raise InputError(
            f"`data.canvas` must be at least as large as the image, got {spec.canvas} for images of {height}x{width}. "
            "Use a larger canvas or a smaller `data.image_size`."
        )
    train, validation, test = _splits(source, spec)
    mean, deviation = _statistics(train.images)
    # The nearest colour that a pixel can have, so that what a shift brings in is what the canvas is made of.
    colour = mean.mul(255).round().div(255) if spec.background == "mean" else torch.zeros_like(mean)
    canvas = Canvas(spec.canvas, colour)
    return Dataset(train, validation, test, source.classes, canvas, mean, deviation, source.origin, source.checksum)


def _splits(source: Source, spec: DataSpec) -> tuple[Labelled, Labelled, Labelled]:
    pool = source.splits["train"]
    order = torch.randperm(len(pool), generator=stream(spec.split_seed, "splits"))
    if "test" in source.splits:
        test = source.splits["test"]
        if spec.test_images is not None:
            test = test[torch.randperm(len(test), generator=stream(spec.split_seed, "test"))[: spec.test_images]]
    else:
        held_out = spec.test_images or len(pool) // 5
        test, order = pool[order[:held_out]], order[held_out:]
    validation, order = pool[order[: spec.validation_images]], order[spec.validation_images :]
    train = pool[order[: spec.train_images]]
    wanted = {"train": spec.train_images or 1, "test": spec.test_images or 1}
    for name, split in (("test", test), ("train", train)):
        if len(split) < wanted[name]:
            raise InputError(
                f"`data.{name}_images` asks for {wanted[name]} images, but only {len(split)} of {len(pool)} are left beside "
                f"{spec.validation_images} for validation. Lower one of them."
            )
    return train, validation, test


def _statistics(images: UInt8[Tensor, "image channel height width"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each colour, from exact counts of the 256 values."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(colour.flatten(), minlength=256) for colour in images.unbind(1)]).double()
    shares = counts / counts.sum(dim=1, keepdim=True)
    mean = shares @ levels
    deviation = (shares @ levels.square() - mean.square()).clamp_min(0).sqrt()
    return mean.float(), deviation.where(deviation > 0, 1.0).float()
