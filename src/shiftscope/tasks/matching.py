"""Pair the boxes of two sets: overlaps, and the assignment of largest total overlap.

Boxes are rows (x1, y1, x2, y2) in pixels, with x1 <= x2 and y1 <= y2.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["areas", "intersections", "match", "match_together", "overlaps"]

#: The least intersection over union of a pair.
LEAST_OVERLAP = 0.5


def areas(boxes: Float[np.ndarray, "*box 4"]) -> Float[np.ndarray, "*box"]:
    """Return the areas of boxes, square pixels."""
    found: np.ndarray = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return found


def intersections(one: Float[np.ndarray, "*set one 4"], other: Float[np.ndarray, "*set other 4"]) -> np.ndarray:
    """Return the areas that each box of one set shares with each of another, [..., one, other], square pixels."""
    ours, theirs = one[..., :, None, :], other[..., None, :, :]
    # Axis by axis: reductions over an axis of two or four numbers take several times as long.
    width, height = (
        np.minimum(ours[..., 2 + axis], theirs[..., 2 + axis]) - np.maximum(ours[..., axis], theirs[..., axis]) for axis in (0, 1)
    )
    shared: np.ndarray = width.clip(0) * height.clip(0)
    return shared


def overlaps(one: Float[np.ndarray, "*set one 4"], other: Float[np.ndarray, "*set other 4"]) -> np.ndarray:
    """Return the intersection over union (IoU) of each box of one set and each of another, [..., one, other].

    Two boxes without an area that are equal have 1, so that a box always overlaps itself fully.

    >>> overlaps(np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]])).tolist()
    [[1.0, 0.3333333333333333]]
    """
    shared = intersections(one, other)
    union = areas(one)[..., :, None] + areas(other)[..., None, :] - shared
    ours, theirs = one[..., :, None, :], other[..., None, :, :]
    same = ours[..., 0] == theirs[..., 0]
    for side in (1, 2, 3):
        same &= ours[..., side] == theirs[..., side]
    found: np.ndarray = np.where(same, 1.0, shared / np.where(union > 0, union, 1.0))
    return found


def match(
    overlap: Float[np.ndarray, "one other"], allowed: Bool[np.ndarray, "one other"], *, least: float = LEAST_OVERLAP
) -> Int[np.ndarray, "pair 2"]:
    """Return the pairs of the one-to-one assignment whose overlaps have the largest sum (Kuhn 1955), by Jonker and Volgenant.

    Args:
        overlap: intersection over union of each box with each.
        allowed: which may be paired, such as boxes of one class.
        least: overlap that a pair must have at least.

    >>> match(np.array([[0.9, 0.8], [0.8, 0.1]]), np.full((2, 2), True)).tolist()
    [[0, 1], [1, 0]]
    """
    everything = (np.ones((1, size), dtype=bool) for size in overlap.shape)
    return np.argwhere(match_together(overlap[None], allowed[None], *everything, least=least)[0])


def match_together(
    overlap: Float[np.ndarray, "set one other"],
    allowed: Bool[np.ndarray, "set one other"],
    ones: Bool[np.ndarray, "set one"],
    others: Bool[np.ndarray, "set other"],
    *,
    least: float,
) -> Bool[np.ndarray, "set one other"]:
    """Return which boxes :func:`match` pairs in each of many sets.

    Args:
        overlap: intersection over union of each box with each.
        allowed: which may be paired.
        ones: which boxes are there.
        others: which of the others are there.
        least: overlap that a pair must have at least.
    """
    found = allowed & (overlap >= least) & (overlap > 0)
    choice = (found.sum(axis=1) > 1).any(axis=1) | (found.sum(axis=2) > 1).any(axis=1)
    for number in np.flatnonzero(choice):  # where there is nothing to choose, every candidate is a pair
        places = np.ix_(ones[number], others[number])
        found[number][places] = _assigned(np.where(found[number], overlap[number], 0.0)[places])
    return found


def _assigned(worth: Float[np.ndarray, "one other"]) -> Bool[np.ndarray, "one other"]:
    """Return the pairs of the one-to-one assignment whose worth has the largest sum, those without any left out."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(worth, maximize=True)
    found = np.zeros(worth.shape, dtype=bool)
    found[rows, columns] = worth[rows, columns] > 0
    return found
