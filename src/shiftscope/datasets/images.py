"""The images that a model is measured on: one choice, one size and one reader for every command.

- A study's network is measured on the study's test images, on their canvas.
- Photos (of a folder, of parquet files or of the hub) are all evaluation data, unless their data set names a test split. They are
  scaled and cropped as the model's preprocessing says, with a margin from which shifted crops are taken.
- The sets with short names (digits, mnist, cifar10) are scaled to the model's input as a whole; for a study's network they keep
  their size, on its canvas.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from shiftscope.datasets.class_names import numbered, places_of
from shiftscope.datasets.dataset import Canvas, DataSpec, load
from shiftscope.datasets.photo_origins import open_photos
from shiftscope.datasets.photos import Crop, Photos, pick, plan_crop
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.datasets.sources import HUB_NAMES, Labelled, is_folder, looks_like_a_path, read
from shiftscope.engine.batches import OpenedImages
from shiftscope.errors import InputError
from shiftscope.runtime.progress import Report, silent
from shiftscope.runtime.sizes import Size, both, size_words
from shiftscope.shifts import translate

__all__ = ["SHORT_NAMES", "Block", "ImageBlocks", "from_photos", "left_out", "local_data_dir", "open_images"]

#: Height and width of the canvas for the digits, and of the digits on it, where nothing else says.
DIGITS_CANVAS, DIGITS_SIZE = 40, 20
#: The largest shift by default, pixels; without a margin, the image's size over this if that is less.
DEFAULT_SHIFT, SIZE_PER_SHIFT = 8, 8
#: Sets of small images, which are decoded as a whole.
SHORT_NAMES = ("digits", *HUB_NAMES)
#: Images of a batch.
BATCH = 16
#: Most damaged files that a message lists.
DAMAGED = 10
#: Modes of photos of one channel: of 1, 8 and more bits.
GREY = ("1", "L", "F")


@dataclass(frozen=True)
class Block:
    """Some of the images.

    Attributes:
        images: in [0, 1], [image, channel, height, width].
        labels: of the images; None if there are none.
        numbers: their indices among all images.
        damaged: names of files among them that cannot be read.
    """

    images: Tensor
    labels: Tensor | None
    numbers: Tensor
    damaged: list[str] = field(default_factory=list)


def left_out(damaged: Sequence[str]) -> str:
    """Return a sentence about the files that cannot be read, a few of them named; empty if there are none."""
    if not damaged:
        return ""
    names = ", ".join(damaged[:DAMAGED]) + (f" and {len(damaged) - DAMAGED} more" if len(damaged) > DAMAGED else "")
    if len(damaged) == 1:
        return f"1 image cannot be read and is left out: {names}."
    return f"{len(damaged)} images cannot be read and are left out: {names}."


@dataclass(frozen=True)
class ImageBlocks(OpenedImages):
    """The images that a model is measured on, read a block at a time.

    Iterating yields batches as functions take them: images with their margin, [image, channel, height, width], or pairs of these
    and their labels, [image]. Files that cannot be read are left out, and a warning names them.

    Attributes:
        source: photos, or images in memory.
        count: number of images.
        found: number of images at the origin; these may be a sample of them.
        shape: (channels, height, width) of each, margin included.
        size: (height, width) of the model's input, pixels.
        crop: how photos are scaled and cropped; None for images in memory.
        canvas: to place images in memory on; None for photos.
        fill: the canvas's colour, one value in [0, 1] per channel.
        mean: mean colour, one value in [0, 1] per channel; None if it is unknown.
        classes: number of classes; None without labels.
        origin: where the images came from.
        checksum: of the images.
        notes: sentences for the reader of the results.
        notes_on_labels: further ones, where labels matter.
    """

    source: Photos | Labelled
    count: int
    found: int
    shape: tuple[int, int, int]
    size: tuple[int, int]
    crop: Crop | None
    canvas: Canvas | None
    fill: tuple[float, ...]
    mean: tuple[float, ...] | None
    classes: int | None
    origin: str
    checksum: str
    notes: tuple[str, ...]
    notes_on_labels: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<{'. '.join([f'{self.choice}; {self.preparation}', *self.all_notes])}>"

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        damaged: list[str] = []
        for start in range(0, self.count, BATCH):
            block = self.read(start, min(start + BATCH, self.count))
            damaged += block.damaged
            if len(block.images):
                yield block.images if block.labels is None else (block.images, block.labels)
        if damaged:
            warnings.warn(left_out(damaged), stacklevel=2)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, with those on labels."""
        by_name = isinstance(self.source, Photos) and self.source.alphabetical and len(self.class_names) > 1
        order = f"Classes are numbered in the order of their folders' names: {numbered(self.class_names)}."
        return (*self.notes, *self.notes_on_labels, *([order] if by_name else []))

    @property
    def margin(self) -> int:
        """The largest shift that keeps the whole image, pixels: the margin of photos, or of the canvas; 0 without either."""
        if self.crop is not None:
            return self.crop.margin
        assert self.canvas is not None  # images in memory always have one
        assert isinstance(self.source, Labelled)
        return self.canvas.margin(self.source.images.shape[2:]) * min(self.size) // self.canvas.size

    @property
    def default_shift(self) -> int:
        """The default largest shift: 8 pixels, or the margin if that is less; without a margin an eighth of the size."""
        return min(DEFAULT_SHIFT, self.margin or max(1, min(self.size) // SIZE_PER_SHIFT))

    @property
    def preparation(self) -> str:
        """What happens to each image before it reaches the model."""
        if self.crop is not None:
            return self.crop.sentence
        assert self.canvas is not None
        assert isinstance(self.source, Labelled)
        height, width = self.source.images.shape[2:]
        canvas, own = f"{self.canvas.size}x{self.canvas.size}", f"{height}x{width}"
        placed = f"images of {own}" if own == canvas else f"images of {own} on a canvas of {canvas}"
        side = min(self.size)
        scaled = placed if side == self.canvas.size else f"{placed}, scaled to {side}x{side} (bilinear)"
        return scaled if max(self.size) == side else f"{scaled}, in the centre of {size_words(self.size)}"

    @property
    def choice(self) -> str:
        """The number and the origin of the images: ``16 of 54 images of image folder photos``."""
        many = f"all {self.count}" if self.count == self.found else f"{self.count:,} of {self.found:,}"
        return f"{many} images of {self.origin}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by label; empty where they have none."""
        return self.source.classes if isinstance(self.source, Photos) and self.source.labels is not None else ()

    def numbered_as(self, names: Sequence[str]) -> ImageBlocks | None:
        """Return the same images with their classes numbered as in a list of names; None if it does not name each of them once.

        :func:`shiftscope.datasets.class_names.places_of` says which names are the same.

        Args:
            names: of a model's classes, by output, or of other images' classes.
        """
        photos = self.source
        if not isinstance(photos, Photos) or photos.labels is None:
            return None
        places = places_of(photos.classes, names)
        if places is None:
            return None
        labels = tuple(places[label] for label in photos.labels)
        source = replace(photos, labels=labels, classes=tuple(names), alphabetical=False)
        return replace(self, source=source, classes=len(names))

    def name(self, number: int) -> str:
        """Return an image's name for messages: that of its file, or its number."""
        return self.source.names[number] if isinstance(self.source, Photos) else f"image {number}"

    def centre(self, images: Tensor) -> Tensor:
        """Return images without their margin, as the model sees them unshifted."""
        height, width = self.size
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width]

    def read(self, start: int, stop: int) -> Block:
        """Read the images from index ``start`` to before ``stop``."""
        if isinstance(self.source, Photos):
            assert self.crop is not None  # photos always have one
            images, places, damaged = self.source.read(start, stop, self.crop)
            known = None if self.classes is None else self.source.labels
            labels = None if known is None else torch.tensor([known[place] for place in places], dtype=torch.long)
            return Block(images, labels, torch.tensor(places, dtype=torch.long), damaged)
        assert self.canvas is not None  # images in memory always have one
        part = self.source[start:stop]
        images = self.canvas.place(part.images)
        side = min(self.size)
        if images.shape[2] != side:
            images = functional.interpolate(images, (side, side), mode="bilinear", antialias=True).clamp_(0, 1)
        if max(self.size) != side:
            still = torch.zeros(len(images), 2, dtype=torch.long)
            images = translate(images, still, size=self.size, fill=self.canvas.colour)
        return Block(images, None if self.classes is None else part.labels, torch.arange(start, start + len(part)))

    def read_all(self) -> Block:
        """Read all images."""
        return self.read(0, self.count)

    def example(self) -> Tensor:
        """Return the first readable image, [1, channel, height, width]."""
        blocks = (self.read(start, start + 1).images for start in range(self.count))
        found = next((images for images in blocks if len(images)), None)
        if found is None:
            raise InputError(f"{self.origin} holds no image that can be read.", "Check its files.")
        return found


def open_images(
    name: str | None = None,
    *,
    count: int | None,
    preprocessing: Preprocessing | None = None,
    channels: int | None = None,
    trained_on: DataSpec | None = None,
    max_shift: int | None = None,
    data_dir: Path | None = None,
    training: bool = False,
    report: Report = silent,
) -> ImageBlocks:
    """Open the images that a model is measured on, or trained on after a fix.

    Args:
        name: digits, mnist, cifar10, a hub id or the path of a folder; by default ``trained_on``, else the digits.
        count: number of images, picked with a fixed seed; None for all.
        preprocessing: how images are prepared for the model; by default nothing is known about it.
        channels: number of channels that the model takes; None if unknown.
        trained_on: what a study trained the model on; None for other models.
        max_shift: the largest shift to leave room for, pixels; None for the default.
        data_dir: a local folder that holds the data set.
        training: whether to open the training images instead; of a set without splits, these are all.
        report: called with each progress event.

    Raises:
        InputError: there are no such images, or the model does not take them.
    """
    if count is not None and count < 1:
        raise InputError(f"`images` must be 1 or more, got {count}.", "Leave it out to take the default.")
    preprocessing = preprocessing or Preprocessing()
    at_home = trained_on is not None and (name is None or _same(name, trained_on.name))
    if name is not None and not at_home and name not in SHORT_NAMES:
        photos = open_photos(name, count, local_data_dir(name, data_dir), report, training=training)
        return from_photos(photos, count, preprocessing, channels, max_shift)
    if name is None and trained_on is None and channels not in (None, 1):
        size = preprocessing.size
        shape = f"{channels}x{size_words(size)}" if size else f"{channels} channels"
        raise InputError(
            f"`data` must be given: the model takes images of {shape}, which the digits, taken by default, do not fit.",
            "Choose images with --data.",
        )
    if trained_on is not None and at_home:
        asked = name is not None or trained_on.name in SHORT_NAMES
        found = _at_home(trained_on, preprocessing.size, data_dir, report, training=training, online=asked)
    else:
        name, on_canvas = name or "digits", trained_on is not None
        found = _small_images(
            name, preprocessing.size, local_data_dir(name, data_dir), report, on_canvas=on_canvas, training=training
        )
    return _sampled(found, count, preprocessing, channels)


def local_data_dir(name: str | None, data_dir: Path | None) -> Path | None:
    """Return the local folder that holds data sets: the given one, else the environment's, which paths do not need."""
    known = os.environ.get("SHIFTSCOPE_DATA")
    return Path(known) if data_dir is None and known and not (name and looks_like_a_path(name)) else data_dir


@dataclass(frozen=True)
class _Small:
    """Images in memory.

    Attributes:
        images: all of them.
        canvas: to place them on.
        size: (height, width) of the model's input, pixels.
        mean: of the training images, one value in [0, 1] per channel.
        classes: number of classes.
        name, origin, checksum: of the data set.
    """

    images: Labelled
    canvas: Canvas
    size: tuple[int, int]
    mean: Tensor
    classes: int
    name: str
    origin: str
    checksum: str


def _at_home(spec: DataSpec, size: Size | None, data_dir: Path | None, report: Report, *, training: bool, online: bool) -> _Small:
    """Return the test images of the study that trained the model, on its canvas, or all others."""
    data = load(
        spec.model_copy(update={"canvas": min(both(size)) if size else spec.canvas, "train_images": None}),
        data_dir=data_dir,
        online=online,
        report=report,
    )
    origin = f"the {'training' if training else 'test'} split of {data.origin}"
    parts = [data.train, data.validation]
    others = Labelled(torch.cat([each.images for each in parts]), torch.cat([each.labels for each in parts]))
    return _Small(
        others if training else data.test,
        data.canvas,
        both(data.canvas.size),
        data.mean,
        len(data.classes),
        spec.name,
        origin,
        data.checksum,
    )


def _small_images(
    name: str, size: Size | None, data_dir: Path | None, report: Report, *, on_canvas: bool, training: bool
) -> _Small:
    """Return the images of a set with a short name: its test or training split, or all of a set without them.

    Args:
        name: of the set.
        size: of the model's input, pixels; None if unknown.
        data_dir: a local folder that holds it.
        report: called with each progress event.
        on_canvas: keep the images' size where it fits the input; otherwise they are scaled to the input.
        training: take the training split.
    """
    shown, room = None, None if size is None else min(both(size))
    if name == "digits":
        shown = DIGITS_SIZE if room is None or (on_canvas and room >= DIGITS_SIZE) else max(1, room // 2)
    source = read(name, image_size=shown, data_dir=data_dir, report=report)
    images = source.splits["train"] if training else source.splits.get("test", source.splits["train"])
    own = max(images.images.shape[2:])
    side = max(own, room or DIGITS_CANVAS) if name == "digits" else max(own, room or own) if on_canvas else own
    train = source.splits["train"].images
    mean = torch.stack([train[:, channel].double().mean() / 255 for channel in range(train.shape[1])]).float()
    origin = f"the {'training' if training else 'test'} split of {source.origin}" if "test" in source.splits else source.origin
    canvas = Canvas(side, torch.zeros(train.shape[1]))
    return _Small(images, canvas, both(size or side), mean, len(source.classes), name, origin, source.checksum)


def _sampled(found: _Small, count: int | None, preprocessing: Preprocessing, channels: int | None) -> ImageBlocks:
    """Pick some of the images in memory."""
    own = found.images.images.shape[1]
    if channels not in (None, own):
        raise InputError(
            f"the model takes images of {channels} channels, but those of {found.name} have {own}.", "Choose others with --data."
        )
    places, total = pick(len(found.images), count), len(found.images)
    few = f"The data holds {total} test images, fewer than the {count} requested."
    return ImageBlocks(
        source=found.images[torch.tensor(places)],
        count=len(places),
        found=total,
        shape=(own, *found.size),
        size=found.size,
        crop=None,
        canvas=found.canvas,
        fill=tuple(found.canvas.colour.tolist()),
        mean=preprocessing.mean or tuple(found.mean.tolist()),
        classes=found.classes,
        origin=found.origin,
        checksum=found.checksum,
        notes=(few,) if count is not None and count > total else (),
    )


def from_photos(
    photos: Photos, count: int | None, preprocessing: Preprocessing, channels: int | None, max_shift: int | None
) -> ImageBlocks:
    """Return photos as a model's images; arguments and errors as of :func:`open_images`."""
    first = photos.first()
    own = (1 if first.mode in GREY else 3, first.height, first.width)
    crop = replace(plan_crop(preprocessing, own=own, channels=channels, max_shift=max_shift), white=first.info.get("white", 255))
    notes, of_labels = [], []
    if first.info.get("rounded"):
        notes.append("Colour of 16 bits is read in 8 bits.")
    if crop.channels != 1 and first.has_transparency_data:
        notes.append("Photos have an alpha channel, which is left out.")
    if count is not None and photos.found < count:
        notes.append(f"{photos.origin} holds {photos.found} images, fewer than the {count} requested.")
    if photos.beside:
        images, lie = ("image", "lies") if photos.beside == 1 else ("images", "lie")
        notes.append(f"{photos.beside} {images} of {photos.origin} {lie} beside its class folders: left out.")
    if photos.labels is None:
        of_labels.append(f"{photos.origin} has no subfolders, so there are no labels.")
    elif len(photos.classes) == 1:
        of_labels.append(f"{photos.origin} has one class only ({photos.classes[0]}): accuracy says little.")
    if preprocessing.size is None:
        notes.append(
            f"The model does not say how large its input is: photos are scaled to the first one's {crop.size[0]} pixels."
        )
    return ImageBlocks(
        source=photos,
        count=len(photos),
        found=photos.found,
        shape=(crop.channels, *crop.outer),
        size=crop.size,
        crop=crop,
        canvas=None,
        fill=(0.0,) * crop.channels,
        mean=preprocessing.mean,
        classes=None if photos.labels is None else len(photos.classes),
        origin=photos.origin,
        checksum=photos.checksum,
        notes=tuple(note[:1].upper() + note[1:] for note in notes),
        notes_on_labels=tuple(note[:1].upper() + note[1:] for note in of_labels),
    )


def _same(name: str, other: str) -> bool:
    """Return whether two names mean the same data set."""
    return name == other or (is_folder(name) and is_folder(other) and Path(name).resolve() == Path(other).resolve())
