"""The base of every specification: frozen, and strict about names and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Spec", "validation_messages"]


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
        path = ".".join([*prefix, *(str(part) for part in item["loc"])])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"is not a known setting. {_suggestion(str(item['loc'][-1]))}"
        elif item["type"] == "missing":
            message = "is missing."
        elif item["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {item['input']!r}."
        lines.append(f"{path}: {message}" if path else message)
    return lines


def _suggestion(name: str) -> str:
    """Return a sentence with the settings whose names are close to a name."""
    close = get_close_matches(name, sorted(set(_names(Spec))), n=2, cutoff=0.7)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else "Check its spelling."


def _names(base: type[Spec]) -> Iterator[str]:
    for each in base.__subclasses__():
        yield from each.model_fields
        yield from _names(each)
