"""Judge an audit by conditions, or against a committed audit, on intervals.

A condition fails only if the whole interval lies beyond it, passes only if none of it does, and is undecided else. A gate fails
if anything fails. With ``strict`` the values decide, and nothing is undecided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from math import isnan
from statistics import NormalDist
from typing import Any, Literal
from xml.etree import ElementTree

import torch
from torch import Tensor

from shiftscope.audits.comparison import AuditComparison, MeasureComparison, direction, rounding
from shiftscope.audits.protocols import GROUPS, PROTOCOLS
from shiftscope.audits.results import Audit, Row
from shiftscope.display import Shown
from shiftscope.errors import InputError
from shiftscope.estimates import LEVEL, Estimate, joint_critical_value
from shiftscope.measures import MEASURES
from shiftscope.runtime.text import printable
from shiftscope.tables import Cell, Table, heading

__all__ = [
    "FRAMES",
    "Condition",
    "Judgement",
    "Outcome",
    "Verdict",
    "how_judged",
    "judge_audit",
    "judge_comparison",
    "read_condition",
]

Outcome = Literal["passes", "undecided", "fails"]
CONDITION = re.compile(r"^(.*?)(?:\s+of\s+([\w-]+))?\s*(<=|>=|<|>)\s*(-?[\d.]+(?:[eE][+-]?\d+)?)\s*(%?)$")
#: What stands in place of a protocol for videos.
FRAMES = "frames"
WORDS = {">": "above", ">=": "at or above", "<": "below", "<=": "at or below"}


@dataclass(frozen=True)
class Condition:
    """A condition that fails the gate: a measure beyond a bound.

    Attributes:
        text: as it was written.
        measure: short name, of a ring of shifts with ``, radius r``.
        protocol: its name, or that of a group; None for every protocol with this measure.
        sign: between the measure and the bound.
        bound: the number.
    """

    text: str
    measure: str
    protocol: str | None
    sign: Literal["<", "<=", ">", ">="]
    bound: float

    @property
    def beyond(self) -> str:
        """What must not be, in words: "above 0.1"."""
        return f"{WORDS[self.sign]} {self.bound:g}"

    def concerns(self, protocol: str, measure: str) -> bool:
        """Return whether the condition is about a measure of a protocol."""
        named = None if self.protocol is None else GROUPS.get(self.protocol, (self.protocol,))
        return measure == self.measure and (named is None or protocol in named)

    def judge(self, estimate: Estimate, *, strict: bool = False) -> Outcome:
        """Return the outcome for a number.

        Args:
            estimate: the number.
            strict: whether its value decides instead of its interval.

        >>> condition = read_condition("top-1 change > 10 %")
        >>> [condition.judge(Estimate(0.12, low, high, 100)) for low, high in ((0.11, 0.13), (0.08, 0.16), (0.02, 0.09))]
        ['fails', 'undecided', 'passes']
        """
        ends = (estimate.value,) * 2 if strict else (estimate.low, estimate.high)
        if any(map(isnan, ends)):
            return "undecided"
        beyond = [self._beyond(end) for end in ends]
        return "fails" if all(beyond) else "undecided" if any(beyond) else "passes"

    def _beyond(self, value: float) -> bool:
        greater = value >= self.bound if self.sign.endswith("=") else value > self.bound
        less = value <= self.bound if self.sign.endswith("=") else value < self.bound
        return greater if self.sign.startswith(">") else less


@dataclass(frozen=True)
class Judgement:
    """A number, judged by a condition.

    Attributes:
        protocol: of the measure.
        measure: short name.
        estimate: the number, or its change against the baseline.
        beyond: what must not be, in words: "above 0.1".
        outcome: whether it is.
    """

    protocol: str
    measure: str
    estimate: Estimate
    beyond: str
    outcome: Outcome

    @property
    def name(self) -> str:
        """The measure in words, with its protocol."""
        if self.protocol == "unshifted":
            return f"{'accuracy' if self.measure == 'accuracy' else heading(self.measure)} without a shift"
        if self.protocol == FRAMES:
            return f"{heading(self.measure)} from frame to frame"
        measure, comma, ring = self.measure.partition(",")
        return f"{heading(measure)}{comma}{ring} ({self.protocol})"

    def __str__(self) -> str:
        said = {"fails": self.beyond, "undecided": f"perhaps {self.beyond}", "passes": f"not {self.beyond}"}[self.outcome]
        return f"{self.name} {self.estimate}, {said}"


@dataclass(frozen=True, repr=False)
class Verdict(Shown):
    """The verdict of a gate.

    Attributes:
        judgements: of every number, at least one.
        subject: what was measured, in a line.
        notes: what a reader needs to know.
        over: what the numbers are means over, where it is no images: "over 8 videos".
    """

    judgements: tuple[Judgement, ...]
    subject: str = ""
    notes: tuple[str, ...] = ()
    over: str = ""

    @property
    def outcome(self) -> Outcome:
        """``fails`` if anything fails, ``passes`` if everything passes."""
        outcomes = {each.outcome for each in self.judgements}
        return "fails" if "fails" in outcomes else "undecided" if "undecided" in outcomes else "passes"

    @property
    def exit_code(self) -> int:
        """1 if the gate fails, else 0."""
        return int(self.outcome == "fails")

    def words(self) -> str:
        """Return the verdict in a line, with the first number that decides it."""
        count, outcome = len(self.judgements), self.outcome
        deciding = [each for each in self.judgements if each.outcome == outcome]
        over = f", {self.over}" if self.over else ""
        if outcome == "passes" and count > 1:
            return f"Gate passes: all {count} conditions{over}."
        share = f" {len(deciding)} of {count} conditions: " if count > 1 else " "
        more = "; ".join(map(str, deciding[:3])) + ("; ..." if len(deciding) > 3 else "")
        return f"Gate {'is ' * (outcome == 'undecided')}{outcome}:{share}{more}{over}."

    def tables(self) -> tuple[Table, ...]:
        """Return the table alone."""
        return (self.table(),)

    def table(self) -> Table:
        """Return a table with a row for each number, failures first."""
        order = ("fails", "undecided", "passes")
        rows: tuple[dict[str, Cell], ...] = tuple(
            {
                "measure": each.measure,
                "protocol": each.protocol,
                "number": each.estimate,
                "rule": f"not {each.beyond}",
                "outcome": each.outcome,
            }
            for each in sorted(self.judgements, key=lambda each: order.index(each.outcome))
        )
        return Table("Gate", ("outcome", "measure", "protocol", "number", "rule"), rows, self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        judgements = [asdict(each) for each in self.judgements]
        return {"outcome": self.outcome, "sentence": self.words(), "judgements": judgements, "notes": list(self.notes)}

    def to_markdown(self) -> str:
        """Return a summary for a pull request."""
        table = replace(self.table(), title="shiftscope", notes=()).to_markdown().replace("# shiftscope", "", 1).strip()
        mark = {"fails": "❌", "undecided": "❔", "passes": "✅"}[self.outcome]
        lines = [
            f"### Stability {'from frame to frame' if self.over else 'under shifts'}",
            "",
            f"{mark} {_escaped(self.words())}",
            "",
            table,
            "",
        ]
        lines += [line for note in (self.subject, *self.notes) if note for line in (_escaped(note), "")]
        return "\n".join(lines)

    def to_junit(self) -> str:
        """Return the verdict as JUnit XML: a test for each condition; one that is undecided counts as skipped."""
        outcomes = [each.outcome for each in self.judgements]
        totals = {
            "tests": len(outcomes),
            "failures": outcomes.count("fails"),
            "errors": 0,
            "skipped": outcomes.count("undecided"),
        }
        suite = ElementTree.Element("testsuite", {"name": "shiftscope", **{name: str(each) for name, each in totals.items()}})
        for each in self.judgements:
            case = ElementTree.SubElement(suite, "testcase", {"classname": f"shiftscope.{each.protocol}", "name": _plain(each)})
            if each.outcome != "passes":
                kind = "failure" if each.outcome == "fails" else "skipped"
                ElementTree.SubElement(case, kind, {"message": printable(f"{each.outcome}: {each}")})
        root = ElementTree.Element("testsuites")
        root.append(suite)
        ElementTree.indent(root)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def check_tolerance(tolerance: float) -> None:
    """Raise InputError unless a tolerance is 0 or more."""
    if not tolerance >= 0:
        raise InputError(f"`tolerance` must be 0 or more, got {tolerance:g}.", "Give how much worse a measure may be.")


def read_condition(text: str, *, of_videos: bool = False) -> Condition:
    """Read ``MEASURE > NUMBER``, or ``MEASURE of PROTOCOL > NUMBER``, with any of >, >=, <, <=.

    Args:
        text: the measure by its short name or in words; the number plain or in percent.
        of_videos: whether it is about videos, which have no protocols.

    Raises:
        InputError: it is not of that form, there is no such measure or protocol, or the measure cannot lie beyond the number.

    >>> condition = read_condition("mean cosine similarity of mouton2020 < 0.9")
    >>> condition.measure, condition.protocol, condition.sign, condition.bound
    ('mcs', 'mouton2020', '<', 0.9)
    """
    found = CONDITION.match(text.strip())
    if found is None:
        raise InputError(
            f"`fail_if` must be MEASURE > NUMBER or MEASURE < NUMBER, got {text!r}.", 'Write it like "top-1 change > 0.10".'
        )
    measure, protocol, sign, number, percent = found.groups()
    try:
        bound = float(number) / (100 if percent else 1)
    except ValueError:
        raise InputError(f"`fail_if` {text!r} must end in a number.", 'Write it like "top-1 change > 0.10".') from None
    if protocol is not None and of_videos:
        problem = f"`fail_if` {text!r} names a protocol, and videos have none: frames are compared as they are."
        raise InputError(problem, f"Leave out 'of {protocol}'.")
    if protocol is not None and protocol not in PROTOCOLS and protocol not in GROUPS and protocol != "unshifted":
        raise InputError(
            f"`fail_if` names an unknown protocol: {protocol!r}.", f"Choose from {', '.join([*PROTOCOLS, *GROUPS])}."
        )
    condition = Condition(text, _measure(measure.strip()), protocol, sign, bound)  # type: ignore[arg-type]  # by the pattern
    _check_reach(condition)
    return condition


def _check_reach(condition: Condition) -> None:
    """Refuse a condition that no model can fail, or every model does: a slip, such as 1 for 1 %, that would pass for ever."""
    measure = MEASURES[condition.measure.partition(",")[0]]
    low, high = measure.bounds
    at_ends = condition.judge(Estimate(low, low, high, count=1))
    if at_ends == "undecided":
        return
    meant = f" Did you mean {condition.bound:g} %?" if high == 1 and 1 <= condition.bound <= 100 else ""
    raise InputError(
        f"`fail_if` {condition.text!r} {'always fails' if at_ends == 'fails' else 'can never fail'}: "
        f"{measure.label} lies between {low:g} and {high:g}.",
        f"Give a number in between.{meant}",
    )


def _measure(name: str) -> str:
    """Return the short name of a measure that is written by it or in words."""
    base, comma, ring = name.partition(",")
    labels = {each.label.lower(): each.name for each in MEASURES.values()} | {each.lower(): each for each in MEASURES}
    key = " ".join(base.lower().split())
    if key not in labels:
        close = get_close_matches(key, labels, n=2, cutoff=0.6)
        close = close or [label for label in labels if _letters(label).startswith(_letters(key)) and _letters(key)][:2]
        remedy = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"Choose from {', '.join(_of_classes())}."
        raise InputError(f"`fail_if` names an unknown measure: {base.strip()!r}.", remedy)
    return labels[key] + comma + ring


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _of_classes() -> list[str]:
    """Return the labels of the measures that the protocols for classes have."""
    names = [name for each in PROTOCOLS.values() for name in (*each().scores, *(measure for measure, _ in each().surveyed))]
    return [MEASURES[name].label for name in dict.fromkeys(names) if name in MEASURES]


def judge_audit(found: Audit, conditions: Sequence[Condition], *, subject: str = "", strict: bool = False) -> Verdict:
    """Judge an audit by conditions.

    Args:
        found: the audit.
        conditions: each fails the gate if it is true; at least one.
        subject: what was measured, in a line.
        strict: whether values decide instead of intervals.

    Raises:
        InputError: the audit holds no number that a condition is about.
    """
    judgements = []
    for condition in conditions:
        concerned = [row for row in found.rows if condition.concerns(row.protocol, row.measure)]
        if not concerned:
            known = ", ".join(dict.fromkeys(f"{row.measure} of {row.protocol}" for row in found.rows))
            raise InputError(f"`fail_if` {condition.text!r} matches no number of the audit.", f"It holds {known}.")
        judgements += [_judged(row, condition, strict) for row in concerned]
    return Verdict(tuple(judgements), subject, (how_judged(strict),))


def how_judged(strict: bool) -> str:
    """Return in a sentence how a gate judges by conditions."""
    how = "by their values" if strict else "on 95 % intervals: a condition fails only if the whole interval lies beyond it"
    return f"Judged {how}."


def _judged(row: Row, condition: Condition, strict: bool) -> Judgement:
    return Judgement(row.protocol, row.measure, row.estimate, condition.beyond, condition.judge(row.estimate, strict=strict))


def judge_comparison(found: AuditComparison, *, tolerance: float = 0.0, subject: str = "", strict: bool = False) -> Verdict:
    """Judge whether the second of two audits is worse than the first.

    Intervals of all measures hold together: where the two models can be exchanged, something fails in at most 2.5 % of audits;
    where differences of mean 0 are skewed, as of a model that is slightly worse on most images and much better on a few, in more.
    They are those of a permutation test of all measures at once (:func:`shiftscope.estimates.joint_critical_value`). Measures
    without values for each image are judged on their wide intervals, widened for the number of measures (Bonferroni).

    Args:
        found: the comparison.
        tolerance: how much worse a measure may be.
        subject: what was measured, in a line.
        strict: whether values decide instead of intervals.

    Raises:
        InputError: ``tolerance`` is negative, or no measure has a better and a worse.
    """
    check_tolerance(tolerance)
    judged = [each for each in found.measures if direction(each.row.measure)]
    if not judged:
        raise InputError("the audits share no measure that can get better or worse.", "Audit both with other protocols.")
    intervals = _joint_intervals(judged)
    condition = Condition("", "", None, ">", tolerance)
    beyond = "worse" + (f" by more than {tolerance:g}" if tolerance else "")
    judgements = []
    for each, estimate in zip(judged, intervals, strict=True):
        worse = _toward_worse(each, estimate)
        judgements.append(Judgement(each.row.protocol, each.row.measure, estimate, beyond, condition.judge(worse, strict=strict)))
    paired = any(each.pairs is not None for each in found.measures)  # which the first note is about
    how = "their values" if strict else "intervals that hold for all measures together, with 95 % certainty"
    notes = (f"number: change against the baseline. Judged by {how}.", *found.notes[paired:])
    return Verdict(tuple(judgements), subject, notes)


def _toward_worse(measure: MeasureComparison, change: Estimate) -> Estimate:
    """Return a change with the sign of worse, 0 where it is rounding."""
    if direction(measure.row.measure) == "more":
        change = replace(change, value=-change.value, low=-change.high, high=-change.low)
    least = rounding(measure.row.measure, abs(measure.before.value))
    value, low, high = (0.0 if abs(end) <= least else end for end in (change.value, change.low, change.high))
    return replace(change, value=value, low=low, high=high)


def _joint_intervals(measures: Sequence[MeasureComparison]) -> list[Estimate]:
    """Return the changes with intervals that hold together."""
    paired = [
        _filled(each.pairs if direction(each.row.measure) == "less" else -each.pairs)
        for each in measures
        if each.pairs is not None
    ]
    value, errors = joint_critical_value(torch.stack(paired)) if paired else (0.0, torch.zeros(0))
    each_alone = (1 - LEVEL) / 2 / len(measures)
    wider = NormalDist().inv_cdf(1 - each_alone) / NormalDist().inv_cdf((1 + LEVEL) / 2)
    reaches = iter((value * errors).tolist())
    found = []
    for each in measures:
        change = each.difference
        if each.pairs is not None:
            reach = next(reaches)
            ends = (change.value - reach, change.value + reach) if each.pairs.nan_to_num().any() else (change.low, change.high)
        else:
            ends = (change.value + wider * (change.low - change.value), change.value + wider * (change.high - change.value))
        found.append(replace(change, low=ends[0], high=ends[1]))
    return found


def _filled(pairs: Tensor) -> Tensor:
    """Return differences with 0 for images without one, which say nothing, scaled so that the mean stays."""
    known = ~pairs.isnan()
    return pairs.nan_to_num() * (len(pairs) / known.sum().clamp_min(1))


def _plain(judgement: Judgement) -> str:
    return printable(f"{judgement.name}: not {judgement.beyond}")


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|@])", r"\\\1", printable(text))
