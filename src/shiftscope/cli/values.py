"""Read the values of options, and see whether a place can be written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shiftscope.errors import InputError

__all__ = ["check_place", "read_settings", "read_shard"]


def check_place(path: Path | None, option: str = "out", *, folder: bool) -> None:
    """See whether something could be written, before work that takes long; nothing is created.

    Args:
        path: where a file or folder will be written; None writes nothing.
        option: that gives it.
        folder: whether it will be a folder.

    Raises:
        InputError: the place is taken by the other kind, lies below a file, or may not be written.
    """
    if path is None:
        return
    place = path if path.exists() else next(each for each in path.absolute().parents if each.exists())
    if path.exists() and path.is_dir() != folder:
        reason = "it is a file" if folder else "it is a folder"
    elif place != path and not place.is_dir():
        reason = f"{place.name} is a file"
    elif not os.access(place if place.is_dir() else place.parent, os.W_OK):  # a file is replaced, not overwritten
        reason = "permission denied"
    else:
        return
    remedy = f"Choose another {'folder' if folder else 'file'}."
    raise InputError(f"`{option}` {path} cannot be written ({reason}).", remedy)


def read_shard(text: str) -> tuple[int, int]:
    """Read ``I/N`` as two numbers.

    Raises:
        InputError: it is not of that form.
    """
    number, slash, shards = text.partition("/")
    if not slash or not number.isdecimal() or not shards.isdecimal():
        raise InputError(f"`shard` must be I/N, got {text!r}.", "Write the first of four shards as 1/4.")
    return int(number), int(shards)


def read_settings(given: tuple[str, ...], option: str, example: str) -> dict[str, Any]:
    """Read each NAME=VALUE of a repeated option; a value as TOML, or as text if it is not TOML.

    Args:
        given: the texts.
        option: its name.
        example: of a text.

    Raises:
        InputError: a text has no name or no value, a name is given twice, or numbers are separated by commas alone.
    """
    import re
    import tomllib

    settings: dict[str, Any] = {}
    for each in given:
        name, found, value = each.partition("=")
        if not found or not value:
            wanted = "PATH=VALUE" if option == "set" else "NAME=VALUE"
            raise InputError(f"`--{option}` must be {wanted}, got {each!r}.", f"Write it like {example}.")
        if name.strip() in settings:
            raise InputError(f"`--{option}` gives {name.strip()} twice.", "Give it once.")
        if re.fullmatch(r"[\s\d.+-]+(,[\s\d.+-]+)+", value):
            remedy = f"Write several values as a list, {name.strip()}=[{value.strip()}], and a large number without commas."
            raise InputError(f"`--{option}` {each} has numbers separated by commas.", remedy)
        try:
            settings[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name.strip()] = value
    return settings
