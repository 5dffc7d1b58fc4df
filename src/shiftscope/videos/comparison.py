"""The flicker of two models on the same videos: the difference with its interval, in pairs of the same video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.display import Shown
from shiftscope.errors import InputError
from shiftscope.estimates import ALIKE, Estimate, mean
from shiftscope.measures import MEASURES
from shiftscope.runtime.text import number_of
from shiftscope.tables import Cell, Summary, Table, plus_minus
from shiftscope.tasks import read_alike
from shiftscope.videos.flicker import Flicker, video_means

__all__ = ["FlickerComparison", "compare_flickers"]

#: What a reader may conclude, by where the interval lies.
Outcome = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, repr=False)
class FlickerComparison(Shown):
    """The flicker of two models beside each other.

    Attributes:
        before: that of the first.
        after: that of the second.
        names: what they are called.
        difference: the second's mean change minus the first's, with an interval over videos.
        pairs: the difference of each video, NaN where one has no value; None if they are not of the same videos.
        alike: whether both change by the same at every step.
    """

    before: Flicker
    after: Flicker
    names: tuple[str, str]
    difference: Estimate
    pairs: Float[Tensor, " video"] | None
    alike: bool = False

    @property
    def outcome(self) -> Outcome:
        """Where the whole interval lies; ``better`` if answers change less."""
        low, high = self.difference.low, self.difference.high
        if low <= 0 <= high:
            return "undecided"
        return "better" if high < 0 else "worse"

    def words(self) -> str:
        """Return the comparison in a sentence."""
        first, second = self.names
        if self.alike:
            said, found = f"{second} flickers exactly like {first} in {self._videos()}", self.difference
            unknown = found.count == 1 or found.low == found.high  # without a bound, equal values have no interval
            return f"{said}, which says nothing about others." if unknown else f"{said}; in others: change {plus_minus(found)}."
        if self.outcome == "undecided":
            single = self.pairs is not None and self.difference.count == 1
            change = f"{self.difference.value:+.3g}" if single else f"change {plus_minus(self.difference)}"
            why = f"{change} in one video says nothing about others" if single else f"{change} over {self._videos()}"
            return f"Undecided whether {second} flickers less than {first}: {why}."
        word = "less" if self.outcome == "better" else "more"
        return f"{second} flickers {word} than {first}: change {plus_minus(self.difference)} over {self._videos()}."

    def _videos(self) -> str:
        if self.pairs is None and self.before.estimate is not None and self.after.estimate is not None:
            return f"{self.before.estimate.count:,} and {self.after.estimate.count:,} videos"
        return number_of(self.difference.count, "video")

    def table(self) -> Table:
        """Return a table with a row: the two means, and the change."""
        row: dict[str, Cell] = {
            "measure": self._measure(),
            "before": self.before.estimate,
            "after": self.after.estimate,
            "change": self.difference,
            "outcome": self.outcome,
        }
        notes = tuple(self._notes())
        return Table(
            f"{self.names[1]} beside {self.names[0]}", ("measure", "before", "after", "change", "outcome"), (row,), notes
        )

    def _notes(self) -> Iterator[str]:
        yield "Measured from one frame to the next; less is better."
        if self.pairs is None:
            yield "They are of other videos: the interval of the change is not paired, and wider than needed."
            return
        yield f"change: after minus before, in pairs of the same video, with a 95 % interval over {self._videos()}."
        missing = int(self.pairs.isnan().sum())
        if missing:
            yield f"{missing:,} of {len(self.pairs):,} videos have no value in one of them, and the change leaves them out."

    def _measure(self) -> str:
        lead = MEASURES[self.after.measure]
        return f"1 less the {lead.label}" if lead.better == "more" else lead.name

    def sequence_table(self) -> Table:
        """Return a table with a row for each video: the mean change of both, and the difference."""
        columns = ("sequence", "frames", "before", "after", "change")
        return Table("Every video", columns, tuple(self._rows("{:.3g}".format)))

    def _rows(self, shown: Any) -> Iterator[dict[str, Cell]]:
        if self.pairs is None:
            return
        means = (video_means(each.changes).tolist() for each in (self.before, self.after))
        for number, (before, after, change) in enumerate(zip(*means, self.pairs.tolist(), strict=True)):
            values = {"before": before, "after": after, "change": change}
            filled = {name: None if value != value else shown(value) for name, value in values.items()}
            yield {"sequence": self.after.name(number), "frames": len(self.after.changes[number]) + 1, **filled}

    def tables(self) -> tuple[Table, ...]:
        """Return the table, and that of the videos where they are the same."""
        return (self.table(),) if self.pairs is None else (self.table(), self.sequence_table())

    def summary(self) -> Summary:
        """Return the comparison for a terminal."""
        return Summary(self.words(), self.tables())

    def to_json(self) -> dict[str, Any]:
        """Return every number as a field of its own."""
        estimates = (None if each.estimate is None else asdict(each.estimate) for each in (self.before, self.after))
        before, after = estimates
        return {
            "summary": self.words(),
            "before": {"name": self.names[0], "estimate": before},
            "after": {"name": self.names[1], "estimate": after},
            "task": self.after.task,
            "measure": self.after.measure,
            "change": asdict(self.difference),
            "paired": self.pairs is not None,
            "outcome": self.outcome,
            "sequences": list(self._rows(float)),
            "notes": list(self._notes()),
        }


def compare_flickers(
    before: Flicker, after: Flicker, *, names: tuple[str, str] = ("the first", "the second")
) -> FlickerComparison:
    """Compare how much the answers of two models change along videos.

    Differences are paired: each video's mean change by one model is subtracted from that by the other, so that what makes videos
    differ drops out. Two that are alike at every step are undecided: videos are few, and others may differ. Of other videos the
    interval reaches from the lowest end of one minus the highest of the other to the opposite.

    Args:
        before: flicker of a model.
        after: of another one, or of the same on other videos.
        names: what to call them.

    Raises:
        InputError: they are of different measures or tasks, or have no value to compare.

    >>> from shiftscope.videos import frames_flicker
    >>> videos = [torch.linspace(0, 1, count)[:, None, None, None].expand(count, 1, 4, 4) for count in range(5, 25)]
    >>> def turning(step):
    ...     return lambda batch: [str((batch.mean((1, 2, 3))[place] / step).int().item()) for place in range(len(batch))]
    >>> print(compare_flickers(frames_flicker(turning(0.2), videos), frames_flicker(turning(0.6), videos)).outcome)
    better
    """
    _check_same_way(before, after, names)
    one, two = before.estimate, after.estimate
    if one is None or two is None:
        raise InputError(f"{names[0 if one is None else 1]} has no value at any step.", "Choose two that have.")
    if not _same_videos(before, after):
        apart = Estimate(two.value - one.value, two.low - one.high, two.high - one.low, min(one.count, two.count))
        return FlickerComparison(before, after, names, apart, None)
    pairs = video_means(after.changes) - video_means(before.changes)
    known = pairs[~pairs.isnan()]
    if not len(known):
        raise InputError(f"{names[0]} and {names[1]} have no video with a value in both.", "Measure both on other videos.")
    alike = all(_alike(*each) for each in zip(before.changes, after.changes, strict=True))
    low, high = MEASURES[before.measure].change_bounds
    return FlickerComparison(before, after, names, mean(known, bounds=(low - high, high - low)), pairs, alike)


def _check_same_way(before: Flicker, after: Flicker, names: tuple[str, str]) -> None:
    ways = [f"{each.measure}" + (f" of {each.task}" if each.task else "") for each in (before, after)]
    if before.measure == after.measure and read_alike(before.task, after.task):
        return
    problem = f"{names[0]} holds the change of {ways[0]}, {names[1]} that of {ways[1]}: they cannot be compared."
    raise InputError(problem, "Measure both with the same --task.")


def _same_videos(before: Flicker, after: Flicker) -> bool:
    """Return whether two are of the same videos, as far as they say; without checksums the caller vouches."""
    checksums = [each.provenance.get("data_sha256") for each in (before, after)]
    videos = [[(each.name(number), len(steps)) for number, steps in enumerate(each.changes)] for each in (before, after)]
    return checksums[0] == checksums[1] and videos[0] == videos[1]


def _alike(before: Tensor, after: Tensor) -> bool:
    """Return whether two change by the same at every step; where one has no value, both have none."""
    return torch.allclose(before, after, rtol=ALIKE, atol=ALIKE, equal_nan=True)
