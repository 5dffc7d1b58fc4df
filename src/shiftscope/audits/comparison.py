"""Two audits beside each other: each measure's difference with its interval, in pairs of the same image where both hold it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from shiftscope.audits.results import Audit, Row
from shiftscope.audits.session import block_size
from shiftscope.display import Shown
from shiftscope.errors import InputError
from shiftscope.estimates import ALIKE, Estimate, changed, difference, telling
from shiftscope.measures import MEASURES
from shiftscope.tables import Cell, Summary, Table
from shiftscope.tasks import read_alike

__all__ = ["AuditComparison", "MeasureComparison", "compare_audits", "direction", "rounding", "same_images"]

#: Measures that a model should have more of, although shifts alone do not decide them.
ACCURACIES = ("accuracy", "true_probability", "test_accuracy")
#: Measures of how an image is found among others, which depend on how many there are.
OF_GALLERIES = ("retrieval", "neighbour_rank")


@dataclass(frozen=True)
class MeasureComparison:
    """A measure of a protocol in two audits.

    Attributes:
        row: of the second audit.
        before: the first audit's number.
        difference: the second's minus the first's.
        pairs: the differences of each image, NaN where the measure is not defined; None without values of the same images.
    """

    row: Row
    before: Estimate
    difference: Estimate
    pairs: Float[Tensor, " image"] | None

    @property
    def outcome(self) -> Literal["better", "worse", "other", "equal", "undecided"]:
        """Where the whole interval lies; ``other`` for a measure of which neither more nor less is better, if it changes."""
        low, high = self.difference.low, self.difference.high
        if low == high == 0:
            return "equal"
        if low <= 0 <= high:
            return "undecided"
        better = direction(self.row.measure)
        if better is None:
            return "other"
        return "better" if (low > 0) == (better == "more") else "worse"


@dataclass(frozen=True, repr=False)
class AuditComparison(Shown):
    """Two audits beside each other.

    Attributes:
        measures: those that both hold, measured in the same way.
        names: what the audits are called.
        notes: what a reader needs to know.
    """

    measures: tuple[MeasureComparison, ...]
    names: tuple[str, str]
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return a table with a row for each measure."""
        rows: tuple[dict[str, Cell], ...] = tuple(
            {
                "measure": each.row.measure,
                "protocol": each.row.protocol,
                "before": each.before,
                "after": each.row.estimate,
                "change": each.difference,
                "outcome": each.outcome,
            }
            for each in self.measures
        )
        brief = ("measure", "protocol", "outcome", "before", "after", "change")
        return Table(f"{self.names[1]} beside {self.names[0]}", brief, rows, self.notes)

    def tables(self) -> tuple[Table, ...]:
        """Return the table alone."""
        return (self.table(),)

    def words(self) -> str:
        """Return in a sentence how many measures are better, worse, changed for neither, equal and undecided."""
        outcomes = {"better": "better", "worse": "worse", "other": "changed", "equal": "equal", "undecided": "undecided"}
        counts = {word: sum(each.outcome == name for each in self.measures) for name, word in outcomes.items()}
        said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        return f"Of {len(self.measures)} {'measure' if len(self.measures) == 1 else 'measures'} of {self.names[1]}: {said}."

    def summary(self) -> Summary:
        """Return the comparison for a terminal."""
        return Summary(self.words(), (self.table(),))

    def to_json(self) -> dict[str, Any]:
        """Return every number as a field of its own."""
        return {
            "summary": self.words(),
            "before": self.names[0],
            "after": self.names[1],
            "measures": [
                {
                    "protocol": each.row.protocol,
                    "measure": each.row.measure,
                    "before": asdict(each.before),
                    "after": asdict(each.row.estimate),
                    "change": asdict(each.difference),
                    "paired": each.pairs is not None,
                    "outcome": each.outcome,
                }
                for each in self.measures
            ],
            "notes": list(self.notes),
        }


def direction(measure: str) -> Literal["more", "less"] | None:
    """Return whether more or less of a measure is better; None if neither is.

    >>> direction("top1_change"), direction("accuracy"), direction("worst_case, radius 2")
    ('less', 'more', 'more')
    """
    name = measure.partition(",")[0]
    return "more" if name in ACCURACIES else MEASURES[name].better


def rounding(measure: str, size: float) -> float:
    """Return what difference of a measure is rounding, for values of this size.

    Derivatives of many classes' probabilities are small, so that it is a part of their size; other measures are about 1.

    >>> rounding("mcs", 0.9), rounding("squared_derivative_y", 1e-6)
    (1e-06, 1e-12)
    """
    return ALIKE * (min(size, 1.0) if "derivative" in measure else 1.0)


def same_images(before: Audit, after: Audit) -> bool:
    """Return whether two audits measured the same images; of two without checksums, whether as many."""
    checksums = [each.provenance.get("data_sha256") for each in (before, after)]
    counts = [each.cost.images for each in (before, after)]
    return checksums[0] == checksums[1] and counts[0] == counts[1] and before.damaged == after.damaged


def compare_audits(before: Audit, after: Audit, *, names: tuple[str, str] = ("the first", "the second")) -> AuditComparison:
    """Compare two audits measure by measure.

    Differences are paired: each image's value in one audit is subtracted from its value in the other, so that what makes images
    differ drops out. Where no image's value changes, the interval is [0, 0] if this says that both are the same model; else it is
    that of equal values, because other images may change. Without values of the same images, the interval reaches from the lowest
    end of one minus the highest of the other to the opposite: it is wider than needed, never narrower.

    Args:
        before: an audit.
        after: another.
        names: what to call them.

    Raises:
        InputError: no measure is in both and measured in the same way, or the outputs were read as different tasks.

    >>> import torch
    >>> import shiftscope as ss
    >>> images = torch.rand(40, 1, 16, 16)
    >>> one, two = (ss.audit(torch.nn.Sequential(torch.nn.Flatten(), layer), images, protocols=["mouton2020"])
    ...             for layer in (torch.nn.Linear(256, 3), torch.nn.Linear(256, 3)))
    >>> compare_audits(one, one).words()
    'Of 2 measures of the second: 2 equal.'
    >>> compare_audits(one, two).measures[0].pairs.shape
    torch.Size([40])
    """
    if before.task and after.task and not read_alike(before.task, after.task):
        raise InputError(f"the audits read outputs as {before.task} and as {after.task}.", "Audit both with the same --task.")
    known = {(row.protocol, row.measure): row for row in before.rows}
    rows = [(known[row.protocol, row.measure], row) for row in after.rows if (row.protocol, row.measure) in known]
    alike = [(old, new) for old, new in rows if _way(old, before) == _way(new, after)]
    if not alike:
        raise InputError(
            "the audits have no measure in common that was measured in the same way.", "Audit both with the same protocols."
        )
    paired = same_images(before, after)
    pairs = [_pairs(before, after, new) if paired else None for _, new in alike]
    same = _same_model(before, alike, pairs)
    measures = tuple(
        _compared(old, new, each, same=same or _telling(before, new)) for (old, new), each in zip(alike, pairs, strict=True)
    )
    return AuditComparison(measures, names, tuple(_notes(before, after, measures, paired, len(rows) - len(alike))))


def _way(row: Row, audit: Audit) -> tuple[object, ...]:
    """Return how a measure was measured; retrieval also by what was searched, which it falls with."""
    gallery: tuple[object, ...] = ()
    if row.measure in OF_GALLERIES:
        size = list(map(int, re.findall(r"x(\d{1,9})", audit.provenance.get("input", ""))))
        gallery = audit.cost.images, block_size(size) if size else None
    return (row.border, row.max_shift, row.views, *gallery)


def _pairs(before: Audit, after: Audit, row: Row) -> Tensor | None:
    """Return each image's difference, 0 where it is rounding, NaN where an audit has no value; None if it has none at all."""
    key = row.protocol, row.measure
    old, new = before.values.get(key), after.values.get(key)
    if old is None or new is None or len(old) != len(new):
        return None
    differences = new.double() - old.double()
    known = old[~old.isnan()]
    least = rounding(row.measure, float(known.abs().max()) if len(known) else 0.0)
    return None if differences.isnan().all() else differences.where(~(differences.abs() <= least), 0.0)


def _same_model(before: Audit, rows: Sequence[tuple[Row, Row]], pairs: Sequence[Tensor | None]) -> bool:
    """Return whether no measure differs on any image, and one tells images apart: the models are the same."""
    known = [(row, each) for (_, row), each in zip(rows, pairs, strict=True) if each is not None]
    return not any(changed(each, 0.0) for _, each in known) and any(_telling(before, row) for row, _ in known)


def _telling(audit: Audit, row: Row) -> bool:
    values = audit.values.get((row.protocol, row.measure))
    return values is not None and telling(values[~values.isnan()])


def _compared(old: Row, new: Row, pairs: Tensor | None, *, same: bool) -> MeasureComparison:
    if pairs is None:
        one, two = old.estimate, new.estimate
        found = Estimate(two.value - one.value, two.low - one.high, two.high - one.low, two.count)
        return MeasureComparison(new, one, found, None)
    low, high = MEASURES[new.measure.partition(",")[0]].bounds
    known = pairs[~pairs.isnan()]
    found = difference(known, bounds=(low - high, high - low), same=same, rounding=0.0)
    return MeasureComparison(new, old.estimate, replace(found, count=len(known)), pairs)


def _notes(before: Audit, after: Audit, measures: tuple[MeasureComparison, ...], paired: bool, otherwise: int) -> Iterator[str]:
    if any(each.pairs is not None for each in measures):
        known = all(each.provenance.get("data_sha256") for each in (before, after))
        paired_by = f"of the same {after.cost.images:,} images" if known else f"of {after.cost.images:,} images in their order"
        yield f"change: after minus before, in pairs {paired_by}, with 95 % intervals."
        if not known:
            yield "The audits do not record their images: the change is the model's only if these are the same."
    for name, where in (("seed", "where shifts are random"), ("canvas", "where the canvas comes in")):
        one, two = (each.provenance.get(name) for each in (before, after))
        if one != two and None not in (one, two):
            yield f"The {name} differs ({one} and {two}): {where}, a part of the change is not the model's."
    if before.classes and after.classes and before.classes != after.classes:
        yield "The audits number classes otherwise: compare accuracies only if each order is that of its model's outputs."
    if not paired:
        yield "The audits measured other images: intervals of changes are not paired, and wider than needed."
    elif any(each.pairs is None for each in measures):
        yield "Some measures have no values for each image: the intervals of their changes are wider than needed."
    missing = len(before.rows) + len(after.rows) - 2 * (len(measures) + otherwise)
    if missing or otherwise:
        yield f"Left out: {missing} rows that only one audit holds, {otherwise} that were measured in another way."
