"""Read images from a folder: image files, or parquet files in the Hugging Face image schema.

Subfolders are classes. :func:`list_images` lists the files of a folder, to be read a few at a time for a model.
:func:`open_splits` opens the labelled splits of a data set, to be decoded once.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shiftscope.datasets.photos import Opener, Photos, pick
from shiftscope.errors import InputError
from shiftscope.runtime.inputs import check_file, parse_json, reading
from shiftscope.runtime.pictures import SUFFIXES, open_picture
from shiftscope.runtime.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "HELD_OUT",
    "Rows",
    "Split",
    "files_checksum",
    "list_images",
    "in_8_bit_units",
    "open_image",
    "open_splits",
    "parquet_files",
    "pixels",
    "read_columns",
]

#: Splits that are not trained on, in order of preference as the test split.
HELD_OUT = ("test", "validation", "valid")
#: The words in a folder's or file's name that put images into a split; a word is delimited by one of the characters before it.
SPLIT_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}
SPLIT_PATTERNS = {name: re.compile(rf"(?:^|[-._ 0-9])(?:{words})(?:$|[-._ 0-9])") for name, words in SPLIT_WORDS.items()}
#: Label columns of integers whose schema does not name classes.
PLAIN_LABELS = ("label", "labels", "fine_label")
ROWS_AT_ONCE = 500
EXIF_ORIENTATION = 0x0112
#: Largest parquet file in bytes, and the longest name of a class.
LARGEST_FILE, LONGEST_NAME = 1 << 40, 1000
#: Bytes that a checksum of files reads: at most of all together, and at least of each.
MOST_READ, LEAST_READ = 1 << 30, 1 << 12

#: A labelled image: an upright image and its label.
Rows = Iterator[tuple["Image", int]]


@dataclass(frozen=True)
class Split:
    """The labelled images of one split of a data set, decoded one after the other.

    Attributes:
        count: number of images.
        classes: names, by label; empty if the source has none.
        rows: starts a pass over the images.
        labels: reads all labels.
        load: places, increasing -> what decodes each image.
    """

    count: int
    classes: tuple[str, ...]
    rows: Callable[[], Rows]
    labels: Callable[[], list[int]]
    load: Callable[[Sequence[int]], Iterator[Opener]]


def list_images(path: Path, *, count: int | None = None) -> Photos:
    """List the image files of a folder. Its subfolders are the classes; files beside subfolders are left out.

    Where all subfolders are splits (``train``, ``val``, ``test``), those of the test split are listed, else of the validation
    split, else of the training split.

    Args:
        path: of the folder.
        count: number of files to pick at random, with a fixed seed, and keep in order; None keeps all.

    Raises:
        InputError: there is no such folder, or it holds no image file.
    """
    if not path.is_dir():
        raise InputError(f"the image folder {path} does not exist.", "Check the path.")
    root = path / _split_folder(path)
    files = _image_files(root)
    inside = [file for file in files if file.parent != root]
    every, beside = inside or files, len(files) - len(inside) if inside else 0
    if not every:
        raise InputError(f"the image folder {root} holds no image ({', '.join(sorted(SUFFIXES))}).", "Check the path.")
    files = [every[place] for place in pick(len(every), count)]
    classes = tuple(sorted({file.relative_to(root).parts[0] for file in inside}))
    return Photos(
        origin=f"image folder {printable(str(root.relative_to(path.parent)))}",
        names=tuple(printable(str(file.relative_to(root))) for file in files),
        labels=tuple(classes.index(file.relative_to(root).parts[0]) for file in files) if inside else None,
        classes=tuple(map(printable, classes)),
        found=len(every),
        checksum=files_checksum(root, files),
        load=lambda places: (partial(open_image, files[place]) for place in places),
        beside=beside,
        alphabetical=True,
    )


def files_checksum(root: Path, files: Sequence[Path]) -> str:
    """Return the SHA-256 over the names, sizes and contents of files below a folder, the same for every copy of it.

    Of many or large files only the first and the last bytes count, of all together at most :data:`MOST_READ` bytes and of each at
    least :data:`LEAST_READ`, because every process of an audit reads them.
    """
    digest, each = sha256(), max(LEAST_READ, MOST_READ // max(1, len(files)))
    for file in files:
        size = file.stat().st_size
        digest.update(os.fsencode(file.relative_to(root)) + f"/{size}\n".encode())
        with suppress(OSError), file.open("rb") as opened:  # who reads the images names files that cannot be read
            digest.update(opened.read(each if size <= each else each // 2))
            if size > each:
                opened.seek(-(each // 2), os.SEEK_END)
                digest.update(opened.read())
    return digest.hexdigest()


def _split_folder(path: Path) -> str:
    """Return the name of the subfolder to evaluate, where all subfolders are splits; empty otherwise."""
    names = [child.name for child in sorted(path.iterdir()) if child.is_dir() and not child.name.startswith((".", "__"))]
    split = {name: next((each for each, words in SPLIT_WORDS.items() if name.lower() in words.split("|")), "") for name in names}
    if not all(split.values()):
        return ""
    return next((name for each in (*HELD_OUT, "train") for name in names if split[name] == each), "")


def open_splits(folder: Path) -> dict[str, Split]:
    """Open the labelled splits of a data set in a folder: of its parquet files if it has any, else of its image files.

    The name of a parquet file says its split: ``test...``, ``validation...`` or ``valid...``, else ``train``. The folder in which
    image files lie is their class. They belong to the split that a folder above that names, else, where the names of all files
    say a split, to that, else to ``train``.

    Args:
        folder: an existing one.

    Raises:
        InputError: a parquet file is damaged or lacks an image or label column; image files are not in subfolders of one level;
            or some of several folders above the classes name a split and others do not.
    """
    parquet = parquet_files(folder)
    return _parquet_splits(parquet, folder) if parquet else _image_splits(folder)


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files of a folder and its subfolders, in order."""
    return sorted(path for path in folder.rglob("*.parquet") if path.is_file())


def open_image(source: Path | io.BytesIO) -> Image:
    """Decode an image and turn it upright as its EXIF data says; grey of more than 8 bits as :func:`in_8_bit_units` returns it.

    Its ``info`` says what is left out: ``rounded`` colour of 16 bits, of which Pillow keeps 8.

    Args:
        source: a file or its bytes.

    Raises:
        InputError: its numbers lie beyond 0 to 65535, or to 1 if they are fractional.
        Exception: whatever :func:`shiftscope.runtime.pictures.open_picture` and a decoder raise on a damaged image.
    """
    from PIL import ImageOps

    with open_picture(source) as opened:
        rounded = opened.mode.startswith("RGB") and ";16" in str(opened.tile)
        opened.load()
        opened.info["rounded"] = rounded
        # Without a rotation, a copy would only cost time.
        image: Image = ImageOps.exif_transpose(opened) if opened.getexif().get(EXIF_ORIENTATION) else opened
        return in_8_bit_units(image)


def in_8_bit_units(image: Image) -> Image:
    """Return grey of 16 bits, or of fractional numbers in [0, 1], as numbers from 0 to 255 in mode F, not rounded to 8 bits.

    Its ``info`` has the number that was ``white``. Any other image is returned as it is.

    Raises:
        InputError: it holds integers beyond 0 to 65535, or fractional numbers beyond [0, 1], whose white is unknown.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    import PIL.Image

    values = np.asarray(image).astype(np.float64)
    fractional = image.mode.startswith("F")
    white = 1 if fractional else 65535
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white):
        kind = "fractional numbers" if fractional else "integers"
        raise InputError(
            f"its pixels are {kind} from {low:.6g} to {high:.6g}, and must lie within 0 to {white}.",
            "Rescale the files to that range.",
        )
    found: Image = PIL.Image.fromarray((values * (255 / white)).astype(np.float32))
    found.info["white"] = white
    return found


def pixels(image: Image, size: int | None) -> np.ndarray:
    """Return the uint8 values [height, width, channel] of an image: 1 channel if it is grey, 3 otherwise.

    Args:
        image: as :func:`open_image` returns it.
        size: height and width to scale (bicubic) and crop it to; None keeps its own.
    """
    if image.mode == "F":
        import PIL.Image

        image = PIL.Image.fromarray(np.asarray(image).round().astype(np.uint8))
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if size and image.size != (size, size):
        from PIL import ImageOps

        image = ImageOps.fit(image, (size, size))
    values = np.asarray(image)
    return values if values.ndim == 3 else values[:, :, None]


def _image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, without hidden ones, in order."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return [file for file in files if not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)]


def _image_splits(folder: Path) -> dict[str, Split]:
    """Open the splits of image files."""
    files = _image_files(folder)
    named = _named_splits(folder, files)
    classes = tuple(sorted({file.parent.name for file in files}))
    if len(classes) < 2 or len({len(file.parts) for file in files}) > 1:
        raise InputError(
            f"the image folder {folder} must hold two or more subfolders with images, one for each class and all at the same "
            f"depth, got {', '.join(classes) or 'no image'}.",
            "Move the images into such folders.",
        )
    labels = {name: label for label, name in enumerate(classes)}

    def split(name: str) -> Split:
        ours = [file for file in files if named[file] == name]
        return Split(
            count=len(ours),
            classes=tuple(map(printable, classes)),
            rows=lambda: ((_open_named(file), labels[file.parent.name]) for file in ours),
            labels=lambda: [labels[file.parent.name] for file in ours],
            load=lambda places: (partial(open_image, ours[place]) for place in places),
        )

    return {name: split(name) for name in SPLIT_WORDS if name in named.values()}


def _named_splits(folder: Path, files: list[Path]) -> dict[Path, str]:
    """Return the split of each image file.

    Raises:
        InputError: some folders name a split, and others beside them do not.
    """
    above = [file.relative_to(folder).parts[:-2] for file in files]
    for names in zip(*above, strict=False):
        found = {name: _split_of(name) for name in names}
        unnamed = [name for name, split in found.items() if not split]
        if len(unnamed) < len(found):
            if unnamed:
                raise InputError(
                    f"the image folder {folder} has folders that name a split beside one that names none, {unnamed[0]!r}.",
                    "Rename that one, or move it elsewhere.",
                )
            return dict(zip(files, (found[name] for name in names), strict=True))
    by_name = {file: _split_of(file.name) for file in files}
    return by_name if all(by_name.values()) else dict.fromkeys(files, "train")


def _split_of(name: str) -> str:
    """Return the split that a name means; empty if none."""
    return next((split for split, pattern in SPLIT_PATTERNS.items() if pattern.search(name)), "")


def _open_named(file: Path) -> Image:
    """Decode an image file; the error of a damaged one names it."""
    with reading(file, "an image", "Copy it again, or remove it."):
        return open_image(file)


def _parquet_splits(files: list[Path], folder: Path) -> dict[str, Split]:
    """Open the splits of parquet files."""
    groups: dict[str, list[Path]] = {}
    counts: dict[str, int] = {}
    features: dict[str, Any] = {}
    for file in files:
        with _opened(file) as opened:
            rows, metadata = opened.metadata.num_rows, opened.schema_arrow.metadata or {}
            names = opened.schema_arrow.names
            known = parse_json(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            known = {name: kind for name, kind in known.items() if name in names}
        name = next((split for split in HELD_OUT if file.stem.startswith(split)), "train")
        groups.setdefault(name, []).append(file)
        counts[name] = counts.get(name, 0) + rows
        features = features or {**{name: {} for name in names}, **known}
    image, label, classes = read_columns(features, str(folder))
    return {
        name: Split(
            count=counts[name],
            classes=classes,
            rows=partial(_rows, group, image, label),
            labels=partial(_label_column, group, label),
            load=partial(_some_rows, group, image),
        )
        for name, group in groups.items()
    }


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a parquet file; any error of reading it in the block becomes one sentence."""
    import pyarrow.parquet as pq

    with reading(file, "a complete parquet file of images and labels", "Copy it again."):
        check_file(file, limit=LARGEST_FILE)
        with file.open("rb") as source, pq.ParquetFile(source) as opened:
            yield opened


def read_columns(features: dict[str, Any], origin: str) -> tuple[str, str, tuple[str, ...]]:
    """Return the image column, the label column and the class names of a schema.

    Args:
        features: column -> its description in the Hugging Face schema, such as ``{"_type": "Image"}``.
        origin: of the data, for the error.

    Raises:
        InputError: a column is missing.
    """
    kinds = {name: kind.get("_type") if isinstance(kind, dict) else None for name, kind in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    plain = [name for name in features if name in PLAIN_LABELS]
    if not images or not (labels or plain):
        raise InputError(
            f"{origin} must have an image column and a label column, got {sorted(features)}.",
            "Write them in the Hugging Face image schema.",
        )
    return images[0], (labels or plain)[0], _class_names(features[labels[0]], origin) if labels else ()


def _class_names(feature: dict[str, Any], origin: str) -> tuple[str, ...]:
    """Return the names of classes in the description of a label column."""
    names = feature.get("names")
    if not isinstance(names, list) or not all(isinstance(each, str) and len(each) <= LONGEST_NAME for each in names):
        raise InputError(
            f"{origin} must name its classes in a list of texts of at most {LONGEST_NAME} characters.",
            "Write it in the Hugging Face image schema.",
        )
    return tuple(map(printable, names))


def _rows(files: list[Path], image: str, label: str) -> Rows:
    """Read the rows of parquet files a few at a time."""
    for file in files:
        with _opened(file) as opened:
            for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=[image, label]):
                for row in batch.to_pylist():
                    yield _open_cell(row[image]), row[label]


def _label_column(files: list[Path], label: str) -> list[int]:
    labels: list[int] = []
    for file in files:
        with _opened(file) as opened:
            values = opened.read(columns=[label])[label].to_pylist()
            if not all(type(each) is int for each in values):
                raise InputError(f"the column {printable(label)!r} of {file} must hold integers.", "Number the classes from 0.")
            labels += values
    return labels


def _open_cell(cell: Any) -> Image:
    """Decode an image in a column of the Hugging Face schema."""
    return open_image(io.BytesIO(cell["bytes"]))


def _some_rows(files: list[Path], image: str, places: Sequence[int]) -> Iterator[Opener]:
    """Yield what decodes some images of parquet files, whose places increase; other groups of rows are not read."""
    wanted, start = list(places), 0
    for file in files:
        with _opened(file) as opened:
            for number in range(opened.num_row_groups):
                stop = start + opened.metadata.row_group(number).num_rows
                inside = [place - start for place in wanted if start <= place < stop]
                if inside:
                    column = opened.read_row_group(number, columns=[image])[image]
                    for place in inside:
                        yield partial(_open_cell, column[place].as_py())
                start = stop
