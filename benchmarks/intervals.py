"""Simulate how often 95 % intervals cover the truth: few and many images, one to five networks, several kinds of values.

`python benchmarks/intervals.py` prints a table for each kind of value: in what share of repetitions the interval holds the true
mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shiftscope.estimates import Estimate, mean_over_seeds, proportion_over_seeds

IMAGES, NETWORKS = (2, 3, 5, 10, 30, 100), (1, 2, 3, 5)
#: Numbers of images in which few change.
MORE_IMAGES = (10, 20, 32, 64, 128, 256)
#: Standard deviations of networks, images and the rest.
LAYOUTS = {
    "images vary": (0.0, 1.0, 0.0),
    "images and the rest vary": (0.0, 1.0, 1.0),
    "networks vary a little": (0.2, 1.0, 0.3),
    "all vary alike": (1.0, 1.0, 1.0),
    "networks vary most": (3.0, 1.0, 1.0),
}


def normal(layout: tuple[float, float, float]) -> Callable[[np.random.Generator, int, int], Tensor]:
    """Return a function that draws normal values of mean 0, [network, image]. A single network does not vary."""

    def draw(generator: np.random.Generator, networks: int, images: int) -> Tensor:
        sizes = ((networks, 1), (1, images), (networks, images))
        own = (layout[0] if networks > 1 else 0.0, *layout[1:])
        values = sum(scale * generator.standard_normal(size) for scale, size in zip(own, sizes, strict=True))
        return torch.from_numpy(np.broadcast_to(values, (networks, images)).copy())

    return draw


def beta(generator: np.random.Generator, networks: int, images: int) -> Tensor:
    """Draw skewed values in [0, 1] of mean 0.75, as cosines are, less their mean; alike for all networks."""
    return torch.from_numpy(np.broadcast_to(generator.beta(3, 1, (1, images)) - 0.75, (networks, images)).copy())


def covered(draw: Callable[[np.random.Generator, int, int], Tensor], networks: int, images: int, repetitions: int) -> float:
    """Return the share of intervals of a mean that hold 0."""
    generator = np.random.default_rng([networks, images])
    return float(
        np.mean(
            [_holds(mean_over_seeds(draw(generator, networks, images), bounds=(-99.0, 99.0)), 0.0) for _ in range(repetitions)]
        )
    )


def covered_share(share: float, images: int, repetitions: int) -> float:
    """Return the share of Wilson's intervals of one network that hold the true share."""
    generator = np.random.default_rng([images])
    return float(
        np.mean(
            [
                _holds(proportion_over_seeds(torch.from_numpy(generator.random((1, images)) < share)), share)
                for _ in range(repetitions)
            ]
        )
    )


def covered_change(share: float, images: int, repetitions: int) -> float:
    """Return the share of intervals that hold the mean change, where a share of images changes, each at any share of shifts."""
    generator = np.random.default_rng([images])
    draws = ((generator.random((1, images)) < share) * generator.random((1, images)) for _ in range(repetitions))
    return float(np.mean([_holds(mean_over_seeds(torch.from_numpy(each), bounds=(0.0, 1.0)), share / 2) for each in draws]))


def covered_cosine(failing: float, images: int, repetitions: int) -> float:
    """Return the share of intervals that hold a stable model's mean similarity: 0.99 to 1, but -0.2 to 0.6 where it fails."""
    generator = np.random.default_rng([images, 1])
    truth = failing * 0.2 + (1 - failing) * 0.995

    def draw() -> Tensor:
        fails = generator.random((1, images)) < failing
        return torch.from_numpy(
            np.where(fails, generator.uniform(-0.2, 0.6, (1, images)), generator.uniform(0.99, 1, (1, images)))
        )

    return float(np.mean([_holds(mean_over_seeds(draw(), bounds=(-1.0, 1.0)), truth) for _ in range(repetitions)]))


def _holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    kinds: dict[str, Callable[[np.random.Generator, int, int], Tensor]] = {name: normal(each) for name, each in LAYOUTS.items()}
    for name, draw in {**kinds, "skewed, images vary": beta}.items():
        print(f"\n{name}\nnetworks" + "".join(f"{f'{images} images':>12}" for images in IMAGES), flush=True)
        for networks in NETWORKS:
            print(
                f"{networks:8}" + "".join(f"{covered(draw, networks, images, repetitions):12.3f}" for images in IMAGES),
                flush=True,
            )
    print("\nshares of images, one network\n   share" + "".join(f"{f'{images} images':>12}" for images in IMAGES))
    for share in (0.5, 0.3, 0.1, 0.05):
        print(f"{share:8}" + "".join(f"{covered_share(share, images, repetitions):12.3f}" for images in IMAGES), flush=True)
    print("\nchange of a few images, one network\n changed" + "".join(f"{f'{images} images':>12}" for images in MORE_IMAGES))
    for share in (0.3, 0.1, 0.03):
        print(f"{share:8}" + "".join(f"{covered_change(share, images, repetitions):12.3f}" for images in MORE_IMAGES), flush=True)
    print(
        "\nsimilarity of a stable model, one network\n failing" + "".join(f"{f'{images} images':>12}" for images in MORE_IMAGES)
    )
    for share in (0.15, 0.05):
        print(f"{share:8}" + "".join(f"{covered_cosine(share, images, repetitions):12.3f}" for images in MORE_IMAGES), flush=True)


if __name__ == "__main__":
    main()
