"""From outputs to numbers, each with its interval. Pure functions that know no model, no data set and no file.

Two steps, kept apart. First a value per image (its cosine, whether its top class changed), averaged over that image's own
shifts. Then an estimate over images, which are independent; shifts of one image are not, and are never resampled.

Intervals cover 95 %:

- a mean over images: bootstrap over images;
- a proportion of images: Wilson's score interval;
- a mean over training seeds and images: bootstrap over both, crossed, because every seed sees the same images ("pigeonhole
  bootstrap", Owen 2007). Weights are spread by sqrt(n / (n - 1)) (Rao and Wu 1988), without which three seeds would give an
  interval 18 % too narrow. It still knows only the seeds it has seen, and of few it covers less than 95 % (:func:`doubt`).

Resampling uses a fixed stream of its own: the same values always give the same interval.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from shiftscope.outputs import Outputs

__all__ = [
    "Estimate",
    "Z",
    "centred",
    "correct",
    "cosine",
    "cosines",
    "crossed",
    "doubt",
    "interval",
    "mean",
    "mean_over_seeds",
    "per_shift_cosines",
    "proportion",
    "proportion_over_seeds",
    "resampled",
    "top1_changes",
]

RESAMPLES = 2000
#: Resamples worked on at once.
CHUNK = 50
LEVEL = 0.95
#: What an interval of that level over so few networks covers, where these are normally distributed and images add nothing.
COVERED = {2: 0.61, 3: 0.80, 4: 0.85, 5: 0.88}
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


def cosines(outputs: Outputs) -> Float[Tensor, " image"]:
    """Cosine between each image's output and its outputs under shifts, averaged over its shifts.

    The mean over images is the mean cosine similarity, MCS (Mouton, Myburgh and Davel 2020).
    """
    return per_shift_cosines(outputs).mean(dim=1)


def centred(outputs: Outputs) -> Outputs:
    """Outputs less their mean over classes: what is left decides the softmax, and only that.

    A cosine of raw outputs also counts the part that all classes share. Training leaves that part where the optimiser happens to
    drive it (near 0 by SGD, far from it by Adam), so that networks which answer alike differ in MCS. Of centred outputs they do
    not. This measure is ours.

    >>> raw = Outputs(torch.tensor([[[3.0, 5.0]]]), torch.tensor([[7.0, 9.0]]), torch.zeros(1, 2))
    >>> centred(raw).values.tolist(), centred(raw).reference.tolist()
    ([[[-1.0, 1.0]]], [[-1.0, 1.0]])
    """
    values, reference = (each - each.mean(-1, keepdim=True) for each in (outputs.values, outputs.reference))
    return replace(outputs, values=values, reference=reference)


def per_shift_cosines(outputs: Outputs) -> Float[Tensor, "image shift"]:
    """Cosine between each image's output and each of its outputs under shifts.

    Two zero outputs are alike (1), a zero output is like no other (0).
    """
    return cosine(outputs.reference[:, None, :], outputs.values).float()


def cosine(one: Float[Tensor, "*each class"], other: Float[Tensor, "*others class"]) -> Float[Tensor, "*both"]:
    """Cosine along the last axis, in double precision; two zero vectors are alike (1), a zero vector is like no other (0).

    >>> cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.zeros(2, 2)).tolist()
    [0.0, 1.0]
    """
    one, other = one.double(), other.double()
    norms = (one.square().sum(-1) * other.square().sum(-1)).sqrt()
    similar = ((one * other).sum(-1) / norms).clamp(-1, 1)
    both_zero = (one == 0).all(-1) & (other == 0).all(-1)
    return torch.where(norms > 0, similar, both_zero.double())


def top1_changes(outputs: Outputs) -> Float[Tensor, " image"]:
    """Share of each image's shifts under which its top class differs from the unshifted one.

    Of equal outputs the lowest class is the top one, before and after.
    """
    changed = outputs.values.argmax(-1) != outputs.reference.argmax(-1)[:, None]
    return changed.float().mean(dim=1)


def correct(reference: Float[Tensor, "image class"], labels: Int[Tensor, " image"]) -> Bool[Tensor, " image"]:
    """Whether each image's top class is its label."""
    return reference.argmax(-1) == labels


def mean(values: Float[Tensor, " image"], *, bounds: tuple[float, float]) -> Estimate:
    """Mean over images with a bootstrap interval.

    Args:
        values: one per image, at least one.
        bounds: the least and the greatest the measure can be; from a single image nothing is known of the spread, and they
            are its interval.
    """
    return mean_over_seeds(values[None], bounds=bounds)


def mean_over_seeds(values: Float[Tensor, "seed image"], *, bounds: tuple[float, float]) -> Estimate:
    """Mean over trained networks and images with a crossed bootstrap interval; from one network, over its images only."""
    table = values.double().numpy()
    seeds, count = table.shape
    value = float(table.mean())
    if count == 1:
        return Estimate(value, *bounds, count=count, seeds=seeds)
    low, high = interval(resampled(values)).clip(*bounds)
    return Estimate(value, min(float(low), value), max(float(high), value), count=count, seeds=seeds)


def resampled(values: Float[Tensor, "seed image"], *, cell: int = 0) -> Float[np.ndarray, " draw"]:
    """The mean's bootstrap draws, over networks and images, crossed.

    Args:
        values: of each network and image.
        cell: a number for these networks. Cells of different numbers resample their networks apart, and cells of as many images
            resample these together, as images that both saw: differences of their draws are paired.
    """
    table = values.double().numpy()
    seeds, count = table.shape
    if seeds > 1:
        draws: np.ndarray = ((_weights(seeds, "seeds", cell) @ table) * _weights(count, "images")).sum(axis=1)
        return draws
    # A few resamples at a time, so that memory hardly grows with the images.
    tallies = _tallies(count, "images")
    parts = [(table * _spread(tallies[start : start + CHUNK])).sum(axis=1) for start in range(0, RESAMPLES, CHUNK)]
    return np.concatenate(parts)


def crossed(draws: Float[Tensor, "seed draw"]) -> Float[np.ndarray, " draw"]:
    """The bootstrap draws of a mean over networks, from those that :func:`resampled` gave for each.

    Images are resampled alike for every network of as many, so that these are the draws of all values together.
    """
    several: np.ndarray = (_weights(len(draws), "seeds") * draws.double().numpy().T).sum(axis=1)
    return several


def interval(draws: Float[np.ndarray, " draw"]) -> Float[np.ndarray, 2]:
    """The middle 95 % of bootstrap draws."""
    bounds: np.ndarray = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return bounds


def doubt(seeds: int) -> str:
    """What an interval over so few trained networks covers, as a sentence; empty for one (whose interval is over images) or many.

    >>> doubt(3)
    'Where networks differ more than images do, a 95 % interval over 3 networks covers about 80 %: the doubt is greater.'
    """
    if seeds not in COVERED:
        return ""
    covered = f"a {LEVEL:.0%} interval over {seeds} networks covers about {COVERED[seeds]:.0%}".replace("%", " %")
    return f"Where networks differ more than images do, {covered}: the doubt is greater."


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
    """Share of images right, over trained networks, with a crossed bootstrap interval.

    Where the bootstrap sees no spread (one network, or every answer equal) it is Wilson's interval on the images alone.
    """
    seeds, count = successes.shape
    if seeds > 1 and successes.any() and not successes.all():
        return mean_over_seeds(successes.float(), bounds=(0.0, 1.0))
    wilson = proportion(successes[0])
    return Estimate(wilson.value, wilson.low, wilson.high, count=count, seeds=seeds)


@lru_cache(maxsize=8)
def _tallies(count: int, what: str, cell: int = 0) -> UInt8[np.ndarray, "draw {count}"]:
    """How often each is picked, one row a resample; a stream for each axis."""
    if count == 1:
        return np.ones((RESAMPLES, 1), dtype=np.uint8)
    generator = np.random.default_rng([count, len(what), *([cell] if cell else [])])
    tallies = np.empty((RESAMPLES, count), dtype=np.uint8)
    rows = np.arange(CHUNK)[:, None] * count
    for start in range(0, RESAMPLES, CHUNK):
        picks = generator.integers(count, size=(CHUNK, count))
        tallies[start : start + CHUNK] = np.bincount((picks + rows).ravel(), minlength=CHUNK * count).reshape(CHUNK, count)
    return tallies


def _weights(count: int, what: str, cell: int = 0) -> Float[np.ndarray, "draw {count}"]:
    """Bootstrap weights, one row a resample."""
    return _spread(_tallies(count, what, cell))


def _spread(tallies: UInt8[np.ndarray, "draw count"]) -> Float[np.ndarray, "draw count"]:
    """Weights from how often each is picked, each row summing to one, spread by sqrt(n / (n - 1))."""
    count = tallies.shape[1]
    if count == 1:
        return np.ones(tallies.shape, dtype=np.float32)
    spread = (count / (count - 1)) ** 0.5
    weights: np.ndarray = ((1 + spread * (tallies.astype(np.float64) - 1)) / count).astype(np.float32)
    return weights
