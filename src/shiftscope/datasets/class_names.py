"""Compare the names of classes: those of folders with those of a model, or of other folders."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["misplaced", "numbered", "places_of"]

#: Most classes that a message names.
NAMED = 5


def places_of(classes: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return the place of each class in a list of names; None if the list lacks one of them, or holds it more than once.

    Case does not count, and ``_`` and ``-`` are spaces. Of a name with commas, such as "tench, Tinca tinca", each part counts.

    Args:
        classes: all different.
        names: to find them in.

    >>> places_of(["tinca_tinca", "Bee"], ["bee", "wasp", "tench, Tinca tinca"])
    [2, 0]
    """
    places = [place for own in classes if (place := _place(own, names)) is not None]
    return places if len(set(places)) == len(classes) else None


def misplaced(classes: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that a list of names lacks, if it holds others at other places, which disproves the classes' numbers.

    Args:
        classes: by number.
        names: also by number.

    >>> misplaced(["ant", "bees", "cat"], ["cat", "bee", "ant"])
    ('bees',)
    >>> misplaced(["ant", "bees", "cat"], ["ant", "bee", "cat"]), misplaced(["ant"], ["bee"])
    ((), ())
    """
    places = {number: _place(own, names) for number, own in enumerate(classes)}
    elsewhere = any(place not in (None, number) for number, place in places.items())
    return tuple(classes[number] for number, place in places.items() if place is None) if elsewhere else ()


def numbered(names: Sequence[str]) -> str:
    """Return the first few of some names with their numbers.

    >>> numbered(["ant", "bee"])
    '0 ant, 1 bee'
    """
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:NAMED]))
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def _place(own: str, names: Sequence[str]) -> int | None:
    """Return the only place in a list at which a class is named; None if there is none or several."""
    whole = [place for place, name in enumerate(names) if _plain(name) == _plain(own)]
    parts = [place for place, name in enumerate(names) if _plain(own) in map(_plain, name.split(","))]
    found = whole or parts
    return found[0] if len(found) == 1 else None


def _plain(name: str) -> str:
    return " ".join(filter(None, re.split(r"[-_\s]+", name.casefold())))
