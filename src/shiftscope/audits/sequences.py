"""Flicker along a sequence of views: how outputs change from one frame to the next, and against the unshifted image.

A protocol with a path shows every image at the same sequence of shifts, so that each frame has a mean over images with an
interval. Parts hold sums over images only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.audits.protocols import Protocol
from shiftscope.audits.scores import Sums, ViewOutputs
from shiftscope.estimates import Estimate
from shiftscope.measures import MEASURES
from shiftscope.similarity import cosine
from shiftscope.surveys import intervals
from shiftscope.tables import Cell, Table

__all__ = [
    "CHANGE",
    "NEIGHBOURS",
    "Against",
    "Frame",
    "FrameKey",
    "checked_frames",
    "frame_sums",
    "frame_table",
    "frame_values",
    "frames_of",
    "is_sequence",
]

#: Scores of protocols that compare neighbours along a path.
NEIGHBOURS = ("neighbour_change", "neighbour_probability_change")
#: What a frame is compared with: the frame before it, or the unshifted image.
Against = Literal["previous", "unshifted"]
#: Protocol, measure, and what frames are compared with.
FrameKey = tuple[str, str, str]
#: The measure of a task's frames: 1 less the leading measure where that is an agreement, or else the error itself.
CHANGE = "change"
#: The measure that comes first.
FIRST = "top1_change"
#: The names of a sequence's sums.
SUMS = {"sum", "square", "count", "images"}


@dataclass(frozen=True)
class Frame:
    """How much outputs change at a frame of a sequence, as a mean over images.

    Attributes:
        protocol: whose path it is.
        measure: ``top1_change`` or ``mcs`` of classes, ``change`` of a task.
        against: what the frame is compared with, the ``previous`` frame or the ``unshifted`` image.
        number: of the frame along the path, from 1.
        shift: (dy, dx) of the frame, pixels.
        estimate: over the images with a value.
    """

    protocol: str
    measure: str
    against: Against
    number: int
    shift: tuple[float, float]
    estimate: Estimate


def is_sequence(protocol: Protocol) -> bool:
    """Return whether a protocol compares neighbours along a path that all images share."""
    return len(protocol.path) > 1 and any(name in NEIGHBOURS for name in protocol.scores)


def frame_values(outputs: ViewOutputs) -> dict[tuple[str, Against], Float[Tensor, "image frame"]]:
    """Return whether the top class changes, and the cosine, of each frame against the previous one and the unshifted image.

    The first frame has no previous one: there is one column less.
    """
    values, reference, tops = outputs.values, outputs.reference[:, None], outputs.tops()
    return {
        ("top1_change", "previous"): (tops[:, 1:] != tops[:, :-1]).float(),
        ("top1_change", "unshifted"): (tops != reference.argmax(-1)).float(),
        ("mcs", "previous"): cosine(values[:, 1:], values[:, :-1]),
        ("mcs", "unshifted"): cosine(values, reference),
    }


def frame_sums(values: Float[Tensor, "image frame"]) -> Sums:
    """Return sums over images, which add up over parts.

    Args:
        values: of a measure; NaN where an image has none.

    Returns:
        ``sum`` and ``square`` [frame], ``count`` [frame] of images with a value, and ``images`` [], their number.

    >>> {name: total.tolist() for name, total in frame_sums(torch.tensor([[1.0, torch.nan], [0.5, 2.0]])).items()}
    {'sum': [1.5, 2.0], 'square': [1.25, 4.0], 'count': [2.0, 1.0], 'images': 2.0}
    """
    known = ~values.isnan()
    filled = values.double().where(known, 0.0)
    return {
        "sum": filled.sum(dim=0),
        "square": filled.square().sum(dim=0),
        "count": known.double().sum(dim=0),
        "images": torch.tensor(float(len(values)), dtype=torch.float64),
    }


def checked_frames(frames: dict[FrameKey, Sums]) -> dict[FrameKey, Sums]:
    """Return sums that were read from a file.

    Raises:
        ValueError: they have not the names and shapes of :func:`frame_sums`, or numbers of images that cannot be.
    """
    known = all(measure in MEASURES and against in ("previous", "unshifted") for _, measure, against in frames)
    if not known or not all(map(_are_frame_sums, frames.values())):
        raise ValueError("a part's sums have a value for each frame")
    return frames


def _are_frame_sums(sums: Sums) -> bool:
    shapes = {tuple(sums[name].shape) for name in SUMS - {"images"} & set(sums)}
    if set(sums) != SUMS or sums["images"].ndim != 0 or len(shapes) != 1 or len(shapes.pop()) != 1:
        return False
    images, counts = sums["images"], sums["count"]
    return bool(images.isfinite()) and bool(((counts >= 0) & (counts <= images)).all())


def frames_of(protocol: Protocol, sums: Mapping[FrameKey, Sums], *, images: int, changes: bool) -> Iterator[Frame]:
    """Yield the frames of a protocol at which some image has a value.

    Args:
        protocol: whose path it is.
        sums: of all parts together.
        images: of the audit. Sums of fewer, to which parts of an earlier version add nothing, give no frames.
        changes: whether to turn an agreement into a change, as of a task's leading measure.
    """
    for name, measure, against in sorted(sums, key=lambda key: (key[1] != FIRST, key)):
        each = sums[name, measure, against]
        if name != protocol.name or int(each["images"]) != images:
            continue
        first = len(protocol.path) - len(each["sum"])
        for place, found in enumerate(_estimates(measure, each)):
            if found is not None:
                dy, dx = protocol.path[first + place]
                shown = _change(measure, found) if changes else found
                compared: Against = "previous" if against == "previous" else "unshifted"
                yield Frame(name, CHANGE if changes else measure, compared, first + place + 1, (float(dy), float(dx)), shown)


def _estimates(measure: str, sums: Sums) -> Iterator[Estimate | None]:
    """Yield the mean over images at each frame with its 95 % interval; None where no image has a value."""
    ends = intervals(measure, sums["sum"], sums["square"], sums["count"], int(sums["images"])).tolist()
    for total, count, (low, high) in zip(sums["sum"].tolist(), sums["count"].tolist(), ends, strict=True):
        value = total / count if count else 0.0
        yield Estimate(value, min(low, value), max(high, value), int(count)) if count else None


def _change(measure: str, found: Estimate) -> Estimate:
    if MEASURES[measure].better != "more":
        return found
    return Estimate(1 - found.value, 1 - found.high, 1 - found.low, found.count)


def frame_table(frames: tuple[Frame, ...]) -> Table:
    """Return a table with a row for each frame and what it is compared with, and a column for each measure."""
    rows: dict[tuple[str, Against, int], dict[str, Cell]] = {}
    for each in frames:
        key = each.protocol, each.against, each.number
        place: dict[str, Cell] = {"protocol": each.protocol, "frame": each.number, "down": each.shift[0], "right": each.shift[1]}
        rows.setdefault(key, {**place, "compared_with": each.against})[each.measure] = each.estimate
    measures = dict.fromkeys(each.measure for each in frames)
    columns = ("protocol", "frame", "down", "right", "compared_with", *measures)
    return Table("Frame by frame", columns, tuple(rows.values()))
