"""A certificate: radii of images, the curve over radii, and what they hold for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from shiftscope.datasets.images import left_out
from shiftscope.display import Shown
from shiftscope.engine.answers import add_answers
from shiftscope.engine.framing import Border
from shiftscope.estimates import Estimate
from shiftscope.radii.curve import BORDERS, CLASSES, RadiusCounts
from shiftscope.tables import Summary, Table, percent

__all__ = ["CERTIFICATE_VERSION", "Certificate", "Part", "merge"]

#: The version of ``certificate.json``.
CERTIFICATE_VERSION = 1


@dataclass(frozen=True)
class Part:
    """The radii of some images.

    Attributes:
        numbers: the images' indices in the data.
        radii: the largest radius within which every shift keeps the answer; -1 for an image without an answer.
        tops: the answer without a shift, a class index.
        labels: classes; None where they are unknown.
        views: views that the model computed one by one.
        dense: images whose shifts were computed all at once.
        damaged: names of files that cannot be read.
        sums: of a task, over the answers without a shift, as :func:`shiftscope.engine.task_trials.reference_sums` has them.
    """

    numbers: Int[Tensor, " image"]
    radii: Int[Tensor, " image"]
    tops: Int[Tensor, " image"]
    labels: Int[Tensor, " image"] | None
    views: int = 0
    dense: int = 0
    damaged: tuple[str, ...] = ()
    sums: dict[str, Tensor] = field(default_factory=dict)


def merge(parts: Sequence[Part]) -> Part:
    """Return several parts as one, at least one, in their order."""
    known = [part.labels for part in parts if part.labels is not None]
    return Part(
        numbers=torch.cat([part.numbers for part in parts]),
        radii=torch.cat([part.radii for part in parts]),
        tops=torch.cat([part.tops for part in parts]),
        labels=torch.cat(known) if known else None,
        views=sum(part.views for part in parts),
        dense=sum(part.dense for part in parts),
        damaged=tuple(name for part in parts for name in part.damaged),
        sums=reduce(add_answers, [part.sums for part in parts if part.sums], {}),
    )


@dataclass(frozen=True, repr=False)
class Certificate(Shown):
    """For every image the largest radius r such that every shift (dy, dx) with |dy|, |dx| <= r keeps the answer.

    Attributes:
        part: the images and their radii.
        limit: the largest radius that was tried, pixels: an image of this radius keeps its answer at least so far.
        border: what comes in at the border.
        parts: points per pixel that were tried along an axis; 1 tries every whole-pixel shift, more is a grid and not a proof.
        names: of the images, for lists; empty for their numbers.
        notes: what a reader needs to know.
        warnings: reasons why the radii say little about the model.
        provenance: how it was made, name -> value.
        rule: what keeps an answer of a task, in a clause; empty for classes.
        precision: that the model computes in, in words.
    """

    json_file: ClassVar[str] = "certificate"
    table_files: ClassVar[tuple[str, ...]] = ("certificate", "images")

    part: Part
    limit: int
    border: Border
    parts: int = 1
    names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    rule: str = ""
    precision: str = "single precision"

    @property
    def radii(self) -> Int[Tensor, " image"]:
        """The radius of each image, pixels; -1 without an answer, if two top outputs are equal, and -2 with nothing to keep."""
        return self.part.radii

    @property
    def right(self) -> Bool[Tensor, " image"] | None:
        """Whether each image's answer without a shift is its label; None without labels."""
        return None if self.part.labels is None else self.part.tops == self.part.labels

    @cached_property
    def counts(self) -> RadiusCounts:
        """How many images have each radius."""
        return RadiusCounts.of(self.radii, self.right, self.limit)

    def unchanged(self, radius: int) -> Estimate:
        """Return the share of images that keep their answer at every shift of up to ``radius`` pixels, with Wilson's interval.

        Raises:
            InputError: no shift so large was tried.
        """
        return self.counts.unchanged(radius)

    def certified(self, radius: int) -> Estimate | None:
        """Return the share of images that are answered right at every shift of up to ``radius`` pixels; None without labels.

        Raises:
            InputError: no shift so large was tried.
        """
        return self.counts.certified(radius)

    def tables(self) -> tuple[Table, ...]:
        """Return the curve, and the radius of each image."""
        return self.table(), self.image_table()

    def table(self) -> Table:
        """Return the curve: a row for each radius, with the shares of images."""
        columns = ("radius", "unchanged", *(() if self.right is None else ("right",)))
        notes = (self.words(), *self._definitions(), *self._notes())
        return Table(self._title, columns, self.counts.rows(), notes, dict(self.provenance))

    def image_table(self) -> Table:
        """Return a row for each image: its answer, its label and its radius."""
        labels = [None] * len(self.radii) if self.part.labels is None else self.part.labels.tolist()
        rows = tuple(
            {"image": number, "name": self.names.get(number, ""), "answer": top, "label": label, "radius": radius}
            for number, top, label, radius in zip(
                self.part.numbers.tolist(), self.part.tops.tolist(), labels, self.radii.tolist(), strict=True
            )
        )
        known = () if self.rule else ("answer", *(() if self.part.labels is None else ("label",)))
        columns = ("image", *(("name",) if self.names else ()), *known)
        return Table("Radius of each image", (*columns, "radius"), rows, self._definitions(), dict(self.provenance))

    def summary(self, *, commands: tuple[str, ...] = ()) -> Summary:
        """Return the result for a terminal.

        Args:
            commands: to run next.
        """
        table = self.table()
        known = self._definitions()[:1] if self.rule else self._definitions()  # the verdict holds the rule
        notes = (f"Intervals: 95 % (Wilson), over {len(self.radii):,} images.", *known, *self._notes())
        return Summary(self.words(), (Table(table.title, table.columns, table.rows),), notes, commands)

    def words(self) -> str:
        """Return the main result in one or two plain sentences, after reasons to doubt it."""
        before = None if self.counts.empty == self.counts.total else self.certified(0)
        unshifted = "" if before is None else f" Without a shift {percent(before)} are right."
        return " ".join((*self.warnings, self.counts.words(self.border, self.rule, parts=self.parts) + unshifted))

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "schema_version": CERTIFICATE_VERSION,
            "summary": self.words(),
            "radius": self.limit,
            "border": self.border,
            "points_a_pixel": self.parts,
            "rule": self.rule or CLASSES,
            "curve": [] if self.counts.total == self.counts.empty else self.table().to_json()["rows"],
            "images": list(self.image_table().to_json()["rows"]),
            "views": self.part.views,
            "images_computed_at_once": self.part.dense,
            "notes": [*self._definitions(), *self._notes()],
            "provenance": dict(self.provenance),
        }

    @property
    def _title(self) -> str:
        steps = f" in steps of 1/{self.parts} pixel" if self.parts > 1 else ""
        return f"Share of images at every shift{steps} of up to r pixels, border {BORDERS[self.border]}"

    def _definitions(self) -> tuple[str, ...]:
        which = (
            "Every whole-pixel shift (dy, dx) with |dy|, |dx| <= r was tried, from the smallest until the answer changed, so the "
            f"shares are exact for these images and this border, in {self.precision}."
            if self.parts == 1
            else f"Shifts in steps of 1/{self.parts} pixel with |dy|, |dx| <= r were tried, interpolated "
            f"{'by Fourier transform' if self.border == 'circular' else 'bilinearly'}. This is a grid, not a proof: between its "
            "points an answer may change."
        )
        labels = "" if self.right is None else " Right: unchanged, and equal to the label."
        return which, f"Unchanged: {self.rule or CLASSES}.{labels}"

    def _notes(self) -> tuple[str, ...]:
        undecided = self.counts.undecided
        why = "their answer without a shift lies on its limit" if self.rule else "their two top outputs are equal"
        several = f"{undecided} {'image has' if undecided == 1 else 'images have'} no radius, because {why}."
        held = self.counts.empty
        empty = f"{held} {'image has' if held == 1 else 'images have'} nothing to keep, and shares leave that out."
        return tuple(
            note
            for note in (
                *self.notes,
                several if undecided else "",
                empty if held else "",
                left_out(self.part.damaged),
                self._cost(),
            )
            if note
        )

    def _cost(self) -> str:
        part, count = self.part, len(self.radii)
        every = count * (2 * self.limit * self.parts + 1) ** 2
        at_once = f" All shifts ran at once for {part.dense:,} images." if part.dense else ""
        return f"The model computed {part.views:,} views one by one, out of {every:,} for {count:,} images.{at_once}"
