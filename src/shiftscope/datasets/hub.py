"""Download labelled images from the Hugging Face hub, with the library ``datasets`` (extra ``hub``)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftscope.datasets.folders import Rows, Split, open_image, read_columns
from shiftscope.datasets.photos import Opener
from shiftscope.errors import InputError, first_line
from shiftscope.runtime.network import hub_answers, hub_offline

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["download"]


@contextmanager
def download(name: str, *, online: bool = True) -> Iterator[dict[str, Split]]:
    """Open the labelled splits of a data set of the hub, from the library's own cache if it is there.

    Args:
        name: owner/name.
        online: whether to use the network.

    Raises:
        InputError: ``datasets`` is not installed, the hub cannot be reached and the data set is not cached, or it has no image or
            label column.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"the data set {name!r} is on the Hugging Face hub, and the package `datasets` to download it is not installed.",
            "Run `pip install shiftscope[hub]`, or give a local copy with --data-dir (or SHIFTSCOPE_DATA).",
        ) from error

    datasets.disable_progress_bars()
    asked, online = online, online and hub_answers()
    with nullcontext() if online else hub_offline():
        try:
            opened = datasets.load_dataset(name)
        except Exception as error:
            if not online:
                raise _not_cached(name, asked=asked) from error
            raise InputError(
                f"Hugging Face hub {name} cannot be read as labelled images ({first_line(error)}).", "Choose other `data`."
            ) from error
        features: Any = next(iter(opened.values())).features
        image, label, classes = read_columns(features.to_dict() if features else {}, f"Hugging Face hub {name}")
        encoded = datasets.Image(decode=False)  # its own decoder opens more formats than photos have
        yield {split: _split(rows.cast_column(image, encoded), classes, image, label) for split, rows in opened.items()}


def _not_cached(name: str, *, asked: bool) -> InputError:
    """Return the error of a data set that is not on this machine, which the user asked for or only a file names."""
    if asked:
        return InputError(
            f"the data set {name!r} is not cached and the Hugging Face hub cannot be reached.",
            "Give a local copy with --data-dir (or SHIFTSCOPE_DATA), or use digits, which needs no network.",
        )
    return InputError(
        f"the data set {name!r} is not cached, and the Hugging Face hub is not contacted for what a file names.",
        "Name it with --data, or give a local copy with --data-dir (or SHIFTSCOPE_DATA).",
    )


def _split(rows: Any, classes: tuple[str, ...], image: str, label: str) -> Split:
    def load(places: Sequence[int]) -> Iterator[Opener]:
        return (partial(_image, rows, place, image) for place in places)

    return Split(
        count=len(rows),
        classes=classes,
        rows=partial(_rows, rows, image, label),
        labels=lambda: list(rows[label]),
        load=load,
    )


def _image(rows: Any, place: int, image: str) -> Image:
    return _opened(rows[place][image])


def _rows(rows: Any, image: str, label: str) -> Rows:
    for row in rows.select_columns([image, label]):
        yield _opened(row[image]), row[label]


def _opened(cell: Mapping[str, Any]) -> Image:
    """Decode an image that the library holds as bytes, or as a file in its cache."""
    return open_image(Path(cell["path"]) if cell["bytes"] is None else io.BytesIO(cell["bytes"]))
