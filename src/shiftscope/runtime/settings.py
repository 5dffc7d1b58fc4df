"""The base of every specification: frozen, and strict about names and values."""

from __future__ import annotations

from collections.abc import Iterable

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
            message = "is not a known setting. Check its spelling."
        elif item["type"] == "missing":
            message = "is missing."
        elif item["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, got {item['input']!r}."
        lines.append(f"{path}: {message}" if path else message)
    return lines
