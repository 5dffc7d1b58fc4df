"""A certificate: radii of images, the curve over radii, and what they hold for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from shiftscope.certificates.search import NO_ANSWER
from shiftscope.engine.framing import Border
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, proportion
from shiftscope.tables import Cell, Summary, Table, percent

__all__ = ["Certificate", "Part", "merge"]

#: What fills the border, in words.
BORDERS: dict[Border, str] = {
    "zero": "zero (the background comes in)",
    "crop": "crop (the photo around the input comes in)",
    "circular": "circular (what left comes in on the other side)",
}
#: So many damaged files are listed.
DAMAGED = 10


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
    """

    numbers: Int[Tensor, " image"]
    radii: Int[Tensor, " image"]
    tops: Int[Tensor, " image"]
    labels: Int[Tensor, " image"] | None
    views: int = 0
    dense: int = 0
    damaged: tuple[str, ...] = ()


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
    )


@dataclass(frozen=True)
class Certificate:
    """For every image the largest radius r such that every shift (dy, dx) with |dy|, |dx| <= r keeps the answer.

    Attributes:
        part: the images and their radii.
        limit: the largest radius that was tried, pixels: an image of this radius keeps its answer at least so far.
        border: what comes in at the border.
        parts: tried points a pixel along an axis; 1 tries every whole-pixel shift, and more are a grid and no proof.
        names: of the images, for lists; empty for their numbers.
        notes: what a reader needs to know.
        provenance: how it was made, name -> value.
    """

    part: Part
    limit: int
    border: Border
    parts: int = 1
    names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def radii(self) -> Int[Tensor, " image"]:
        """The radius of each image, pixels; -1 for an image without an answer, whose two top outputs are equal."""
        return self.part.radii

    @property
    def right(self) -> Bool[Tensor, " image"] | None:
        """Whether each image's answer without a shift is its label; None without labels."""
        return None if self.part.labels is None else self.part.tops == self.part.labels

    def unchanged(self, radius: int) -> Estimate:
        """Return the share of images that keep their answer at every shift of up to ``radius`` pixels, with Wilson's interval.

        Raises:
            InputError: no shift so large was tried.
        """
        self._check(radius)
        return proportion(self.radii >= radius)

    def certified(self, radius: int) -> Estimate | None:
        """Return the share of images that are answered right at every shift of up to ``radius`` pixels; None without labels.

        Raises:
            InputError: no shift so large was tried.
        """
        self._check(radius)
        return None if self.right is None else proportion(self.right & (self.radii >= radius))

    def table(self) -> Table:
        """Return the curve: a row for each radius, with the shares of images."""
        columns = ("radius", "unchanged", *(() if self.right is None else ("right",)))
        rows: list[dict[str, Cell]] = [
            {"radius": radius, "unchanged": self.unchanged(radius), "right": self.certified(radius)}
            for radius in range(self.limit + 1)
        ]
        notes = (self.words(), *self._definitions(), *self._notes())
        return Table(self._title, columns, tuple(rows), notes, dict(self.provenance))

    def image_table(self) -> Table:
        """Return a row for each image: its answer, its label and its radius."""
        labels = [None] * len(self.radii) if self.part.labels is None else self.part.labels.tolist()
        rows = tuple(
            {"image": number, "name": self.names.get(number, ""), "answer": top, "label": label, "radius": radius}
            for number, top, label, radius in zip(
                self.part.numbers.tolist(), self.part.tops.tolist(), labels, self.radii.tolist(), strict=True
            )
        )
        columns = ("image", *(("name",) if self.names else ()), "answer", *(("label",) if self.part.labels is not None else ()))
        return Table("Radius of each image", (*columns, "radius"), rows, self._definitions(), dict(self.provenance))

    def summary(self, *, commands: tuple[str, ...] = ()) -> Summary:
        """Return the result for a terminal.

        Args:
            commands: to run next.
        """
        table = self.table()
        notes = (f"Intervals: 95 % (Wilson), over {len(self.radii):,} images.", *self._definitions(), *self._notes())
        return Summary(self.words(), (Table(table.title, table.columns, table.rows),), notes, commands)

    def words(self) -> str:
        """Return the main result in one or two plain sentences."""
        said = f"{percent(self.unchanged(self.limit))} of images keep their answer at {_every(self.limit)}"
        right, before = self.certified(self.limit), self.certified(0)
        if right is not None and before is not None:
            said += f"; {percent(right)} are answered right at each of them, and {percent(before)} without a shift"
        half = max(int(self.radii.median()), 0)
        return f"{said}." + (f" Half of them keep it at {_every(half)} or less." if 0 < half < self.limit else "")

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "summary": self.words(),
            "radius": self.limit,
            "border": self.border,
            "points_a_pixel": self.parts,
            "curve": self.table().to_json()["rows"],
            "images": list(self.image_table().to_json()["rows"]),
            "views": self.part.views,
            "images_computed_at_once": self.part.dense,
            "notes": [*self._definitions(), *self._notes()],
            "provenance": dict(self.provenance),
        }

    @property
    def _title(self) -> str:
        return f"Share of images at every shift of up to r pixels, border {BORDERS[self.border]}"

    def _definitions(self) -> tuple[str, ...]:
        which = (
            "Every whole-pixel shift (dy, dx) with |dy|, |dx| <= r was tried or is beyond a change that was found, so the shares "
            "are exact for these images and this border, in single precision."
            if self.parts == 1
            else f"Shifts in steps of 1/{self.parts} pixel with |dy|, |dx| <= r were tried. That is a grid and no proof: between "
            "its points an answer may change."
        )
        labels = "" if self.right is None else " Right: the same, and the answer is the label."
        return (
            which,
            f"Unchanged: the class on top without a shift leads all others at every shift, by more than rounding.{labels}",
        )

    def _notes(self) -> tuple[str, ...]:
        part = self.part
        undecided = int((self.radii == NO_ANSWER).sum())
        several = f"{undecided} images have no radius: their two top outputs are equal, so that they have no answer."
        names = ", ".join(part.damaged[:DAMAGED])
        missing = f"{len(part.damaged)} images cannot be read and are left out: {names}."
        return tuple(
            note
            for note in (
                *self.notes,
                several if undecided else "",
                missing if part.damaged else "",
                self._cost(),
            )
            if note
        )

    def _cost(self) -> str:
        part, count = self.part, len(self.radii)
        every = count * (2 * self.limit * self.parts + 1) ** 2
        at_once = f" All shifts ran at once for {part.dense:,} images." if part.dense else ""
        return f"The model computed {part.views:,} views one by one, of {every:,} that {count:,} images have.{at_once}"

    def _check(self, radius: int) -> None:
        if not 0 <= radius <= self.limit:
            raise InputError(f"`radius` must be 0 to {self.limit} pixels, which were tried, got {radius}.")


def _every(radius: int) -> str:
    return f"every shift of up to {radius} pixel{'' if radius == 1 else 's'}"
