"""Errors that a user can fix. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

from typing import Any

__all__ = ["InputError", "ModelFailsError", "NotFiniteError", "UntraceableError", "first_line"]


class InputError(ValueError):
    """Invalid input. The command line prints it as one line and exits with code 2.

    Args:
        problem: the parameter, its value and the rule it breaks: "`size` must be 1 or more pixels, got 0."
        remedy: what to do about it: "Leave it out to use the model's own size."

    >>> str(InputError("`size` must be 1 or more pixels, got 0.", "Leave it out."))
    '`size` must be 1 or more pixels, got 0. Leave it out.'
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
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
    """Return the first line of an exception's text, or its class's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
