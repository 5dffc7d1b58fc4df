"""Errors that a user can fix. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

from typing import Any

__all__ = [
    "LONGEST_LINE",
    "InputError",
    "ModelFailsError",
    "NotFiniteError",
    "UntraceableError",
    "check_whole",
    "first_line",
    "shortened",
]

#: The most characters of an error's line, and of what a library says in it.
LONGEST_LINE = 300
LONGEST_REASON = 120
#: An error's problem keeps so many characters, however long its remedy is.
LEAST_PROBLEM = 120


class InputError(ValueError):
    """Invalid input. The command line prints it as one line of at most 300 characters and exits with code 2.

    What a library said of it is the error's cause, which `--verbose` prints.

    Args:
        problem: the parameter, its value and the rule it breaks: "`size` must be 1 or more pixels, got 0."
        remedy: what to do about it: "Leave it out to use the model's own size."

    >>> str(InputError("`size` must be 1 or more pixels, got 0.", "Leave it out."))
    '`size` must be 1 or more pixels, got 0. Leave it out.'
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        room = max(LEAST_PROBLEM, LONGEST_LINE - len(remedy.partition("\n")[0]) - 1)
        problem = "\n".join(shortened(line, room) for line in problem.split("\n"))
        super().__init__(f"{problem} {remedy}".rstrip())
        self.problem, self.remedy = problem, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep both fields when the error is pickled between processes."""
        return type(self), (self.problem, self.remedy)


class NotFiniteError(InputError):
    """A model's outputs hold NaN or infinity."""


class ModelFailsError(InputError):
    """A model raises an exception on its input images."""


class UntraceableError(InputError):
    """``torch.fx`` cannot trace a model, so that its graph is unknown; ``problem`` gives the reason."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, shortened, or its class's name if it has none; of ours the problem alone."""
    if isinstance(error, InputError):
        return error.problem.partition("\n")[0]
    return shortened(next(iter(str(error).strip().splitlines()), type(error).__name__), LONGEST_REASON)


def shortened(text: str, limit: int) -> str:
    """Return a text whose middle is left out where it is longer than a limit.

    Args:
        text: of any length.
        limit: the most characters to return.

    >>> shortened("a" * 500 + "b" * 500, 21)
    'aaaaaaaa ... bbbbbbbb'
    """
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def check_whole(value: object, name: str) -> None:
    """Raise InputError unless a value is a whole number, of Python's or NumPy's types.

    >>> check_whole(2.5, "max_shift")
    Traceback (most recent call last):
    shiftscope.errors.InputError: `max_shift` must be a whole number, got 2.5.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"`{name}` must be a whole number, got {value!r}.")
