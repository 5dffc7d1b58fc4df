"""Download labelled images from the Hugging Face hub, with the library ``datasets`` (extra ``hub``)."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from shiftscope.datasets.folders import Rows, Split, in_8_bit_units, read_columns
from shiftscope.datasets.photos import Opener
from shiftscope.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["download", "hub_answers"]

HUB_WAIT_SECONDS = 1.5


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
    online = online and hub_answers()
    with _offline_unless(online):
        try:
            opened = datasets.load_dataset(name)
        except Exception as error:
            raise (
                InputError(
                    f"Hugging Face hub {name} cannot be read as labelled images ({first_line(error)}).", "Choose other `data`."
                )
                if online
                else InputError(
                    f"the data set {name!r} is not cached and the Hugging Face hub cannot be reached.",
                    "Give a local copy with --data-dir (or SHIFTSCOPE_DATA), or use digits, which needs no network.",
                )
            ) from error
        features: Any = next(iter(opened.values())).features
        image, label, classes = read_columns(features.to_dict() if features else {}, f"Hugging Face hub {name}")
        yield {split: _split(rows, classes, image, label) for split, rows in opened.items()}


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
    found: Image = in_8_bit_units(rows[place][image])
    return found


def _rows(rows: Any, image: str, label: str) -> Rows:
    for row in rows.select_columns([image, label]):
        yield in_8_bit_units(row[image]), row[label]


def hub_answers() -> bool:
    """Return whether the hub, or the proxy before it, accepts a connection within a second or two."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or constants.ENDPOINT)
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, address.port or 443), timeout=HUB_WAIT_SECONDS).close()
            answers.append(True)
        except OSError:
            pass

    # In a thread, because a name lookup has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_WAIT_SECONDS)
    return bool(answers)


@contextmanager
def _offline_unless(online: bool) -> Iterator[None]:
    """Keep the libraries offline unless ``online``: otherwise they retry for half a minute what is known to fail."""
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
