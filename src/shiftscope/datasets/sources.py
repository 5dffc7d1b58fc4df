"""Where labelled images come from, decoded once into tensors.

Four kinds of source, one result (:class:`Labelled` per split): scikit-learn's digits, which need no file; a folder of
parquet files in the Hugging Face image schema; an image folder (a subfolder a class); the Hugging Face hub. What was decoded
is kept as safetensors in the cache folder (``SHIFTSCOPE_CACHE``, else ``~/.cache/shiftscope``), named by its source.

This module knows no canvas, no split of ours and no network.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from shiftscope.errors import InputError, first_line
from shiftscope.runtime.files import write_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Labelled", "Source", "eight_bits", "is_image_folder", "offline_unless", "read"]

#: Short names and where the hub keeps them.
HUB_NAMES = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
CACHE_VERSION = 2
HUB_WAIT_SECONDS = 1.5

#: What splits that are not trained on are called, the one to be preferred first.
HELD_OUT = ("test", "validation", "valid")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Labelled:
    """Images of one size and their labels."""

    images: UInt8[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, picked: Any) -> Labelled:
        return Labelled(self.images[picked], self.labels[picked])


@dataclass(frozen=True)
class Source:
    """A data set as it came.

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


def read(name: str, *, image_size: int | None, data_dir: Path | None, progress: Progress) -> Source:
    """The data set of that name, from memory, the cache, a local folder or the hub, in this order of preference.

    Args:
        name: ``digits``, ``mnist``, ``cifar10``, a hub id ``owner/name``, or the path of an image folder.
        image_size: height and width to bring every image to (shorter side scaled, then the centre cut); None keeps them.
        data_dir: a local folder that holds ``name/*.parquet`` or an image folder ``name/``; None means the hub.
        progress: told what is going on, and how many of how many images are done.

    Raises:
        InputError: unknown name, nothing at that place, unreadable files, images of different sizes, no labels, or an
            unreachable hub with nothing cached.
    """
    if name == "digits":
        return _digits(image_size)
    folder = _folder(name, data_dir)
    key = _key(name, folder, image_size)
    cached = _cache_folder() / f"{Path(name).name}-{key}.safetensors"
    if cached.exists():
        source = _from_cache(cached)
        if source is not None:
            return source
    source = _from_folder(folder, image_size, progress) if folder else _from_hub(name, image_size, progress)
    _to_cache(source, cached)
    return source


def _digits(image_size: int | None) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16)[:, None]
    if image_size:
        images = torch.nn.functional.interpolate(images, (image_size, image_size), mode="bilinear", align_corners=False)
    labelled = Labelled(images.mul(255).round().byte(), torch.from_numpy(bunch.target).long())
    classes = tuple(str(label) for label in bunch.target_names)
    return Source({"train": labelled}, classes, "scikit-learn load_digits", _checksum({"train": labelled}))


def _folder(name: str, data_dir: Path | None) -> Path | None:
    """The local folder a name means, or None for the hub."""
    if data_dir is not None:
        if not data_dir.is_dir():
            raise InputError(f"`data_dir` must be an existing folder, got {data_dir}. Check the path.")
        folder = data_dir / Path(name).name
        if not folder.is_dir():
            raise InputError(
                f"`data_dir` {data_dir} holds no folder {Path(name).name!r}. Put train.parquet and test.parquet there."
            )
        return folder
    if is_image_folder(name):
        return Path(name)
    if name in HUB_NAMES or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        return None
    raise InputError(
        f"`data.name` {name!r} is neither digits, {', '.join(HUB_NAMES)}, a Hugging Face id (owner/name) nor an image folder. "
        "Use one of these."
    )


def is_image_folder(name: str) -> bool:
    """Whether a data set's name is the path of a folder; a known short name never is."""
    return name not in HUB_NAMES and name != "digits" and Path(name).is_dir()


def _key(name: str, folder: Path | None, image_size: int | None) -> str:
    """Names one decoded form of one source; for a local folder it changes with the files."""
    digest = sha256(f"{CACHE_VERSION}/{name if folder is None else ''}/{image_size}".encode())
    for path in _files(folder) if folder else ():
        status = path.stat()
        digest.update(f"{path}/{status.st_size}/{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _from_folder(folder: Path, image_size: int | None, progress: Progress) -> Source:
    """Parquet files where there are any, an image folder otherwise. Read as a stream, so that no second copy is made."""
    parquet = [path for path in _files(folder) if path.suffix == ".parquet"]
    if not parquet:
        origin = f"image folder {folder.name}"
        return _decode("imagefolder", {"data_dir": str(folder), "streaming": True}, origin, image_size, progress)
    for path in parquet:
        _check_parquet(path)
    groups: dict[str, list[str]] = {}
    for path in parquet:
        split = next((name for name in HELD_OUT if path.stem.startswith(name)), "train")
        groups.setdefault(split, []).append(str(path))
    sums = ", ".join(f"{path.name} sha256 {sha256(path.read_bytes()).hexdigest()[:12]}" for path in parquet)
    origin = f"local {folder.name} ({sums})"
    return _decode("parquet", {"data_files": groups, "streaming": True}, origin, image_size, progress)


def _check_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.ParquetFile(path).close()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a whole parquet file ({first_line(error)}). Copy it again.") from error


def _from_hub(name: str, image_size: int | None, progress: Progress) -> Source:
    """From the hub, or from the datasets library's own cache where the hub cannot be reached."""
    hub_name = HUB_NAMES.get(name, name)
    online = _hub_answers()
    with offline_unless(online):
        try:
            return _decode(hub_name, {}, f"Hugging Face hub {hub_name}", image_size, progress)
        except InputError as error:
            if online:
                raise
            raise InputError(
                f"`data.name` {name!r} is not cached and the Hugging Face hub cannot be reached. Give a local copy with "
                "--data-dir (or SHIFTSCOPE_DATA), or use digits, which needs no network."
            ) from error


def _hub_answers() -> bool:
    """Whether the hub (or the proxy before it) takes a connection within a second or two."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    place = urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or constants.ENDPOINT)
    answers: list[bool] = []

    def knock() -> None:
        try:
            socket.create_connection((place.hostname, place.port or 443), timeout=HUB_WAIT_SECONDS).close()
            answers.append(True)
        except OSError:
            pass

    # A thread, because looking up a name has no time limit of its own.
    knocking = threading.Thread(target=knock, daemon=True)
    knocking.start()
    knocking.join(HUB_WAIT_SECONDS)
    return bool(answers)


@contextmanager
def offline_unless(online: bool) -> Iterator[None]:
    """Keep the libraries from trying for half a minute what is known to fail."""
    from huggingface_hub import constants

    import datasets

    if online:
        yield
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _decode(builder: str, options: dict[str, Any], origin: str, image_size: int | None, progress: Progress) -> Source:
    """Open a data set with the datasets library and decode all its images."""
    import datasets

    datasets.disable_progress_bars()
    progress(f"opening {origin}", 0, 0)
    try:
        opened = datasets.load_dataset(builder, **options)
        image_column, label_column, classes = _columns(next(iter(opened.values())).features, origin)

        def decoded(name: str) -> Labelled:
            rows = opened[name].select_columns([image_column, label_column])
            return _decode_rows(rows, (image_column, label_column), image_size, f"decoding {name} images", progress)

        name = "train" if "train" in opened else next(iter(opened))
        splits = {"train": decoded(name)}
        if (splits["train"].labels < 0).any():
            raise InputError(f"{origin} has images without a label (-1) in its split {name!r}. Use a labelled data set.")
        held_out = (decoded(other) for other in HELD_OUT if other in opened and other != name)
        labelled = next((each for each in held_out if (each.labels >= 0).all()), None)
        splits = _alike(splits if labelled is None else {**splits, "test": labelled})
    except InputError:
        raise
    except Exception as error:  # a damaged image can raise anything that a decoder raises
        raise InputError(f"{origin} cannot be read as labelled images: {first_line(error.__cause__ or error)}") from error
    classes = classes or tuple(str(label) for label in range(int(splits["train"].labels.max()) + 1))
    return Source(splits, classes, origin, _checksum(splits))


def _alike(splits: dict[str, Labelled]) -> dict[str, Labelled]:
    """All splits with the same colours; they must have one size."""
    sizes = sorted({tuple(split.images.shape[2:]) for split in splits.values()})
    if len(sizes) > 1:
        raise InputError(f"`data.image_size` must be given: training and test images differ in size ({sizes[0]} and {sizes[1]}).")
    colours = max(split.images.shape[1] for split in splits.values())
    return {name: Labelled(split.images.expand(-1, colours, -1, -1), split.labels) for name, split in splits.items()}


def _columns(features: Any, origin: str) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the label column and the class names."""
    import datasets

    images = [name for name, kind in (features or {}).items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in (features or {}).items() if isinstance(kind, datasets.ClassLabel)]
    plain = [name for name in (features or {}) if name in ("label", "labels", "fine_label")]
    if not images or not (labels or plain):
        raise InputError(f"{origin} must have an image column and a label column, got {sorted(features or {})}.")
    return images[0], (labels or plain)[0], tuple(features[labels[0]].names) if labels else ()


def _decode_rows(rows: Any, columns: tuple[str, str], image_size: int | None, message: str, progress: Progress) -> Labelled:
    total = len(rows) if hasattr(rows, "__len__") else 0
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    for row in rows:
        arrays.append(_pixels(row[columns[0]], image_size))
        labels.append(row[columns[1]])
        if len(arrays) % 500 == 0:
            progress(message, len(arrays), total)
    if not arrays:
        raise InputError("a split of the data set holds no image.")
    colours = max(array.shape[2] for array in arrays)
    shapes = sorted({array.shape[:2] for array in arrays})
    if len(shapes) > 1:
        raise InputError(
            f"`data.image_size` must be given: the images differ in size ({shapes[0]} to {shapes[-1]}) and a network needs one."
        )
    if len({array.shape[2] for array in arrays}) > 1:
        arrays = [np.broadcast_to(array, (*array.shape[:2], colours)) for array in arrays]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return Labelled(images, torch.tensor(labels))


def _pixels(image: Image, image_size: int | None) -> np.ndarray:
    """Height, width, colour; one colour for grey images, three for all others."""
    image = eight_bits(image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image_size and image.size != (image_size, image_size):
        from PIL import ImageOps

        image = ImageOps.fit(image, (image_size, image_size))
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def eight_bits(image: Image) -> Image:
    """A grey image of 16 bits in 8, as bright as before; any other as it is."""
    if not image.mode.startswith("I"):
        return image
    import PIL.Image

    return PIL.Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))


def _checksum(splits: dict[str, Labelled]) -> str:
    digest = sha256()
    for name in sorted(splits):
        images, labels = splits[name].images, splits[name].labels
        digest.update(f"{name}{tuple(images.shape)}".encode())
        digest.update(images.contiguous().numpy().data)
        digest.update(labels.numpy().data)
    return digest.hexdigest()


def _cache_folder() -> Path:
    """Where decoded data sets are kept."""
    chosen = os.environ.get("SHIFTSCOPE_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shiftscope"


def _to_cache(source: Source, path: Path) -> None:
    tensors = {
        f"{split}.{part}": getattr(labelled, part) for split, labelled in source.splits.items() for part in ("images", "labels")
    }
    metadata = {"classes": json.dumps(source.classes), "origin": source.origin, "checksum": source.checksum}
    try:
        write_tensors(path, tensors, metadata=metadata)
    except OSError as error:
        warnings.warn(f"the decoded images are not kept: {error}. Set SHIFTSCOPE_CACHE to a writable folder.", stacklevel=2)


def _from_cache(path: Path) -> Source | None:
    """What was kept, or None, said, where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as kept:
            metadata = kept.metadata()
            tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118, not a mapping
        names = {name.partition(".")[0] for name in tensors}
        splits = {name: Labelled(tensors[f"{name}.images"], tensors[f"{name}.labels"]) for name in sorted(names, reverse=True)}
        if _checksum(splits) != metadata["checksum"]:
            raise ValueError("its checksum does not fit its content")
        return Source(splits, tuple(json.loads(metadata["classes"])), metadata["origin"], metadata["checksum"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        warnings.warn(f"the decoded images in {path} are damaged ({first_line(error)}); decoding again.", stacklevel=2)
        return None
