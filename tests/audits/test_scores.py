"""Estimates of scores, and the normalised variance."""

from __future__ import annotations

import pytest
import torch

from shiftscope.audits.scores import estimate, normalised_variance, spread_sums
from shiftscope.estimates import mean, proportion


@pytest.mark.parametrize("measure", ["all_agree", "top1_change"])
def test_estimate_of_zeros_and_ones_is_a_proportion(measure: str) -> None:
    values = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert estimate(measure, values) == proportion(values.bool())


def test_estimate_of_fractions_is_a_mean() -> None:
    values = torch.tensor([0.0, 0.25, 1.0, 1.0])
    assert estimate("top1_change", values) == mean(values, bounds=(0.0, 1.0))


def test_estimate_of_cosines_is_a_mean_even_of_zeros_and_ones() -> None:
    values = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert estimate("mcs", values) == mean(values, bounds=(-1.0, 1.0))


def test_normalised_variance_of_constant_units() -> None:
    """0 if only images change a unit, infinite if only shifts do, 1 if nothing does; the mean leaves out the infinite one."""
    values = torch.zeros(30, 3, 3)
    values[:, :, 0] = torch.arange(30.0)[:, None]
    values[:, :, 1] = torch.arange(3.0)
    found, units = normalised_variance(spread_sums(values, indices=torch.arange(30)))
    assert units.tolist() == [0, float("inf"), 1]
    assert found.value == 0.5


def test_rounding_of_constant_units_is_no_variance() -> None:
    """Outputs of the same network differ by some units of the last place, by where an image lies in its batch."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-3, 4, (30, 9, 2), generator=generator)
    values = 0.37 * (1 + steps * torch.finfo(torch.float32).eps)
    found, units = normalised_variance(spread_sums(values, indices=torch.arange(30)))
    assert (found.value, units.tolist()) == (1, [1, 1])


def test_normalised_variance_of_two_images_has_the_widest_interval() -> None:
    values = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))
    found, _ = normalised_variance(spread_sums(values, indices=torch.arange(2)))
    assert (found.low, found.high) == (0, float("inf"))


def test_jackknife_covers_the_true_value_as_often_as_it_claims() -> None:
    generator, covered = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        image, step = torch.randn(60, 1, 4, generator=generator), torch.randn(60, 9, 4, generator=generator)
        found, _ = normalised_variance(spread_sums(image + 0.5 * step, indices=torch.arange(60)))
        # The spread over nine shifts with denominator nine is 0.5 c4(9) sqrt(8/9), that over images sqrt(1.25).
        covered += found.low <= 0.5 * 0.9693 * (8 / 9) ** 0.5 / 1.25**0.5 <= found.high
    assert 170 <= covered <= 200
