"""Show progress while a command works; what draws it is imported then, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shiftscope.runtime.progress import Report

__all__ = ["reporting"]


@contextmanager
def reporting(stage: str) -> Iterator[Report]:
    """Show progress until the block ends.

    Args:
        stage: what is going on until the first event, "loading the model".
    """
    from shiftscope.cli.bars import drawing

    with drawing(stage) as report:
        yield report
