"""The base of every specification: frozen, and strict about names and values."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shiftscope.errors import first_line, shortened

__all__ = ["Count", "Pixels", "Seed", "Settings", "Spec", "Text", "described", "validation_messages"]

#: The most characters of a value, and of a setting's path, in a message.
LONGEST_VALUE, LONGEST_PATH = 60, 100

#: A number of things, a length in pixels or positions, a seed, and a text of a line or two: what tensors and file names can hold.
Count = Annotated[int, Field(ge=1, le=10**9)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=2000)]

#: The rules of pydantic in our words; what is in braces comes from the rule.
RULES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_too_long": "must have at most {max_length} characters",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_long": "must have at most {max_length} entries",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


class Spec(BaseModel):
    """A frozen, validated value that refuses unknown names, and can be written to JSON and hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(Spec):
    """Settings that a user writes: text and truth values are no numbers, so that "4" and true are refused where 4 is meant."""

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: Any) -> Any:
        if info.field_name is not None and _is_numeric(cast(Hashable, cls.model_fields[info.field_name].annotation)):
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, bool):
                    raise ValueError(f"must be a number, got {str(each).lower()}.")
                if isinstance(each, str) and _reads_as_number(each):
                    raise ValueError(f"must be a number, got the text {described(each)}. Write it without quotes.")
        return value


def validation_messages(error: ValidationError, sections: Mapping[str, type[Spec]] | None = None) -> list[str]:
    """Return one line per invalid setting: its path, the rule and the value.

    Args:
        error: from validating a :class:`Spec`; it holds every invalid setting of the document.
        sections: of the document, to find a setting that stands in the wrong one.
    """
    lines = []
    for item in error.errors(include_url=False, include_context=True):
        path = shortened(".".join(str(part) for part in item["loc"]), LONGEST_PATH)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"is not a known setting. {_suggestion(error.title, item['loc'], sections or {})}"
        elif item["type"] == "missing":
            message = "is missing."
        elif item["type"] != "value_error":
            rule = _rule(item["type"], item.get("ctx", {})) or message[0].lower() + message[1:]
            message = f"{rule}, got {described(item['input'])}."
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


def _rule(kind: str, limits: Mapping[str, Any]) -> str:
    """Return a rule of pydantic in our words, with its limits; empty if there are none for it."""
    plain = {name: int(each) if isinstance(each, float) and each.is_integer() else each for name, each in limits.items()}
    return RULES.get(kind, "").format_map(plain)


def _suggestion(title: str, place: tuple[int | str, ...], sections: Mapping[str, type[Spec]]) -> str:
    """Return a sentence with the settings that may be meant: of the same name in another section, or of a close name in its own.

    Args:
        title: name of the class of the document.
        place: names that lead to the unknown setting in it, the setting's own last.
        sections: of the document.
    """
    name = str(place[-1])
    if elsewhere := [f"{section}.{name}" for section, kind in sections.items() if name in kind.model_fields]:
        return f"Did you mean {' or '.join(map(repr, elsewhere))}?"
    close = get_close_matches(name, _siblings(title, place), n=2, cutoff=0.7)
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else "Check its spelling."


def _siblings(title: str, place: tuple[int | str, ...]) -> list[str]:
    """Return the settings that exist where an unknown one stands."""
    kind = next((each for each in _subclasses(Spec) if each.__name__ == title), None)
    for part in place[:-1]:
        if kind is not None and str(part) in kind.model_fields:  # a number is a place in a list of one kind
            kind = _spec_in(kind.model_fields[str(part)].annotation)
    return [] if kind is None else list(kind.model_fields)


def _spec_in(annotation: Any) -> type[Spec] | None:
    """Return the specification that a field holds, alone or in a list or table; None if it holds none."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    return next((found for each in get_args(annotation) if (found := _spec_in(each)) is not None), None)


def _subclasses(base: type[Spec]) -> Iterator[type[Spec]]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


@lru_cache
def _is_numeric(annotation: Hashable) -> bool:
    """Return whether a field holds only numbers: one, none, or a list of them."""
    if annotation in (int, float):
        return True
    inner = [each for each in get_args(annotation) if isinstance(each, type) or get_args(each)]
    return bool(inner) and all(each is type(None) or _is_numeric(each) for each in inner)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
