"""Images in a folder, read a few at a time: subfolders are classes; without any there are no labels.

How an image comes to the model's size: turned upright as its EXIF says, brought to the model's colours, scaled (bilinear, with
filtering) so that its shorter side has the size asked for, and its centre cut out as a square.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.datasets.sources import eight_bits
from shiftscope.errors import InputError
from shiftscope.runtime.seeds import stream

__all__ = ["Folder", "listed"]

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


@dataclass(frozen=True)
class Folder:
    """Files of images.

    Attributes:
        path: of the folder.
        files: in order.
        labels: of each file, the place of its subfolder among ``classes``; None where there are no subfolders.
        classes: names of the subfolders, in order.
        found: how many files there are altogether.
    """

    path: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    found: int

    @property
    def checksum(self) -> str:
        """Changes with the names, sizes and times of the files."""
        digest = sha256()
        for file in self.files:
            status = file.stat()
            digest.update(os.fsencode(file.relative_to(self.path)) + f"/{status.st_size}/{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def first(self) -> tuple[int, int, int]:
        """(channels, height, width) of the first image that can be read, upright: one channel where it is grey.

        Raises:
            InputError: none can be read.
        """
        for file in self.files:
            picture = _opened(file, None)
            if picture is not None:
                return (1 if picture.ndim == 2 else 3, *picture.shape[:2])
        raise InputError(f"{self.path} holds no image that can be read.")

    def read(
        self, start: int, stop: int, *, size: int, channels: int
    ) -> tuple[Float[Tensor, "image channel size size"], list[int], list[str]]:
        """Images in [0, 1], their places among the files, and the names of files that cannot be read.

        Args:
            start: the first file.
            stop: one past the last.
            size: height and width of the square, pixels.
            channels: 1 or 3.
        """
        images, places, damaged = [], list[int](), list[str]()
        for place in range(start, min(stop, len(self.files))):
            picture = _opened(self.files[place], channels, size)
            if picture is None:
                damaged.append(str(self.files[place].relative_to(self.path)))
                continue
            places.append(place)
            images.append(torch.from_numpy(picture.reshape(size, size, channels)).permute(2, 0, 1))
        whole = torch.stack(images) if images else torch.zeros(0, channels, size, size)
        return whole, places, damaged


def listed(path: Path, *, images: int | None = None) -> Folder:
    """The files of a folder; so many of them, picked at random with a fixed seed and kept in order.

    Raises:
        InputError: it holds no image.

    """
    if not path.is_dir():
        raise InputError(f"the image folder {path} does not exist. Check the path.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    inside = [file for file in files if file.parent != path]
    files = inside or files
    if not files:
        raise InputError(f"the image folder {path} holds no image ({', '.join(sorted(SUFFIXES))}). Check the path.")
    found = len(files)
    if images is not None and images < found:
        picked = torch.randperm(found, generator=stream(0, "images"))[:images].sort().values
        files = [files[place] for place in picked.tolist()]
    if not inside:
        return Folder(path, tuple(files), None, (), found)
    classes = tuple(sorted({file.relative_to(path).parts[0] for file in inside}))
    number = {name: place for place, name in enumerate(classes)}
    labels = tuple(number[file.relative_to(path).parts[0]] for file in files)
    return Folder(path, tuple(files), labels, classes, found)


def _opened(file: Path, channels: int | None, size: int | None = None) -> np.ndarray | None:
    """Pixels in [0, 1], [height, width] or [height, width, 3]; None where the file is damaged."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            with Image.open(file) as opened:
                picture: Image.Image = ImageOps.exif_transpose(opened)
                grey = picture.mode in ("1", "L", "LA", "I;16", "I", "F") if channels is None else channels == 1
                picture = eight_bits(picture).convert("L" if grey else "RGB")
                if size is not None:
                    picture = ImageOps.fit(picture, (size, size), method=Image.Resampling.BILINEAR)
                return np.asarray(picture, dtype=np.float32) / 255
    except Exception:  # a damaged image can raise anything that a decoder raises
        return None
