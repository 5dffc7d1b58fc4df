"""Verdicts speak of shares where causes have shares, and of the loss itself where one step raises what another lowers."""

from __future__ import annotations

import pytest
import torch

from shiftscope.estimates import Estimate
from shiftscope.explanations.decomposition import Decomposition
from shiftscope.explanations.trial import Cause, Loss
from shiftscope.explanations.wording import causes_verdict, shares_add_up, which_is_larger


def near(value: float) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.01, 9)


LOSS = Loss(near(0.1), near(0.5), near(0.2), None)


@pytest.mark.parametrize(
    ("head", "borders", "said"),
    [
        ([0.1, 0.2, 0.3, 0.1], [0.2, 0.1, 0.1, 0.2], True),  # 0.175 and 0.15
        ([0.5, 0.6, 0.5, 0.6], [0.2, 0.3, 0.2, 0.3], False),
        ([0.1, 0.9, 0.1, 0.9], [0.0, 0.8, 0.01, 0.79], False),  # the intervals overlap, the paired difference does not
        ([0.5], [0.2], True),
    ],
)
def test_verdict_says_which_images_cannot_tell_the_larger_part(head: list[float], borders: list[float], said: bool) -> None:
    steps = Decomposition(torch.tensor(head) + torch.tensor(borders))
    causes = [steps.cause("head", torch.tensor(head)), steps.cause("borders", torch.tensor(borders))]
    (main, *rest) = causes
    few = "One image" if len(head) == 1 else f"{len(head)} images"
    expected = f"{few} cannot tell whether head or borders is the larger part." if said else ""
    assert which_is_larger(main, rest) == expected


def cause(name: str, part: float) -> Cause:
    return Cause(name, "", near(part), near(part / 0.1), LOSS, "", "", "")


@pytest.mark.parametrize(
    ("parts", "add_up", "said", "not_said"),
    [
        ((0.06, 0.04), True, "60 % [59, 61] of that is due to the head", "raises"),
        ((0.153, -0.053), False, "The step that removes borders raises it by 0.053 [0.043, 0.063]", "%"),
    ],
)
def test_verdict_speaks_of_shares_only_where_they_are_shares(
    parts: tuple[float, float], add_up: bool, said: str, not_said: str
) -> None:
    causes = [cause(name, part) for name, part in zip(("head", "borders"), parts, strict=True)]
    main, verdict = causes_verdict(LOSS, causes)
    assert shares_add_up(causes) == add_up
    assert main == "head"
    assert said in verdict
    assert not_said not in verdict


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Estimate(-0.008, -0.069, 0.054, 6), "raises it by 0.008 [-0.054, 0.069]"),
        (Estimate(0.02, -0.01, 0.05, 6), "lowers it by 0.020 [-0.010, 0.050]"),
    ],
)
def test_part_whose_interval_holds_zero_keeps_the_sign_of_its_verb(part: Estimate, said: str) -> None:
    share = Estimate(part.value / 0.1, part.low / 0.1, part.high / 0.1, part.count)
    borders = Cause("borders", "", part, share, LOSS, "", "", "")
    causes = [cause("head", 0.16), borders, cause("other", -0.06)]
    assert f"The step that removes borders {said}." in causes_verdict(LOSS, causes)[1]


@pytest.mark.parametrize(
    ("head", "borders", "images", "said"),
    [
        (
            (0.08, -0.02),
            0.02,
            6,
            "6 images cannot tell the main cause: the largest part, head, is 0.080 [-0.020, 0.180], which includes 0.",
        ),
        ((0.08, -0.02), 0.02, 1, "One image cannot tell the main cause"),
        ((0.08, 0.01), 0.02, 6, "80 % [10, 150] of that is due to the head"),
        ((0.1, -0.02), 0.0, 6, "100 % [-20, 220] of that is due to the head"),  # no other part there is
    ],
)
def test_main_cause_whose_interval_includes_zero_is_not_told(
    head: tuple[float, float], borders: float, images: int, said: str
) -> None:
    value, low = head
    part = Estimate(value, low, 2 * value - low, images)
    share = Estimate(value / 0.1, low / 0.1, (2 * value - low) / 0.1, images)
    rest = Estimate(borders, 0.5 * borders, 1.5 * borders, images)
    causes = [Cause("head", "", part, share, LOSS, "", "", ""), Cause("borders", "", rest, rest, LOSS, "", "", "")]
    main, verdict = causes_verdict(LOSS, causes)
    assert main == "head"
    assert said in verdict
