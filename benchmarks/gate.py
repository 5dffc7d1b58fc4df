"""Simulate how often the gate is wrong: alarms on models that are equal, and true drops by 0.1 that it does not catch.

`python benchmarks/gate.py` draws audits of two models on the same images. Each image has a probability to change its answer under
a shift, a beta variable; views are drawn from it. The two models' probabilities are the same (`alike`), go together half way, or
have nothing to do with each other. So do the views: `check` shows both models the same images under the same shifts, and of
models that are alike those that change the answer of one mostly change that of the other. `--own-views` draws them apart, as if
each model had shifts of its own. The second model is equal to the first, or its answers change for 0.1 more of the shifts.

It prints, for each protocol or set of protocols: the share of audits at which `check` fails. Then the same of trained networks,
on images drawn from a test set; and for `--fail-if`, of models exactly at the bound and 0.1 beyond it.

`--skewed` prints instead how often `check` fails on a model of the same mean that is slightly worse on most images and much
better on a few: its permutation test takes differences to be as likely in both directions.

`--limits` prints instead what no test can exceed: the power, at one-sided 2.5 %, of the best linear combination of what an audit
knows of each image, chosen by who knows the truth, and how many images that needs for 90 %. Of a single measure that is the bound
on the local power of any unbiased test of paired values (van der Vaart, Asymptotic Statistics, 1998, chapter 25).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr
from torch import Tensor

from shiftscope.audits import Audit, Cost, Row
from shiftscope.audits.comparison import compare_audits
from shiftscope.audits.gate import judge_comparison, read_condition
from shiftscope.audits.scores import estimate
from shiftscope.estimates import Estimate
from shiftscope.studies.folder import read_folder

Values = NDArray[np.float64]
#: How far an image's probability in one model says its probability in the other, on a scale from 0 to 1.
RELATED = {"alike": 1.0, "half": 0.5, "unrelated": 0.0}
#: How much images differ: the smaller, the more images always or never change.
SPREAD = 1.0
DROP = 0.1
#: Images from which limits are computed; the quantiles of 2.5 % and 90 %.
MANY, LEVEL, WANTED = 200_000, 1.959964, 1.281552
#: Numbers of images, and the deviation of what differs by chance, of models with skewed differences.
SIZES, NOISE = (32, 64, 128, 256, 512), 0.002
RESULTS = Path(__file__).parent.parent / "results"
#: The measures of a study's runs that trained networks are compared by.
MEASURED = ("top1_change", "mcs")


@dataclass(frozen=True)
class Population:
    """Two models.

    Attributes:
        rates: share of shifts that change the answer, of each model.
        related: how far an image's probability in one model says that in the other.
    """

    rates: tuple[float, float]
    related: float

    def draw(self, generator: np.random.Generator, images: int) -> list[Values]:
        """Return each model's probabilities, [image]."""
        shared = generator.standard_normal(images)
        found = []
        for rate in self.rates:
            own = generator.standard_normal(images)
            latent = ndtr(self.related**0.5 * shared + (1 - self.related) ** 0.5 * own)
            found.append(betaincinv(SPREAD * rate, SPREAD * (1 - rate), latent))
        return found


class Views:
    """Random numbers behind the views of two models, which go together as far as their probabilities do.

    Args:
        generator: of random numbers.
        related: how far one model's views say the other's, from 0 to 1.
    """

    def __init__(self, generator: np.random.Generator, related: float) -> None:
        self.generator, self.related = generator, related
        self.shared: list[Values] = []
        self.next = 0

    def of_next_model(self) -> Views:
        """Start with the same views again, for the other model."""
        self.next = 0
        return self

    def uniform(self, images: int, views: int) -> Values:
        """Return numbers in [0, 1], [image, view]; the n-th call for each model goes together with the n-th for the other."""
        if self.next == len(self.shared):
            self.shared.append(self.generator.standard_normal((images, views)))
        shared, self.next = self.shared[self.next], self.next + 1
        own = self.generator.standard_normal((images, views))
        found: Values = ndtr(self.related**0.5 * shared + (1 - self.related) ** 0.5 * own)
        return found


def flips(views: int) -> Callable[[Views, Values], Values]:
    """Return a function that draws the share of views whose answer changes."""

    def draw(drawn: Views, rates: Values) -> Values:
        changed: Values = (drawn.uniform(len(rates), views) < rates[:, None]).mean(axis=1)
        return changed

    return draw


def agreement(drawn: Views, rates: Values) -> Values:
    """Draw whether two views agree: both keep the answer, or both change it to the same one, every other time."""
    both = (drawn.uniform(len(rates), 2) < rates[:, None]).sum(axis=1)
    same: Values = ((both == 0) | ((both == 2) & (drawn.uniform(len(rates), 1)[:, 0] < 0.5))).astype(float)
    return same


def similarity(drawn: Views, rates: Values) -> Values:
    """Draw cosines: lower for images whose answers change more, with noise."""
    cosines: Values = np.clip(1 - 0.5 * rates + 0.05 * np.log1p(-drawn.uniform(len(rates), 1)[:, 0]), -1, 1)
    return cosines


def accuracy(drawn: Views, rates: Values) -> Values:
    """Draw whether unshifted images are classified correctly: more often where answers change less."""
    correct: Values = (drawn.uniform(len(rates), 1)[:, 0] < 0.9 - 0.5 * rates).astype(float)
    return correct


#: (protocol, measure) -> the function that draws its values, as protocols have them by default.
DRAWN: dict[tuple[str, str], Callable[[Views, Values], Values]] = {
    ("unshifted", "accuracy"): accuracy,
    ("mouton2020", "mcs"): similarity,
    ("mouton2020", "top1_change"): flips(1),
    ("zhang2019", "all_agree"): agreement,
    ("chaman2021-circular", "all_agree"): agreement,
    ("azulay2018", "neighbour_change"): flips(8),
    ("every-shift", "top1_change"): flips(81),
}
SETS: dict[str, tuple[tuple[str, str], ...]] = {
    "audit by default": tuple(DRAWN)[:6],
    "every-shift": (("every-shift", "top1_change"),),
    "top-1 change, 8 views": (("azulay2018", "neighbour_change"),),
    "top-1 change, 1 view": (("mouton2020", "top1_change"),),
}


def audited(drawn: Views, rates: Values, rows: Sequence[tuple[str, str]]) -> Audit:
    """Return an audit of a model with these probabilities."""
    values = {key: torch.from_numpy(DRAWN[key](drawn, rates)).float() for key in rows}
    return with_values(values)


def with_values(values: dict[tuple[str, str], Tensor]) -> Audit:
    """Return an audit with these values per image; `check` reads them and not the audit's own intervals."""
    count = len(next(iter(values.values())))
    middle = {key: float(each.mean()) for key, each in values.items()}
    rows = (Row(*key, "zero", 8, 1, Estimate(each, each, each, count), None) for key, each in middle.items())
    return Audit(tuple(rows), (), Cost(images=count), values=values)


def failures(
    population: Population, rows: Sequence[tuple[str, str]], images: int, repetitions: int, *, own_views: bool = False
) -> float:
    """Return the share of pairs of audits of which `check` says that the second model is worse.

    Args:
        population: the models.
        rows: the measures.
        images: in each audit.
        repetitions: pairs of audits.
        own_views: whether each model has shifts of its own.
    """
    generator = np.random.default_rng([images, len(rows)])
    failed = 0
    for _ in range(repetitions):
        views = Views(generator, 0.0 if own_views else population.related)
        before, after = (audited(views.of_next_model(), rates, rows) for rates in population.draw(generator, images))
        failed += judge_comparison(compare_audits(before, after)).outcome == "fails"
    return failed / repetitions


def limits(population: Population, rows: Sequence[tuple[str, str]], images: int) -> tuple[float, int]:
    """Return the power of the best test of these measures, and the images with which that is 90 %.

    Args:
        population: the models.
        rows: the measures.
        images: in each audit.
    """
    generator = np.random.default_rng(0)
    views = Views(generator, population.related)
    models = [
        np.stack([DRAWN[key](drawn, rates) for key in rows])
        for rates in population.draw(generator, MANY)
        for drawn in (views.of_next_model(),)
    ]
    differences = models[1] - models[0]
    means, covariance = differences.mean(axis=1), np.atleast_2d(np.cov(differences))
    information = float(means @ np.linalg.solve(covariance, means))
    return float(ndtr((images * information) ** 0.5 - LEVEL)), int(np.ceil((LEVEL + WANTED) ** 2 / information))


def beyond(rate: float, bound: float, key: tuple[str, str], images: int, repetitions: int) -> float:
    """Return the share of audits that a condition fails."""
    generator = np.random.default_rng([images, 7])
    condition = read_condition(f"{key[1]} of {key[0]} > {bound}")
    population = Population((rate, rate), 0.0)
    failed = 0
    for _ in range(repetitions):
        values = torch.from_numpy(DRAWN[key](Views(generator, 0.0), population.draw(generator, images)[0])).float()
        failed += condition.judge(estimate(key[1], values)) == "fails"
    return failed / repetitions


def trained(factors: tuple[int, int], images: int, repetitions: int) -> tuple[float, float, float]:
    """Return how often `check` fails on trained networks of results/mnist-adam, on images drawn from the 10,000 of its test set.

    Args:
        factors: subsampling factors of the two networks; with equal ones, which network gave which of an image's values is drawn,
            so that the two are equal.
        images: in each draw.
        repetitions: draws.

    Returns:
        by how much more often the second network's answers change, the correlation of the two over images, and the share.
    """
    groups = {cell.settings["network.factor"]: cell.finished for cell in read_folder(RESULTS / "mnist-adam").cells}
    one, two = groups[factors[0]][0], groups[factors[1]][-1]
    values = torch.stack([torch.stack([each.values[name].float() for name in MEASURED]) for each in (one, two)])
    generator = torch.Generator().manual_seed(0)
    failed = 0
    for _ in range(repetitions):
        drawn = values[:, :, torch.randperm(values.shape[2], generator=generator)[:images]]
        if factors[0] == factors[1]:
            swapped = torch.rand(images, generator=generator) < 0.5
            drawn = torch.where(swapped, drawn.flip(0), drawn)
        audits = (with_values({("study", name): each for name, each in zip(MEASURED, table, strict=True)}) for table in drawn)
        failed += judge_comparison(compare_audits(*audits)).outcome == "fails"
    changes = values[:, 0]
    worse = 0.0 if factors[0] == factors[1] else float(changes[1].mean() - changes[0].mean())
    return worse, float(torch.corrcoef(changes)[0, 1]), failed / repetitions


def skewed(images: int, share: float, gain: float, repetitions: int) -> float:
    """Return how often `check` fails on a model of the same mean cosine that is better on few images and worse on the rest.

    Args:
        images: in each audit.
        share: of images on which it is better.
        gain: by how much it is better there.
        repetitions: pairs of audits.
    """
    generator = np.random.default_rng([images, int(1000 * share), int(1000 * gain)])
    failed = 0
    for _ in range(repetitions):
        before = generator.normal(0.6, 0.05, images)
        better = generator.random(images) < share
        after = before + np.where(better, gain, -gain * share / (1 - share)) + generator.normal(0, NOISE, images)
        pair = (with_values({("mouton2020", "mcs"): torch.from_numpy(each).float()}) for each in (before, after))
        failed += judge_comparison(compare_audits(*pair)).outcome == "fails"
    return failed / repetitions


def print_skewed(repetitions: int) -> None:
    """Print how often `check` fails although the means are the same."""
    print(f"Equal means, better by 0.3 on a share of images and slightly worse on the others; {repetitions} repetitions\n")
    print(f"{'better on':24}" + "".join(f"{f'{images} images':>14}" for images in SIZES))
    for share in (0.02, 0.05, 0.1, 0.2, 0.5):
        row = "".join(f"{skewed(images, share, 0.3, repetitions):14.3f}" for images in SIZES)
        print(f"{f'{share:.0%} of the images':24}{row}", flush=True)


def print_limits(images: int) -> None:
    """Print what no test can exceed."""
    print(f"What no test of the same values can exceed, at one-sided 2.5 %, of drops by 0.1 with {images} images\n")
    print(f"{'check':24}{'models':>12}{'change':>8}{'limit':>8}{'images for 90 %':>17}")
    for name, rows in SETS.items():
        for related, size in RELATED.items():
            for rate in (0.02, 0.1, 0.3):
                limit, needed = limits(Population((rate, rate + DROP), size), rows, images)
                print(f"{name:24}{related:>12}{rate:8.2f}{limit:8.3f}{needed:17}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--own-views", action="store_true", help="shifts of its own for each model")
    parser.add_argument("--only", choices=sorted(SETS), help="one set of measures, and nothing else")
    parser.add_argument("--limits", action="store_true", help="what no test can exceed, and nothing else")
    parser.add_argument("--skewed", action="store_true", help="models of equal mean with skewed differences, and nothing else")
    settings = parser.parse_args()
    images, repetitions = settings.images, settings.repetitions
    if settings.limits:
        print_limits(images)
        return
    if settings.skewed:
        print_skewed(repetitions)
        return
    print(f"{images} images, {repetitions} repetitions; share of audits that fail\n")
    print(f"{'check':24}{'models':>12}{'change':>8}{'equal':>8}{'0.1 worse':>11}")
    for name, rows in SETS.items():
        if settings.only not in (None, name):
            continue
        for related, size in RELATED.items():
            for rate in (0.02, 0.1, 0.3):
                equal, worse = (
                    failures(Population((rate, rate + drop), size), rows, images, repetitions, own_views=settings.own_views)
                    for drop in (0.0, DROP)
                )
                print(f"{name:24}{related:>12}{rate:8.2f}{equal:8.3f}{worse:11.3f}", flush=True)
    if not settings.only:
        print_trained(images, repetitions)
        print_conditions(images, repetitions)


def print_trained(images: int, repetitions: int) -> None:
    """Print how often `check` fails on trained networks."""
    print(f"\n{'check, factors (MNIST)':24}{'correlation':>12}{'worse by':>10}{'fails':>8}")
    for factors in ((1, 1), (2, 2), (4, 4), (8, 8), (2, 1), (4, 1), (8, 1), (8, 2), (4, 2)):
        worse, correlation, share = trained(factors, images, repetitions)
        print(f"{f'{factors[0]} -> {factors[1]}':24}{correlation:12.2f}{worse:10.3f}{share:8.3f}", flush=True)


def print_conditions(images: int, repetitions: int) -> None:
    """Print how often `--fail-if` fails on models at its bound and beyond it."""
    print(f"\n{'--fail-if':24}{'bound':>20}{'at it':>8}{'0.1 beyond':>11}")
    for name, key in (("top-1 change, 1 view", ("mouton2020", "top1_change")), ("every-shift", ("every-shift", "top1_change"))):
        for bound in (0.02, 0.1, 0.3):
            at, over = (beyond(bound + more, bound, key, images, repetitions) for more in (0.0, DROP))
            print(f"{name:24}{bound:20.2f}{at:8.3f}{over:11.3f}", flush=True)


if __name__ == "__main__":
    main()
