"""What blocks of images gave, and how blocks are merged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TypeVar

import torch
from torch import Tensor

from shiftscope.audits.moments import Moments
from shiftscope.audits.scores import Sums
from shiftscope.audits.sequences import FrameKey
from shiftscope.errors import InputError
from shiftscope.radii import RadiusCounts
from shiftscope.surveys import Survey, from_sums

__all__ = ["Changed", "Cost", "Part", "merge_parts", "most_changed", "reach_of"]

Key = TypeVar("Key")
#: So many of the images that change most are reported.
MOST_CHANGED = 12
#: Where the moments of images' correctness are.
ACCURACY = ("unshifted", "accuracy", "")


@dataclass(frozen=True)
class Changed:
    """An image whose outputs change much.

    Attributes:
        image: its index in the data.
        shift: (dy, dx) that changes it most among those measured, pixels.
        border: what fills the border.
        similarity: cosine of the outputs before and after; for maps the share of pixels that keep their class; else ``measure``.
        before: the top class without the shift; None if outputs are not classes.
        after: the top class under the shift; None if outputs are not classes.
        measure: the name of a task's leading measure, whose value ``similarity`` is; empty for cosines and shares of pixels.
    """

    image: int
    shift: tuple[float, float]
    border: str
    similarity: float
    before: int | None
    after: int | None
    measure: str = ""


@dataclass(frozen=True)
class Cost:
    """What an audit computed.

    Attributes:
        images: number of images.
        asked: views that the protocols need, counted for each protocol alone, unshifted images included.
        distinct: different views among them.
        forward: images that went through the model for them; fewer than ``distinct`` if the engine computed all shifts together.
        checks: images that went through the model to see what it returns and to check the engine.
        dense: images for which the engine computed all shifts of a grid together.
        fallen_back: images for which it tried, but the outputs differed from the model's own on sampled shifts, or memory ran
            out; they were computed shift by shift.
        seconds: spent measuring, without reading images.
    """

    images: int = 0
    asked: int = 0
    distinct: int = 0
    forward: int = 0
    checks: int = 0
    dense: int = 0
    fallen_back: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Add two costs, field by field."""
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Cost)))

    @property
    def images_per_second(self) -> float:
        """Images per second, all protocols together."""
        return self.images / self.seconds if self.seconds else float("inf")


@dataclass(frozen=True)
class Part:
    """What a block of images gave, or several successive blocks together.

    Attributes:
        scores: (protocol, measure) -> one value per image.
        surveys: grid's name -> the outputs under every shift, in numbers.
        sums: protocol -> the sums of its normalised variance.
        changed: the images that change most: those whose top class changes, and then the others, the largest change first.
        cost: what it took.
        correct: whether each unshifted image is classified correctly; None without labels.
        damaged: names of the files that could not be read.
        records: protocol -> what numbers of all images together need of each view
            (:meth:`shiftscope.tasks.Task.pack`).
        moments: (protocol or grid, measure, over) -> what is known of the values of all images, and of those classified
            correctly, where there are too many to keep; ``over`` is empty for scores.
        frames: (protocol, measure, against) -> sums over images at each frame of a protocol's path
            (:func:`shiftscope.audits.sequences.frame_sums`); none in parts of earlier versions.
        radii: grid's name -> the radius of each image (:mod:`shiftscope.radii`); none in parts of earlier versions.
        radius_counts: grid's name -> how many images have each radius, in a part of successive ones.
    """

    scores: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    surveys: dict[str, Survey] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    changed: tuple[Changed, ...] = ()
    cost: Cost = Cost()
    correct: Tensor | None = None
    damaged: tuple[str, ...] = ()
    records: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[tuple[str, str, str], tuple[Moments, Moments]] = field(default_factory=dict)
    frames: dict[FrameKey, Sums] = field(default_factory=dict)
    radii: dict[str, Tensor] = field(default_factory=dict)
    radius_counts: dict[str, RadiusCounts] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether images have labels."""
        return self.correct is not None or ACCURACY in self.moments


def merge_parts(parts: Iterable[Part], *, keep: int | None = None) -> Part:
    """Return successive parts as one. Of each part only the values per image stay in memory, 4 bytes each.

    Sums add up in the order of the images, so that the result is bit for bit the same however the parts were measured.

    Args:
        parts: in the order of their images.
        keep: number of images beyond which values are summed up as moments and not kept, so that memory grows no further; None
            to keep all.

    Raises:
        InputError: the parts hold values of different shapes.

    >>> merge_parts([Part(scores={("p", "mcs"): torch.ones(2)}), Part(scores={("p", "mcs"): torch.zeros(1)})]).scores
    {('p', 'mcs'): tensor([1., 1., 0.])}
    """
    merged = _Merged(keep)
    for part in parts:
        merged.add(part)
    return merged.part()


class _Column:
    """Values of successive parts, in one buffer that grows."""

    def __init__(self) -> None:
        self.buffer, self.like = bytearray(), torch.zeros(0)

    def add(self, values: Tensor) -> None:
        """Append values, [image, ...]."""
        if not self.buffer and values.ndim:
            self.like = values[:0]
        if values.ndim != self.like.ndim or values.shape[1:] != self.like.shape[1:]:
            raise InputError("the parts of the audit hold values of different shapes.", "Audit again into another folder.")
        if values.dtype == self.like.dtype:
            self.buffer.extend(values.contiguous().numpy())  # as bytes
            return
        kind = torch.promote_types(self.like.dtype, values.dtype)
        self.buffer, self.like = bytearray(self.values().to(kind).numpy().tobytes()), self.like.to(kind)
        self.buffer.extend(values.to(kind).contiguous().numpy())

    def values(self) -> Tensor:
        """Return all of them, in the buffer's own memory."""
        if not self.buffer:
            return self.like
        return torch.frombuffer(self.buffer, dtype=self.like.dtype).reshape(-1, *self.like.shape[1:])


Columns = defaultdict[tuple[str, str], _Column]


def _counts_of(part: Part) -> dict[str, RadiusCounts]:
    """Return how many images of a part have each radius, by grid."""
    return part.radius_counts or {
        name: RadiusCounts.of(radii, part.correct, reach_of(name)) for name, radii in part.radii.items()
    }


def reach_of(grid_name: str) -> int:
    """Return the largest shift of a grid by its name, pixels."""
    return int(grid_name.split()[1])


class _Merged:
    """What successive parts gave together so far.

    Args:
        keep: number of images whose values are kept; None for all.
    """

    def __init__(self, keep: int | None) -> None:
        self.keep, self.kept, self.moments = keep, 0, dict[tuple[str, str, str], tuple[Moments, Moments]]()
        self.scores, self.records, self.correct = Columns(_Column), defaultdict[str, _Column](_Column), _Column()
        self.values, self.shifts = dict[str, Columns](), dict[str, Tensor]()
        self.sums, self.frames = dict[str, Sums](), dict[FrameKey, Sums]()
        self.survey_sums, self.survey_squares, self.survey_counts = (dict[str, Sums]() for _ in range(3))
        self.radii, self.radius_counts = defaultdict[str, _Column](_Column), dict[str, RadiusCounts]()
        self.changed, self.cost, self.damaged, self.labelled = tuple[Changed, ...](), Cost(), list[str](), False

    def add(self, part: Part) -> None:
        """Add the next part."""
        for key, scores in part.scores.items():
            self.scores[key].add(scores)
        for protocol, records in part.records.items():
            self.records[protocol].add(records)
        for name, survey in part.surveys.items():
            self._add_survey(name, survey)
        if part.correct is not None:
            self.labelled = True
            self.correct.add(part.correct)
        self.sums = _add(self.sums, part.sums)
        if any(key in self.frames and self.frames[key]["sum"].shape != each["sum"].shape for key, each in part.frames.items()):
            raise InputError("the parts of the audit hold paths of different lengths.", "Audit again into another folder.")
        self.frames = _add(self.frames, part.frames)
        for name, radii in part.radii.items():
            self.radii[name].add(radii)
        for name, counts in _counts_of(part).items():
            self.radius_counts[name] = self.radius_counts[name] + counts if name in self.radius_counts else counts
        self.changed = most_changed((*self.changed, *part.changed))
        self.cost += part.cost
        self.damaged += part.damaged
        self.kept += part.cost.images
        if self.keep is not None and self.kept > self.keep:
            self._sum_up()

    def _sum_up(self) -> None:
        """Add the kept values to the moments, and forget them."""
        columns = {(protocol, measure, ""): column for (protocol, measure), column in self.scores.items()}
        columns |= {(name, *key): column for name, survey in self.values.items() for key, column in survey.items()}
        if self.labelled:
            columns[ACCURACY] = self.correct
        right = self.correct.values()
        for key, column in columns.items():
            values = column.values()
            found = Moments.of(values), Moments.of(values[right]) if self.labelled else Moments()
            before = self.moments.get(key, (Moments(), Moments()))
            self.moments[key] = before[0] + found[0], before[1] + found[1]
        self.scores, self.correct, self.kept, self.radii = Columns(_Column), _Column(), 0, defaultdict(_Column)
        self.values = {name: Columns(_Column) for name in self.values}

    def _add_survey(self, name: str, survey: Survey) -> None:
        if name not in self.values:
            self.values[name] = Columns(_Column)
        for key, values in survey.values.items():
            self.values[name][key].add(values)
        self.shifts.setdefault(name, survey.shifts)
        self.survey_sums = _add(self.survey_sums, {name: survey.sums})
        self.survey_squares = _add(self.survey_squares, {name: survey.squares})
        self.survey_counts = _add(self.survey_counts, {name: survey.counts})

    def part(self) -> Part:
        """Return all parts as one."""
        if self.moments and self.kept:
            self._sum_up()
        correct = self.correct.values() if self.labelled and not self.moments else None
        surveys = {
            name: from_sums(
                {key: column.values() for key, column in columns.items()},
                self.survey_sums[name],
                self.survey_squares[name],
                self.shifts[name],
                correct,
                self.survey_counts[name],
                images=self.cost.images if self.moments else None,
            )
            for name, columns in self.values.items()
        }
        return Part(
            scores={key: column.values() for key, column in self.scores.items()},
            surveys=surveys,
            sums=self.sums,
            changed=self.changed,
            cost=self.cost,
            correct=correct,
            damaged=tuple(self.damaged),
            records={protocol: column.values() for protocol, column in self.records.items()},
            moments=self.moments,
            frames=self.frames,
            radii={name: column.values() for name, column in self.radii.items()},
            radius_counts=self.radius_counts,
        )


def most_changed(every: Iterable[Changed]) -> tuple[Changed, ...]:
    """Return the images whose top class changes, then the others, least similar first; ties keep the order of the images.

    Of a task whose leading measure is an error, parts hold its negative, so that less is always a larger change.
    """
    return tuple(sorted(every, key=lambda each: (each.before == each.after, each.similarity, each.image))[:MOST_CHANGED])


def _add(totals: dict[Key, Sums], more: dict[Key, Sums]) -> dict[Key, Sums]:
    added = {
        name: {key: totals[name][key] + value for key, value in each.items()} if name in totals else each
        for name, each in more.items()
    }
    return totals | added
