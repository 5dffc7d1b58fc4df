"""Choose images that suit a model, and read them a block at a time.

Which size: data sets that a study trained the model on keep their canvas; so do other data sets for such a network, and for any
model that is explained or fixed. For an audit of any other model they are scaled to its input. Images of a folder are scaled so
that the shorter side spans the input and a margin around it, a fourteenth on each side (256 for 224) or the largest shift if
that is more; the centre is cut out, and an audit takes its crops from the margin.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from shiftscope.datasets.dataset import Canvas, Dataset, DataSpec, load
from shiftscope.datasets.folders import ImageFolder, list_images, parquet_files
from shiftscope.datasets.sources import HUB_NAMES, Labelled, is_folder, read
from shiftscope.errors import InputError
from shiftscope.runtime.progress import Report, silent
from shiftscope.runtime.seeds import stream

__all__ = ["Block", "ImageBlocks", "dataset_for", "largest_shift", "open_images"]

#: The margin on each side of a folder's images is the model's input divided by this.
MARGIN_PART = 14
#: Height and width of the canvas for the digits, and of the digits on it, where nothing else says.
DIGITS_CANVAS, DIGITS_SIZE = 40, 20
#: The largest shift by default, pixels.
DEFAULT_SHIFT = 8


@dataclass(frozen=True)
class Block:
    """Some of the images of an audit.

    Attributes:
        images: in [0, 1], [image, channel, height, width].
        labels: of the images; None where there are none.
        numbers: their indices among all images.
        damaged: names of files among them that cannot be read.
    """

    images: Tensor
    labels: Tensor | None
    numbers: Tensor
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ImageBlocks:
    """The images of an audit, read a block at a time.

    Attributes:
        source: a folder, or images in memory.
        count: number of images.
        shape: (channels, height, width) of each, margin included.
        size: height and width of the model's input, pixels.
        canvas: to place images in memory on.
        fill: the canvas's colour, one value in [0, 1] per channel.
        mean: mean colour, one value in [0, 1] per channel; None where it is unknown.
        classes: number of classes; None without labels.
        origin: where the images came from.
        checksum: of the images.
        notes: sentences for the reader of the results.
    """

    source: ImageFolder | Labelled
    count: int
    shape: tuple[int, int, int]
    size: int
    canvas: Canvas | None
    fill: tuple[float, ...]
    mean: tuple[float, ...] | None
    classes: int | None
    origin: str
    checksum: str
    notes: tuple[str, ...]

    def read(self, start: int, stop: int) -> Block:
        """Read the images from index ``start`` to before ``stop``."""
        if isinstance(self.source, ImageFolder):
            folder = self.source
            images, places, damaged = folder.read(start, stop, size=self.shape[1], channels=self.shape[0])
            labels = None if folder.labels is None else torch.tensor([folder.labels[place] for place in places], dtype=torch.long)
            return Block(images, labels, torch.tensor(places, dtype=torch.long), damaged)
        assert self.canvas is not None  # noqa: S101 - images in memory always have one
        part = self.source[start:stop]
        images = self.canvas.place(part.images)
        if images.shape[2] != self.size:
            images = functional.interpolate(images, (self.size,) * 2, mode="bilinear", antialias=True).clamp_(0, 1)
        return Block(images, part.labels, torch.arange(start, start + len(part)))

    def example(self) -> Tensor:
        """Return the first readable image, [1, channel, height, width]."""
        blocks = (self.read(start, start + 1).images for start in range(self.count))
        return next(images for images in blocks if len(images))


def open_images(
    name: str | None = None,
    *,
    count: int,
    image: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    trained_on: DataSpec | None = None,
    size: int | None = None,
    max_shift: int | None = None,
    data_dir: Path | None = None,
    report: Report = silent,
) -> ImageBlocks:
    """Open the images that a model is audited on.

    Args:
        name: digits, mnist, cifar10, a hub id or the path of an image folder; by default ``trained_on``, else the digits.
        count: number of images, picked with a fixed seed.
        image: (channels, height, width) that the model takes; None where that is unknown.
        mean: mean colour of the model's normalisation, one value in [0, 1] per channel; by default the data's.
        trained_on: what a study trained the model on; None for other models.
        size: height and width of the model's input, pixels, where ``image`` is unknown; by default the images' own.
        max_shift: the largest shift to leave room for, pixels.
        data_dir: a local folder that holds the data set.
        report: called with each progress event.

    Raises:
        InputError: there are no such images, or the model does not take them.
    """
    if count < 1:
        raise InputError(f"`images` must be 1 or more, got {count}.", "Leave it out to take the default.")
    channels, size = (image[0], image[1]) if image else (None, size)
    if name is not None and is_folder(name) and not parquet_files(Path(name)):
        return _from_folder(list_images(Path(name), count=count), count, size, channels, max_shift, mean)
    data = _fitting(name, channels, size, trained_on, scale=True, data_dir=data_dir, report=report)
    test, notes = _sample(data.test, count)
    side = size or data.canvas.size
    return ImageBlocks(
        source=test,
        count=len(test),
        shape=(test.images.shape[1], side, side),
        size=side,
        canvas=data.canvas,
        fill=tuple(data.canvas.colour.tolist()),
        mean=mean or tuple(data.mean.tolist()),
        classes=len(data.classes),
        origin=data.origin,
        checksum=data.checksum,
        notes=notes,
    )


def dataset_for(
    image: tuple[int, int, int] | None,
    trained_on: DataSpec | None,
    *,
    name: str | None = None,
    canvas: int | None = None,
    data_dir: Path | None = None,
    report: Report = silent,
) -> Dataset:
    """Load the data set that a model is explained and fixed on.

    Args:
        image: (channels, height, width) that the model takes; None where that is unknown.
        trained_on: what a study trained the model on; None for other models.
        name: of a data set, or the path of an image folder; by default ``trained_on``, else the digits.
        canvas: height and width of the canvas, pixels; by default the height that the model takes.
        data_dir: a local folder that holds the data set.
        report: called with each progress event.

    Raises:
        InputError: there is no such data set, its images are larger than the canvas, or the model takes other channels.
    """
    if canvas is not None and canvas < 1:
        raise InputError(f"`canvas` must be 1 or more pixels, got {canvas}.", "Leave it out to take the model's input.")
    size = canvas or (image[1] if image else trained_on.canvas if trained_on else DIGITS_CANVAS)
    return _fitting(name, image[0] if image else None, size, trained_on, scale=False, data_dir=data_dir, report=report)


def largest_shift(data: Dataset, max_shift: int | None) -> int:
    """Return the largest shift to measure on a data set's canvas, pixels.

    Args:
        data: images and their canvas.
        max_shift: the largest shift asked for. By default 8 or, if that is less, the margin of the canvas around the image;
            without a margin, where every shift cuts content off, an eighth of the canvas.

    Raises:
        InputError: the shift is larger than the margin.
    """
    margin = data.canvas.margin(data.test.images.shape[2:]) or max(1, data.canvas.size // 8)
    if max_shift is None:
        return min(DEFAULT_SHIFT, margin)
    if not 0 <= max_shift <= margin:
        raise InputError(
            f"`max_shift` must be 0 to {margin}, the margin of the canvas around the image, got {max_shift}.",
            "Lower it, or use a larger canvas.",
        )
    return max_shift


def _fitting(
    name: str | None,
    channels: int | None,
    size: int | None,
    trained_on: DataSpec | None,
    *,
    scale: bool,
    data_dir: Path | None,
    report: Report,
) -> Dataset:
    """Load the data set that suits a model; ``scale`` its images to the input unless a study trained the model on a canvas."""
    if name is None and trained_on is None and channels not in (None, 1):
        shape = f"{channels}x{size}x{size}" if size else f"{channels} channels"
        raise InputError(
            f"`data` must be given: the model takes images of {shape}, which the digits, taken by default, do not fit.",
            "Choose images with --data.",
        )
    spec = _spec(name, size, trained_on, scale=scale, data_dir=data_dir, report=report)
    data = load(spec, data_dir=data_dir, report=report)
    found = data.test.images.shape[1]
    if channels not in (None, found):
        raise InputError(
            f"the model takes images of {channels} channels, but those of {spec.name} have {found}.", "Choose others with --data."
        )
    return data


def _spec(
    name: str | None, size: int | None, trained_on: DataSpec | None, *, scale: bool, data_dir: Path | None, report: Report
) -> DataSpec:
    """Return which images to load, at which size and on which canvas."""
    if trained_on is not None and name in (None, trained_on.name):
        return trained_on.model_copy(update={"canvas": size or trained_on.canvas})
    if name in (None, "digits"):
        canvas = size or DIGITS_CANVAS
        return DataSpec(image_size=max(1, canvas // 2) if scale else DIGITS_SIZE, canvas=canvas, validation_images=1)
    if size is not None and (trained_on is not None or not scale):
        return DataSpec(name=name, canvas=size, validation_images=1)
    if size is not None and name not in HUB_NAMES:
        return DataSpec(name=name, image_size=size, canvas=size, validation_images=1)
    # At their own size and scaled block by block: thousands of enlarged images would not fit into memory.
    known = os.environ.get("SHIFTSCOPE_DATA")
    source = read(name, data_dir=data_dir or (Path(known) if known else None), report=report)
    return DataSpec(name=name, canvas=max(source.splits["train"].images.shape[2:]), validation_images=1)


def _from_folder(
    folder: ImageFolder,
    count: int,
    size: int | None,
    channels: int | None,
    max_shift: int | None,
    mean: tuple[float, ...] | None,
) -> ImageBlocks:
    """Open the images of a folder."""
    own = folder.image_shape()
    if size is None and own[1] != own[2]:
        raise InputError(
            f"`size` must be given: the model's input is unknown, and the images are {own[1]}x{own[2]}.", "Give it with --size."
        )
    size, channels = size or own[1], channels or own[0]
    if channels not in (1, 3):
        raise InputError(
            f"the model takes images of {channels} channels, and those of a folder have 1 or 3.", "Choose others with --data."
        )
    side = size + 2 * max(-(-size // MARGIN_PART), max_shift or 0)
    notes = []
    if folder.found < count:
        notes.append(f"{folder.path} holds {folder.found} images, fewer than the {count} requested; all are used.")
    if folder.labels is None:
        notes.append(f"{folder.path} has no subfolders, so there are no labels.")
    elif len(folder.classes) == 1:
        notes.append(f"{folder.path} has one class only ({folder.classes[0]}): accuracy says little.")
    return ImageBlocks(
        source=folder,
        count=len(folder.files),
        shape=(channels, side, side),
        size=size,
        canvas=None,
        fill=(0.0,) * channels,
        mean=mean,
        classes=None if folder.labels is None else len(folder.classes),
        origin=f"image folder {folder.path.name}",
        checksum=folder.checksum,
        notes=tuple(notes),
    )


def _sample(test: Labelled, count: int) -> tuple[Labelled, tuple[str, ...]]:
    """Pick test images with a fixed seed, in order; with a note where there are too few."""
    if count > len(test):
        return test, (f"The data holds {len(test)} test images, fewer than the {count} requested; all are used.",)
    return test[torch.randperm(len(test), generator=stream(0, "images"))[:count].sort().values], ()
