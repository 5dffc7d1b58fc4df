"""Judge claims about a study's cells by the measurements of its networks.

Every number has a 95 % interval from bootstrap draws (see :mod:`shiftscope.estimates`). The draws resample the networks of each
cell separately, and the test images, which all cells of a data set share, together. A claim *holds* if the whole interval lies
on the claimed side of its bound, *does not hold* if the whole interval lies on the other side, and is *undecided* otherwise:
this number of networks and images cannot tell. Of one network a cell the interval covers images only, and it holds *here*.

A cell that gives all images the same value has no draws that differ. What unseen images may change there, by Wilson's rule, is
added to the interval as an independent error (Newcombe 1998).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from math import hypot
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from shiftscope.estimates import (
    ALIKE,
    Estimate,
    VarianceComponent,
    bootstrap,
    confidence_interval,
    interval_of_equals,
    variance_component,
)
from shiftscope.measures import MEASURES
from shiftscope.studies.spec import Claim, frozen, short

__all__ = ["CENTRED", "Judgement", "MeasuredCell", "Verdict", "judge"]

#: Claims about ``mcs`` are judged by this measure as well.
CENTRED = "mcs_centred"


class Verdict(StrEnum):
    """The result of judging a claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    UNDECIDED = "undecided"
    NOT_IN_STUDY = "not in this study"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class MeasuredCell:
    """A cell's settings, and its networks' values on the test images.

    Attributes:
        settings: path -> value.
        values: by measure, one for each network and image; empty if no run is finished.
        number: of the cell; cells with different numbers draw their networks independently.
    """

    settings: Mapping[str, Any]
    values: Mapping[str, Float[Tensor, "seed image"]]
    number: int
    _draws: dict[str, Float[np.ndarray, " draw"]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def networks(self) -> int:
        """The number of networks measured."""
        return len(next(iter(self.values.values()))) if self.values else 0

    def mean(self, measure: str) -> float:
        """Return a measure's mean over networks and images."""
        return float(self.values[measure].double().mean())

    def draws(self, measure: str) -> Float[np.ndarray, " draw"]:
        """Return bootstrap draws of a measure's mean, computed once."""
        if measure not in self._draws:
            self._draws[measure] = bootstrap(self.values[measure], group=self.number)
        return self._draws[measure]

    def estimate(self, measure: str) -> Estimate | None:
        """Return a measure's mean with its interval, as in the study's table; None if it was not measured."""
        if measure not in MEASURES or measure not in self.values:
            return None
        return MEASURES[measure].estimate_over_seeds(self.values[measure])

    def variance(self, measure: str, weight: float = 1.0) -> VarianceComponent:
        """Return the variance of a measure's mean due to the networks; see :func:`shiftscope.estimates.variance_component`."""
        return variance_component(self.values[measure], weight)


@dataclass(frozen=True)
class Judgement:
    """A claim and the result of judging it.

    Attributes:
        claim: the claim.
        verdict: the result.
        number: the claimed difference or range; None if it cannot be computed.
        absent: settings that the claim is about and that no cell of the study has, path -> value.
        cells: the number of cells that the claim is about.
        cells_missing: how many of them are not measured.
        centred: the same claim judged by centred outputs, where it is about ``mcs``.
    """

    claim: Claim
    verdict: Verdict
    number: Estimate | None = None
    absent: Mapping[str, Any] = field(default_factory=dict)
    cells: int = 0
    cells_missing: int = 0
    centred: Judgement | None = None

    def __str__(self) -> str:
        if self.verdict is Verdict.NOT_MEASURED:
            return f"{self.verdict}: {self.cells_missing} of {self.cells} cells are missing"
        absent = ", ".join(f"{short(path)} {value}" for path, value in self.absent.items())
        if self.of_these_networks:
            return f"{self.verdict} here"
        return f"{self.verdict}: {absent}" if absent else str(self.verdict)

    @property
    def of_these_networks(self) -> bool:
        """Whether the claim is decided for the trained networks alone, because a cell has one and others may differ."""
        decided = self.verdict in (Verdict.HOLDS, Verdict.DOES_NOT_HOLD)
        return decided and self.number is not None and self.number.seeds == 1

    def to_json(self) -> dict[str, Any]:
        """Return the judgement as plain data."""
        fields = {
            **self.claim.model_dump(mode="json"),
            "verdict": str(self.verdict),
            "number": asdict(self.number) if self.number else None,
            "absent": dict(self.absent),
            "cells": self.cells,
            "cells_missing": self.cells_missing,
        }
        return fields | ({"centred": self.centred.to_json()} if self.centred else {})


def judge(claim: Claim, cells: Sequence[MeasuredCell]) -> Judgement:
    """Judge a claim, and if it is about ``mcs``, the same claim about centred outputs.

    Args:
        claim: the claim.
        cells: all cells of the study. A claim is not judged on a part of the cells that it is about.

    >>> import torch
    >>> cells = [MeasuredCell({"network.factor": f}, {"mcs": torch.full((1, 50), 0.1 * f)}, number=f) for f in (1, 4)]
    >>> claim = Claim(text="MCS rises", of={"network.factor": (4,)}, less={"network.factor": (1,)})
    >>> str(judge(claim, cells)), str(judge(claim, cells[:1]))
    ('holds here', 'not in this study: factor 4')
    """
    of, less = _selected(cells, claim.of), _selected(cells, claim.less)
    if claim.kind == "lead":
        less = [cell for cell in (cells if claim.less is None else less) if cell not in of]
    absent = _absent(cells, claim.of) or _absent(cells, claim.less or {})
    if absent or not of or (not less and (claim.less is not None or claim.kind == "lead")):
        return Judgement(claim, Verdict.NOT_IN_STUDY, absent=absent)
    count, missing = len(of) + len(less), sum(claim.measure not in cell.values for cell in (*of, *less))
    if missing:
        return Judgement(claim, Verdict.NOT_MEASURED, cells=count, cells_missing=missing)
    number = _number(claim, of, less)
    centred = None
    if claim.measure == "mcs" and all(CENTRED in cell.values for cell in (*of, *less)):
        centred = judge(claim.model_copy(update={"measure": CENTRED}), cells)
    return Judgement(claim, _verdict(claim, number), number, cells=count, centred=centred)


def _selected(cells: Sequence[MeasuredCell], which: Mapping[str, tuple[Any, ...]] | None) -> list[MeasuredCell]:
    if which is None:
        return []
    return [cell for cell in cells if all(frozen(cell.settings.get(path)) in frozen(values) for path, values in which.items())]


def _absent(cells: Sequence[MeasuredCell], which: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Return the first setting that a selection names and no cell has."""
    for path, values in which.items():
        for value in values:
            if all(frozen(cell.settings.get(path)) != frozen(value) for cell in cells):
                return {path: value}
    return {}


def _number(claim: Claim, of: Sequence[MeasuredCell], less: Sequence[MeasuredCell]) -> Estimate:
    """Return the claimed difference or range with its interval."""
    if claim.kind == "range":
        value, draws, variances = _range(claim.measure, of)
    elif claim.kind == "lead":
        value, draws, variances = _lead(claim.measure, of, less)
    else:
        value, draws, variances = _difference(claim.measure, of, less)
    seeds, count = min(len(cell.values[claim.measure]) for cell in (*of, *less)), of[0].values[claim.measure].shape[1]
    low, high = confidence_interval(value, draws, variances, images=count)
    unseen = _unseen(claim.measure, of, 1) + _unseen(claim.measure, less, -1)
    down, up = hypot(value - low, *(each for each, _ in unseen)), hypot(high - value, *(each for _, each in unseen))
    return Estimate(value, value - down, value + up, count=count, seeds=seeds)


def _unseen(measure: str, cells: Sequence[MeasuredCell], sign: int) -> list[tuple[float, float]]:
    """Return by how much unseen images may lower and raise a mean over cells, or its negative, for each cell of equal values."""
    found = []
    for cell in cells:
        values = cell.values[measure]
        if values.shape[1] > 1 and float(values.max() - values.min()) <= ALIKE:
            value = cell.mean(measure)
            low, high = interval_of_equals(value, values.shape[1], MEASURES[measure].bounds)
            down, up = (value - low) / len(cells), (high - value) / len(cells)
            found.append((down, up) if sign > 0 else (up, down))
    return found


#: A number, its bootstrap draws, and the variance that each mean contributes because its networks differ.
Statistic = tuple[float, np.ndarray, list[VarianceComponent]]


def _difference(measure: str, of: Sequence[MeasuredCell], less: Sequence[MeasuredCell]) -> Statistic:
    """Return the mean of some cells minus that of others; minus 0 without others."""
    variances = [cell.variance(measure, 1 / len(cells)) for cells in (of, less) for cell in cells]
    value, draws = _mean(measure, of)
    if less:
        other, other_draws = _mean(measure, less)
        value, draws = value - other, draws - other_draws
    return value, draws, variances


def _mean(measure: str, cells: Sequence[MeasuredCell]) -> tuple[float, np.ndarray]:
    draws: np.ndarray = np.stack([cell.draws(measure) for cell in cells]).mean(axis=0)
    return float(np.mean([cell.mean(measure) for cell in cells])), draws


def _range(measure: str, cells: Sequence[MeasuredCell]) -> Statistic:
    """Return the largest minus the smallest cell.

    Draws scatter more than the means around which they are drawn, so their ranges are too large; reflecting them corrects that.
    """
    values, draws = np.array([cell.mean(measure) for cell in cells]), np.stack([cell.draws(measure) for cell in cells])
    value = float(np.ptp(values))
    ends = {cell.number: cell for cell in (cells[int(values.argmax())], cells[int(values.argmin())])}
    return value, np.maximum(2 * value - np.ptp(draws, axis=0), 0.0), [cell.variance(measure) for cell in ends.values()]


def _lead(measure: str, of: Sequence[MeasuredCell], others: Sequence[MeasuredCell]) -> Statistic:
    """Return the mean of some cells minus the highest of others; the highest of draws is too high, which reflecting corrects."""
    value, draws = _mean(measure, of)
    highest = max(others, key=lambda cell: cell.mean(measure))
    lead = value - highest.mean(measure)
    behind = np.stack([cell.draws(measure) for cell in others]).max(axis=0)
    variances = [*(cell.variance(measure, 1 / len(of)) for cell in of), highest.variance(measure)]
    return lead, 2 * lead - (draws - behind), variances


def _verdict(claim: Claim, number: Estimate) -> Verdict:
    if number.count == 1:  # one image says nothing about the spread over images
        return Verdict.UNDECIDED
    above, below = number.low > claim.bound, number.high < claim.bound
    if not above and not below:
        return Verdict.UNDECIDED
    return Verdict.HOLDS if above == (claim.expect == "above") else Verdict.DOES_NOT_HOLD
