"""Batches give what the theory gives map by map, and what a loop over displacements gives."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shiftscope import similarity as module
from shiftscope.shifts import translate
from shiftscope.similarity import homogeneities, responses
from shiftscope.theory import homogeneity, respond


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow_similarities(before: Tensor, after: Tensor) -> dict[tuple[int, int], float]:
    """c(u) = sum over x of A(x) B(x + u), over |A| |B|, one displacement and one position at a time."""
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


def test_similarity_and_movement_are_those_of_a_loop_over_displacements() -> None:
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
def test_batches_give_what_the_theory_gives_for_each_map(height: int, width: int, channels: int, kind: str) -> None:
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
def test_homogeneity_of_batches_is_the_theorys_for_each_map(stride: int) -> None:
    each = maps(4, 3, 6, 7).relu()
    each[1], each[2] = 0, 1
    expected = [homogeneity(one, stride, axes=2) for one in each]
    assert homogeneities(each, (stride, stride)).tolist() == pytest.approx(expected, abs=1e-12)


def test_homogeneity_along_one_axis_knows_no_shift_along_the_other() -> None:
    each = maps(2, 3, 6, 6)
    expected = [homogeneity(one.transpose(0, 1), 2, axes=1) for one in each]
    assert homogeneities(each, (1, 2)).tolist() == pytest.approx(expected, abs=1e-12)
    assert homogeneities(each, (1, 1)).tolist() == [1.0, 1.0]


def test_content_that_only_moves_has_similarity_one_and_the_shift_as_its_displacement() -> None:
    images = torch.zeros(5, 2, 12, 12)
    images[:, :, 5:8, 4:7] = maps(5, 2, 3, 3)
    steps = torch.tensor([[0, 0], [3, -2], [-5, 4], [1, 0], [0, -4]])
    found = responses(images, translate(images, steps)[None])
    assert found.similarity.sub(1).abs().max() < 1e-9
    assert torch.equal(found.displacement[0], steps)


def test_maps_taken_a_few_at_a_time_are_those_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = maps(5, 2, 6, 6), maps(2, 5, 2, 6, 6, seed=1)
    together = responses(before, after)
    monkeypatch.setattr(module, "VALUES", 1)
    apart = responses(before, after)
    assert torch.equal(together.displacement, apart.displacement)
    assert torch.allclose(together.similarity, apart.similarity, atol=1e-14)
