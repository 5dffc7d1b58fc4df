"""Read videos that are folders of frames: image files in the natural order of their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shiftscope.datasets.folders import files_checksum, open_image
from shiftscope.datasets.photos import Photos
from shiftscope.errors import InputError
from shiftscope.runtime.pictures import SUFFIXES, open_picture
from shiftscope.runtime.text import printable

__all__ = ["Videos", "natural_order", "open_videos"]

#: A hint for users with a video file.
EXTRACT = "Extract frames first, as with `ffmpeg -i video.mp4 frames/%05d.png`."


@dataclass(frozen=True)
class Videos:
    """Videos, and all their frames as photos, video after video.

    Attributes:
        names: of the videos.
        lengths: number of frames of each.
        photos: the frames.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    photos: Photos

    def places(self) -> tuple[range, ...]:
        """Return the places of each video's frames among the photos."""
        starts = [sum(self.lengths[:number]) for number in range(len(self.lengths))]
        return tuple(range(start, start + length) for start, length in zip(starts, self.lengths, strict=True))


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return the key by which names are sorted as people do: numbers by their value.

    >>> sorted(["frame 10", "frame 9", "frame 009b"], key=natural_order)
    ['frame 9', 'frame 009b', 'frame 10']
    """
    parts = re.split(r"([0-9]+)", name.lower())
    return [(int(part), "") if part.isascii() and part.isdecimal() else (0, part) for part in parts]


def open_videos(folder: Path) -> Videos:
    """List the frames of a video in a folder, or of several videos in its subfolders.

    Files whose names are not those of images, and hidden ones, are left out. Each frame's header is read.

    Raises:
        InputError: there is no such folder; it holds no frames, or frames beside folders of frames; a video has fewer than two
            frames, or frames of different sizes; a header cannot be read.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file, and `frames` must be a folder of image files.", EXTRACT)
    if not folder.is_dir():
        raise InputError(f"the folder of frames {folder} does not exist.", "Check the path.")
    own = _frames(folder)
    inner = {each: _frames(each) for each in sorted(folder.iterdir(), key=_by_name) if each.is_dir() and _is_seen(each)}
    inner = {each: files for each, files in inner.items() if files}
    if own and inner:
        raise InputError(
            f"{folder} holds frames beside subfolders with frames ({next(iter(inner)).name}).",
            "Give the folder of one video, or one whose subfolders are videos.",
        )
    if not own and not inner:
        raise InputError(f"{folder} holds no frames ({', '.join(sorted(SUFFIXES))}).", EXTRACT)
    videos = inner or {folder: own}
    for each, files in videos.items():
        _check(each, files)
    return _opened(folder, videos)


def _opened(folder: Path, videos: dict[Path, list[Path]]) -> Videos:
    files = [file for each in videos.values() for file in each]
    photos = Photos(
        origin=f"frames in {printable(folder.name)}",
        names=tuple(printable(str(file.relative_to(folder))) for file in files),
        labels=None,
        classes=(),
        found=len(files),
        checksum=files_checksum(folder, files),
        load=lambda places: (partial(open_image, files[place]) for place in places),
    )
    return Videos(tuple(printable(each.name) for each in videos), tuple(map(len, videos.values())), photos)


def _by_name(path: Path) -> tuple[list[tuple[int, str]], str]:
    return natural_order(path.name), path.name


def _is_seen(path: Path) -> bool:
    return not path.name.startswith((".", "__"))


def _frames(folder: Path) -> list[Path]:
    """Return the images that lie in a folder, in natural order."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and _is_seen(file) and file.is_file()]
    return sorted(files, key=_by_name)


def _check(folder: Path, files: Sequence[Path]) -> None:
    if len(files) < 2:
        raise InputError(f"{folder} holds one frame, and a video needs two or more.", EXTRACT)
    sizes = {file: _size(file) for file in files}
    first = sizes[files[0]]
    other = next((file for file in files if sizes[file] != first), None)
    if other is not None:
        (width, height), (wide, tall) = first, sizes[other]
        raise InputError(
            f"the frames of {folder} differ in size: {files[0].name} has {width}x{height} pixels, {other.name} {wide}x{tall}.",
            "Give frames of one size.",
        )


def _size(file: Path) -> tuple[int, int]:
    """Return (width, height) by an image's header."""
    try:
        with open_picture(file) as opened:
            return opened.size
    except Exception as error:  # a damaged image raises whatever its decoder raises
        raise InputError(f"the frame {file} cannot be read as an image.", "Replace it, or remove it.") from error
