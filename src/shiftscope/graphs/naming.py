"""Layers as the subject of a sentence."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["subject"]

#: How many layers are named; the others are counted.
NAMED = 3


def subject(layers: Sequence[str], verb: str) -> str:
    """Return the names of the first layers, and a verb that agrees with their number.

    Args:
        layers: at least one name; one that already holds code quotes, as in "`2` (Upsample)", keeps them.
        verb: what they do, in the plural: "pad", "do not pad".

    >>> subject(["features.0"], "do not pad")
    '`features.0` does not pad'
    >>> subject(["0", "2", "4", "6"], "pad")
    '`0`, `2`, `4` and 1 more pad'
    """
    shown = ", ".join(name if "`" in name else f"`{name}`" for name in layers[:NAMED])
    more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
    first, _, rest = verb.partition(" ")
    if len(layers) == 1:
        first = "does" if first == "do" else f"{first}s"
    return f"{shown}{more} {first} {rest}".rstrip()
