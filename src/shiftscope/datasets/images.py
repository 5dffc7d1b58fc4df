"""The images of an audit, a block at a time: a data set by its name, or an image folder, at the size that the model takes.

Rules for the size. A study's network gets its images on the canvas that it was trained with, and other data sets on a black
canvas of that size. Any other model gets data sets scaled to its input. Images of a folder are scaled so that the shorter side
has the model's input and a margin around it, a fourteenth on each side (256 for 224) or the largest shift if that is more; the
centre is cut out, and crops are taken from the margin.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from shiftscope.datasets.dataset import Canvas, Dataset, DataSpec, load
from shiftscope.datasets.folders import Folder, listed
from shiftscope.datasets.sources import HUB_NAMES, Labelled, Progress, is_image_folder, read
from shiftscope.errors import InputError
from shiftscope.models import LoadedModel
from shiftscope.runtime.seeds import stream

__all__ = ["Block", "Pictures", "dataset_for", "largest_shift", "opened"]

#: The margin around the model's input on each side is one over so much of it.
MARGIN_PART = 14


@dataclass(frozen=True)
class Block:
    """Some images.

    Attributes:
        images: in [0, 1], [image, channel, height, width].
        labels: of them, where there are any.
        numbers: their places among all images.
        damaged: names of files among them that could not be read.
    """

    images: Tensor
    labels: Tensor | None
    numbers: Tensor
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pictures:
    """The images of an audit.

    Attributes:
        source: a folder, or images that are in memory.
        count: how many.
        whole: (channels, height, width) of each, margin included.
        size: height and width of the model's input.
        canvas: what images in memory are put on.
        fill: the canvas's colour.
        mean: the mean colour, where it is known.
        classes: how many the labels know; None without labels.
        origin, checksum: of the images.
        notes: for the reader.
    """

    source: Folder | Labelled
    count: int
    whole: tuple[int, int, int]
    size: int
    canvas: Canvas | None
    fill: tuple[float, ...]
    mean: tuple[float, ...] | None
    classes: int | None
    origin: str
    checksum: str
    notes: tuple[str, ...]

    def read(self, start: int, stop: int) -> Block:
        """The images from one place to before another."""
        if isinstance(self.source, Folder):
            folder = self.source
            images, places, damaged = folder.read(start, stop, size=self.whole[1], channels=self.whole[0])
            labels = None if folder.labels is None else torch.tensor([folder.labels[place] for place in places], dtype=torch.long)
            return Block(images, labels, torch.tensor(places, dtype=torch.long), damaged)
        assert self.canvas is not None  # noqa: S101 - images in memory always have one
        part = self.source[start:stop]
        images = self.canvas.place(part.images)
        if images.shape[2] != self.size:
            scaled = functional.interpolate(images, (self.size,) * 2, mode="bilinear", antialias=True)
            images = scaled.clamp_(0, 1)
        return Block(images, part.labels, torch.arange(start, start + len(part)))

    def example(self) -> Tensor:
        """The first image that can be read."""
        blocks = (self.read(start, start + 1).images for start in range(self.count))
        return next(images for images in blocks if len(images))


def opened(
    loaded: LoadedModel,
    *,
    data: str | None,
    data_dir: Path | None,
    images: int,
    size: int | None,
    max_shift: int | None,
    progress: Progress = lambda *_: None,
) -> Pictures:
    """The images for a model.

    Args:
        loaded: the model.
        data: digits, mnist, cifar10, a hub id or an image folder; by default what a study trained the model on, else the digits.
        data_dir: a local folder that holds the data set.
        images: how many, picked with a fixed seed.
        size: height and width of the model's input, where neither the model nor the images tell.
        max_shift: the largest shift asked for, which a folder's images leave room for.
        progress: told how it goes.

    Raises:
        InputError: no such data, or images that the model does not take.
    """
    if images < 1:
        raise InputError(f"`images` must be 1 or more, got {images}.")
    wanted = loaded.image[1] if loaded.image else size
    channels = loaded.image[0] if loaded.image else None
    if data is not None and is_image_folder(data) and not any(Path(data).rglob("*.parquet")):
        return _from_folder(Path(data), images, wanted, channels, max_shift, loaded.mean)
    return _from_set(loaded, data, data_dir, images, wanted, channels, progress)


def dataset_for(
    image: tuple[int, int, int] | None,
    trained_on: DataSpec | None,
    *,
    name: str | None = None,
    canvas: int | None = None,
    data_dir: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Dataset:
    """Return the data set that a model is explained and fixed on: the named one, else what it was trained on, else the digits.

    Args:
        image: (channels, height, width) that the model takes; None where that is unknown.
        trained_on: what a study trained the model on; None for other models.
        name: of a data set, or the path of an image folder.
        canvas: height and width of the canvas, pixels; by default the height that the model takes.
        data_dir: a local folder that holds the data set.
        progress: called with what is going on, how much is done, and of how much.

    Raises:
        InputError: there is no such data set, its images are larger than the canvas, or the model takes other channels.
    """
    if canvas is not None and canvas < 1:
        raise InputError(f"`canvas` must be 1 or more pixels, got {canvas}.")
    known = trained_on or DataSpec(image_size=20, validation_images=1)
    size = canvas if canvas is not None else image[1] if image else known.canvas
    if name is None or name == known.name:
        spec = known.model_copy(update={"canvas": size})
    else:
        spec = DataSpec(name=name, canvas=size, validation_images=1)
    data = load(spec, data_dir=data_dir, progress=progress)
    channels = data.test.images.shape[1]
    if image and image[0] != channels:
        raise InputError(
            f"The model takes images of {image[0]} channels, but those of {spec.name} have {channels}.",
            "Choose other images with --data.",
        )
    return data


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
        return min(8, margin)
    if not 0 <= max_shift <= margin:
        raise InputError(f"`max_shift` must be 0 to {margin}, the margin of the canvas around the image, got {max_shift}.")
    return max_shift


def _from_folder(
    path: Path, images: int, size: int | None, channels: int | None, max_shift: int | None, mean: tuple[float, ...] | None
) -> Pictures:
    folder = listed(path, images=images)
    own = folder.first()
    if size is None and own[1] != own[2]:
        raise InputError(f"`size` must be given: the model does not tell what it takes, and the images are {own[1]}x{own[2]}.")
    size, channels = size or own[1], channels or own[0]
    if channels not in (1, 3):
        raise InputError(f"the model wants images of {channels} channels, which a folder does not hold.")
    side = size + 2 * max(-(-size // MARGIN_PART), max_shift or 0)
    notes = []
    if folder.found < images:
        notes.append(f"{path} holds {folder.found} images, {images} were asked for; all of them are taken.")
    if folder.labels is None:
        notes.append(f"{path} has no subfolders, so there are no labels.")
    elif len(folder.classes) == 1:
        notes.append(f"{path} has one class only ({folder.classes[0]}): accuracy says little.")
    return Pictures(
        source=folder,
        count=len(folder.files),
        whole=(channels, side, side),
        size=size,
        canvas=None,
        fill=(0.0,) * channels,
        mean=mean,
        classes=None if folder.labels is None else len(folder.classes),
        origin=f"image folder {path.name}",
        checksum=folder.checksum,
        notes=tuple(notes),
    )


def _from_set(
    loaded: LoadedModel,
    name: str | None,
    data_dir: Path | None,
    images: int,
    size: int | None,
    channels: int | None,
    progress: Progress,
) -> Pictures:
    if name is None and loaded.spec.data is None and channels not in (None, 1):
        shape = f"{channels}x{size}x{size}" if size else f"{channels} channels"
        raise InputError(f"`data` must be given: the model wants images of {shape}, which the digits taken by default are not.")
    dataset = load(_spec(loaded, name, data_dir, size, progress), data_dir=data_dir, progress=progress)
    found = dataset.test.images.shape[1]
    if channels is not None and channels != found:
        raise InputError(
            f"the model wants images of {channels} channels, those of {name or 'the data'} have {found}. Choose other `data`."
        )
    test, notes = _picked(dataset, images)
    side = size or dataset.canvas.size
    return Pictures(
        source=test,
        count=len(test),
        whole=(found, side, side),
        size=side,
        canvas=dataset.canvas,
        fill=tuple(dataset.canvas.colour.tolist()),
        mean=loaded.mean or tuple(dataset.mean.tolist()),
        classes=len(dataset.classes),
        origin=dataset.origin,
        checksum=dataset.checksum,
        notes=notes,
    )


def _spec(loaded: LoadedModel, name: str | None, data_dir: Path | None, size: int | None, progress: Progress) -> DataSpec:
    """Which images, and on what canvas."""
    known = loaded.spec.data
    if known is not None and name in (None, known.name):
        return known.model_copy(update={"canvas": size or known.canvas})
    if name in (None, "digits"):
        canvas = size or 40
        return DataSpec(image_size=max(1, canvas // 2), canvas=canvas, validation_images=1)
    if loaded.spec.network is not None and size is not None:
        return DataSpec(name=name, canvas=size, validation_images=1)
    if size is not None and name not in HUB_NAMES:
        return DataSpec(name=name, image_size=size, canvas=size, validation_images=1)
    # Kept at their own size, because thousands of enlarged images would not fit into memory.
    source = read(name, image_size=None, data_dir=data_dir or _from_environment(), progress=progress)
    return DataSpec(name=name, canvas=max(source.splits["train"].images.shape[2:]), validation_images=1)


def _from_environment() -> Path | None:
    known = os.environ.get("SHIFTSCOPE_DATA")
    return Path(known) if known else None


def _picked(dataset: Dataset, images: int) -> tuple[Labelled, tuple[str, ...]]:
    test = dataset.test
    if images > len(test):
        return test, (f"The data holds {len(test)} test images, {images} were asked for; all of them are taken.",)
    return test[torch.randperm(len(test), generator=stream(0, "images"))[:images].sort().values], ()
