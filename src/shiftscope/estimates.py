"""Estimates with intervals, from values per image. Pure functions that know no model, no data set and no file.

Images are independent; shifts of one image are not, so that an image's shifts are averaged first and never resampled.

Intervals cover 95 %:

- a mean over images: bootstrap;
- a proportion of images: Wilson's score interval;
- a mean over trained networks and images: both vary, crossed, because every network sees the same images. Images are resampled
  (Owen 2007; weights are spread by sqrt(n / (n - 1)), Rao and Wu 1988). Networks are few, and resampling two or three of them
  would cover 60 or 80 %: they are drawn from a normal distribution, and the interval is widened by Student's t with the
  degrees of freedom of Satterthwaite (1946), which depend on how much of the variance comes from how few networks. Differences
  of such means (Welch 1947) likewise: see :func:`confidence_interval`.

Resampling uses a fixed random stream of its own: the same values always give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

__all__ = [
    "Estimate",
    "VarianceComponent",
    "Z",
    "bootstrap",
    "combine_draws",
    "confidence_interval",
    "mean",
    "mean_over_seeds",
    "percentile_interval",
    "proportion",
    "proportion_over_seeds",
    "variance_component",
]

RESAMPLES = 2000
#: Resamples computed at once.
CHUNK = 50
LEVEL = 0.95
#: The normal quantile of the level.
Z = 1.959963984540054

#: The variance of a mean that comes from differences between its trained networks, and their number.
VarianceComponent = tuple[float, int]


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
    """

    value: float
    low: float
    high: float
    count: int
    seeds: int = 1

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(values: Float[Tensor, " image"], *, bounds: tuple[float, float]) -> Estimate:
    """Estimate a mean over images, with a bootstrap interval.

    Args:
        values: one per image, at least one.
        bounds: the smallest and largest possible value. They are the interval of a single image, which says nothing about how
            images vary.
    """
    return mean_over_seeds(values[None], bounds=bounds)


def mean_over_seeds(values: Float[Tensor, "seed image"], *, bounds: tuple[float, float]) -> Estimate:
    """Estimate a mean over trained networks and images, with an interval over both; over images only from one network.

    Args:
        values: one per network and image, at least one.
        bounds: the smallest and largest possible value.
    """
    table = values.double().numpy()
    seeds, count = table.shape
    value = float(table.mean())
    if count == 1:
        return Estimate(value, *bounds, count=count, seeds=seeds)
    low, high = confidence_interval(value, bootstrap(values), [variance_component(values)]).clip(*bounds)
    return Estimate(value, min(float(low), value), max(float(high), value), count=count, seeds=seeds)


def bootstrap(values: Float[Tensor, "seed image"], *, group: int = 0) -> Float[np.ndarray, " draw"]:
    """Draw the mean over networks and images ``RESAMPLES`` times, crossed.

    Args:
        values: one per network and image.
        group: index of this group of networks. Groups draw their networks independently, but resample the same number of images
            together, as images that all of them saw: differences between groups are paired over images.
    """
    table = values.double().numpy()
    seeds, count = table.shape
    if seeds > 1:
        draws: np.ndarray = ((_network_weights(seeds, group) @ table) * _image_weights(_tallies(count))).sum(axis=1)
        return draws
    # In chunks, so that memory hardly grows with the number of images.
    tallies = _tallies(count)
    parts = [(table * _image_weights(tallies[start : start + CHUNK])).sum(axis=1) for start in range(0, RESAMPLES, CHUNK)]
    return np.concatenate(parts)


def combine_draws(draws: Float[Tensor, "seed draw"]) -> Float[np.ndarray, " draw"]:
    """Return the draws of a mean over networks from each network's own draws of :func:`bootstrap`.

    All networks resample the same images, so that these equal the draws from all values together.
    """
    combined: np.ndarray = (_network_weights(len(draws)) * draws.double().numpy().T).sum(axis=1)
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
    value: float, draws: Float[np.ndarray, " draw"], components: Sequence[VarianceComponent]
) -> Float[np.ndarray, 2]:
    """Return the 95 % interval of an estimate from few trained networks: the draws' percentiles, widened by Student's t.

    Args:
        value: the estimate.
        draws: bootstrap draws of it, over networks and images.
        components: one for each mean that the estimate is a sum of.
    """
    from scipy.special import stdtrit

    doubt = sum(variance**2 / (seeds - 1) for variance, seeds in components if seeds > 1)
    freedom = float(draws.var()) ** 2 / doubt if doubt > 0 else np.inf
    wider = stdtrit(freedom, (1 + LEVEL) / 2) / Z if np.isfinite(freedom) else 1.0
    ends: np.ndarray = value + wider * (percentile_interval(draws) - value)
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
    count, share = len(successes), float(successes.double().mean())
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    reach = Z / (1 + Z**2 / count) * (share * (1 - share) / count + Z**2 / (4 * count**2)) ** 0.5
    return Estimate(share, max(min(centre - reach, share), 0.0), min(max(centre + reach, share), 1.0), count=count)


def proportion_over_seeds(successes: Bool[Tensor, "seed image"]) -> Estimate:
    """Estimate a share of images over trained networks, with an interval over networks and images.

    Where nothing varies (one network, or all answers equal), it is Wilson's interval over images alone.
    """
    seeds, count = successes.shape
    if seeds > 1 and successes.any() and not successes.all():
        return mean_over_seeds(successes.float(), bounds=(0.0, 1.0))
    wilson = proportion(successes[0])
    return Estimate(wilson.value, wilson.low, wilson.high, count=count, seeds=seeds)


@lru_cache(maxsize=8)
def _network_weights(count: int, group: int = 0) -> Float[np.ndarray, "draw {count}"]:
    """Return weights of networks, one row a draw, each summing to 1, so that a mean's variance is theirs over their number."""
    if count == 1:
        return np.ones((RESAMPLES, 1))
    normal = np.random.default_rng([count, len("networks"), group]).standard_normal((RESAMPLES, count))
    weights: np.ndarray = 1 / count + (normal - normal.mean(axis=1, keepdims=True)) / (count * (count - 1)) ** 0.5
    return weights


@lru_cache(maxsize=8)
def _tallies(count: int) -> UInt8[np.ndarray, "draw {count}"]:
    """Return how often each image is picked, one row a resample."""
    if count == 1:
        return np.ones((RESAMPLES, 1), dtype=np.uint8)
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
    if count == 1:
        return np.ones(tallies.shape, dtype=np.float32)
    scale = (count / (count - 1)) ** 0.5
    weights: np.ndarray = ((1 + scale * (tallies.astype(np.float64) - 1)) / count).astype(np.float32)
    return weights
