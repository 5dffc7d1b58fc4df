"""Name the period of a sensitivity map: the stride that causes it.

A network that subsamples by s repeats its outputs after s pixels, so the effect of a shift repeats every s pixels. For
each candidate period p, we compare how much values differ at shifts that lie p pixels apart along an axis with how much they
differ at other distances around p, from p / 2 to 3 p / 2. The *power* of p is the share of the variation that disappears at p: 1
for a map that repeats exactly, 0 for noise and for a slope, as the distances around p lie on both sides of it alike.

**The test.** If nothing repeats, the values could stand at any shifts. So the largest power of all candidates is compared with
that of ``RESAMPLES`` random orders of the values. Smooth values are no random orders: few of them are independent, above all on a
path. So it is also compared with that of as many rows of noise, filtered to be as smooth. A period is named only if at most 1 %
of either reach it, and if its power is at least ``LEAST_POWER``. Of 1,400 maps of 17x17 shifts, smooth over up to 4 pixels, 2
were given a period; of 1,400 random paths of 65 and 97 shifts, smooth over 0 to 8 pixels, 18. The shift (0, 0) is left out: there
nothing can change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

__all__ = ["CANDIDATES", "Period", "find_period"]

#: Periods that are looked for, pixels: products of strides of 2.
CANDIDATES = (2, 4, 8, 16, 32, 64)
RESAMPLES, LEVEL, LEAST_POWER = 999, 0.01, 0.25
#: The smallest period with this share of the largest power is the period: its multiples repeat as well.
NEARLY = 0.9
#: Values that differ by less than this part of their size are equal.
ROUNDING = 1e-9
#: The widest filter that imitates smooth values, pixels.
SMOOTHEST = 16.0
#: Resamples that are computed together.
CHUNK = 100


@dataclass(frozen=True)
class Period:
    """The period of a sensitivity map.

    Attributes:
        pixels: the period; None if the map shows none.
        power: candidate period -> share of the variation that repeats with it; below 0 where it repeats less than at random.
        chance: share of random orders of the values, or of noise as smooth where that is larger, whose largest power is at least
            this one's; 1 where that power is too small.
        lattice: mean at the shifts that are multiples of the period along both axes, without (0, 0); None without a period.
        off_lattice: mean at all other shifts; None without a period.
    """

    pixels: int | None
    power: Mapping[int, float] = field(default_factory=dict)
    chance: float = 1.0
    lattice: float | None = None
    off_lattice: float | None = None

    def words(self) -> str:
        """Return the finding in a sentence."""
        if self.pixels is None:
            return "No period: the effect of a shift does not repeat."
        means = f"{self.lattice:.3g} at multiples of {self.pixels}, {self.off_lattice:.3g} elsewhere"
        return (
            f"Period {self.pixels} pixels: {self.power[self.pixels]:.0%} of the variation over shifts repeats with it ({means})."
        )


def find_period(
    values: Float[np.ndarray, " shift"], shifts: Int[np.ndarray, "shift 2"], *, candidates: Sequence[int] = CANDIDATES
) -> Period:
    """Return the period of a map over shifts, whole pixels, of a grid or a path along an axis.

    Candidates that are not repeated within the shifts are left out: a grid of up to m pixels shows periods of up to m.

    Args:
        values: one per shift; NaN where there is none.
        shifts: (dy, dx), pixels.
        candidates: periods to look for, pixels.

    >>> steps = np.arange(-16, 17)
    >>> shifts = np.stack([0 * steps, steps], axis=1)
    >>> find_period(np.where(steps % 8 == 0, 1.0, 0.5 + 0.01 * (steps % 8)), shifts).pixels
    8
    """
    kept = shifts.any(axis=1) & np.isfinite(values)
    values, shifts = values[kept].astype(float), shifts[kept]
    spread = np.ptp(values) if len(values) else 0.0
    pairs = _pairs(shifts, sorted({lag for each in candidates for lag in (each, *_around(each))}))
    reach = np.abs(shifts).max(initial=0)
    possible = [each for each in candidates if each <= reach and all(lag in pairs for lag in (each, *_around(each)))]
    if spread <= ROUNDING * max(np.abs(values).max(initial=0.0), 1.0) or not possible:
        return Period(None)
    power = dict(zip(possible, _powers(values[None], pairs, possible)[0].tolist(), strict=True))
    largest = max(power.values())
    chance = 1.0 if largest < LEAST_POWER else _share(_orders(values), pairs, possible, largest)
    if chance <= LEVEL:
        chance = max(chance, _share(_as_smooth(values, shifts), pairs, possible, largest))
    if chance > LEVEL:
        return Period(None, power, chance)
    found = min(each for each, value in power.items() if value >= NEARLY * largest)
    lattice = (shifts % found == 0).all(axis=1)
    means = [float(values[part].mean()) if part.any() else float("nan") for part in (lattice, ~lattice)]
    return Period(found, power, chance, *means)


def _around(period: int) -> list[int]:
    """Return the distances around a period, on both sides alike."""
    reach = max(period // 2, 1)
    return [lag for lag in range(period - reach, period + reach + 1) if lag not in (0, period)]


def _pairs(shifts: Int[np.ndarray, "shift 2"], lags: Iterable[int]) -> dict[int, Int[np.ndarray, "2 pair"]]:
    """Return the pairs of shifts that lie each distance apart along an axis: distance -> their places, where there are any."""
    if not len(shifts):
        return {}
    down, right = (shifts - shifts.min(axis=0)).T
    places = np.full((down.max() + 1, right.max() + 1), -1)
    places[down, right] = np.arange(len(shifts))
    found = {}
    for lag in (each for each in lags if each < max(places.shape)):
        ends = ((places[:-lag], places[lag:]), (places[:, :-lag], places[:, lag:]))
        one, other = (np.concatenate([each.ravel() for each in side]) for side in zip(*ends, strict=True))
        known = (one >= 0) & (other >= 0)
        if known.any():
            found[lag] = np.stack([one[known], other[known]])
    return found


def _powers(
    rows: Float[np.ndarray, "row shift"], pairs: Mapping[int, Int[np.ndarray, "2 pair"]], candidates: Sequence[int]
) -> Float[np.ndarray, "row candidate"]:
    """Return each candidate's power in each row of values."""
    lags = sorted({lag for each in candidates for lag in (each, *_around(each))})
    columns = np.ascontiguousarray(rows.T)  # a shift's values of all rows lie together
    apart = {lag: _mean_square(columns, pairs[lag]) for lag in lags}
    around = {each: np.mean([apart[lag] for lag in _around(each)], axis=0) for each in candidates}
    found: np.ndarray = np.stack([1 - apart[each] / np.maximum(around[each], 1e-300) for each in candidates], axis=1)
    return found


def _mean_square(columns: Float[np.ndarray, "shift row"], pairs: Int[np.ndarray, "2 pair"]) -> Float[np.ndarray, " row"]:
    """Return the mean square of the differences between the shifts of pairs."""
    apart = columns.take(pairs[0], axis=0)
    apart -= columns.take(pairs[1], axis=0)
    found: np.ndarray = np.einsum("pr,pr->r", apart, apart) / len(apart)
    return found


def _share(
    rows: Iterator[Float[np.ndarray, "row shift"]],
    pairs: Mapping[int, Int[np.ndarray, "2 pair"]],
    candidates: Sequence[int],
    reached: float,
) -> float:
    """Return the share of random rows whose largest power reaches that of the values, which are counted among them."""
    return (1 + sum(int((_powers(each, pairs, candidates).max(axis=1) >= reached).sum()) for each in rows)) / (RESAMPLES + 1)


def _orders(values: Float[np.ndarray, " shift"]) -> Iterator[Float[np.ndarray, "row shift"]]:
    """Yield random orders of the values."""
    generator = np.random.default_rng([len(values), len("orders")])
    for count in _chunks():
        yield generator.permuted(np.broadcast_to(values, (count, len(values))), axis=1)


def _as_smooth(
    values: Float[np.ndarray, " shift"], shifts: Int[np.ndarray, "shift 2"]
) -> Iterator[Float[np.ndarray, "row shift"]]:
    """Yield white noise under a Gaussian filter, of the values' correlation at a distance of one pixel.

    Under a filter of standard deviation s that correlation is exp(-1 / 4 s^2).
    """
    generator, width = np.random.default_rng([len(values), len("smooth")]), _smoothness(values, shifts)
    places = shifts - shifts.min(axis=0)
    extent = places.max(axis=0) + 1
    sides = [int(side + np.ceil(8 * width)) if side > 1 else 1 for side in extent]  # the filter goes round
    for count in _chunks():
        noise = np.fft.fft2(generator.standard_normal((count, *sides)))
        for axis, side in enumerate(sides):
            response = np.exp(-2 * (np.pi * width * np.fft.fftfreq(side)) ** 2)
            noise *= response[:, None] if axis == 0 else response
        yield np.fft.ifft2(noise).real[:, places[:, 0], places[:, 1]]


def _smoothness(values: Float[np.ndarray, " shift"], shifts: Int[np.ndarray, "shift 2"]) -> float:
    """Return the standard deviation of a Gaussian filter, in pixels, that makes noise as smooth as the values are."""
    neighbours = _pairs(shifts, [1]).get(1)
    if neighbours is None:
        return 0.0
    alike = 1 - float(_mean_square(values[:, None], neighbours)[0]) / (2 * float(values.var()))
    return min(float(np.sqrt(-1 / (4 * np.log(min(alike, 1 - ROUNDING))))), SMOOTHEST) if alike > 0 else 0.0


def _chunks() -> Iterator[int]:
    """Yield how many resamples to compute together."""
    for start in range(0, RESAMPLES, CHUNK):
        yield min(CHUNK, RESAMPLES - start)
