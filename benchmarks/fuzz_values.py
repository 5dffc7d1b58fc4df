"""Every value of every JSON file of a folder, one at a time in another's place, for the commands that read the folder.

Where the campaigns of `fuzz_cases` draw what they damage, a seed of this one draws from a list of all files, paths and values.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from fuzz_cases import Bases

__all__ = ["every_value"]

#: Takes a value out of its list or table.
OUT = object()
VALUES: tuple[Any, ...] = (
    OUT,
    None,
    "",
    "x",
    "\x1b[31m",
    -1,
    0,
    0.5,
    10**30,
    1e308,
    float("nan"),
    True,
    [],
    [1, "a"],
    [[1.0]],
    {},
    {"a": 1},
)
Keys = tuple[str | int, ...]


def every_value(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    """Put another value in the place of one of a folder's files, and read the folder."""
    cases = _cases(bases)
    base, file, keys, value = cases[rng.randrange(len(cases))]
    folder = place / "out" / "folder"
    shutil.copytree(base, folder)
    changed = _put(json.loads((folder / file).read_text()), keys, VALUES[value])
    (folder / file).write_text(json.dumps(changed))
    return rng.choice(_commands(base, folder, bases, place))


@lru_cache(maxsize=1)
def _cases(bases: Bases) -> list[tuple[Path, Path, Keys, int]]:
    """Return every case: the folder, the file in it, the keys of a value, and the number of what replaces it."""
    found = []
    for base in (bases.study, bases.audit, bases.tasks, bases.certificate):
        for file in sorted(base.rglob("*.json")):
            for keys in _keys(json.loads(file.read_text())):
                found += [(base, file.relative_to(base), keys, number) for number in range(0 if keys else 1, len(VALUES))]
    return found


def _keys(value: Any, before: Keys = ()) -> Iterator[Keys]:
    """Return the keys of a value and of all inside it, of lists the first and the last."""
    yield before
    inside = value.items() if isinstance(value, dict) else dict(enumerate(value)).items() if isinstance(value, list) else ()
    ends = {0, len(value) - 1} if isinstance(value, list) else None
    for key, each in inside:
        if ends is None or key in ends:
            yield from _keys(each, (*before, key))


def _put(value: Any, keys: Keys, new: Any) -> Any:
    """Return a document with a new value under keys, or without the one that is there."""
    if not keys:
        return new
    copy = value.copy()
    if len(keys) == 1 and new is OUT:
        del copy[keys[0]]
    else:
        copy[keys[0]] = _put(value[keys[0]], keys[1:], new)
    return copy


def _commands(base: Path, folder: Path, bases: Bases, place: Path) -> list[list[str]]:
    """Return the commands that read a folder like one of the bases."""
    run = str(next((bases.study / "runs").iterdir()))
    tiny = ["study", str(bases.study.parent / "tiny.toml"), "--workers", "1"]
    if base == bases.study:
        own = next((folder / "runs").iterdir())
        reading = [["compare", str(folder)], ["list", str(folder)], [*tiny, "--out", str(folder)]]
        reading += [[*tiny, "--out", str(place / "out" / "new"), "--reuse", str(folder)]]
        return [*reading, ["report", str(folder)], ["audit", str(own), "--quick", "--images", "4", "--protocol", "mouton2020"]]
    if base == bases.certificate:
        again = ["certify", run, "--images", "8", "--radius", "2", "--out", str(folder)]
        return [["report", str(folder)], again]
    audits = [["audit", "--merge", str(folder)], ["report", str(folder)], ["compare", str(folder), str(base)]]
    if base == bases.audit:
        again = ["audit", run, "--images", "8", "--protocol", "mouton2020", "--protocol", "every-shift", "--max-shift", "1"]
        audits += [[*again, "--out", str(folder)], ["check", str(folder / "audit.json"), run]]
    return audits
