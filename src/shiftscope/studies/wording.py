"""State a study's results in plain sentences, for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from shiftscope.estimates import Estimate
from shiftscope.studies.claims import Judgement, Verdict
from shiftscope.tables import Table, heading, plus_minus

__all__ = ["claims_verdict", "study_verdict"]


def study_verdict(table: Table, settings: Sequence[str]) -> str:
    """Return the range of the mean cosine similarity and the settings at its ends; empty if nothing is measured.

    Args:
        table: the study's main table.
        settings: the columns of the settings that vary.
    """
    rows = [(found, row) for row in table.rows if isinstance(found := row.get("mcs"), Estimate)]
    if not rows:
        return ""
    (low, least), (high, most) = min(rows, key=_value), max(rows, key=_value)
    if len(rows) == 1:
        return f"The {heading('mcs')} is {plus_minus(low)}."
    at_least, at_most = (", ".join(f"{heading(name)} {row.get(name)}" for name in settings) for row in (least, most))
    sentence = f"The {heading('mcs')} lies between {plus_minus(low)} ({at_least}) and {plus_minus(high)} ({at_most})"
    return f"{sentence}." if low.high < high.low else f"{sentence}; these intervals overlap."


def _value(pair: tuple[Estimate, object]) -> float:
    return pair[0].value


def claims_verdict(claims: Sequence[Judgement], source: str) -> str:
    """Return how many of the source's claims hold.

    Args:
        claims: with their verdicts.
        source: the publication.
    """
    if not claims:
        return ""
    counts = Counter(each.verdict for each in claims)
    known = [f"{counts[each]} {_plural(each, counts[each])}" for each in Verdict if counts[each]]
    few = (
        " Cells have one network each, and another training may decide otherwise."
        if any(each.of_these_networks for each in claims)
        else ""
    )
    if len(claims) == 1:
        verdict = claims[0].verdict
        verb = "" if verdict in (Verdict.HOLDS, Verdict.DOES_NOT_HOLD) else "is "
        return f"The source's claim ({source}) {verb}{verdict}.{few}"
    return f"Of {len(claims)} claims of the source ({source}), {', '.join(known)}.{few}"


def _plural(verdict: Verdict, count: int) -> str:
    words = {Verdict.HOLDS: "hold", Verdict.DOES_NOT_HOLD: "do not hold"} if count > 1 else {}
    return words.get(verdict, str(verdict))
