"""Progress events: what long work reports while it runs.

Every event derives from :class:`Event`. Work takes a ``report``, calls it with each event as it happens, and ignores what it
returns. :class:`Stage` and :class:`JobEvent` serve any work; a module with more to say defines its own subclass
(:class:`shiftscope.training.loop.Epoch`). The command line draws bars; :func:`show_progress` writes a
line, for notebooks and scripts.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from shiftscope.runtime.text import printable

__all__ = ["Event", "JobEvent", "ProgressLine", "Report", "Stage", "duration", "show_progress", "silent"]

#: Shortest time between two lines, where they replace each other and where they do not.
SECONDS_IN_PLACE, SECONDS_BETWEEN_LINES = 0.1, 5.0
#: Work that takes less is not worth a forecast.
SECONDS_BEFORE_FORECAST = 2.0


class Event:
    """Base class of everything that work reports."""

    def words(self) -> str:
        """Return the event in a few words; empty if it has none to show."""
        return ""

    def share(self) -> float:
        """Return how much of what :meth:`words` names is done, in [0, 1]; 0 where it is unknown."""
        return 0.0


#: Called with each event.
Report = Callable[[Event], None]


@dataclass(frozen=True)
class Stage(Event):
    """A stage of the work, such as reading or measuring images.

    Attributes:
        sentence: what is going on, "decoding train images".
        done: number of images, or other items, done so far.
        of: number of all items, 0 where it is unknown.
    """

    sentence: str
    done: int
    of: int

    def words(self) -> str:
        """Return what is going on, and how many items are done."""
        counted = f"{self.done:,}/{self.of:,}" if self.of else f"{self.done:,}" if self.done else ""
        return f"{self.sentence} {counted}".rstrip()

    def share(self) -> float:
        """Return the share of items that are done."""
        return self.done / self.of if self.of else 0.0


@dataclass(frozen=True)
class JobEvent(Event):
    """An event of one of several jobs that run at once.

    Attributes:
        label: the job's name.
        done: number of finished jobs.
        of: number of all jobs.
        event: what the job reported.
    """

    label: str
    done: int
    of: int
    event: Event

    def words(self) -> str:
        """Return the job's name before its event's words."""
        found = self.event.words()
        return f"{self.label}: {found}" if found else ""

    def share(self) -> float:
        """Return the share of the job's event."""
        return self.event.share()


class ProgressLine:
    """Write events to standard error as one line that changes in place and goes away when a stage is done.

    Outside a terminal and a notebook, such as in a log, it writes a new line every few seconds.
    """

    def __init__(self) -> None:
        self._shown, self._next = "", 0.0
        self._last, self._started, self._before = 1.0, 0.0, 0.0

    def __call__(self, event: Event) -> None:
        """Show an event, unless the one before was shown a moment ago."""
        words, share, now = printable(event.words()), event.share(), monotonic()
        if not words:
            return
        if share <= self._last:  # another stage
            self._started, self._before = now, share
        self._last = share
        if _changes_in_place():
            self._replace("" if share >= 1 else words + self._left(share, now), now)
        elif now >= self._next:
            self._next = now + SECONDS_BETWEEN_LINES
            sys.stderr.write(f"{words}{self._left(share, now)}\n")
            sys.stderr.flush()

    def _replace(self, line: str, now: float) -> None:
        """Write a line over the one before; an empty one erases it."""
        if line and now < self._next:
            return
        self._next = now + SECONDS_IN_PLACE
        line = line[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write("\r" + line.ljust(len(self._shown)) + ("" if line else "\r"))
        sys.stderr.flush()
        self._shown = line

    def _left(self, share: float, now: float) -> str:
        """Return the time left by the mean speed so far, in words."""
        passed, done = now - self._started, share - self._before
        if passed < SECONDS_BEFORE_FORECAST or not 0 < done < 1 or share >= 1:
            return ""
        left = passed / done * (1 - share)
        return f", about {duration(left)} left" if left >= 1 else ""


def _changes_in_place() -> bool:
    """Return whether standard error is a terminal, or the output of a notebook's cell."""
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")


def duration(seconds: float) -> str:
    """Return a time in words, "14 minutes"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


_line = ProgressLine()


def show_progress(event: Event) -> None:
    """Show an event as :class:`ProgressLine` does: ``audit(model, images, report=show_progress)``."""
    _line(event)


def silent(event: Event) -> None:
    """Ignore an event: the default of every ``report``."""
