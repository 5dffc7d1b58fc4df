"""Where labelled images come from: scikit-learn's digits, a local folder, or the Hugging Face hub.

Images are decoded once into tensors and cached as safetensors (in ``SHIFTSCOPE_CACHE``, else ``~/.cache/shiftscope``).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from shiftscope.datasets.folders import HELD_OUT, Split, open_splits, parquet_files, pixels
from shiftscope.datasets.hub import download
from shiftscope.errors import InputError
from shiftscope.runtime import inputs
from shiftscope.runtime.crashes import cache_folder
from shiftscope.runtime.files import write_tensors
from shiftscope.runtime.inputs import parse_json, read_tensors
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.text import printable

__all__ = ["HUB_NAMES", "Labelled", "Source", "find_folder", "is_folder", "looks_like_a_path", "read"]

#: Short names and where the hub keeps them.
HUB_NAMES = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
CACHE_VERSION = 2
#: The most classes of a data set.
MOST_CLASSES = 10**6
#: The most characters of a data set's name in the name of its file in the cache.
LONGEST_NAME = 60
IMAGES_BETWEEN_REPORTS = 500


@dataclass(frozen=True)
class Labelled:
    """Images of one size, bytes or floating point in [0, 1], and their labels."""

    images: UInt8[Tensor, "image channel height width"] | Float[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, picked: Any) -> Labelled:
        return Labelled(self.images[picked], self.labels[picked])


@dataclass(frozen=True)
class Source:
    """A decoded data set.

    Attributes:
        splits: ``train`` and, where the source has one, ``test``: its validation split where the test labels are not public.
        classes: names, by label.
        origin: where it was read from, for the record.
        checksum: SHA-256 over the decoded images and labels of all splits, whatever their encoding on disk was.
    """

    splits: dict[str, Labelled]
    classes: tuple[str, ...]
    origin: str
    checksum: str


def read(
    name: str, *, image_size: int | None = None, data_dir: Path | None = None, online: bool = True, report: Report = silent
) -> Source:
    """Read a data set: the digits from memory, others from the cache, a local folder or the hub, in this order of preference.

    Args:
        name: ``digits``, ``mnist``, ``cifar10``, a hub id ``owner/name``, or the path of a folder.
        image_size: height and width to bring every image to, pixels (the shorter side is scaled, then the centre is cut out);
            None keeps the images' own.
        data_dir: a local folder with a folder ``name/`` of parquet files or of images; None means the hub.
        online: whether to use the network.
        report: called with each progress event.

    Raises:
        InputError: the name is unknown, nothing is at that place, files are damaged, images differ in size or lack labels, or the
            hub cannot be reached and nothing is cached.
    """
    if name == "digits":
        return _digits(image_size)
    folder = find_folder(name, data_dir)
    cached = cache_folder() / f"{printable(Path(name).name)[:LONGEST_NAME]}-{_key(name, folder, image_size)}.safetensors"
    if cached.exists():
        source = _from_cache(cached)
        if source is not None:
            return source
    origin = f"Hugging Face hub {HUB_NAMES.get(name, name)}" if folder is None else _folder_origin(folder)
    report(Stage(f"opening {origin}", 0, 0))
    if folder is not None:
        source = _decode(open_splits(folder), origin, image_size, report)
    else:
        with download(HUB_NAMES.get(name, name), online=online) as splits:
            source = _decode(splits, origin, image_size, report)
    _to_cache(source, cached)
    return source


def is_folder(name: str) -> bool:
    """Return whether a data set's name is the path of a folder; a known short name never is.

    Args:
        name: as :func:`read` takes it.
    """
    return name not in HUB_NAMES and name != "digits" and inputs.is_folder(Path(name))


def _digits(image_size: int | None) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16)[:, None]
    if image_size:
        images = torch.nn.functional.interpolate(images, (image_size, image_size), mode="bilinear", align_corners=False)
    labelled = Labelled(images.mul(255).round().byte(), torch.from_numpy(bunch.target).long())
    classes = tuple(str(label) for label in bunch.target_names)
    return Source({"train": labelled}, classes, "scikit-learn load_digits", _checksum({"train": labelled}))


def find_folder(name: str, data_dir: Path | None) -> Path | None:
    """Return the local folder that a data set's name means; None means the hub.

    Args:
        name: as :func:`read` takes it.
        data_dir: a local folder with a folder ``name/``.

    Raises:
        InputError: there is no such folder, and the name cannot be one of the hub.
    """
    if data_dir is not None:
        if not data_dir.is_dir():
            raise InputError(f"`data_dir` must be an existing folder, got {data_dir}.", "Check the path.")
        folder = data_dir / Path(name).name
        if not folder.is_dir():
            if name not in HUB_NAMES and "/" not in name:
                raise InputError(f"there is no folder {name!r}, neither here nor in `data_dir` {data_dir}.", "Check the path.")
            raise InputError(
                f"`data_dir` {data_dir} holds no folder {Path(name).name!r}.", "Put train.parquet and test.parquet there."
            )
        return folder
    if is_folder(name):
        return Path(name)
    if name in HUB_NAMES:
        return None
    if looks_like_a_path(name):
        kind = "is a file, not a folder" if inputs.is_file(Path(name)) else "does not exist"
        raise InputError(f"`data` must be an existing folder, but {name} {kind}.", "Check the path.")
    if name.count("/") == 1:
        return None
    raise InputError(
        f"`data` {name!r} is neither digits, {', '.join(HUB_NAMES)}, a Hugging Face id (owner/name) nor an image folder.",
        "Use one of these.",
    )


def looks_like_a_path(name: str) -> bool:
    """Return whether a name means a place on this machine rather than a data set of the hub, which is ``owner/name``."""
    path = Path(name)
    elsewhere = name.startswith((".", "/", "~")) or name.endswith("/") or len(path.parts) > 2
    return elsewhere or inputs.is_file(path) or inputs.is_folder(path) or (len(path.parts) == 2 and inputs.is_folder(path.parent))


def _folder_origin(folder: Path) -> str:
    """Describe a folder for the record, without its place on this machine."""
    files = parquet_files(folder)
    if not files:
        return f"image folder {printable(folder.name)}"
    sums = ", ".join(f"{printable(path.name)} sha256 {_file_checksum(path)[:12]}" for path in files)
    return f"local {printable(folder.name)} ({sums})"


def _file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file that may be larger than memory."""
    with inputs.reading(path, "a file", "Copy it again."), path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _decode(splits: dict[str, Split], origin: str, image_size: int | None, report: Report) -> Source:
    """Decode the training split and the first held-out split that has labels."""
    first = "train" if "train" in splits else next(iter(splits))

    def decoded(name: str) -> Labelled:
        return _decode_split(splits[name], image_size, f"decoding {name} images", report)

    try:
        found = {"train": decoded(first)}
        if (found["train"].labels < 0).any():
            raise InputError(f"{origin} has images without a label (-1) in its split {first!r}.", "Use a labelled data set.")
        held_out = (decoded(name) for name in HELD_OUT if name in splits and name != first)
        labelled = next((each for each in held_out if (each.labels >= 0).all()), None)
        found = _with_the_same_channels(found if labelled is None else {**found, "test": labelled})
    except InputError:
        raise
    except Exception as error:  # a damaged image can raise anything that a decoder raises
        raise InputError(f"{origin} cannot be read as labelled images.", "Check its files.") from error
    highest = max(int(each.labels.max()) for each in found.values())
    if highest >= MOST_CLASSES:
        raise InputError(f"{origin} has a label {highest}, of at most {MOST_CLASSES:,} classes.", "Number the classes from 0.")
    classes = splits[first].classes or tuple(str(label) for label in range(highest + 1))
    check_labels(found, classes)
    return Source(found, classes, origin, _checksum(found))


def check_labels(splits: Mapping[str, Labelled], classes: Sequence[str]) -> None:
    """Check that every label is that of a class.

    Raises:
        InputError: a label lies beyond the classes; training would index beyond the outputs.
    """
    for name, split in splits.items():
        wrong = [label for label in split.labels.tolist() if not 0 <= label < len(classes)]
        if wrong:
            raise InputError(
                f"the {name} images have the label {wrong[0]}, and the classes are 0 to {len(classes) - 1}.",
                "Correct the labels, or the names of the classes.",
            )


def _decode_split(split: Split, image_size: int | None, stage: str, report: Report) -> Labelled:
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    for image, label in split.rows():
        if type(label) is not int:
            raise InputError("its labels must be integers.", "Number the classes from 0.")
        arrays.append(pixels(image, image_size))
        labels.append(label)
        if len(arrays) % IMAGES_BETWEEN_REPORTS == 0:
            report(Stage(stage, len(arrays), split.count))
    if not arrays:
        raise InputError("a split of the data set holds no image.", "Remove the empty split.")
    shapes = sorted({array.shape[:2] for array in arrays})
    if len(shapes) > 1:
        raise InputError(
            f"`data.image_size` must be given: the images differ in size ({shapes[0]} to {shapes[-1]}) and a network needs one.",
            "Set it to a height and width in pixels.",
        )
    channels = max(array.shape[2] for array in arrays)
    if any(array.shape[2] != channels for array in arrays):
        arrays = [np.broadcast_to(array, (*array.shape[:2], channels)) for array in arrays]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return Labelled(images, torch.tensor(labels))


def _with_the_same_channels(splits: dict[str, Labelled]) -> dict[str, Labelled]:
    """Repeat the channel of grey splits where another split has colours; all must have one size."""
    sizes = sorted({tuple(split.images.shape[2:]) for split in splits.values()})
    if len(sizes) > 1:
        raise InputError(
            f"`data.image_size` must be given: training and test images differ in size ({sizes[0]} and {sizes[1]}).",
            "Set it to a height and width in pixels.",
        )
    channels = max(split.images.shape[1] for split in splits.values())
    return {name: Labelled(split.images.expand(-1, channels, -1, -1), split.labels) for name, split in splits.items()}


def _checksum(splits: dict[str, Labelled]) -> str:
    """Return the SHA-256 of decoded splits. It is part of every run's id: keep it."""
    digest = sha256()
    for name in sorted(splits):
        images, labels = splits[name].images, splits[name].labels
        digest.update(f"{name}{tuple(images.shape)}".encode())
        digest.update(images.contiguous().numpy().data)
        digest.update(labels.numpy().data)
    return digest.hexdigest()


def _key(name: str, folder: Path | None, image_size: int | None) -> str:
    """Return a key of one decoded form of one source, which for a local folder changes with the files."""
    digest = sha256(f"{CACHE_VERSION}/{name if folder is None else ''}/{image_size}".encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()) if folder else ():
        status = path.stat()
        digest.update(os.fsencode(path) + f"/{status.st_size}/{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _to_cache(source: Source, path: Path) -> None:
    tensors = {
        f"{split}.{part}": getattr(labelled, part) for split, labelled in source.splits.items() for part in ("images", "labels")
    }
    metadata = {"classes": json.dumps(source.classes), "origin": source.origin, "checksum": source.checksum}
    try:
        write_tensors(path, tensors, metadata=metadata)
    except OSError as error:
        warnings.warn(f"the decoded images cannot be cached: {error}. Set SHIFTSCOPE_CACHE to a writable folder.", stacklevel=2)


def _from_cache(path: Path) -> Source | None:
    """Return the cached source; None, with a warning, where the file is damaged."""
    try:
        tensors, metadata = read_tensors(path)
        names = {name.partition(".")[0] for name in tensors}
        splits = {name: Labelled(tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in sorted(names, reverse=True)}
        check_labels(splits, tuple(parse_json(metadata["classes"])))
        if _checksum(splits) != metadata["checksum"]:
            raise ValueError("its checksum does not match its content")
        return Source(splits, tuple(parse_json(metadata["classes"])), metadata["origin"], metadata["checksum"])
    except Exception:  # whatever names and shapes of tensors raise that are not a data set's
        warnings.warn(f"the cached images in {path} are damaged; decoding again.", stacklevel=2)
        return None
