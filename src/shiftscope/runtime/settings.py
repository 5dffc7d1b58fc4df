"""The base of every specification: frozen, and strict about names and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shiftscope.errors import first_line, shortened

__all__ = ["Count", "Pixels", "Seed", "Spec", "Text", "described", "validation_messages"]

#: The most characters of a value, and of a setting's path, in a message.
LONGEST_VALUE, LONGEST_PATH = 60, 100

#: A number of things, a length in pixels or positions, a seed, and a text of a line or two: what tensors and file names can hold.
Count = Annotated[int, Field(ge=1, le=10**9)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=2000)]


class Spec(BaseModel):
    """A frozen, validated value that refuses unknown names, and can be written to JSON and hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def validation_messages(error: ValidationError, prefix: Iterable[str] = ()) -> list[str]:
    """Return one line per invalid setting: its path, the rule and the value.

    Args:
        error: from validating a :class:`Spec`; it holds every invalid setting of the document.
        prefix: names that lead to the document, for the paths.
    """
    lines = []
    for item in error.errors(include_url=False, include_context=True):
        path = shortened(".".join([*prefix, *(str(part) for part in item["loc"])]), LONGEST_PATH)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"is not a known setting. {_suggestion(str(item['loc'][-1]))}"
        elif item["type"] == "missing":
            message = "is missing."
        elif item["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {described(item['input'])}."
        lines.append(f"{path}: {message}" if path else message)
    return lines


def described(value: Any) -> str:
    """Return a value as Python writes it, shortened; of a number of thousands of digits or a deep table only what it is.

    >>> described([0] * 100), described(10**5000)
    ('[0, 0, 0, 0, 0, 0, 0, 0, 0, ... 0, 0, 0, 0, 0, 0, 0, 0, 0]', 'an integer of 16610 bits')
    """
    if isinstance(value, int) and value.bit_length() > LONGEST_VALUE * 3:
        return f"an integer of {value.bit_length()} bits"
    try:
        return shortened(repr(value), LONGEST_VALUE)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits inside, or nested too deeply
        return f"{type(value).__name__} ({first_line(error)})"


def _suggestion(name: str) -> str:
    """Return a sentence with the settings whose names are close to a name."""
    close = get_close_matches(name, sorted(set(_names(Spec))), n=2, cutoff=0.7)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else "Check its spelling."


def _names(base: type[Spec]) -> Iterator[str]:
    for each in base.__subclasses__():
        yield from each.model_fields
        yield from _names(each)
