"""The stages of an audit: a first answer in seconds, how long the rest will take, and what is known so far.

The first answer comes from 32 images, spread evenly over all of them, and one protocol of one shift. It is measured on its own:
blocks and their order stay the same, so that the final table does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter

import torch

from shiftscope.audits.folder import AuditPlan, assemble_planned
from shiftscope.audits.parts import Part, merge_parts
from shiftscope.audits.results import Audit
from shiftscope.audits.session import Session
from shiftscope.audits.views import BORDERS, plan_views
from shiftscope.datasets.images import Block, ImageBlocks
from shiftscope.runtime.progress import Event

__all__ = ["FIRST_IMAGES", "AuditStopped", "FirstAnswer", "Forecast", "SoFar", "first_answer", "forecast", "so_far", "views_of"]

#: Images of the first answer, and those of them that are measured before the clock starts.
FIRST_IMAGES, WARM_UP = 32, 8
#: A grid's time is taken on more and more images, until it takes so many seconds or a block is full.
SECONDS_OF_GRID = 0.5
#: Views are counted on so many images, and those of all follow in proportion.
COUNTED = 256


class AuditStopped(KeyboardInterrupt):
    """The user stopped an audit.

    Attributes:
        audit: of the images that were measured; None if there are none.
    """

    def __init__(self, audit: Audit | None) -> None:
        super().__init__()
        self.audit = audit


@dataclass(frozen=True)
class FirstAnswer(Event):
    """The first answer.

    Attributes:
        audit: of a few images by one protocol.
    """

    audit: Audit


@dataclass(frozen=True)
class Forecast(Event):
    """How long an audit will take.

    Attributes:
        seconds: from now.
        views: still to measure.
        images: still to measure.
    """

    seconds: float
    views: int
    images: int


@dataclass(frozen=True)
class SoFar(Event):
    """What is known so far.

    Attributes:
        audit: returns the audit of the images measured so far; called only by a display that shows it.
    """

    audit: Callable[[], Audit]


@dataclass(frozen=True)
class Speed:
    """What the first answer says about time.

    Attributes:
        view: seconds that the model takes for a view.
        read: seconds to read an image.
    """

    view: float
    read: float


def first_answer(session: Session, plan: AuditPlan, images: ImageBlocks) -> tuple[Audit, Speed]:
    """Measure a few images by the session's one protocol.

    Args:
        session: of the protocol.
        plan: of the complete audit.
        images: all images.
    """
    started = perf_counter()
    blocks = [images.read(place, place + 1) for place in _spread(plan.count)]
    read = (perf_counter() - started) / len(blocks)
    parts = [_part(session, blocks[:WARM_UP]), _part(session, blocks[WARM_UP:])]
    timed = parts[-1] if parts[-1].cost.distinct else parts[0]
    protocols = session.measurer.protocols
    borders = {each.name: session.framing.border(each) for each in protocols}
    few = plan.model_copy(update={"protocols": protocols, "borders": borders})
    speed = Speed(timed.cost.seconds / max(timed.cost.distinct, 1), read)
    return assemble_planned(few, merge_parts(parts)), speed


def _spread(count: int) -> list[int]:
    """Return the indices of a few of ``count`` images, evenly spread, increasing."""
    few = min(count, FIRST_IMAGES)
    return [(2 * number + 1) * count // (2 * few) for number in range(few)]


def _part(session: Session, blocks: list[Block]) -> Part:
    """Measure images that were read one by one."""
    there = [block for block in blocks if len(block.images)]
    if not there:
        return Part()
    labels = [block.labels for block in there if block.labels is not None]
    return session.part(
        torch.cat([block.images for block in there]),
        torch.cat(labels) if labels else None,
        indices=torch.cat([block.numbers for block in there]),
    )


def views_of(session: Session, images: int) -> tuple[int, int]:
    """Return how many views an audit forms one by one, and how many shifts its exhaustive grids hold, all images together."""
    counted, grids = min(images, COUNTED), session.measurer.grids
    plan = plan_views(session.measurer.protocols, session.framing, indices=torch.arange(counted))
    alone = torch.ones(len(plan.rows), dtype=torch.bool)
    for mode, reach in grids:
        border = (plan.rows[:, 0] == 0) | (plan.rows[:, 0] == BORDERS.index(mode))
        alone &= ~(border & (plan.steps.abs().amax(dim=1) <= reach) & plan.whole_pixels)
    shifts = sum(len(each.shifts) for each in grids.values()) - max(len(grids) - 1, 0)  # they share the unshifted image
    return round(int(alone.sum()) * images / counted), images * shifts


def forecast(session: Session, images: ImageBlocks, left: int, speed: Speed) -> Forecast:
    """Return how long the rest of an audit will take.

    Args:
        session: of the audit, fresh: it measures a few images by the exhaustive grids, to see how long these take.
        images: all images.
        left: number of images still to measure.
        speed: what the first answer says about time.
    """
    single, gridded = views_of(session, left)
    seconds = speed.read * left + speed.view * single
    if session.measurer.grids:
        seconds = (speed.read + _seconds_an_image(session, images)) * left
    return Forecast(seconds, single + gridded, left)


def _seconds_an_image(session: Session, images: ImageBlocks) -> float:
    """Return how long all protocols take for an image, on as many images as are needed to tell."""
    blocks = [images.read(place, place + 1) for place in _spread(images.count)]
    count = 1
    while True:
        started = perf_counter()
        _part(session, blocks[:count])
        seconds = perf_counter() - started
        if (seconds >= SECONDS_OF_GRID and count > 1) or seconds >= 10 * SECONDS_OF_GRID or count >= len(blocks):
            return seconds / count
        count = min(2 * count, len(blocks))


def so_far(plan: AuditPlan, parts: Iterable[Part]) -> Audit:
    """Return the audit of the blocks measured so far, with a note on how many images these are."""
    merged = merge_parts(parts)
    note = f"Stopped after {merged.cost.images:,} of {plan.count:,} images."
    return assemble_planned(plan.model_copy(update={"notes": (*plan.notes, note)}), merged)
