"""Estimate means and shares with 95 % intervals from values per image. Pure functions, without model, data set or file.

Images are independent; shifts of one image are not, so an image's shifts are averaged first and never resampled.

Intervals cover 95 %:

- a proportion of images: Wilson's score interval;
- a mean over images: Student's for fewer than 30 images or more than 100,000, between them a bootstrap (weights are spread by
  sqrt(n / (n - 1)), Rao and Wu 1988) that is widened by Student's t;
- a mean over trained networks and images: both vary, crossed, because every network sees the same images (Owen 2007). The
  variance is that of a two-way layout, networks plus images minus their interaction (`interaction`). Networks are few, and
  resampling two or three of them would cover 60 or 80 %: they are drawn from a normal distribution, and the interval is widened
  by the t values of networks and images, averaged by the variance that each contributes (Cochran 1964);
- differences of such means likewise, with the networks of all of them pooled: see :func:`confidence_interval`;
- equal values: Wilson's upper end for 0 of n is the share of unseen images that may have any value within the measure's bounds.
  So no interval is empty, except towards a side without a bound.

`benchmarks/intervals.py` simulates the coverage. Normal values: 0.94 to 0.96 from one network and two or more images; 0.94 to
0.99 from two to five networks, more with fewer images. Rare large values among few images lower it, as for any interval, except
where all but a few values lie on a bound: there the interval of one network reaches at least as far as Wilson's.

Resampling uses its own fixed random stream: the same values always give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

__all__ = [
    "ALIKE",
    "Estimate",
    "VarianceComponent",
    "bootstrap",
    "changed",
    "combine_draws",
    "confidence_interval",
    "difference",
    "interaction",
    "interval_of_equals",
    "joint_critical_value",
    "mean",
    "mean_over_seeds",
    "percentile_interval",
    "proportion",
    "proportion_over_seeds",
    "student_t",
    "telling",
    "variance_component",
    "wilson_interval",
]

RESAMPLES = 2000
#: Images whose sign flips are summed at once.
IMAGES_AT_ONCE = 1024
#: Smallest standard error; a smaller one is raised to it.
LEAST_ERROR = 1e-12
#: Below this number of images, means are drawn from a normal distribution instead of resampled: Student's interval.
FEW_IMAGES = 30
#: Where fewer images than this, and than half, have another value than a bound, a mean's interval reaches as far as Wilson's.
FEW_AWAY = 10
#: Above this number of images a mean's interval is Student's again: it hardly differs from a bootstrap's, which takes 2 kB per
#: image, and Student's t hardly differs from the normal quantile.
MANY_IMAGES = 100_000
#: Values that differ by less than this share of the measure's range, or of their size, count as equal.
ALIKE = 1e-6
#: Resamples computed at once.
CHUNK = 50
LEVEL = 0.95
#: The normal quantile of the level.
Z = 1.959963984540054

#: The variance of a mean that comes from differences between its trained networks or images, and their number.
VarianceComponent = tuple[float, int]
Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: the estimate.
        low: lower end of its 95 % interval.
        high: upper end.
        count: how many images it comes from.
        seeds: how many trained networks it comes from.

    >>> print(Estimate(0.5, 0.25, 0.75, count=10))
    0.500 [0.250, 0.750]
    >>> print(Estimate(-0.0001, -0.002, 0.0, count=10))  # no -0.000
    0.000 [-0.002, 0.000]
    """

    value: float
    low: float
    high: float
    count: int
    seeds: int = 1

    def __str__(self) -> str:
        return f"{self.value:z.3f} [{self.low:z.3f}, {self.high:z.3f}]"


def mean(values: Float[Tensor, " image"], *, bounds: tuple[float, float]) -> Estimate:
    """Estimate a mean over images.

    Args:
        values: one per image, at least one.
        bounds: the smallest and largest possible value. For a single image they are the interval, because one image says nothing
            about how images vary.
    """
    return mean_over_seeds(values[None], bounds=bounds)


def difference(
    values: Float[Tensor, " image"], *, bounds: tuple[float, float], same: bool = False, rounding: float = ALIKE
) -> Estimate:
    """Estimate a mean of paired differences over images.

    Args:
        values: one per image, at least one.
        bounds: the smallest and largest possible value.
        same: whether differences of 0 within rounding say that nothing changed, in other images neither; the interval is then
            [0, 0]. Else it is that of equal values, because two models may well agree on a few images.
        rounding: the largest difference that is rounding.

    >>> import torch
    >>> print(difference(torch.zeros(8), bounds=(-1.0, 1.0), same=True))
    0.000 [0.000, 0.000]
    >>> print(difference(torch.zeros(8), bounds=(-1.0, 1.0)))
    0.000 [-0.324, 0.324]
    """
    if not changed(values, rounding):
        ends = (0.0, 0.0) if same else bounds if len(values) == 1 else interval_of_equals(0.0, len(values), bounds)
        return Estimate(0.0, *ends, count=len(values))
    return mean(values, bounds=bounds)


def changed(differences: Float[Tensor, "*image"], rounding: float = ALIKE) -> bool:
    """Return whether one of the differences is more than rounding; those that are not a number do not count."""
    return bool((differences.abs() > rounding).any())


def telling(values: Float[Tensor, " image"]) -> bool:
    """Return whether values tell images apart, so that two models with the same ones are the same.

    At least half of them, and three, are different. Answers that are kept or not, and perfect similarities, tell nothing.

    >>> import torch
    >>> telling(torch.tensor([0.91, 0.87, 0.95])), telling(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    (True, False)
    """
    return len(values.unique()) >= max(3, len(values) / 2)


def joint_critical_value(differences: Float[Tensor, "measure image"]) -> tuple[float, Float[Tensor, " measure"]]:
    """Return the joint critical value for the mean differences of several measures, in standard errors.

    If the two of a pair can be exchanged, the largest mean over its standard error exceeds the value with a probability of at
    most 2.5 %. It is the quantile of that maximum when the signs of images are flipped at random, in all measures alike: the
    permutation test of paired samples (Westfall and Young 1993). Skewed differences of mean 0 can exceed it more often.

    Args:
        differences: of pairs, one per measure and image; at least one of each.

    Returns:
        the value, and the standard errors.

    >>> import torch
    >>> value, _ = joint_critical_value(torch.randn(1, 400, generator=torch.Generator().manual_seed(0)))
    >>> 1.8 < value < 2.1  # of one measure, about the normal quantile
    True
    """
    table = differences.double().numpy()
    count = table.shape[1]
    generator = np.random.default_rng([count, len("signs")])
    sums = np.zeros((RESAMPLES, len(table)))
    for start in range(0, count, IMAGES_AT_ONCE):
        part = table[:, start : start + IMAGES_AT_ONCE]
        sums += (2.0 * generator.integers(2, size=(RESAMPLES, part.shape[1])) - 1) @ part.T
    means = np.vstack([table.sum(axis=1), sums]) / count  # the first row flips no sign
    variances = (np.square(table).mean(axis=1) - means**2).clip(0) / max(count - 1, 1)
    errors = np.sqrt(variances).clip(LEAST_ERROR)
    value = float(np.quantile((means / errors).max(axis=1), (1 + LEVEL) / 2, method="higher"))
    return value, torch.from_numpy(errors[0])


def mean_over_seeds(values: Float[Tensor, "seed image"], *, bounds: tuple[float, float]) -> Estimate:
    """Estimate a mean over trained networks and images, with an interval over both; over images only from one network.

    Args:
        values: one per network and image, at least one.
        bounds: the smallest and largest possible value.
    """
    seeds, count = values.shape
    value = float(values.double().mean())
    if count == 1:
        return Estimate(value, *bounds, count=count, seeds=seeds)
    if _alike(values, bounds):
        low, high = interval_of_equals(value, count, bounds)
    else:
        low, high = _interval_of_mean(values, value).clip(*bounds)
        if seeds == 1 and all(map(np.isfinite, bounds)):
            low, high = _with_unseen(values[0], value, (float(low), float(high)), bounds)
    return Estimate(value, min(float(low), value), max(float(high), value), count=count, seeds=seeds)


def _with_unseen(
    values: Float[Tensor, " image"], value: float, interval: tuple[float, float], bounds: tuple[float, float]
) -> tuple[float, float]:
    """Return an interval that reaches at least as far as Wilson's, where all but a few images have the value of a bound.

    The spread of a few values does not tell how large rare ones are. Among values with this mean none spread more than those at
    the two bounds alone, whose interval is Wilson's; with no value away from the bound it is that of :func:`interval_of_equals`.
    """
    low, high = interval
    for end, other in (bounds, bounds[::-1]):
        away = int(((values - end).abs() > ALIKE * abs(other - end)).sum())
        if away < min(FEW_AWAY, len(values) / 2):
            share = min(max((value - end) / (other - end), 0.0), 1.0)
            limit = end + min(wilson_interval(share, len(values))[1], 1.0) * (other - end)
            low, high = min(low, limit), max(high, limit)
    return low, high


def _alike(values: Tensor, bounds: tuple[float, float]) -> bool:
    reach = bounds[1] - bounds[0]
    return float(values.max() - values.min()) <= ALIKE * (reach if np.isfinite(reach) else float(values.abs().max()))


def interval_of_equals(value: Number, count: int, bounds: tuple[float, float]) -> tuple[Number, Number]:
    """Return the interval of a mean over images that all have the same value.

    Wilson's upper end for 0 of n is the share of unseen images that may differ, by as much as the bounds allow.

    Args:
        value: of every image; or a tensor of such values.
        count: number of images.
        bounds: the smallest and largest possible value.

    >>> import torch
    >>> interval_of_equals(0.0, 10, (0.0, 1.0)) == (0.0, proportion(torch.tensor([False] * 10)).high)
    True
    """
    unseen = Z**2 / (count + Z**2)
    low, high = (value + unseen * (end - value) if np.isfinite(end) else value for end in bounds)
    return low, high


def _interval_of_mean(values: Float[Tensor, "seed image"], value: float) -> Float[np.ndarray, 2]:
    """Return the interval of a mean over networks and images, not clipped to any bounds."""
    networks, images = variance_component(values), variance_component(values.T)
    variance = max(networks[0] + images[0] - interaction(values), networks[0], images[0])
    reach, ends = _student([networks], images) * variance**0.5, np.array([-1.0, 1.0])
    if FEW_IMAGES <= values.shape[1] <= MANY_IMAGES:
        draws = bootstrap(values)
        ends = (percentile_interval(draws) - value) / (Z * draws.std())
    around: np.ndarray = value + reach * ends
    return around


def interaction(values: Float[Tensor, "seed image"]) -> float:
    """Return the interaction's part of the variance of a mean, which the components of networks and of images both contain."""
    seeds, count = values.shape
    if seeds == 1:
        return 0.0
    table = values.double()
    rest = table - table.mean(dim=1, keepdim=True) - table.mean(dim=0) + table.mean()
    return float(rest.square().sum()) / ((seeds - 1) * (count - 1)) / (seeds * count)


def student_t(count: int | float) -> float:
    """Return the 95 % quantile of Student's t for the mean of ``count`` values, at least 2."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + LEVEL) / 2))


def _student(networks: Sequence[VarianceComponent], images: VarianceComponent) -> float:
    """Return the t values of networks and images, averaged by their variances; several groups of networks count as one."""
    each = [_pooled(networks), images]
    known = [(variance, count) for variance, count in each if count > 1 and variance > 0]
    return sum(variance * student_t(count) for variance, count in known) / sum(variance for variance, _ in known) if known else Z


def _pooled(components: Sequence[VarianceComponent]) -> tuple[float, float]:
    """Return the sum of variances and its effective number of values (Satterthwaite 1946, Welch 1947)."""
    total = sum((variance for variance, _ in components), 0.0)
    doubt = sum(variance**2 / (count - 1) for variance, count in components if count > 1)
    return total, (total**2 / doubt + 1 if doubt > 0 else 1.0)


def bootstrap(values: Float[Tensor, "seed image"], *, group: int = 0) -> Float[np.ndarray, " draw"]:
    """Draw the mean over networks and images ``RESAMPLES`` times, crossed.

    Args:
        values: one per network and image.
        group: index of this group of networks. Groups draw their networks independently, but resample the same number of images
            together, as images that all of them saw: differences between groups are paired over images.
    """
    table = values.double().numpy()
    seeds, count = table.shape
    if seeds > 1 or count < FEW_IMAGES:
        table = _normal_weights(seeds, "networks", group) @ table
    if count < FEW_IMAGES:
        draws: np.ndarray = (table * _normal_weights(count, "images")).sum(axis=1)
        return draws
    # In chunks, because weights of all images in all draws would take much memory; without the mean, so that weights of single
    # precision do, however little the values differ.
    middle = table.mean(axis=1, keepdims=True)
    table, tallies, parts = table - middle, _tallies(count), list[np.ndarray]()
    for start in range(0, RESAMPLES, CHUNK):
        rows = table if len(table) == 1 else table[start : start + CHUNK]
        parts.append((rows * _image_weights(tallies[start : start + CHUNK])).sum(axis=1))
    found: np.ndarray = np.concatenate(parts) + middle[:, 0]
    return found


def combine_draws(draws: Float[Tensor, "seed draw"]) -> Float[np.ndarray, " draw"]:
    """Return the draws of a mean over networks from each network's own draws of :func:`bootstrap`.

    All networks resample the same images, so that these equal the draws from all values together.
    """
    combined: np.ndarray = (_normal_weights(len(draws), "networks") * draws.double().numpy().T).sum(axis=1)
    return combined


def variance_component(values: Float[Tensor, "seed image"], weight: float = 1.0) -> VarianceComponent:
    """Return how much a mean over networks varies with the networks.

    Args:
        values: one per network and image, or one per network.
        weight: of this mean in the estimate; -1 for one that is subtracted.
    """
    seeds = len(values)
    means = values.double().reshape(seeds, -1).mean(dim=1)
    return (weight**2 * float(means.var()) / seeds if seeds > 1 else 0.0), seeds


def confidence_interval(
    value: float, draws: Float[np.ndarray, " draw"], components: Sequence[VarianceComponent], *, images: int | None = None
) -> Float[np.ndarray, 2]:
    """Return the 95 % interval of an estimate: the draws' percentiles, widened by Student's t.

    Args:
        value: the estimate.
        draws: bootstrap draws of it, over networks and images.
        components: the networks' variance component of each mean in the estimate.
        images: number of images, which cause the rest of the variance; None for many.
    """
    rest = max(float(draws.var()) - sum(variance for variance, _ in components), 0.0)
    reach = _student(components, (rest, images or MANY_IMAGES)) / Z
    ends: np.ndarray = value + reach * (percentile_interval(draws) - value)
    return ends


def percentile_interval(draws: Float[np.ndarray, " draw"]) -> Float[np.ndarray, 2]:
    """Return the ends of the middle 95 % of draws."""
    ends: np.ndarray = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return ends


def proportion(successes: Bool[Tensor, " image"]) -> Estimate:
    """Estimate a share of images, with Wilson's score interval, which is never empty and stays in [0, 1].

    Equal to ``scipy.stats.binomtest(...).proportion_ci(method="wilson")``, whose import takes a second and which computes a
    p-value as well, 50 times slower.

    >>> import torch
    >>> print(proportion(torch.tensor([True] * 10)))
    1.000 [0.722, 1.000]
    """
    share = float(successes.double().mean())
    low, high = wilson_interval(share, len(successes))
    return Estimate(share, max(min(low, share), 0.0), min(max(high, share), 1.0), count=len(successes))


def wilson_interval(share: Number, count: int) -> tuple[Number, Number]:
    """Return Wilson's score interval of a share of images, or of each of a tensor of shares; it may pass 0 or 1 by rounding."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    reach = Z / (1 + Z**2 / count) * (share * (1 - share) / count + Z**2 / (4 * count**2)) ** 0.5
    return centre - reach, centre + reach


def proportion_over_seeds(successes: Bool[Tensor, "seed image"]) -> Estimate:
    """Estimate a share of images over trained networks, with an interval over networks and images.

    Where nothing varies (one network, or all answers equal), it is Wilson's interval over images alone.
    """
    seeds, count = successes.shape
    if seeds > 1 and successes.any() and not successes.all():
        return mean_over_seeds(successes.float(), bounds=(0.0, 1.0))
    wilson = proportion(successes[0])
    return Estimate(wilson.value, wilson.low, wilson.high, count=count, seeds=seeds)


@lru_cache(maxsize=16)
def _normal_weights(count: int, name: str, group: int = 0) -> Float[np.ndarray, "draw {count}"]:
    """Return weights of a few networks or images, one row per draw, each summing to 1.

    The variance of a weighted mean is the values' variance over their number.
    """
    if count == 1:
        return np.ones((RESAMPLES, 1))
    normal = np.random.default_rng([count, len(name), group]).standard_normal((RESAMPLES, count))
    weights: np.ndarray = 1 / count + (normal - normal.mean(axis=1, keepdims=True)) / (count * (count - 1)) ** 0.5
    return weights


@lru_cache(maxsize=8)
def _tallies(count: int) -> UInt8[np.ndarray, "draw {count}"]:
    """Return how often each image is picked, one row per resample."""
    generator = np.random.default_rng([count, len("images")])
    tallies = np.empty((RESAMPLES, count), dtype=np.uint8)
    rows = np.arange(CHUNK)[:, None] * count
    for start in range(0, RESAMPLES, CHUNK):
        picks = generator.integers(count, size=(CHUNK, count))
        tallies[start : start + CHUNK] = np.bincount((picks + rows).ravel(), minlength=CHUNK * count).reshape(CHUNK, count)
    return tallies


def _image_weights(tallies: UInt8[np.ndarray, "draw count"]) -> Float[np.ndarray, "draw count"]:
    """Return weights of images, each row summing to 1, with deviations scaled by sqrt(n / (n - 1))."""
    count = tallies.shape[1]
    scale = (count / (count - 1)) ** 0.5
    of_tally: np.ndarray = ((1 + scale * (np.arange(256.0) - 1)) / count).astype(np.float32)
    weights: np.ndarray = of_tally[tallies]
    return weights
