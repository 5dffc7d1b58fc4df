"""A plugin of pytest: the fixture and marker `shift_stability`, which test a model's stability under shifts.

Imports nothing heavy, because pytest loads it at every start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from shiftscope.audits import Audit

__all__ = ["pytest_configure", "shift_stability"]

MARKER = (
    'shift_stability(*fail_if, **options): conditions such as "top-1 change > 0.10", and keywords of shiftscope.audit, for the '
    "fixture of the same name"
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def shift_stability(request: pytest.FixtureRequest) -> Callable[..., Audit]:
    """Return a function that audits a model, and fails the test if a condition fails.

    ``shift_stability(model, images, labels=None, *, fail_if=(...), strict=False, **options)`` returns the audit. Conditions are
    those of ``shiftscope audit --fail-if``; ``options`` are keywords of :func:`shiftscope.audit`. The marker
    ``@pytest.mark.shift_stability("top-1 change > 0.10", max_shift=4)`` gives both for a test, a class or a module.
    """
    marker = request.node.get_closest_marker("shift_stability")
    conditions, marked = (marker.args, marker.kwargs) if marker else ((), {})

    def measure(model: Any, images: Any, labels: Any = None, *, fail_if: Any = (), strict: bool = False, **options: Any) -> Audit:
        from shiftscope.audits import audit
        from shiftscope.audits.gate import judge_audit, read_condition
        from shiftscope.errors import InputError

        texts = (*conditions, *([fail_if] if isinstance(fail_if, str) else fail_if))
        if not texts:
            raise InputError("`shift_stability` has no condition.", 'Give one, like fail_if="top-1 change > 0.10".')
        read = [read_condition(text) for text in texts]
        found = audit(model, images, labels, **{**marked, **options})
        verdict = judge_audit(found, read, strict=strict)
        if verdict.outcome == "fails":
            pytest.fail(verdict.words(), pytrace=False)
        return found

    return measure
