"""What every specification shares: frozen, strict, and told wrong in sentences.

A specification is a pydantic model that refuses unknown names. What is wrong with a whole document is gathered and told
at once, each mistake with its path.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["Spec", "mistakes"]


class Spec(BaseModel):
    """A frozen, validated value that can be written to JSON and hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def mistakes(error: ValidationError, prefix: Iterable[str] = ()) -> list[str]:
    """One line a mistake: its path, the rule, and what was given."""
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
