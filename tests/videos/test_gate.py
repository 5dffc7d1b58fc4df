"""Conditions on videos are judged on the interval over videos, by any name of the measure; other conditions are refused."""

from __future__ import annotations

import pytest
import torch

from shiftscope import InputError
from shiftscope.audits.gate import read_condition
from shiftscope.videos import Flicker
from shiftscope.videos.flicker import mean_change
from shiftscope.videos.gate import judge_flicker


def flicker(changes: list[list[float]], measure: str = "top1_change") -> Flicker:
    found = tuple(torch.tensor(each, dtype=torch.float64) for each in changes)
    return Flicker(found, mean_change(measure, found), measure)


#: Videos whose mean changes are 0.1, 0.2, ..., 0.5: their mean is 0.3, within 0.1 and 0.5.
SPREAD = [[each / 10, each / 10] for each in range(1, 6)]


@pytest.mark.parametrize(
    ("bound", "outcome", "strict"), [(0.05, "fails", "fails"), (0.25, "undecided", "fails"), (0.6, "passes", "passes")]
)
def test_agreement_and_change_have_one_outcome(bound: float, outcome: str, strict: str) -> None:
    found = flicker(SPREAD, "mASSC")
    texts = (f"flicker > {bound}", f"mean pixel agreement < {1 - bound}", f"mASSC < {100 - 100 * bound} %")
    conditions = [read_condition(text, of_videos=True) for text in texts]
    for values, expected in ((False, outcome), (True, strict)):
        verdict = judge_flicker(found, conditions, strict=values)
        assert [each.outcome for each in verdict.judgements] == [expected] * 3
        assert verdict.exit_code == (expected == "fails")
        assert ", over 5 videos." in verdict.words()
    flick, agreement, _ = (each.estimate for each in verdict.judgements)
    assert (agreement.low, agreement.value, agreement.high) == pytest.approx((1 - flick.high, 1 - flick.value, 1 - flick.low))


def test_one_video_is_undecided_unless_strict() -> None:
    found = flicker([[1.0, 1.0, 1.0]])
    conditions = [
        read_condition(f"{name} > 0.5", of_videos=True) for name in ("top-1 change", "top-1 change per step", "flicker")
    ]
    verdict = judge_flicker(found, conditions)
    assert (verdict.outcome, verdict.exit_code) == ("undecided", 0)
    assert verdict.words().endswith("over 1 video: one alone has no interval, so give several or --strict.")
    assert judge_flicker(found, conditions, strict=True).outcome == "fails"


@pytest.mark.parametrize(
    ("found", "text", "problem"),
    [
        (flicker(SPREAD), "mcs < 0.9", "does not take of these outputs. Choose from top1_change, neighbour_change, flicker"),
        (flicker(SPREAD, "mASSC"), "neighbour_change > 0.1", "Choose from mASSC, flicker"),
        (flicker(SPREAD), "top1_change, radius 2 > 0.1", "does not take of these outputs"),
        (flicker([[float("nan")]], "box_survival"), "box_survival < 0.9", "no step has a value"),
        (flicker(SPREAD), "top-1 change of mouton2020 > 0.1", "names a protocol, and videos have none"),
        (flicker(SPREAD), "top-1 change of nothing > 0.1", "names a protocol, and videos have none"),
    ],
)
def test_condition_about_something_else_is_refused(found: Flicker, text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        judge_flicker(found, [read_condition(text, of_videos=True)])
