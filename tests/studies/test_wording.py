"""A study's verdict names the extremes, and says so where their intervals overlap."""

from __future__ import annotations

import pytest

from shiftscope.estimates import Estimate
from shiftscope.studies.claims import Judgement, Verdict
from shiftscope.studies.spec import Claim
from shiftscope.studies.wording import claims_verdict, study_verdict
from shiftscope.tables import Table


@pytest.mark.parametrize(("other", "overlap"), [(0.6, False), (0.45, True)])
def test_verdict_of_a_study_says_whether_the_extremes_overlap(other: float, overlap: bool) -> None:
    rows = tuple({"factor": n, "mcs": Estimate(mcs, mcs - 0.05, mcs + 0.05, 9)} for n, mcs in ((1, 0.4), (2, other)))
    said = study_verdict(Table("t", ("factor", "mcs"), (*rows, {"factor": 4})), ["factor"])
    assert "between 0.400 ± 0.050 (subsampling factor 1) and" in said
    assert f"{other:.3f} ± 0.050 (subsampling factor 2)" in said
    assert said.endswith("; these intervals overlap.") == overlap


def test_study_without_numbers_has_no_verdict() -> None:
    assert study_verdict(Table("t", ("factor", "mcs"), ({"factor": 4},)), ["factor"]) == ""


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ([Verdict.HOLDS], "The source's claim (slides) holds."),
        ([Verdict.DOES_NOT_HOLD], "The source's claim (slides) does not hold."),
        ([Verdict.NOT_IN_STUDY], "The source's claim (slides) is not in this study."),
        ([Verdict.HOLDS, Verdict.HOLDS, Verdict.UNDECIDED], "Of 3 claims of the source (slides), 2 hold, 1 undecided."),
    ],
)
def test_verdict_on_claims_counts_them_only_where_there_are_several(verdicts: list[Verdict], sentence: str) -> None:
    assert claims_verdict([Judgement(Claim(text="c"), each) for each in verdicts], "slides") == sentence
