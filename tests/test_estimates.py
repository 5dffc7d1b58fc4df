"""Estimates agree with independent statistics, cover what they promise, and are defined where nothing varies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shiftscope import estimates as measures
from shiftscope.engine.outputs import Outputs
from shiftscope.estimates import around, crossed, mean, mean_over_seeds, proportion, proportion_over_seeds, resampled, spread
from shiftscope.surveys import centred, correct, cosines, top1_changes


def outputs(reference: list[list[float]], values: list[list[list[float]]]) -> Outputs:
    shifted = torch.tensor(values)
    return Outputs(shifted, torch.tensor(reference), torch.zeros(*shifted.shape[:2], 2, dtype=torch.long))


def test_cosines_are_averaged_over_an_images_own_shifts() -> None:
    found = cosines(outputs([[1.0, 0.0], [3.0, 4.0]], [[[1.0, 0.0], [0.0, 1.0]], [[3.0, 4.0], [-3.0, -4.0]]]))
    assert found.tolist() == pytest.approx([0.5, 0.0])


@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-12, 1.0, 1e12]))
@settings(deadline=None, max_examples=30)
def test_cosines_equal_scipys_at_every_scale(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference, values = torch.randn(4, 5, generator=generator) * scale, torch.randn(4, 3, 5, generator=generator) * scale
    from scipy.spatial.distance import cosine

    expected = [np.mean([1 - cosine(reference[i].double(), values[i, j].double()) for j in range(3)]) for i in range(4)]
    found = cosines(Outputs(values, reference, torch.zeros(4, 3, 2, dtype=torch.long)))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_zero_outputs_are_alike_and_unlike_all_others() -> None:
    found = cosines(outputs([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], [[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]]))
    assert found.tolist() == [1.0, 0.0, 0.0]


def test_top1_changes_count_shifts_and_break_ties_the_same_way_twice() -> None:
    found = top1_changes(outputs([[1.0, 2.0], [5.0, 5.0]], [[[0.0, 1.0], [1.0, 0.0]], [[5.0, 5.0], [2.0, 2.0]]]))
    assert found.tolist() == [0.5, 0.0]
    assert correct(torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([1, 1])).tolist() == [True, False]


@given(right=st.integers(0, 60), wrong=st.integers(0, 60))
@settings(deadline=None)
def test_proportions_have_wilsons_interval(right: int, wrong: int) -> None:
    if right + wrong == 0:
        return
    found = proportion(torch.tensor([True] * right + [False] * wrong))
    expected = stats.binomtest(right, right + wrong).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.value <= found.high


def test_the_bootstrap_of_a_mean_agrees_with_scipys() -> None:
    values = torch.rand(300, generator=torch.Generator().manual_seed(0)) ** 3
    found = mean(values, bounds=(0.0, 1.0))
    expected = stats.bootstrap((values.numpy(),), np.mean, method="percentile", rng=0).confidence_interval
    assert found.value == pytest.approx(values.double().mean().item())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.02)


def test_the_same_values_always_give_the_same_interval() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(1))
    assert mean(values, bounds=(0.0, 1.0)) == mean(values, bounds=(0.0, 1.0))


def test_one_image_says_nothing_of_the_spread_and_equal_images_have_none() -> None:
    assert (mean(torch.tensor([0.3]), bounds=(-1.0, 1.0)).low, mean(torch.tensor([0.3]), bounds=(-1.0, 1.0)).high) == (-1, 1)
    equal = mean(torch.full((20,), 0.25), bounds=(-1.0, 1.0))
    assert (equal.value, equal.low, equal.high) == pytest.approx((0.25, 0.25, 0.25))


def test_one_seed_gives_the_interval_over_its_images() -> None:
    values = torch.rand(80, generator=torch.Generator().manual_seed(2))
    assert mean_over_seeds(values[None], bounds=(0.0, 1.0)) == mean(values, bounds=(0.0, 1.0))


def test_the_interval_over_seeds_covers_the_truth_about_as_often_as_it_can() -> None:
    """Networks and images vary; with 8 networks a percentile interval should hold the truth in 85 to 99 % of the draws."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(200):
        networks = 0.1 * torch.randn(8, 1, generator=generator)
        images = 0.2 * torch.randn(1, 60, generator=generator)
        noise = 0.1 * torch.randn(8, 60, generator=generator)
        found = mean_over_seeds(0.5 + networks + images + noise, bounds=(-9.0, 9.0))
        held += found.low <= 0.5 <= found.high
    assert 170 <= held <= 198


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_intervals_over_few_networks_cover_what_they_promise(seeds: int, scale: float) -> None:
    """A mean, and differences of two where one varies as much as the other or ten times as much. Images add nothing here."""
    generator, held = torch.Generator().manual_seed(seeds), 0
    for _ in range(400):
        one, other = torch.randn(seeds, 1, generator=generator), scale * torch.randn(seeds, 1, generator=generator)
        draws = resampled(one.expand(-1, 2), cell=1) - resampled(other.expand(-1, 2), cell=2)
        low, high = around(float(one.mean() - other.mean()), draws, [spread(one), spread(other, -1.0)])
        held += low <= 0 <= high
    assert 0.91 <= held / 400 <= 0.995


def test_one_network_or_equal_ones_are_not_widened() -> None:
    values = torch.rand(3, 50, generator=torch.Generator().manual_seed(1))
    one, equal = values[:1], values[:1].expand(3, -1)
    assert spread(one) == (0.0, 1)
    assert spread(equal) == pytest.approx((0.0, 3))
    for each in (one, equal):
        draws = resampled(each)
        assert around(float(each.mean()), draws, [spread(each)]) == pytest.approx(measures.interval(draws))


def test_an_interval_over_three_networks_is_students() -> None:
    """Of networks that differ and images that do not."""
    means = torch.tensor([0.2, 0.5, 0.6])
    found = mean_over_seeds(means[:, None].expand(-1, 40), bounds=(-9.0, 9.0))
    reach = stats.t.ppf(0.975, 2) * float(means.std()) / 3**0.5
    assert (found.low, found.high) == pytest.approx((found.value - reach, found.value + reach), abs=0.08 * reach)


def test_differing_networks_widen_the_interval() -> None:
    images = torch.rand(1, 200, generator=torch.Generator().manual_seed(3))
    alike, different = images.expand(3, -1), images + torch.tensor([[-0.3], [0.0], [0.3]])
    narrow, wide = mean_over_seeds(alike, bounds=(-9.0, 9.0)), mean_over_seeds(different, bounds=(-9.0, 9.0))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert (wide.seeds, wide.count) == (3, 200)


def test_proportions_over_seeds_fall_back_to_wilson_where_every_answer_is_equal() -> None:
    everything = proportion_over_seeds(torch.ones(4, 30, dtype=torch.bool))
    expected = stats.binomtest(30, 30).proportion_ci(method="wilson")
    assert (everything.value, everything.low, everything.high) == pytest.approx((1, expected.low, 1))
    assert everything.seeds == 4
    mixed = proportion_over_seeds(torch.rand(3, 100, generator=torch.Generator().manual_seed(0)) < 0.9)
    assert 0 <= mixed.low < mixed.value < mixed.high <= 1


def test_resampling_in_portions_gives_the_draws_of_all_at_once() -> None:
    """Weights are made a few resamples at a time, so that memory hardly grows with the images."""
    values = torch.rand(1, 37, generator=torch.Generator().manual_seed(0))
    picks = np.random.default_rng([37, len("images")]).integers(37, size=(measures.RESAMPLES, 37))
    tallies = np.stack([np.bincount(row, minlength=37) for row in picks])
    weights = ((1 + (37 / 36) ** 0.5 * (tallies - 1)) / 37).astype(np.float32)
    assert np.array_equal(measures.resampled(values), (values.double().numpy() * weights).sum(axis=1))


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_what_all_classes_share_does_not_enter_a_centred_cosine(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference, values = torch.randn(5, 4, generator=generator), torch.randn(5, 3, 4, generator=generator)
    shared = 10 + torch.rand(5, 1, generator=generator)
    plain = Outputs(values, reference, torch.zeros(3, 2))
    moved = Outputs(values + shared[:, None], reference - shared, torch.zeros(3, 2))
    torch.testing.assert_close(cosines(centred(plain)), cosines(centred(moved)), atol=1e-5, rtol=0)
    assert not torch.allclose(cosines(plain), cosines(moved), atol=1e-2)


def test_draws_of_each_network_combine_to_those_of_all() -> None:
    values = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    apart = torch.stack([torch.from_numpy(resampled(each[None])) for each in values])
    assert crossed(apart).tolist() == pytest.approx(resampled(values).tolist(), rel=1e-6)
