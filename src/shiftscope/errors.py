"""The one error that means: what was asked for cannot be done as it stands, and the message says what to change."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input from outside: the message names what, where, the rule and the remedy. The command line exits with 2."""
