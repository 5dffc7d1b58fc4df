"""Ground truth of an audit's images, from a file or a folder, placed like the images."""

from __future__ import annotations

from hashlib import file_digest
from pathlib import Path

from shiftscope.datasets.folders import files_checksum
from shiftscope.datasets.images import ImageBlocks
from shiftscope.datasets.photos import Photos
from shiftscope.errors import InputError
from shiftscope.runtime.inputs import check_file, reading
from shiftscope.tasks import Task, Truth
from shiftscope.tasks.truth_files import LARGEST_TRUTH, Placement

__all__ = ["open_truth", "truth_checksum"]

#: Most images whose sizes are compared with those of their ground truth.
SIZES = 8


def open_truth(path: Path, images: ImageBlocks, task: Task) -> Truth:
    """Return the ground truth of images.

    Args:
        path: file or folder.
        images: that are measured.
        task: that reads it.

    Raises:
        InputError: the images have no names, or the truth cannot be read or is of images of another shape.
    """
    if not isinstance(images.source, Photos):
        raise InputError("`truth` is matched to images by file name, and these images are not files.", "Give a folder as --data.")
    if not path.exists():
        raise InputError(f"`truth` {path} does not exist.", "Check the path.")
    cover = None if images.crop is None else images.crop.cover
    names = [images.name(number) for number in range(images.count)]
    step = max(1, -(-images.count // SIZES))
    return task.open_truth(path, names, Placement(images.size, cover, images.source.sizes(range(0, images.count, step))))


def truth_checksum(path: str | None) -> str:
    """Return the SHA-256 of a file of ground truth, or of its files' names and contents; empty without one."""
    if path is None:
        return ""
    if Path(path).is_dir():
        return files_checksum(Path(path), sorted(file for file in Path(path).rglob("*") if file.is_file()))
    with reading(Path(path), "ground truth", "Check the path."):
        check_file(Path(path), limit=LARGEST_TRUTH)
        with Path(path).open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
