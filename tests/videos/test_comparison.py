"""The flicker of two models is compared in pairs of videos, as a paired t test does; what cannot be told apart is undecided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import ttest_rel

from shiftscope import InputError
from shiftscope.videos import Flicker
from shiftscope.videos.comparison import compare_flickers
from shiftscope.videos.flicker import mean_change

SAME = {"data_sha256": "frames"}


def flicker(*changes: list[float], measure: str = "top1_change", **provenance: str) -> Flicker:
    found = tuple(torch.tensor(each, dtype=torch.float64) for each in changes)
    return Flicker(found, mean_change(measure, found), measure, provenance={**SAME, **provenance})


def random_flicker(share: float, seed: int, videos: int = 12) -> Flicker:
    """Return changes of videos that differ in how much really moves."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(videos, generator=torch.Generator().manual_seed(0)) / 2
    return flicker(*((torch.rand(40, generator=generator) < own[each] + share).double().tolist() for each in range(videos)))


@pytest.mark.parametrize("seed", range(3))
def test_interval_is_that_of_a_paired_t_test(seed: int) -> None:
    before, after = random_flicker(0.1, 2 * seed + 1), random_flicker(0.3, 2 * seed + 2)
    found = compare_flickers(before, after)
    means = [[float(each.mean()) for each in one.changes] for one in (after, before)]
    test = ttest_rel(*means)
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(test.confidence_interval()), abs=1e-6)
    assert (found.outcome, compare_flickers(after, before).outcome) == ("worse", "better")
    assert found.words().startswith("the second flickers more than the first: change ")
    apart = compare_flickers(before, replace(after, provenance={"data_sha256": "others"}))
    assert apart.pairs is None and len(apart.tables()) == 1
    reach = [(one.estimate.low, one.estimate.high) for one in (before, after) if one.estimate is not None]
    assert (apart.difference.low, apart.difference.high) == (reach[1][0] - reach[0][1], reach[1][1] - reach[0][0])
    assert apart.difference.low < found.difference.low and apart.difference.high > found.difference.high


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (flicker([1, 0, 0]), flicker([0, 0, 1]), "+0 in one video says nothing about others"),
        (flicker([1, 0, 0]), flicker([0, 0, 0]), "-0.333 in one video says nothing about others"),
        (flicker([0, 1]), flicker([0, 1]), "like the first in 1 video, which says nothing about others"),
        (flicker([0, 0], [1, 0]), flicker([0, 0], [0, 1]), "over 2 videos"),
        (flicker([0, 0], [1, 0]), flicker([0, 0], [1, 0]), "in 2 videos; in others: change 0.000"),
    ],
)
def test_little_evidence_is_undecided(before: Flicker, after: Flicker, words: str) -> None:
    found = compare_flickers(before, after)
    assert (found.outcome, found.to_json()["outcome"]) == ("undecided", "undecided")
    assert words in found.words()
    assert found.difference.low < 0 < found.difference.high


def test_video_without_a_value_is_left_out_and_counted() -> None:
    nan = float("nan")
    before = flicker([nan, nan], [1, nan], [0.5, 0.5], measure="box_survival")
    after = flicker([0, 1], [0, 0], [0, 0.5], measure="box_survival")
    found = compare_flickers(before, after)
    assert (found.difference.value, found.difference.count) == (-0.625, 2)
    assert [each["change"] for each in found.to_json()["sequences"]] == [None, -1, -0.25]
    assert "1 of 3 videos have no value in one of them" in " ".join(found.to_json()["notes"])
    assert found.table().rows[0]["measure"] == "1 less the detections that survive"


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        (
            flicker([0, 1]),
            flicker([0, 1], measure="box_survival"),
            "holds the change of top1_change, the second that of box_survival",
        ),
        (
            replace(flicker([0.0], measure="box_survival"), task="boxes:threshold=0.3"),
            replace(flicker([0.0], measure="box_survival"), task="boxes"),
            "of box_survival of boxes:threshold=0.3, the second that of box_survival of boxes",
        ),
        (flicker([0, 1]), flicker([float("nan")] * 2), "the second has no value at any step"),
        (flicker([float("nan")], [1]), flicker([1], [float("nan")]), "have no video with a value in both"),
    ],
)
def test_what_cannot_be_compared_is_refused(before: Flicker, after: Flicker, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        compare_flickers(before, after)


def test_default_settings_are_those_without_any() -> None:
    found: list[Any] = [
        replace(flicker([0.0, 1.0], measure="box_survival", task=task), task="boxes") for task in ("boxes:threshold=0.5", "boxes")
    ]
    assert compare_flickers(*found).difference.value == 0
