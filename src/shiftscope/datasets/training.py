"""Read labelled images to train a changed model on: prepared like the measured images, and none of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shiftscope.datasets.class_names import numbered
from shiftscope.datasets.dataset import DataSpec
from shiftscope.datasets.images import ImageBlocks, left_out, open_images
from shiftscope.datasets.photos import pick
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.errors import InputError
from shiftscope.runtime.executors import free_memory
from shiftscope.runtime.progress import Report, Stage, silent

__all__ = ["TrainingImages", "read_training_images"]

#: Images read at once, and how many copies of all images a training holds in memory.
BLOCK, COPIES = 256, 3


@dataclass(frozen=True)
class TrainingImages:
    """Labelled images for a training, in memory.

    Attributes:
        images: in [0, 1], margin included.
        labels: class of each.
        classes: number of classes of the data set.
        origin: where they are from, for the record.
        checksum: SHA-256 of pixels of 8 bits and labels.
        notes: sentences on the images for the reader of the results.
    """

    images: Float[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]
    classes: int
    origin: str
    checksum: str
    notes: tuple[str, ...]


def read_training_images(
    name: str,
    measured: ImageBlocks,
    *,
    count: int | None = None,
    preprocessing: Preprocessing | None = None,
    channels: int | None = None,
    trained_on: DataSpec | None = None,
    max_shift: int | None = None,
    data_dir: Path | None = None,
    classes: Sequence[str] = (),
    report: Report = silent,
) -> TrainingImages:
    """Read the training images of a data set, without those that a model is measured on.

    These are the images of its training split, or all images of a set without one; an image with the same pixels as a measured
    one is left out.

    Args:
        name: as :func:`shiftscope.datasets.images.open_images` takes it.
        measured: the images that the model is measured on.
        count: the most images, picked with a fixed seed; by default all.
        preprocessing: how images are prepared for the model.
        channels: that the model takes.
        trained_on: what a study trained the model on.
        max_shift: the largest shift to leave room for, pixels.
        data_dir: a local folder that holds the data set.
        classes: names of the model's classes, by output, where the measured images have none; empty if it does not name them.
        report: called with progress events.

    Raises:
        InputError: there are no such images, they have no labels or other classes, do not fit the measured ones, or need more
            memory than is free.
    """
    if count is not None and count < 1:
        raise InputError(f"`train_images` must be 1 or more, got {count}.", "Leave it out to take all.")
    with _of_the_training():
        blocks = open_images(
            name,
            count=None if count is None else count + measured.count,  # some may be measured
            preprocessing=preprocessing,
            channels=channels,
            trained_on=trained_on,
            max_shift=max_shift,
            data_dir=data_dir,
            training=True,
            report=report,
        )
    if blocks.classes is None:
        raise InputError(f"`train` {name} has no labels.", "Give a folder with one folder per class.")
    blocks = _numbered_alike(name, blocks, measured.class_names or classes)
    assert blocks.classes is not None  # checked
    if blocks.shape != measured.shape:
        raise InputError(
            f"`train` {name} gives images of {_shape(blocks)}, margin included, and the measured ones have {_shape(measured)}.",
            "Give --size and --max-shift, or measure on other --data.",
        )
    _check_memory(blocks)
    images, labels, damaged = _read(blocks, report)
    kept = ~_among(images, (measured.read(start, start + BLOCK).images for start in range(0, measured.count, BLOCK)))
    same = int((~kept).sum())
    if same == len(images):
        raise InputError(f"`train` {name} holds only images that the model is measured on.", "Give more images.")
    chosen = kept.nonzero()[:, 0][pick(len(images) - same, count)]
    images, labels = images[chosen], labels[chosen]
    notes = (
        f"{same:,} images of the training data are left out, because the model is measured on them." if same else "",
        left_out(damaged),
    )
    return TrainingImages(images, labels, blocks.classes, blocks.origin, _checksum(images, labels), tuple(filter(None, notes)))


def _numbered_alike(name: str, blocks: ImageBlocks, classes: Sequence[str]) -> ImageBlocks:
    """Return training images with their classes numbered as in a list of names; as they are, where either side has no names.

    Raises:
        InputError: the list does not name each of their classes.
    """
    if not classes or not blocks.class_names:
        return blocks
    found = blocks.numbered_as(classes)
    if found is None:
        raise InputError(
            f"`train` {name} has other classes ({numbered(blocks.class_names)}) than the measured images or the model "
            f"({numbered(classes)}), so that labels would mean something else.",
            "Give the folders of both the same names.",
        )
    return found


@contextmanager
def _of_the_training() -> Iterator[None]:
    """Let an error name the option that the training images came from."""
    try:
        yield
    except InputError as error:
        raise InputError(error.problem.replace("`data`", "`train`"), error.remedy.replace("--data.", "--train.")) from error


def _read(blocks: ImageBlocks, report: Report) -> tuple[Tensor, Tensor, list[str]]:
    """Return all images and labels, and the names of files that cannot be read."""
    images, labels, damaged = list[Tensor](), list[Tensor](), list[str]()
    for start in range(0, blocks.count, BLOCK):
        block = blocks.read(start, start + BLOCK)
        assert block.labels is not None  # classes are known
        images.append(block.images)
        labels.append(block.labels)
        damaged += block.damaged
        report(Stage("reading training images", min(start + BLOCK, blocks.count), blocks.count))
    return torch.cat(images), torch.cat(labels), damaged


def _among(images: Tensor, others: Iterable[Tensor]) -> Bool[Tensor, " image"]:
    """Return which images equal one of the others, pixel by pixel."""
    known = {each for block in others for each in _digests(block)}
    return torch.tensor([each in known for each in _digests(images)], dtype=torch.bool)


def _digests(images: Tensor) -> list[bytes]:
    return [sha256(_bytes(image)).digest() for image in images]


def _checksum(images: Tensor, labels: Tensor) -> str:
    digest = sha256(f"{tuple(images.shape)}".encode())
    for image in images:
        digest.update(_bytes(image))
    digest.update(labels.long().numpy().tobytes())
    return digest.hexdigest()


def _bytes(image: Tensor) -> bytes:
    found: bytes = image.mul(65535).round().int().contiguous().numpy().tobytes()  # tells greys of 16 bits apart
    return found


def _check_memory(blocks: ImageBlocks) -> None:
    """Raise InputError where a training on so many images needs more memory than is free."""
    channels, height, width = blocks.shape
    needed, free = COPIES * blocks.count * channels * height * width * 4, free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"`train` takes about {needed / 2**30:.1f} GiB for {blocks.count:,} images, and {free / 2**30:.1f} GiB are free.",
            f"Give --train-images, at most {max(1, int(blocks.count * free / needed)):,}.",
        )


def _shape(blocks: ImageBlocks) -> str:
    return "x".join(map(str, blocks.shape))
