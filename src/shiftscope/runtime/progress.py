"""Progress events: what long work reports while it runs.

Every event derives from :class:`Event`. Work takes a ``report``, calls it with each event as it happens, and ignores what it
returns. :class:`Stage` and :class:`JobEvent` serve any work; a module with more to say defines its own subclass
(:class:`shiftscope.training.loop.Epoch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Event", "JobEvent", "Report", "Stage", "silent"]


class Event:
    """Base class of everything that work reports."""


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


def silent(event: Event) -> None:
    """Ignore an event: the default of every ``report``."""
