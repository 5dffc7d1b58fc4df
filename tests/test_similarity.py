"""Batches equal the theory map by map, and a slow loop over displacements."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shiftscope import similarity
from shiftscope.shifts import translate
from shiftscope.similarity import cosine, homogeneities, responses
from shiftscope.theory import homogeneity, respond


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-12, 1.0, 1e12]))
@settings(deadline=None, max_examples=30)
def test_cosine_equals_scipys_at_every_scale(seed: int, scale: float) -> None:
    from scipy.spatial import distance

    one, other = maps(4, 5, seed=seed) * scale, maps(4, 5, seed=seed + 1) * scale
    expected = [1 - distance.cosine(a.double(), b.double()) for a, b in zip(one, other, strict=True)]
    assert cosine(one, other).tolist() == pytest.approx(expected, abs=1e-9)


def test_cosine_of_zero_vectors_is_one_between_them_and_zero_to_others() -> None:
    one, other = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert cosine(one, other).tolist() == [1.0, 0.0, 0.0]


def slow_similarities(before: Tensor, after: Tensor) -> dict[tuple[int, int], float]:
    """Compute c(u) = sum over x of A(x) B(x + u), over |A| |B|, one displacement and one position at a time."""
    _, height, width = before.shape
    norm = float(before.double().norm() * after.double().norm())
    found = {}
    for down, right in product(range(1 - height, height), range(1 - width, width)):
        total = 0.0
        for row, column in product(range(height), range(width)):
            if 0 <= row + down < height and 0 <= column + right < width:
                total += float(before[:, row, column].double() @ after[:, row + down, column + right].double())
        found[down, right] = total / norm
    return found


def test_responses_equal_loop_over_displacements() -> None:
    before, after = maps(3, 2, 4, 5), maps(2, 3, 2, 4, 5, seed=1)
    found = responses(before, after)
    for shift, image in product(range(2), range(3)):
        slow = slow_similarities(before[image], after[shift, image])
        assert found.similarity[shift, image].item() == pytest.approx(max(slow.values()), abs=1e-12)
        assert tuple(found.displacement[shift, image].tolist()) == max(slow, key=slow.__getitem__)
        assert found.in_place[shift, image].item() == pytest.approx(slow[0, 0], abs=1e-12)


@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.integers(1, 3),
    kind=st.sampled_from(["any", "few", "zeros", "flat"]),
)
@settings(deadline=None, max_examples=60)
def test_responses_equal_theory_for_each_map(height: int, width: int, channels: int, kind: str) -> None:
    before, after = maps(4, channels, height, width), maps(1, 4, channels, height, width, seed=1)
    if kind == "few":
        before, after = before.sign(), after.sign()
    elif kind == "zeros":
        before[:2], after[0, 1:3] = 0, 0
    elif kind == "flat":
        before[:2], after[0, 1:3] = 2, 3
    found = responses(before, after)
    for image in range(4):
        expected = respond(before[image], after[0, image], axes=2)
        assert found.similarity[0, image].item() == pytest.approx(expected.similarity, abs=1e-9)
        assert tuple(found.displacement[0, image].tolist()) == expected.displacement
        assert found.in_place[0, image].item() == pytest.approx(expected.in_place, abs=1e-9)


@pytest.mark.parametrize("stride", [2, 3])
def test_homogeneities_equal_theory_for_each_map(stride: int) -> None:
    each = maps(4, 3, 6, 7).relu()
    each[1], each[2] = 0, 1
    expected = [homogeneity(one, stride, axes=2) for one in each]
    assert homogeneities(each, (stride, stride)).tolist() == pytest.approx(expected, abs=1e-12)


def test_homogeneities_along_one_axis_ignore_shifts_along_the_other() -> None:
    each = maps(2, 3, 6, 6)
    expected = [homogeneity(one.transpose(0, 1), 2, axes=1) for one in each]
    assert homogeneities(each, (1, 2)).tolist() == pytest.approx(expected, abs=1e-12)


def test_homogeneities_at_stride_one_are_one() -> None:
    assert homogeneities(maps(2, 3, 6, 6), (1, 1)).tolist() == [1.0, 1.0]


def test_responses_moved_content_has_similarity_one_and_shift_as_displacement() -> None:
    images = torch.zeros(5, 2, 12, 12)
    images[:, :, 5:8, 4:7] = maps(5, 2, 3, 3)
    steps = torch.tensor([[0, 0], [3, -2], [-5, 4], [1, 0], [0, -4]])
    found = responses(images, translate(images, steps)[None])
    assert found.similarity.sub(1).abs().max() < 1e-9
    assert torch.equal(found.displacement[0], steps)


def test_responses_in_chunks_equal_those_of_all_maps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = maps(5, 2, 6, 6), maps(2, 5, 2, 6, 6, seed=1)
    together = responses(before, after)
    monkeypatch.setattr(similarity, "VALUES", 1)
    apart = responses(before, after)
    assert torch.equal(together.displacement, apart.displacement)
    assert torch.allclose(together.similarity, apart.similarity, atol=1e-12)


def blobs(kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return maps [2, 3, 17, 14] and shifted counterparts [2, 2, 3, 17, 14] that are alike in place, far away, or nowhere."""
    before = torch.rand(2, 3, 17, 14, generator=generator)
    after = torch.rand(2, 2, 3, 17, 14, generator=generator)
    if kind == "corners":  # the peak lies as far as it can
        before, after = 1e-3 * before, 1e-3 * after
        before[:, :, :2, :2], after[:, :, :, -2:, -2:] = 5, 5
    elif kind == "in place":
        after = before + 0.01 * after
    elif kind == "next to it":
        after = before.roll((1, -1), (2, 3)) + 0.01 * after
    elif kind == "signs":
        before, after = (before - 0.5).sign(), (after - 0.5).sign()
    elif kind == "one zero":
        after[0, 1] = 0
    return before, after


@pytest.mark.parametrize("settings", [{}, {"GUESSED": 1}, {"FEW": 0}, {"GUESSED": 1, "FEW": 0}], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
@pytest.mark.parametrize("kind", ["noise", "corners", "in place", "next to it", "signs", "one zero"])
def test_responses_however_far_the_peak_equal_theory(
    kind: str, scale: float, settings: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setattr(similarity, name, value)
    before, after = (scale * each for each in blobs(kind, torch.Generator().manual_seed(0)))
    found = responses(before, after)
    for shift, image in product(range(2), range(2)):
        expected = respond(before[image], after[shift, image], axes=2)
        assert found.similarity[shift, image].item() == pytest.approx(expected.similarity, abs=1e-9)
        assert tuple(found.displacement[shift, image].tolist()) == expected.displacement
        assert found.in_place[shift, image].item() == pytest.approx(expected.in_place, abs=1e-9)


def test_cosine_of_a_vector_that_is_not_finite_is_nan() -> None:
    vectors = torch.tensor([[1.0, float("nan")], [1.0, float("inf")]])
    assert cosine(vectors, torch.ones(2)).isnan().all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_responses_of_large_maps_in_half_precision_are_those_of_the_same_values(kind: torch.dtype) -> None:
    before = torch.rand(2, 8, 96, 96, generator=torch.Generator().manual_seed(0)).to(kind)
    after = before.roll((2, 3), (2, 3))[None]
    found, expected = responses(before, after), responses(before.float(), after.float())
    assert torch.equal(found.similarity, expected.similarity)
