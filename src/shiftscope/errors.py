"""Errors that a user can mend. Everything else is a fault of ours and keeps its traceback."""

from __future__ import annotations

from typing import Any

__all__ = ["InputError", "ModelFailsError", "NotFiniteError", "UntraceableError", "first_line"]


class InputError(ValueError):
    """Bad input from outside. The command line prints it as one sentence and exits with 2.

    Args:
        problem: what is wrong and where, and the rule it breaks: "`size` must be 1 or more pixels, got 0."
        remedy: what to do about it: "Leave it out to take the model's own."

    >>> str(InputError("`size` must be 1 or more pixels, got 0.", "Leave it out."))
    '`size` must be 1 or more pixels, got 0. Leave it out.'
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem} {remedy}".rstrip())
        self.problem, self.remedy = problem, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep both fields when the error crosses a process border."""
        return type(self), (self.problem, self.remedy)


class NotFiniteError(InputError):
    """A model's outputs hold infinities or NaN."""


class ModelFailsError(InputError):
    """A model raises an exception on the images it is given."""


class UntraceableError(InputError):
    """``torch.fx`` cannot trace a model, so that its graph is unknown; ``problem`` says why."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, or its class's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
