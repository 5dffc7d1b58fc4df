"""Read images and labels from tensors, loaders, data sets or lists of batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.runtime.text import number_of

__all__ = ["Images", "Labels", "OpenedImages", "batches_of", "gather", "images_in", "input_size"]


@runtime_checkable
class Indexed(Protocol):
    """A map-style data set of PyTorch: images with their labels, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


class OpenedImages(ABC):
    """Base of images that are opened for a model, and yield batches.

    Attributes:
        size: (height, width) of the model's input, pixels; images may be larger.
        count: number of images.
    """

    size: tuple[int, int]
    count: int

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """Yield batches: images, or pairs (images, labels)."""


#: A tensor [image, channel, height, width], or a DataLoader, a list or another iterable of batches: of such tensors, of pairs
#: (images, labels), or of mappings with ``pixel_values`` and ``labels``; or a data set. A single image [channel, height, width]
#: counts as a batch of one.
Images = Tensor | Iterable[Any] | Indexed

#: The class of each image: a tensor [image], or a list or an array, which are read as one.
Labels = Tensor | np.ndarray | Sequence[Any]

IMAGE_KEYS, LABEL_KEYS = ("pixel_values", "images", "image"), ("labels", "label")


def batches_of(images: Images, labels: Labels | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield batches of images with their labels, one batch at a time.

    Args:
        images: in one of the forms of :data:`Images`.
        labels: [image], of all images in order; a list or an array is read as a tensor. None if there are none or the batches
            hold them.

    Raises:
        InputError: a batch has none of these forms, some batches have labels and others not, labels are given twice or are no
            numbers, or there is not one label per image.

    >>> batches = [(torch.rand(2, 1, 4, 4), torch.tensor([0, 1])), (torch.rand(1, 1, 4, 4), torch.tensor([1]))]
    >>> [(len(each), known.tolist()) for each, known in batches_of(batches)]
    [(2, [0, 1]), (1, [1])]
    """
    labels, images = _as_labels(labels), _as_batch(images)
    if isinstance(images, Tensor) and labels is not None and len(labels) != len(images):
        raise _wrong_count(len(labels), number_of(len(images), "image"))
    start, labelled = 0, labels is not None
    for number, batch in enumerate(_each(images)):
        each, known = _parts(batch)
        stop = start + len(each)
        if labels is not None:
            if known is not None:
                raise InputError("`labels` are given, but the batches of `images` hold labels too.", "Leave one of them out.")
            if stop > len(labels):
                raise _wrong_count(len(labels), f"{stop} images or more")
            known = labels[start:stop]
        if number and (known is not None) != labelled:
            raise InputError("some batches of `images` hold labels and others do not.", "Give labels with all or with none.")
        labelled, start = known is not None, stop
        if known is not None and known.ndim == 1 and len(known) != len(each):
            raise _wrong_count(len(known), f"{number_of(len(each), 'image')} of a batch")
        yield each, None if known is None else known.cpu()
    if labels is not None and start != len(labels):
        raise _wrong_count(len(labels), number_of(start, "image"))


def gather(images: Images, labels: Labels | None = None) -> tuple[Tensor, Tensor | None]:
    """Return all images as one tensor, with all labels.

    Args:
        images: in one of the forms of :data:`Images`.
        labels: as :func:`batches_of` takes them.

    Raises:
        InputError: see :func:`batches_of`; there is no image; or the images differ in shape.
    """
    if isinstance(images, Tensor):
        return images, _as_labels(labels)
    found = list(batches_of(images, labels))
    if not found:
        raise InputError("`images` must hold at least one image, got none.", "Give some.")
    shapes = sorted({tuple(each.shape[1:]) for each, _ in found})
    if len(shapes) > 1:
        raise InputError(f"`images` must all have one shape, got {shapes[0]} and {shapes[-1]}.", "Resize them to one size.")
    known = [each for _, each in found if each is not None]
    return torch.cat([each for each, _ in found]), torch.cat(known) if known else None


def images_in(images: Images, labels: Labels | None = None) -> int | None:
    """Return the number of images, if that is known before they are read."""
    images = _as_batch(images)
    if isinstance(images, Tensor):
        return len(images)
    if labels is not None:
        return len(labels)
    if isinstance(images, OpenedImages):
        return images.count
    data: Any = getattr(images, "dataset", None)  # of a DataLoader, which may drop the last batch
    return len(data) if hasattr(data, "__len__") and not getattr(images, "drop_last", False) else None


def input_size(images: Images, size: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
    """Return the size of the model's input, pixels: as given, or as opened images know it; None for that of the images."""
    return images.size if size is None and isinstance(images, OpenedImages) else size


def _as_batch(images: Images) -> Images:
    """Return a single image as a batch of one, and others as they are."""
    return images[None] if isinstance(images, Tensor) and images.ndim == 3 else images


def _each(images: Images) -> Iterator[Any]:
    """Yield the batches; random numbers that a loader draws, to shuffle or to augment, are not taken from torch's generator."""
    if isinstance(images, str | PathLike):
        raise InputError(f"`images` must be images, got the name {str(images)!r}.", "Open it with `load_images`.")
    if isinstance(images, Tensor):
        yield images
        return
    end, own = object(), torch.get_rng_state()
    batches: Iterator[Any] | None = None
    while True:
        outside = torch.get_rng_state()
        torch.default_generator.set_state(own)
        try:
            if batches is None:
                batches = iter(images) if isinstance(images, Iterable) else map(images.__getitem__, range(len(images)))
            batch = next(batches, end)
        finally:
            own = torch.get_rng_state()
            torch.default_generator.set_state(outside)
        if batch is end:
            return
        yield batch


def _parts(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the images and the labels of a batch."""
    images: Any = batch
    labels: Any = None
    if isinstance(batch, Mapping):
        images = next((batch[key] for key in IMAGE_KEYS if key in batch), None)
        labels = next((batch[key] for key in LABEL_KEYS if key in batch), None)
    elif isinstance(batch, list | tuple):
        images, labels = (*batch, None, None)[:2]
    if not isinstance(images, Tensor):
        problem = f"a batch of `images` must be a tensor or a pair (images, labels), got {type(batch).__name__}."
        if isinstance(images, np.ndarray):
            raise InputError(problem, "Convert it: torch.from_numpy(images), as [image, channel, height, width] in [0, 1].")
        raise InputError(problem, "Give a DataLoader or a list of such batches, or photos of `load_images`.")
    if images.ndim == 3:
        images = images[None]
        labels = None if labels is None else torch.as_tensor(labels).reshape(1)
    return images, _as_labels(labels)


def _as_labels(labels: Any) -> Tensor | None:
    """Return labels as a tensor along images."""
    try:
        found = None if labels is None else torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        found = torch.zeros(())
    if found is not None and found.ndim == 0:
        raise InputError(f"`labels` must hold one number per image, got {type(labels).__name__}.", "Give class indices.")
    return found


def _wrong_count(labels: int, images: str) -> InputError:
    return InputError(f"`labels` must hold one label per image, got {labels} for {images}.", "Give both in the same order.")
