"""Judge by conditions how much answers change from frame to frame of videos, on the interval over videos."""

from __future__ import annotations

from collections.abc import Sequence

from shiftscope.audits.gate import FRAMES, Condition, Judgement, Verdict, how_judged
from shiftscope.errors import InputError
from shiftscope.videos.flicker import Flicker, measures_of

__all__ = ["check_measures", "judge_flicker"]


def judge_flicker(found: Flicker, conditions: Sequence[Condition], *, subject: str = "", strict: bool = False) -> Verdict:
    """Judge the flicker of videos by conditions.

    Args:
        found: the flicker.
        conditions: what must not be; at least one.
        subject: what was measured, in a line.
        strict: whether values decide instead of intervals.

    Raises:
        InputError: no step has a value, or a condition is about another measure.

    >>> import torch
    >>> from shiftscope.videos import frames_flicker
    >>> from shiftscope.audits.gate import read_condition
    >>> videos = torch.rand(12, 9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> found = frames_flicker(lambda batch: batch.mean(dim=(2, 3)), list(videos))
    >>> judge_flicker(found, [read_condition("top-1 change > 0.9", of_videos=True)]).words()
    'Gate passes: top-1 change from frame to frame 0.646 [0.534, 0.757], not above 0.9, over 12 videos.'
    """
    check_measures(conditions, found.measure)
    numbers = found.numbers()
    if not numbers:
        raise InputError("`fail_if` has no number to judge: no step has a value.", "Choose other videos, or another --task.")
    judgements = tuple(
        Judgement(FRAMES, each.measure, number, each.beyond, each.judge(number, strict=strict))
        for each, number in ((each, numbers[each.measure]) for each in conditions)
    )
    over = _over(numbers[found.measure].count, any(each.outcome == "undecided" for each in judgements))
    return Verdict(judgements, subject, (how_judged(strict), "Intervals: over videos."), over)


def _over(videos: int, undecided: bool) -> str:
    """Return what numbers are means over, and why one video decides nothing."""
    if videos > 1:
        return f"over {videos:,} videos"
    return "over 1 video: one alone has no interval, so give several or --strict" if undecided else "over 1 video"


def check_measures(conditions: Sequence[Condition], lead: str) -> None:
    """Refuse conditions that are about no number of videos.

    Args:
        conditions: what must not be.
        lead: the measure whose change from frame to frame is measured.

    Raises:
        InputError: there is such a condition.
    """
    known = measures_of(lead)
    other = next((each for each in conditions if each.measure not in known), None)
    if other is not None:
        problem = f"`fail_if` {other.text!r} is about a measure that `--frames` does not take of these outputs."
        raise InputError(problem, f"Choose from {', '.join(known)}.")
