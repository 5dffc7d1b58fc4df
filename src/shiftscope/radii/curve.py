"""Shares of images that keep their answer at every shift of up to r pixels, for each r, from how many images have each radius."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from shiftscope.engine.framing import Border
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, wilson_interval
from shiftscope.radii.search import NO_ANSWER, NOTHING
from shiftscope.tables import Cell, Table, percent

__all__ = ["BORDERS", "CLASSES", "FILLED", "RadiusCounts", "RadiusCurve", "every_shift"]

#: What keeps an answer that is a class.
CLASSES = "the class on top without a shift leads all others at every shift, by more than rounding"
#: What fills the border, in words.
FILLED: Mapping[Border, str] = {
    "zero": "the background comes in",
    "crop": "the photo around the input comes in",
    "circular": "what left comes in on the other side",
}
#: The borders by their names and in words.
BORDERS: Mapping[Border, str] = {name: f"{name} ({words})" for name, words in FILLED.items()}


@dataclass(frozen=True)
class RadiusCounts:
    """How many images have each radius: whole numbers, which add up over parts.

    Attributes:
        images: of radius -2 (nothing to keep), -1 (no answer), 0, 1, ..., up to the largest that was tried.
        right: the same of the images that are answered right without a shift; None without labels.
    """

    images: Int[Tensor, " radius"]
    right: Int[Tensor, " radius"] | None

    @staticmethod
    def of(radii: Int[Tensor, " image"], right: Bool[Tensor, " image"] | None, limit: int) -> RadiusCounts:
        """Return the counts of some images.

        Args:
            radii: of the images.
            right: whether each is answered right without a shift.
            limit: the largest radius that was tried, pixels.

        >>> print(RadiusCounts.of(torch.tensor([0, 2, 2]), torch.tensor([True, True, False]), 2).certified(1))
        0.333 [0.061, 0.792]
        """
        places = radii.long() - NOTHING
        counts = torch.bincount(places, minlength=limit + 1 - NOTHING)
        return RadiusCounts(counts, None if right is None else torch.bincount(places[right], minlength=len(counts)))

    def __add__(self, other: RadiusCounts) -> RadiusCounts:
        """Return the counts of the images of both; labels count where both have some."""
        right = None if self.right is None or other.right is None else self.right + other.right
        return RadiusCounts(self.images + other.images, right)

    @property
    def limit(self) -> int:
        """The largest radius that was tried, pixels."""
        return len(self.images) - 1 + NOTHING

    @property
    def total(self) -> int:
        """Number of all images."""
        return int(self.images.sum())

    @property
    def empty(self) -> int:
        """Number of images with nothing to keep, which shares leave out."""
        return int(self.images[0])

    @property
    def undecided(self) -> int:
        """Number of images without an answer."""
        return int(self.images[NO_ANSWER - NOTHING])

    def unchanged(self, radius: int) -> Estimate:
        """Return the share of images that keep their answer at every shift of up to ``radius`` pixels, with Wilson's interval.

        Raises:
            InputError: no shift so large was tried.
        """
        return self._share(self.images, radius)

    def certified(self, radius: int) -> Estimate | None:
        """Return the share of images that are answered right at every shift of up to ``radius`` pixels; None without labels.

        Raises:
            InputError: no shift so large was tried.
        """
        found = self._share(self.images if self.right is None else self.right, radius)
        return None if self.right is None else found

    def median(self) -> int:
        """Return the largest radius that at least half of the images have; -1 if there is none."""
        reached = [radius for radius in range(self.limit + 1) if self.unchanged(radius).value >= 0.5]
        return reached[-1] if reached else NO_ANSWER

    def words(self, border: Border, rule: str = "", *, parts: int = 1) -> str:
        """Return the shares at the largest radius in a sentence, and in another one how far half of the images go.

        Args:
            border: what comes in at the border.
            rule: what keeps an answer, in a clause; empty for classes.
            parts: points per pixel along an axis.
        """
        if self.total == self.empty:
            return "No image has an answer to keep."
        limit, half, right = self.limit, self.median(), self.certified(self.limit)
        said = f"{percent(self.unchanged(limit))} of images keep their answer at {every_shift(limit, border, parts)}"
        said += "" if right is None else f"; {percent(right)} are answered right at each of them"
        said += f": {rule}" if rule else ""
        return f"{said}." + (f" At least half keep it at {every_shift(half, border, parts)}." if 0 < half < limit else "")

    def rows(self) -> tuple[dict[str, Cell], ...]:
        """Return the curve: a row for each radius, with the shares of images."""
        return tuple(
            {"radius": radius, "unchanged": self.unchanged(radius), "right": self.certified(radius)}
            for radius in range(self.limit + 1)
        )

    def _share(self, counts: Int[Tensor, " radius"], radius: int) -> Estimate:
        if not 0 <= radius <= self.limit:
            raise InputError(f"`radius` must be 0 to {self.limit} pixels, which were tried, got {radius}.")
        total = self.total - self.empty
        if not total:
            return Estimate(nan, 0.0, 1.0, count=0)
        share = int(counts[radius - NOTHING :].sum()) / total
        low, high = wilson_interval(share, total)
        return Estimate(share, max(min(low, share), 0.0), min(max(high, share), 1.0), count=total)


@dataclass(frozen=True)
class RadiusCurve:
    """For every image of an audit the largest r such that every shift (dy, dx) with |dy|, |dx| <= r keeps the answer.

    Attributes:
        counts: how many images have each radius.
        border: what comes in at the border.
        radii: of each image, in their order; None where there are too many images to keep one for each.
        rule: what keeps an answer, in a clause.
    """

    counts: RadiusCounts
    border: Border
    radii: Int[Tensor, " image"] | None
    rule: str

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

    def table(self) -> Table:
        """Return the curve: a row for each radius, with the shares of images."""
        columns = ("border", "radius", "unchanged", *(() if self.counts.right is None else ("right",)))
        rows = tuple({"border": self.border, **row} for row in self.counts.rows())
        title = f"Share of images at every shift of up to r pixels, border {BORDERS[self.border]}"
        return Table(title, columns, rows, (self.words(),))

    def words(self) -> str:
        """Return the share at the largest radius in a sentence or two, of a task with what keeps an answer."""
        return self.counts.words(self.border, "" if self.rule == CLASSES else self.rule)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "border": self.border,
            "radius": self.counts.limit,
            "rule": self.rule,
            "images": self.counts.images.tolist(),
            "right": None if self.counts.right is None else self.counts.right.tolist(),
            "curve": self.table().to_json()["rows"],
            "radii": None if self.radii is None else self.radii.tolist(),
        }


def every_shift(radius: int, border: Border = "zero", parts: int = 1) -> str:
    """Return every shift of up to some pixels, in words.

    Args:
        radius: the largest along an axis, pixels.
        border: what comes in at the border.
        parts: points per pixel along an axis.

    >>> every_shift(1), every_shift(8, "circular", 2)
    ('every shift of up to 1 pixel', 'every circular shift in steps of 1/2 pixel of up to 8 pixels')
    """
    kind = "circular shift" if border == "circular" else "shift"
    steps = f" in steps of 1/{parts} pixel" if parts > 1 else ""
    return f"every {kind}{steps} of up to {radius} pixel{'' if radius == 1 else 's'}"
