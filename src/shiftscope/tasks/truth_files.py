"""Ground truth in files: a map for each image in a folder, or a JSON file with a value for each image's name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.runtime.inputs import read_bytes, reading
from shiftscope.runtime.pictures import open_picture
from shiftscope.runtime.sizes import corner, covering

__all__ = ["LARGEST_TRUTH", "MapFiles", "Placement", "matched", "named_values"]

T = TypeVar("T")

#: Largest file of ground truth, bytes.
LARGEST_TRUTH = 1 << 31
#: Files that hold a map, and those of them that are images.
SUFFIXES = (".png", ".npy", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Placement:
    """How an image's pixels lie in the model's input: scaled so that the image covers a rectangle, and the centre cut out.

    Attributes:
        size: (height, width) of the model's input, pixels.
        cover: (height, width) that the scaled image just covers, pixels; None where images are not scaled but placed as they are.
        known: (height, width) of some images, upright, by name: what ground truth says of them is compared with it.
    """

    size: tuple[int, int]
    cover: tuple[int, int] | None
    known: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (scaled height, scaled width, top, left) of an image: its size after scaling, and the input's corner in it.

        >>> Placement((224, 224), (256, 256)).of(480, 640)
        (256, 341, 16, 58)
        """
        tall, wide = (height, width) if self.cover is None else covering((height, width), self.cover)
        return tall, wide, *corner((tall, wide), self.size)

    def check(self, name: str, height: int, width: int, where: object) -> None:
        """Refuse ground truth of another aspect ratio than its image's, because it would lie elsewhere.

        Args:
            name: of the image.
            height: of the image, as the ground truth has it, pixels.
            width: likewise.
            where: the file of the ground truth.

        Raises:
            InputError: the image is known, and has after scaling another size, by more than a pixel of the ground truth.
        """
        tall, wide = self.known.get(name, (height, width))
        found, told = self.of(tall, wide), self.of(height, width)
        slack = 0 if self.cover is None else max(1, told[0] / height, told[1] / width)
        if max(abs(found[0] - told[0]), abs(found[1] - told[1])) > slack:
            raise InputError(
                f"`truth` {where} has {width}x{height} pixels for {name}, whose upright image has {wide}x{tall} "
                "(width x height).",
                "Give the ground truth of the image as it is shown, turned and cut alike.",
            )


@dataclass(frozen=True)
class MapFiles(Sequence[Any]):
    """Maps in a folder, read when they are asked for.

    Attributes:
        files: of each image, in order; None where there is none.
        placement: how images lie in the model's input.
        convert: an array [height, width, ...] -> a map as the task takes it.
    """

    files: tuple[Path | None, ...]
    placement: Placement
    convert: Callable[[np.ndarray], Tensor]

    @classmethod
    def open(cls, folder: Path, names: Sequence[str], placement: Placement, convert: Callable[[np.ndarray], Tensor]) -> MapFiles:
        """Find the map of each image: the file with its name and another ending.

        Raises:
            InputError: there is no such folder, it has no map for any image, or a map has another shape than its image.
        """
        if not folder.is_dir():
            raise InputError(
                f"`truth` must be a folder with a map for each image, and {folder} is not a folder.", "Check the path."
            )
        found = {
            file.relative_to(folder).with_suffix("").as_posix(): file for file in folder.rglob("*") if file.suffix in SUFFIXES
        }
        wanted = [Path(name).with_suffix("").as_posix() for name in names]
        files = tuple(matched(wanted, found))
        if not any(files):
            raise InputError(
                f"`truth` {folder} holds no map for any of {len(names)} images ({', '.join(SUFFIXES)}).",
                f"Name the first {wanted[0]}.png." if wanted else "Choose another folder.",
            )
        for name, file in zip(names, files, strict=True):
            if file is not None and name in placement.known:
                height, width = _read_map(file).shape
                placement.check(name, height, width, file)
        return cls(files, placement, convert)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def some(self, count: int) -> Iterator[Any]:
        """Yield the maps of so many images, spread evenly over those that have one."""
        known = [number for number, file in enumerate(self.files) if file is not None]
        yield from (self[number] for number in known[:: max(1, len(known) // count)][:count])

    def __getitem__(self, number: Any) -> Any:
        """Return the map of an image, [height, width] of the model's input; None where it has none."""
        file = self.files[number]
        if file is None:
            return None
        values = _read_map(file)
        tall, wide, top, left = self.placement.of(*values.shape[:2])
        rows = _nearest(values.shape[0], tall)[top : top + self.placement.size[0]]
        columns = _nearest(values.shape[1], wide)[left : left + self.placement.size[1]]
        return self.convert(values[rows][:, columns])


def matched(names: Sequence[str], known: Mapping[str, T]) -> list[T | None]:
    """Return what is known of each image by its name; None where nothing is.

    A name counts as another's where one is the end of the other, whole folders at a time, and no third one has either's.

    Args:
        names: of images, with folders.
        known: name -> value.

    >>> matched(["a/1.png", "2.png"], {"1.png": "one", "train/2.png": "two"})
    ['one', 'two']
    >>> matched(["a/1.png", "b/1.png"], {"a/1.png": "one"})
    ['one', None]
    """
    by_last: dict[str, list[str]] = {}
    for key in known:
        by_last.setdefault(key.rpartition("/")[2], []).append(key)
    fitting = [
        [name] if name in known else [key for key in by_last.get(name.rpartition("/")[2], ()) if _ends_alike(name, key)]
        for name in names
    ]
    taken = Counter(keys[0] for keys in fitting if len(keys) == 1)
    return [
        known[keys[0]] if name in known or (len(keys) == 1 and taken[keys[0]] == 1) else None
        for name, keys in zip(names, fitting, strict=True)
    ]


def _ends_alike(one: str, other: str) -> bool:
    """Return whether one of two paths is the end of the other."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _nearest(size: int, scaled: int) -> np.ndarray:
    """Return, for each pixel of an axis after scaling, the pixel before that its centre lies in."""
    places: np.ndarray = np.minimum(((np.arange(scaled) + 0.5) * size / scaled).astype(int), size - 1)
    return places


def _read_map(file: Path) -> np.ndarray:
    with reading(file, "a map of values", "Give a PNG with one channel, or an array of NumPy."):
        values: np.ndarray
        if file.suffix == ".npy":
            values = np.load(file, allow_pickle=False)
        else:
            with open_picture(file) as opened:
                values = np.asarray(opened)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[:, :, 0]
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"{file} must be a map [height, width], got shape {values.shape}.", "Give one channel.")
    return values


def named_values(file: Path, names: Sequence[str]) -> list[Any]:
    """Return the value of each image from a JSON file that maps names to values; None where it has none.

    Raises:
        InputError: the file is no such JSON, or holds none of the names.
    """
    with reading(file, "JSON", 'Give an object like {"cat/1.jpg": 1}.'):
        content = json.loads(read_bytes(file, limit=LARGEST_TRUTH))
    if not isinstance(content, Mapping):
        raise InputError(f"{file} must map names of images to values.", 'Give an object like {"cat/1.jpg": 1}.')
    stems = matched([Path(name).with_suffix("").as_posix() for name in names], content)
    found = [stem if each is None else each for each, stem in zip(matched(names, content), stems, strict=True)]
    if all(each is None for each in found):
        example = names[0] if names else "1.jpg"
        raise InputError(f"{file} holds none of the names of {len(names)} images.", f"The first one is {example!r}.")
    return [torch.tensor(each) if isinstance(each, list) else each for each in found]
