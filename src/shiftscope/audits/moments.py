"""Means of very many values and their intervals, from sums that need no memory for each value."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from shiftscope.estimates import ALIKE, Estimate, interval_of_equals, student_t, wilson_interval
from shiftscope.measures import MEASURES

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """Sums that describe values without keeping them.

    Attributes:
        count: how many there are.
        mean: of all.
        deviations: sum of the squares of their differences from the mean.
        least: the smallest.
        most: the largest.
        binary: whether all are 0 or 1.
    """

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0
    least: float = float("inf")
    most: float = float("-inf")
    binary: bool = True

    @classmethod
    def of(cls, values: Shaped[Tensor, " image"]) -> Moments:
        """Return the moments of values; computed in double precision."""
        if len(values) == 0:
            return cls()
        exact = values.double()
        mean = float(exact.mean())
        binary = bool(((exact == 0) | (exact == 1)).all())
        return cls(len(exact), mean, float((exact - mean).square().sum()), float(exact.min()), float(exact.max()), binary)

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both together (Chan, Golub and LeVeque 1979).

        >>> import torch
        >>> Moments.of(torch.tensor([1.0, 2.0])) + Moments.of(torch.tensor([6.0]))
        Moments(count=3, mean=3.0, deviations=14.0, least=1.0, most=6.0, binary=False)
        """
        count = self.count + other.count
        if not self.count or not other.count:
            return other if not self.count else self
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * other.count / count,
            self.deviations + other.deviations + apart**2 * self.count * other.count / count,
            min(self.least, other.least),
            max(self.most, other.most),
            self.binary and other.binary,
        )

    def estimate(self, measure: str) -> Estimate | None:
        """Return a measure's mean over images; its 95 % interval is Wilson's for shares, else Student's. None without values.

        Args:
            measure: a name of :data:`shiftscope.measures.MEASURES`, or ``accuracy``.
        """
        if not self.count:
            return None
        share, bounds = (True, (0.0, 1.0)) if measure == "accuracy" else (MEASURES[measure].share, MEASURES[measure].bounds)
        if share or (bounds == (0.0, 1.0) and self.binary):
            low, high = wilson_interval(self.mean, self.count)
        elif self.count == 1:
            low, high = bounds
        elif self.most - self.least <= ALIKE * (bounds[1] - bounds[0] if bounds[1] < float("inf") else abs(self.most)):
            low, high = interval_of_equals(self.mean, self.count, bounds)
        else:
            reach = float(student_t(self.count)) * (self.deviations / (self.count - 1) / self.count) ** 0.5
            low, high = self.mean - reach, self.mean + reach
        low, high = max(float(low), bounds[0]), min(float(high), bounds[1])
        return Estimate(self.mean, min(low, self.mean), max(high, self.mean), count=self.count)
