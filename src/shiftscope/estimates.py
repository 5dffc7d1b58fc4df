"""From outputs to numbers, each with its interval. Pure functions that know no model, no data set and no file.

Two steps, kept apart. First a value per image (its cosine, whether its top class changed), averaged over that image's own
shifts. Then an estimate over images, which are independent; shifts of one image are not, and are never resampled.

Intervals cover 95 %:

- a mean over images: bootstrap;
- a proportion of images: Wilson's score interval;
- a mean over trained networks and images: both vary, crossed, because every network sees the same images. Images are resampled
  (Owen 2007; weights are spread by sqrt(n / (n - 1)), Rao and Wu 1988). Networks are few, and resampling two or three of them
  would cover 60 or 80 %: they are drawn as normally distributed, and the interval is widened by Student's t with the degrees
  of freedom of Satterthwaite (1946), which tell how much of the doubt rests on how few networks. Differences of such means
  (Welch 1947) likewise: see :func:`around`.

Resampling uses a fixed stream of its own: the same values always give the same interval.
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
    "Spread",
    "Z",
    "around",
    "crossed",
    "interval",
    "mean",
    "mean_over_seeds",
    "proportion",
    "proportion_over_seeds",
    "resampled",
    "spread",
]

RESAMPLES = 2000
#: Resamples worked on at once.
CHUNK = 50
LEVEL = 0.95
#: The normal quantile of the level.
Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A number and what is known of it.

    Attributes:
        value: the estimate.
        low, high: its 95 % interval.
        count: the images behind it.
        seeds: the trained networks behind it.
    """

    value: float
    low: float
    high: float
    count: int
    seeds: int = 1

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean(values: Float[Tensor, " image"], *, bounds: tuple[float, float]) -> Estimate:
    """Mean over images with a bootstrap interval.

    Args:
        values: one per image, at least one.
        bounds: the least and the greatest the measure can be; from a single image nothing is known of the spread, and they
            are its interval.
    """
    return mean_over_seeds(values[None], bounds=bounds)


def mean_over_seeds(values: Float[Tensor, "seed image"], *, bounds: tuple[float, float]) -> Estimate:
    """Mean over trained networks and images with an interval over both; from one network, over its images only."""
    table = values.double().numpy()
    seeds, count = table.shape
    value = float(table.mean())
    if count == 1:
        return Estimate(value, *bounds, count=count, seeds=seeds)
    low, high = around(value, resampled(values), [spread(values)]).clip(*bounds)
    return Estimate(value, min(float(low), value), max(float(high), value), count=count, seeds=seeds)


def resampled(values: Float[Tensor, "seed image"], *, cell: int = 0) -> Float[np.ndarray, " draw"]:
    """The mean's draws, over networks and images, crossed.

    Args:
        values: of each network and image.
        cell: a number for these networks. Cells of different numbers draw their networks apart, and cells of as many images
            resample these together, as images that both saw: differences of their draws are paired.
    """
    table = values.double().numpy()
    seeds, count = table.shape
    if seeds > 1:
        draws: np.ndarray = ((_networks(seeds, cell) @ table) * _images(count)).sum(axis=1)
        return draws
    # A few resamples at a time, so that memory hardly grows with the images.
    tallies = _tallies(count)
    parts = [(table * _spread(tallies[start : start + CHUNK])).sum(axis=1) for start in range(0, RESAMPLES, CHUNK)]
    return np.concatenate(parts)


def crossed(draws: Float[Tensor, "seed draw"]) -> Float[np.ndarray, " draw"]:
    """The draws of a mean over networks, from those that :func:`resampled` gave for each.

    Images are resampled alike for every network of as many, so that these are the draws of all values together.
    """
    several: np.ndarray = (_networks(len(draws)) * draws.double().numpy().T).sum(axis=1)
    return several


#: The variance of a mean that comes from its trained networks differing, and how many there are.
Spread = tuple[float, int]


def spread(values: Float[Tensor, "seed image"], share: float = 1.0) -> Spread:
    """How much a mean over networks varies with them.

    Args:
        values: of each network and image, or of each network alone.
        share: of this mean in what is estimated; -1 for one that is taken off.
    """
    seeds = len(values)
    means = values.double().reshape(seeds, -1).mean(dim=1)
    return (share**2 * float(means.var()) / seeds if seeds > 1 else 0.0), seeds


def around(value: float, draws: Float[np.ndarray, " draw"], spreads: Sequence[Spread]) -> Float[np.ndarray, 2]:
    """The 95 % interval of an estimate that rests on few trained networks.

    Args:
        value: the estimate.
        draws: of it, over networks and images.
        spreads: of each mean that it is made of.
    """
    from scipy.special import stdtrit

    doubt = sum(variance**2 / (seeds - 1) for variance, seeds in spreads if seeds > 1)
    freedom = float(draws.var()) ** 2 / doubt if doubt > 0 else np.inf
    wider = stdtrit(freedom, (1 + LEVEL) / 2) / Z if np.isfinite(freedom) else 1.0
    ends: np.ndarray = value + wider * (interval(draws) - value)
    return ends


def interval(draws: Float[np.ndarray, " draw"]) -> Float[np.ndarray, 2]:
    """The middle 95 % of draws."""
    bounds: np.ndarray = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return bounds


def proportion(successes: Bool[Tensor, " image"]) -> Estimate:
    """Share of images with Wilson's score interval, which is never empty and never leaves [0, 1].

    >>> print(proportion(torch.tensor([True] * 10)))
    1.000 [0.722, 1.000]
    """
    count, share = len(successes), float(successes.double().mean())
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    reach = Z / (1 + Z**2 / count) * (share * (1 - share) / count + Z**2 / (4 * count**2)) ** 0.5
    return Estimate(share, max(min(centre - reach, share), 0.0), min(max(centre + reach, share), 1.0), count=count)


def proportion_over_seeds(successes: Bool[Tensor, "seed image"]) -> Estimate:
    """Share of images right, over trained networks, with an interval over networks and images.

    Where these show no spread (one network, or every answer equal) it is Wilson's interval on the images alone.
    """
    seeds, count = successes.shape
    if seeds > 1 and successes.any() and not successes.all():
        return mean_over_seeds(successes.float(), bounds=(0.0, 1.0))
    wilson = proportion(successes[0])
    return Estimate(wilson.value, wilson.low, wilson.high, count=count, seeds=seeds)


@lru_cache(maxsize=8)
def _networks(count: int, cell: int = 0) -> Float[np.ndarray, "draw {count}"]:
    """Weights of networks, one row a draw, each summing to one; a mean varies with them by their variance over their number."""
    if count == 1:
        return np.ones((RESAMPLES, 1))
    normal = np.random.default_rng([count, len("networks"), cell]).standard_normal((RESAMPLES, count))
    weights: np.ndarray = 1 / count + (normal - normal.mean(axis=1, keepdims=True)) / (count * (count - 1)) ** 0.5
    return weights


def _images(count: int) -> Float[np.ndarray, "draw {count}"]:
    """Bootstrap weights of images, one row a resample."""
    return _spread(_tallies(count))


@lru_cache(maxsize=8)
def _tallies(count: int) -> UInt8[np.ndarray, "draw {count}"]:
    """How often each image is picked, one row a resample."""
    if count == 1:
        return np.ones((RESAMPLES, 1), dtype=np.uint8)
    generator = np.random.default_rng([count, len("images")])
    tallies = np.empty((RESAMPLES, count), dtype=np.uint8)
    rows = np.arange(CHUNK)[:, None] * count
    for start in range(0, RESAMPLES, CHUNK):
        picks = generator.integers(count, size=(CHUNK, count))
        tallies[start : start + CHUNK] = np.bincount((picks + rows).ravel(), minlength=CHUNK * count).reshape(CHUNK, count)
    return tallies


def _spread(tallies: UInt8[np.ndarray, "draw count"]) -> Float[np.ndarray, "draw count"]:
    """Weights from how often each is picked, each row summing to one, spread by sqrt(n / (n - 1))."""
    count = tallies.shape[1]
    if count == 1:
        return np.ones(tallies.shape, dtype=np.float32)
    spread = (count / (count - 1)) ** 0.5
    weights: np.ndarray = ((1 + spread * (tallies.astype(np.float64) - 1)) / count).astype(np.float32)
    return weights
