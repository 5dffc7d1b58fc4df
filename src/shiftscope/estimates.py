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
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from shiftscope.engine.outputs import Outputs

__all__ = [
    "MEASURES",
    "Estimate",
    "Measure",
    "Spread",
    "Z",
    "around",
    "centred",
    "correct",
    "cosine",
    "cosines",
    "crossed",
    "interval",
    "mean",
    "mean_over_seeds",
    "per_shift_cosines",
    "proportion",
    "proportion_over_seeds",
    "resampled",
    "spread",
    "top1_changes",
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


@dataclass(frozen=True)
class Measure:
    """One number per image, how it is named, and how its values become an estimate.

    Attributes:
        name: short, as in CSV, JSON and specifications (``mcs``).
        label: a few words, as in column headings and figures.
        sentence: one sentence that defines it.
        bounds: the least and the greatest value of an image; infinite where it has no bound.
        better: whether a network that cares less where the object is has ``more`` or ``less`` of it; None where neither.
        share: whether each image's value is yes or no, so that the estimate is a share of images.
    """

    name: str
    label: str
    sentence: str
    bounds: tuple[float, float] = (0.0, 1.0)
    better: Literal["more", "less"] | None = "more"
    share: bool = False

    def estimate(self, values: Float[Tensor, " image"] | Bool[Tensor, " image"]) -> Estimate:
        """Return the estimate from one network's images."""
        return proportion(values.bool()) if self.share else mean(values.float(), bounds=self.bounds)

    def estimate_over_seeds(self, values: Float[Tensor, "seed image"] | Bool[Tensor, "seed image"]) -> Estimate:
        """Return the estimate from the same images of several trained networks."""
        if self.share:
            return proportion_over_seeds(values.bool())
        return mean_over_seeds(values.float(), bounds=self.bounds)


#: Every measure, by its short name. Tables, pages, figures, claims, JSON and the command line read from here.
MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("mcs", "mean cosine similarity", "Cosine of the outputs before and after a shift.", (-1.0, 1.0)),
        Measure(
            "mcs_centred",
            "centred cosine similarity",
            "Cosine of the outputs before and after a shift, after subtracting their mean over classes.",
            (-1.0, 1.0),
        ),
        Measure("mcs_all_shifts", "cosine similarity, every shift", "Mean cosine similarity over every shift.", (-1.0, 1.0)),
        Measure("top1_change", "top-1 change", "Share of shifts that change the top class.", better="less"),
        Measure(
            "probability_change",
            "change of probability",
            "Mean absolute change of the top class's probability under a shift.",
            better="less",
        ),
        Measure("pair_consistency", "pair consistency", "Share of pairs of shifts that agree on the top class."),
        Measure("pairs_agree", "pairs that agree", "Share of pairs of views of an image that agree on the top class."),
        Measure(
            "all_agree", "same class at every shift", "Share of images with one top class under all their shifts.", share=True
        ),
        Measure("worst_case", "correct at every shift", "Share of images classified correctly at every shift.", share=True),
        Measure(
            "test_accuracy", "test accuracy", "Share of unshifted test images classified correctly.", better=None, share=True
        ),
        Measure("train_accuracy", "train accuracy", "Share of training images classified correctly.", better=None, share=True),
        Measure("accuracy", "accuracy under shifts", "Share of shifted images classified correctly.", better=None),
        Measure("true_probability", "probability of the label", "Mean probability of the true class under shifts.", better=None),
        Measure(
            "neighbour_change",
            "top-1 change per pixel",
            "Share of neighbouring one-pixel shifts between which the top class changes.",
            better="less",
        ),
        Measure(
            "neighbour_probability_change",
            "change of probability per pixel",
            "Mean absolute change of the top class's probability between neighbouring one-pixel shifts.",
            better="less",
        ),
        Measure(
            "consistency_whole", "consistency, whole pixels", "Share of images whose top class survives the shift.", share=True
        ),
        Measure(
            "consistency_half", "consistency, half pixels", "Share of images whose top class survives the shift.", share=True
        ),
        Measure(
            "probability_change_whole",
            "change of probability, whole pixels",
            "Mean absolute change of the top class's probability under a shift by whole pixels.",
            better="less",
        ),
        Measure(
            "probability_change_half",
            "change of probability, half pixels",
            "Mean absolute change of the top class's probability under a shift by half pixels.",
            better="less",
        ),
        *(
            Measure(
                f"{power}_derivative_{axis}",
                f"{power} derivative along {axis}",
                f"Mean over classes of the {power} derivative of the softmax along {axis}.",
                (0.0, inf),
                better="less",
            )
            for power in ("squared", "absolute")
            for axis in ("y", "x")
        ),
        Measure("mASSC", "mean pixel agreement", "Share of pixels that keep their class when the shift is undone."),
        Measure(
            "similarity",
            "similarity",
            "Largest cosine between a feature map and its shifted counterpart, over all displacements.",
            (-1.0, 1.0),
        ),
        Measure(
            "movement", "movement", "Displacement at which that cosine is largest, in the map's positions.", (0.0, inf), None
        ),
        Measure("movement_in_pixels", "movement, pixels", "The same displacement in pixels of the image.", (0.0, inf), None),
        Measure("in_place", "similarity in place", "Cosine between the two maps without displacement.", (-1.0, 1.0)),
        Measure("homogeneity", "local homogeneity", "Similarity of neighbouring positions, at the stride.", (-1.0, 1.0), None),
        Measure(
            "homogeneity_pooled",
            "local homogeneity after pooling",
            "Similarity of neighbouring positions after the pooling window, at the stride.",
            (-1.0, 1.0),
            None,
        ),
    )
}


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
