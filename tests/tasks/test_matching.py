"""Overlaps equal areas counted pixel by pixel, and the assignment equals the best of all assignments."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftscope.tasks.matching import match, overlaps

WHOLE = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 6), st.integers(0, 6))


def boxes(corners: list[tuple[int, int, int, int]]) -> np.ndarray:
    """Return boxes from (x1, y1, width, height)."""
    found = np.array(corners, dtype=float).reshape(-1, 4)
    found[:, 2:] += found[:, :2]
    return found


def covered(box: np.ndarray) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = box.astype(int)
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


@given(one=WHOLE, other=WHOLE)
@settings(deadline=None)
def test_overlap_equals_counted_pixels(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> None:
    left, right = boxes([one]), boxes([other])
    first, second = covered(left[0]), covered(right[0])
    expected = len(first & second) / len(first | second) if first | second else float(one == other)
    if (left == right).all():
        expected = 1.0
    assert overlaps(left, right)[0, 0] == pytest.approx(expected, abs=1e-12)


def best_total(worth: np.ndarray) -> float:
    """Return the largest sum over all ways to pair rows with columns, one to one."""
    if worth.shape[0] > worth.shape[1]:
        worth = worth.T
    columns = range(worth.shape[1])
    return max(sum(worth[row, column] for row, column in enumerate(chosen)) for chosen in permutations(columns, len(worth)))


@given(
    one=st.lists(st.tuples(WHOLE, st.integers(0, 1)), max_size=5),
    other=st.lists(st.tuples(WHOLE, st.integers(0, 1)), max_size=5),
    least=st.sampled_from([0.05, 0.3, 0.5]),
)
@settings(deadline=None, max_examples=300)
def test_match_equals_brute_force(one: list, other: list, least: float) -> None:
    left, right = boxes([box for box, _ in one]), boxes([box for box, _ in other])
    labels = np.array([each for _, each in one]), np.array([each for _, each in other])
    allowed = labels[0][:, None] == labels[1][None, :]
    overlap = overlaps(left, right)
    pairs = match(overlap, allowed, least=least)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert all(allowed[pair] and overlap[pair] >= least for pair in map(tuple, pairs))
    worth = np.where(allowed & (overlap >= least), overlap, 0.0)
    assert overlap[pairs[:, 0], pairs[:, 1]].sum() == pytest.approx(best_total(worth) if worth.size else 0.0)
