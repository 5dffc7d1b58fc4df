"""The stages of an audit: a first answer in seconds, how long the rest will take, and what is known so far.

The first answer comes from 32 images, spread evenly over all of them, and one protocol of one shift. It is measured on its own:
blocks and their order stay the same, so that the final table does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil
from statistics import median
from time import perf_counter

import torch

from shiftscope.audits.blocks import count_views
from shiftscope.audits.folder import AuditPlan, assemble_planned
from shiftscope.audits.parts import Part, merge_parts
from shiftscope.audits.results import Audit
from shiftscope.audits.session import Session
from shiftscope.datasets.images import Block, ImageBlocks
from shiftscope.runtime.progress import Event
from shiftscope.runtime.seeds import evenly_spread

__all__ = ["FIRST_IMAGES", "AuditStopped", "FirstAnswer", "Forecast", "SoFar", "first_answer", "forecast", "so_far"]

#: Images of the first answer, and those of them that are measured before the clock starts.
FIRST_IMAGES, WARM_UP = 32, 8
#: The time of exhaustive grids is taken on as many images as take so many seconds, or this share of the audit up to so many.
SECONDS_OF_GRIDS, SHARE_OF_AUDIT, MOST_SECONDS_OF_GRIDS = 2.5, 0.03, 20.0
#: Each measurement is of so many times the images of the one before.
MORE_IMAGES = 4


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
    timed_blocks = [_timed_read(images, place) for place in evenly_spread(plan.count, FIRST_IMAGES)]
    blocks = [block for block, _ in timed_blocks]
    read = median(seconds for _, seconds in timed_blocks)  # the first images may be in memory already
    parts = [_part(session, blocks[:WARM_UP]), _part(session, blocks[WARM_UP:])]
    timed = parts[-1] if parts[-1].cost.distinct else parts[0]
    protocols = session.measurer.protocols
    borders = {each.name: session.framing.border(each) for each in protocols}
    few = plan.model_copy(update={"protocols": protocols, "borders": borders})
    speed = Speed(timed.cost.seconds / max(timed.cost.distinct, 1), read)
    return assemble_planned(few, merge_parts(parts)), speed


def _timed_read(images: ImageBlocks, place: int) -> tuple[Block, float]:
    """Return an image and how long it took to read it, seconds."""
    started = perf_counter()
    return images.read(place, place + 1), perf_counter() - started


def _part(session: Session, blocks: list[Block]) -> Part:
    """Measure images that were read one by one."""
    there = [block for block in blocks if len(block.images)]
    damaged = tuple(name for block in blocks for name in block.damaged)
    if not there:
        return Part(damaged=damaged)
    labels = [block.labels for block in there if block.labels is not None]
    part = session.part(
        torch.cat([block.images for block in there]),
        torch.cat(labels) if labels else None,
        indices=torch.cat([block.numbers for block in there]),
    )
    return replace(part, damaged=damaged)


def forecast(session: Session, images: ImageBlocks, left: int, speed: Speed, *, block: int) -> Forecast:
    """Return how long the rest of an audit will take.

    Args:
        session: of the audit, fresh: it measures a few images by the exhaustive grids, to see how long these take.
        images: all images.
        left: number of images still to measure.
        speed: what the first answer says about time.
        block: images that are measured together.
    """
    single, gridded = count_views(session.measurer, left)
    seconds = speed.view * single
    if session.measurer.grids:
        of_a_block, of_an_image = _seconds_of_grids(session, images, left, block)
        seconds = of_a_block * ceil(left / block) + of_an_image * left
    return Forecast(speed.read * left + seconds, single + gridded, left)


def _seconds_of_grids(session: Session, images: ImageBlocks, left: int, block: int) -> tuple[float, float]:
    """Return how long all protocols take for a block, whatever it holds, and for each of its images.

    Both follow from the times of one image and of more and more, up to a block. Images stop being added when they might take
    longer than a few seconds, or than a small share of the audit.
    """
    blocks = [images.read(place, place + 1) for place in range(min(images.count, block))]
    count, seconds = 1, _least_seconds(session, blocks[:1])
    of_a_block, each = 0.0, seconds
    while count < (more := min(len(blocks), MORE_IMAGES * count)):
        audit = of_a_block * ceil(left / block) + each * left
        if seconds * more / count > min(max(SECONDS_OF_GRIDS, SHARE_OF_AUDIT * audit), MOST_SECONDS_OF_GRIDS):
            break
        of_more = _least_seconds(session, blocks[:more])
        each = min(max(of_more - seconds, 0.0) / (more - count), of_more / more)
        count, seconds = more, of_more
        of_a_block = seconds - each * count
    return of_a_block, each


def _least_seconds(session: Session, blocks: list[Block]) -> float:
    """Return the least time of two or three measurements, because the first also fills caches; of slow images the only time."""
    times = [_seconds(session, blocks)]
    while len(times) < 3 and sum(times) < SECONDS_OF_GRIDS:
        times.append(_seconds(session, blocks))
    return min(times)


def _seconds(session: Session, blocks: list[Block]) -> float:
    started = perf_counter()
    _part(session, blocks)
    return perf_counter() - started


def so_far(plan: AuditPlan, parts: Iterable[Part]) -> Audit:
    """Return the audit of the blocks measured so far, with a note on how many images these are."""
    merged = merge_parts(parts)
    note = f"Stopped after {merged.cost.images:,} of {plan.count:,} images."
    return assemble_planned(plan.model_copy(update={"notes": (*plan.notes, note)}), merged)
