"""Errors keep their problem and remedy apart, also between processes."""

from __future__ import annotations

import copy

import pytest

from shiftscope.errors import InputError, ModelFailsError, NotFiniteError, UntraceableError, first_line


@pytest.mark.parametrize("kind", [InputError, ModelFailsError, NotFiniteError, UntraceableError])
def test_error_copied_keeps_kind_problem_and_remedy(kind: type[InputError]) -> None:
    error = copy.copy(kind("`size` must be 1 or more, got 0.", "Leave it out."))
    assert (type(error), error.problem, error.remedy) == (kind, "`size` must be 1 or more, got 0.", "Leave it out.")
    assert str(error) == "`size` must be 1 or more, got 0. Leave it out."


def test_error_without_remedy_is_its_problem() -> None:
    assert str(InputError("`size` must be 1 or more, got 0.")) == "`size` must be 1 or more, got 0."


@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError("\none\ntwo"), "one"), (ValueError(), "ValueError"), (KeyError("x"), "'x'")]
)
def test_first_line_of_error(error: Exception, expected: str) -> None:
    assert first_line(error) == expected
