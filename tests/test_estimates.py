"""Estimates agree with independent statistics, cover the truth as often as they promise, and exist where nothing varies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from shiftscope import estimates
from shiftscope.estimates import (
    bootstrap,
    combine_draws,
    confidence_interval,
    interaction,
    mean,
    mean_over_seeds,
    percentile_interval,
    proportion,
    proportion_over_seeds,
    variance_component,
)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@given(right=st.integers(0, 60), wrong=st.integers(0, 60))
@settings(deadline=None)
def test_proportion_has_wilson_interval_of_scipy(right: int, wrong: int) -> None:
    assume(right + wrong > 0)
    found = proportion(torch.tensor([True] * right + [False] * wrong))
    expected = stats.binomtest(right, right + wrong).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.value <= found.high


def test_mean_has_bootstrap_interval_of_scipy() -> None:
    values = uniform(300) ** 3
    found = mean(values, bounds=(0.0, 1.0))
    expected = stats.bootstrap((values.numpy(),), np.mean, method="percentile", rng=0).confidence_interval
    assert found.value == pytest.approx(values.double().mean().item())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.02)


def test_mean_same_values_gives_same_interval() -> None:
    values = uniform(50, seed=1)
    assert mean(values, bounds=(0.0, 1.0)) == mean(values, bounds=(0.0, 1.0))


@pytest.mark.parametrize(("share", "count"), [(0.1, 20), (0.1, 32), (0.1, 64), (0.03, 64), (0.03, 256)])
def test_interval_of_a_mean_covers_where_few_values_are_off_the_bound(share: float, count: int) -> None:
    """As of a stable model: shifts change few images, and each of them at any share of them. Resampling alone covers 0.90."""
    draws = np.random.default_rng(0)
    drawn = [torch.from_numpy((draws.random(count) < share) * draws.random(count)) for _ in range(300)]
    found = [mean(each, bounds=(0.0, 1.0)) for each in drawn]
    assert sum(each.low <= share / 2 <= each.high for each in found) >= 0.95 * len(found)


def test_interval_does_not_jump_when_one_value_leaves_the_bound() -> None:
    values = torch.zeros(64)
    nothing = mean(values, bounds=(0.0, 1.0))
    values[0] = 1 / 289
    little = mean(values, bounds=(0.0, 1.0))
    assert nothing.high <= little.high < nothing.high + 0.001
    assert mean(1 - values, bounds=(0.0, 1.0)).low == pytest.approx(1 - little.high)


def test_mean_of_one_image_has_bounds_as_interval() -> None:
    found = mean(torch.tensor([0.3]), bounds=(-1.0, 1.0))
    assert (found.low, found.high) == (-1, 1)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_mean_of_equal_images_allows_for_unseen_ones(value: float) -> None:
    found = mean(torch.full((20,), value), bounds=(0.0, 1.0))
    unseen = stats.binomtest(0, 20).proportion_ci(method="wilson").high
    assert (found.value, found.low, found.high) == pytest.approx((value, value * (1 - unseen), value + (1 - value) * unseen))


def test_mean_of_equal_images_without_upper_bound_is_open_below_only() -> None:
    found = mean(torch.full((20,), 2.0), bounds=(0.0, float("inf")))
    assert found.low < 2 == found.high


@pytest.mark.parametrize("count", [2, 3, 10, 29])
def test_mean_of_few_images_has_students_interval(count: int) -> None:
    values = uniform(count, seed=count).double()
    found = mean(values, bounds=(-9.0, 9.0))
    expected = stats.ttest_1samp(values.numpy(), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((max(expected.low, -9), min(expected.high, 9)), rel=1e-6)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
def test_interval_of_few_images_and_networks_covers_truth(seeds: int, count: int) -> None:
    """Images and noise vary, and networks a little; the interval covers the truth at least as often as it says."""
    generator, covered = torch.Generator().manual_seed(seeds * 100 + count), 0
    for _ in range(300):
        networks = 0.2 * torch.randn(seeds, 1, generator=generator) if seeds > 1 else torch.zeros(1, 1)
        images, noise = (torch.randn(size, count, generator=generator) for size in (1, seeds))
        found = mean_over_seeds(networks + images + 0.3 * noise, bounds=(-99.0, 99.0))
        covered += found.low <= 0 <= found.high
    assert 0.92 <= covered / 300 <= 1


def test_interaction_is_counted_once() -> None:
    """Noise alone, of standard deviation 1, has a variance of 1 over the number of values."""
    generator = torch.Generator().manual_seed(0)
    noise = [interaction(torch.randn(3, 40, generator=generator)) for _ in range(200)]
    assert np.mean(noise) == pytest.approx(1 / 120, rel=0.05)


def test_mean_over_one_seed_is_mean_over_images() -> None:
    values = uniform(80, seed=2)
    assert mean_over_seeds(values[None], bounds=(0.0, 1.0)) == mean(values, bounds=(0.0, 1.0))


def test_mean_over_eight_seeds_covers_truth() -> None:
    """Networks and images vary; the interval should cover the truth in 85 to 99 % of repetitions."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        networks = 0.1 * torch.randn(8, 1, generator=generator)
        images = 0.2 * torch.randn(1, 60, generator=generator)
        noise = 0.1 * torch.randn(8, 60, generator=generator)
        found = mean_over_seeds(0.5 + networks + images + noise, bounds=(-9.0, 9.0))
        covered += found.low <= 0.5 <= found.high
    assert 170 <= covered <= 198


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_interval_of_few_networks_covers_truth(seeds: int, scale: float) -> None:
    """A mean, and differences of two of which one varies as much as the other or ten times as much. Images do not vary here."""
    generator, covered = torch.Generator().manual_seed(seeds), 0
    for _ in range(400):
        one, other = torch.randn(seeds, 1, generator=generator), scale * torch.randn(seeds, 1, generator=generator)
        draws = bootstrap(one.expand(-1, 2), group=1) - bootstrap(other.expand(-1, 2), group=2)
        components = [variance_component(one), variance_component(other, -1.0)]
        low, high = confidence_interval(float(one.mean() - other.mean()), draws, components)
        covered += low <= 0 <= high
    assert 0.91 <= covered / 400 <= 0.995


@pytest.mark.parametrize(("count", "component"), [(1, (0.0, 1)), (3, (0.0, 3))])
def test_interval_of_one_or_equal_networks_is_not_widened(count: int, component: tuple[float, int]) -> None:
    values = uniform(1, 50, seed=1).expand(count, -1)
    draws = bootstrap(values)
    assert variance_component(values) == pytest.approx(component)
    interval = confidence_interval(float(values.mean()), draws, [variance_component(values)])
    assert interval == pytest.approx(percentile_interval(draws), rel=1e-4)


def test_interval_of_three_networks_is_students() -> None:
    """Networks differ and images do not."""
    means = torch.tensor([0.2, 0.5, 0.6])
    found = mean_over_seeds(means[:, None].expand(-1, 40), bounds=(-9.0, 9.0))
    reach = stats.t.ppf(0.975, 2) * float(means.std()) / 3**0.5
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach), abs=0.08 * reach)


def test_differing_networks_widen_interval() -> None:
    images = uniform(1, 200, seed=3)
    alike, different = images.expand(3, -1), images + torch.tensor([[-0.3], [0.0], [0.3]])
    narrow, wide = mean_over_seeds(alike, bounds=(-9.0, 9.0)), mean_over_seeds(different, bounds=(-9.0, 9.0))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert (wide.seeds, wide.count) == (3, 200)


def test_proportion_over_seeds_all_equal_is_wilson() -> None:
    found = proportion_over_seeds(torch.ones(4, 30, dtype=torch.bool))
    expected = stats.binomtest(30, 30).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((1, expected.low, 1))
    assert found.seeds == 4


def test_proportion_over_seeds_stays_in_bounds() -> None:
    mixed = proportion_over_seeds(uniform(3, 100) < 0.9)
    assert 0 <= mixed.low < mixed.value < mixed.high <= 1


def test_bootstrap_in_chunks_equals_all_resamples_at_once() -> None:
    values = uniform(1, 37)
    picks = np.random.default_rng([37, len("images")]).integers(37, size=(estimates.RESAMPLES, 37))
    tallies = np.stack([np.bincount(row, minlength=37) for row in picks])
    weights = (1 + (37 / 36) ** 0.5 * (tallies - 1)) / 37
    np.testing.assert_allclose(bootstrap(values), (values.double().numpy() * weights).sum(axis=1), rtol=1e-6)


def test_draws_of_each_network_combine_to_draws_of_all() -> None:
    values = uniform(3, 40)
    apart = torch.stack([torch.from_numpy(bootstrap(each[None])) for each in values])
    assert combine_draws(apart).tolist() == pytest.approx(bootstrap(values).tolist(), rel=1e-6)


def test_bootstrap_of_nearly_equal_values_is_centred() -> None:
    """Weights of single precision times values near 1 would shift the draws by a third of the interval."""
    deviations = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).double() * 5e-6
    near, apart = bootstrap((1 - deviations)[None]), bootstrap(-deviations[None])
    assert np.abs((near - 1) - apart).max() < 1e-3 * apart.std()
