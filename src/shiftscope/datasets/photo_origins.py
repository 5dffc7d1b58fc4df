"""Open photos where they are: in a folder, in its parquet files, or on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from shiftscope.datasets.folders import HELD_OUT, Split, files_checksum, list_images, open_splits, parquet_files
from shiftscope.datasets.hub import download
from shiftscope.datasets.photos import Photos, pick
from shiftscope.datasets.sources import MOST_CLASSES, find_folder
from shiftscope.errors import InputError
from shiftscope.runtime.progress import Report, Stage
from shiftscope.runtime.text import printable

__all__ = ["open_photos"]


def open_photos(name: str, count: int | None, data_dir: Path | None, report: Report, *, training: bool) -> Photos:
    """Open photos of a folder, of its parquet files, or of the hub.

    Args:
        name: path of a folder, or a hub id.
        count: number of photos, picked with a fixed seed; None for all.
        data_dir: a local folder that holds the data set.
        report: called with each progress event.
        training: whether to open the training split; of a set without splits, these are all.

    Raises:
        InputError: there are no such photos, or their labels do not fit.
    """
    folder = find_folder(name, data_dir)
    if folder is None:
        return _from_hub(name, count, report, training=training)
    files = parquet_files(folder)
    if not files and not training:
        return list_images(folder, count=count)
    origin = f"{'parquet files of' if files else 'image folder'} {printable(folder.name)}"
    found = _of_split(open_splits(folder), origin, files_checksum(folder, files), count, training=training)
    return replace(found, alphabetical=not files)


def _from_hub(name: str, count: int | None, report: Report, *, training: bool) -> Photos:
    """Open photos of the hub; if that fails, the error also says that there is no such folder."""
    report(Stage(f"opening Hugging Face hub {name}", 0, 0))
    try:
        with download(name) as splits:
            checksum = sha256(name.encode()).hexdigest()
            return _of_split(splits, f"Hugging Face hub {name}", checksum, count, training=training)
    except InputError as error:
        raise InputError(f"there is no folder {name}, and {error.problem}", error.remedy) from error


def _of_split(splits: Mapping[str, Split], origin: str, checksum: str, count: int | None, *, training: bool) -> Photos:
    """Return photos of the first held-out split that has labels, else of the training split; or of the training split first."""
    preferred = ("train",) if training else HELD_OUT
    names = [*(name for name in preferred if name in splits), *splits]
    labels = {name: splits[name].labels() for name in dict.fromkeys(names)}
    name = next((name for name, known in labels.items() if known and min(known) >= 0), names[0])
    split, known = splits[name], labels[name]
    if len(known) != split.count:
        raise InputError(f"{origin} holds {split.count} images and {len(known)} labels.", "Check its files.")
    highest = max(known, default=-1)
    if highest >= (len(split.classes) or MOST_CLASSES):
        raise InputError(
            f"{origin} has the label {highest}, and the classes are 0 to {(len(split.classes) or MOST_CLASSES) - 1}.",
            "Correct the labels, or the names of the classes.",
        )
    places = pick(split.count, count)
    classes = split.classes or tuple(map(str, range(highest + 1)))
    return Photos(
        origin=f"the {name} split of {origin}" if len(splits) > 1 or name in HELD_OUT else origin,
        names=tuple(f"image {place}" for place in places),
        labels=tuple(known[place] for place in places) if min(known, default=-1) >= 0 else None,
        classes=classes,
        found=split.count,
        checksum=checksum,
        load=lambda wanted: split.load([places[place] for place in wanted]),
    )
