"""A gate fails where a whole interval lies beyond a bound, is quiet on equal models, and reads what audits wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from shiftscope import InputError, audit
from shiftscope.audits import Audit, Cost, Row
from shiftscope.audits.comparison import compare_audits
from shiftscope.audits.gate import judge_audit, judge_comparison, read_condition
from shiftscope.estimates import Estimate, joint_critical_value
from shiftscope.measures import MEASURES

CHANGE, SIMILAR = ("mouton2020", "top1_change"), ("mouton2020", "mcs")


def audited(values: dict[tuple[str, str], Tensor], **others: object) -> Audit:
    """Return an audit with these values per image."""
    rows = tuple(Row(*key, "zero", 8, 1, MEASURES[key[1]].estimate(each), None) for key, each in values.items())
    return Audit(rows, (), Cost(images=len(next(iter(values.values())))), values=values, **others)


def draw(share: float, count: int, seed: int) -> Tensor:
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share).float()


@pytest.mark.parametrize(
    ("text", "measure", "protocol", "bound"),
    [
        ("top-1 change > 0.10", "top1_change", None, 0.1),
        ("top1_change of mouton2020 >= 10%", "top1_change", "mouton2020", 0.1),
        ("Mean Cosine Similarity<.9", "mcs", None, 0.9),
        ("worst_case, radius 2 of michaeli2023 < 50 %", "worst_case, radius 2", "michaeli2023", 0.5),
        ("accuracy of unshifted < 7e-1", "accuracy", "unshifted", 0.7),
    ],
)
def test_condition_is_read_in_words_and_short_names(text: str, measure: str, protocol: str | None, bound: float) -> None:
    condition = read_condition(text)
    assert (condition.measure, condition.protocol, condition.bound) == (measure, protocol, pytest.approx(bound))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("top-1 change", "must be MEASURE > NUMBER"),
        ("top-1 change > a lot", "must be MEASURE > NUMBER"),
        ("top-1 change > 1.2.3", "must end in a number"),
        ("top-1 chnage > 1", "Did you mean 'top-1 change'"),
        ("top1 > 0.1", "Did you mean 'top-1 change'"),
        ("xyz > 0.1", "Choose from mean cosine similarity, top-1 change, .*same class in all views"),
        ("top-1 change > 10", "can never fail: top-1 change lies between 0 and 1. Give a number in between. Did you mean 10 %"),
        ("mcs <= -1.5", "can never fail: mean cosine similarity lies between -1 and 1. Give a number in between.$"),
        ("top-1 change > 1", "can never fail: .* Did you mean 1 %"),
        ("mcs < -1", "can never fail: .* in between.$"),
        ("accuracy < 70", "always fails: accuracy lies between 0 and 1. Give a number in between. Did you mean 70 %"),
        ("top-1 change >= 0", "always fails"),
        ("depth error > -0.1", "always fails: depth error lies between 0 and inf"),
        ("worst_case, radius 2 >= 300", "can never fail"),
        ("mcs of mouton2021 < 1", "names an unknown protocol: 'mouton2021'"),
    ],
)
def test_condition_that_is_none_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_condition(text)


@pytest.mark.parametrize("text", ["mcs > -1", "mcs <= -1", "mcs >= 1", "mcs < 1", "top-1 change > 0", "depth error > 100"])
def test_condition_at_the_end_of_what_a_measure_can_be_is_read(text: str) -> None:
    assert read_condition(text).text == text


@pytest.mark.parametrize("strict", [False, True])
def test_number_that_is_not_defined_is_undecided(strict: bool) -> None:
    unknown = Estimate(float("nan"), float("nan"), float("nan"), 0)
    assert read_condition("mcs < 0.9").judge(unknown, strict=strict) == "undecided"


@pytest.mark.parametrize("sign", ["> 0.1", ">= 0.1", "< 0.1", "<= 0.1"])
@pytest.mark.parametrize(("value", "low", "high"), [(0.05, 0.01, 0.09), (0.09, 0.05, 0.2), (0.2, 0.11, 0.3), (0.1, 0.1, 0.1)])
def test_outcome_is_what_every_number_in_the_interval_says(sign: str, value: float, low: float, high: float) -> None:
    def beyond(number: float) -> bool:
        return bool(eval(f"{number!r} {sign}"))  # Python's own comparison

    inside = {beyond(low + step * (high - low) / 50) for step in range(51)} | {beyond(high)}
    expected = {frozenset({True}): "fails", frozenset({False}): "passes"}.get(frozenset(inside), "undecided")
    condition = read_condition(f"top1_change {sign}")
    assert condition.judge(Estimate(value, low, high, 50)) == expected
    assert condition.judge(Estimate(value, low, high, 50), strict=True) == ("fails" if beyond(value) else "passes")


def test_condition_without_protocol_judges_every_protocol_that_has_the_measure() -> None:
    found = audited({("zhang2019", "all_agree"): draw(0.9, 200, 0), ("chaman2021-zero", "all_agree"): draw(0.3, 200, 1)})
    verdict = judge_audit(found, [read_condition("all_agree < 0.7")])
    assert [(each.protocol, each.outcome) for each in verdict.judgements] == [
        ("zhang2019", "passes"),
        ("chaman2021-zero", "fails"),
    ]
    assert (verdict.outcome, verdict.exit_code) == ("fails", 1)
    with pytest.raises(InputError, match="matches no number of the audit"):
        judge_audit(found, [read_condition("mcs < 0.7")])


def test_same_audit_passes_and_a_worse_one_fails_in_the_measure_that_is_worse() -> None:
    before = audited({CHANGE: draw(0.2, 256, 0), SIMILAR: torch.rand(256, generator=torch.Generator().manual_seed(1))})
    after = replace(before, values={**before.values, CHANGE: torch.maximum(before.values[CHANGE], draw(0.15, 256, 2))})
    assert judge_comparison(compare_audits(before, before)).outcome == "passes"
    verdict = judge_comparison(compare_audits(before, after))
    assert {each.measure: each.outcome for each in verdict.judgements} == {"top1_change": "fails", "mcs": "passes"}
    assert judge_comparison(compare_audits(after, before)).outcome == "passes"
    assert judge_comparison(compare_audits(before, after), tolerance=0.5).outcome == "passes"


def test_direction_of_similarity_is_the_opposite_of_that_of_changes() -> None:
    values = torch.rand(100, generator=torch.Generator().manual_seed(0)) / 2
    lower, higher = audited({SIMILAR: values}), audited({SIMILAR: values + 0.2 + values * 0.1})
    assert judge_comparison(compare_audits(higher, lower)).outcome == "fails"
    assert judge_comparison(compare_audits(lower, higher)).outcome == "passes"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_too_few_images_never_fail(count: int) -> None:
    before, after = audited({CHANGE: torch.zeros(count)}), audited({CHANGE: torch.ones(count)})
    verdict = judge_comparison(compare_audits(before, after))
    assert verdict.outcome == "undecided"
    assert judge_comparison(compare_audits(before, after), strict=True).outcome == "fails"


def test_rounding_is_no_change() -> None:
    values = torch.rand(256, generator=torch.Generator().manual_seed(0)) / 2
    before, after = audited({SIMILAR: values}), audited({SIMILAR: values - 2e-7})
    assert judge_comparison(compare_audits(before, after)).outcome == "passes"
    assert judge_comparison(compare_audits(before, after), strict=True).outcome == "passes"


def test_critical_value_is_that_of_all_flips_of_signs() -> None:
    differences = torch.randn(3, 10, generator=torch.Generator().manual_seed(0)).double()
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 10).double()
    flipped = signs[:, None] * differences
    every = (flipped.mean(dim=2) / (flipped.std(dim=2) / 10**0.5)).amax(dim=1)
    value, errors = joint_critical_value(differences)
    assert float((every > value).double().mean()) == pytest.approx(0.025, abs=0.01)
    torch.testing.assert_close(errors, differences.std(dim=1) / 10**0.5)


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_gate_is_quiet_on_equal_models_and_catches_a_true_drop(drop: float) -> None:
    """`benchmarks/gate.py` measures it; here 20 audits of 256 images, whose changes go together with those of the baseline."""
    failed = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        hard = torch.rand(256, generator=generator)
        rates = 0.2 + drop + 0.4 * (hard - 0.5)
        views = [(torch.rand(256, 9, generator=generator) < each[:, None]).float().mean(dim=1) for each in (rates - drop, rates)]
        before, after = (audited({CHANGE: each, ("zhang2019", "all_agree"): draw(0.8, 256, 7 * seed + 1)}) for each in views)
        failed += judge_comparison(compare_audits(before, after)).outcome == "fails"
    assert failed <= 3 if drop == 0 else failed >= 18


def test_audits_of_other_images_are_compared_without_pairs() -> None:
    before = audited({CHANGE: draw(0.2, 300, 0)}, provenance={"data_sha256": "a"})
    after = audited({CHANGE: draw(0.6, 300, 1)}, provenance={"data_sha256": "b"})
    compared = compare_audits(before, after)
    (measure,) = compared.measures
    assert measure.pairs is None
    assert "other images" in compared.notes[0]
    assert measure.difference.low == pytest.approx(after.rows[0].estimate.low - before.rows[0].estimate.high)
    assert (measure.outcome, judge_comparison(compared).outcome) == ("worse", "fails")


def test_comparison_of_audits_made_in_another_way_says_so() -> None:
    made = {"data_sha256": "a", "canvas": "0"}
    audits = [audited({CHANGE: draw(0.2, 300, 0)}, provenance={**made, "seed": str(seed)}) for seed in range(2)]
    notes = compare_audits(*audits).notes
    assert notes[0].startswith("change: after minus before, in pairs of the same 300 images")
    assert notes[1] == "The seed differs (0 and 1): where shifts are random, a part of the change is not the model's."
    assert len(compare_audits(audits[0], audits[0]).notes) == len(notes) - 1
    named = [replace(audits[0], classes=classes) for classes in (("ant", "bee"), ("bee", "ant"), ())]
    assert compare_audits(named[0], named[1]).notes[1].startswith("The audits number classes otherwise")
    assert len(compare_audits(named[0], named[2]).notes) == len(notes) - 1


def test_models_that_agree_on_few_images_may_differ_on_others() -> None:
    """Two models of which each keeps its answer for 99 and 97 % of images keep all of 20 images in two of five audits."""
    for seed in range(20):
        kept = {("zhang2019", "all_agree"): draw(0.99, 20, seed)}, {("zhang2019", "all_agree"): draw(0.97, 20, 100 + seed)}
        before, after = (audited({**each, SIMILAR: torch.rand(20)}) for each in kept)
        change = {each.row.measure: each.difference for each in compare_audits(before, after).measures}["all_agree"]
        assert change.low < -0.02 < change.high


@pytest.mark.parametrize(
    ("values", "outcome", "summary"),
    [
        ({SIMILAR: torch.linspace(0.5, 0.9, 20), CHANGE: torch.zeros(20)}, "equal", "2 equal"),
        ({CHANGE: torch.zeros(20)}, "undecided", "1 undecided"),
    ],
)
def test_audits_without_a_difference_are_equal_where_values_tell_images_apart(
    values: dict[tuple[str, str], Tensor], outcome: str, summary: str
) -> None:
    compared = compare_audits(audited(values), audited(values))
    assert {each.outcome for each in compared.measures} == {outcome}
    assert compared.words().endswith(f": {summary}.")


def test_measure_without_a_better_counts_as_changed() -> None:
    cut = ("every-shift", "boxes_cut")
    before, after = (audited({cut: torch.rand(50, generator=torch.Generator().manual_seed(0)) / 2 + plus}) for plus in (0, 0.3))
    assert compare_audits(before, after).words() == "Of 1 measure of the second: 1 changed."


def test_small_derivatives_are_compared() -> None:
    """Those of a thousand probabilities are about a millionth, which is rounding for other measures."""
    slope = ("gruver2023", "squared_derivative_y")
    values = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 1e-7
    before, after = audited({slope: values}), audited({slope: 3 * values})
    assert [each.outcome for each in compare_audits(before, after).measures] == ["worse"]
    assert judge_comparison(compare_audits(before, after)).outcome == "fails"
    assert judge_comparison(compare_audits(before, before)).outcome == "passes"


def test_verdict_without_values_of_images_says_so() -> None:
    before = replace(audited({CHANGE: draw(0.2, 50, 0)}), values={})
    assert any("no values for each image" in note for note in judge_comparison(compare_audits(before, before)).notes)


def test_measures_taken_in_another_way_are_left_out() -> None:
    before = audited({CHANGE: draw(0.2, 50, 0), SIMILAR: torch.rand(50)})
    other = replace(before, rows=(replace(before.rows[0], max_shift=4), before.rows[1]))
    compared = compare_audits(before, other)
    assert [each.row.measure for each in compared.measures] == ["mcs"]
    assert "1 that were measured in another way" in compared.notes[-1]
    with pytest.raises(InputError, match="no measure in common"):
        compare_audits(before, replace(before, rows=()))


@pytest.mark.parametrize("sign", ["> 0.3", "> 0.2", "> 0.01"])
def test_verdict_is_the_same_in_words_json_markdown_and_junit(sign: str) -> None:
    found = audited({CHANGE: draw(0.2, 100, 0)})
    verdict = judge_audit(found, [read_condition(f"top1_change {sign}")], subject="a <b> | `c`\x1b[31m")
    root = ElementTree.fromstring(verdict.to_junit())
    (suite,) = root
    counted = {name: suite.get(name) for name in ("tests", "failures", "skipped")}
    expected = {"passes": ("0", "0"), "fails": ("1", "0"), "undecided": ("0", "1")}[verdict.outcome]
    assert counted == {"tests": "1", "failures": expected[0], "skipped": expected[1]}
    assert verdict.outcome in verdict.words()
    assert json.loads(json.dumps(verdict.to_json()))["outcome"] == verdict.outcome
    markdown = verdict.to_markdown()
    assert f"| {verdict.outcome} | top-1 change | mouton2020 |" in markdown
    assert "\x1b" not in markdown + verdict.to_junit()
    assert "<b>" not in markdown.replace("\\<b\\>", "")


def test_audits_that_read_outputs_differently_are_not_compared() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.rand(4, 1, 8, 8)
    settings = ("multilabel", "multilabel:threshold=0.3", "multilabel:threshold=0.5")
    first, other, same = (audit(model, images, max_shift=1, protocols=["mouton2020"], task=task) for task in settings)
    with pytest.raises(
        InputError, match=r"read outputs as multilabel and as multilabel:threshold=0\.3\. Audit both with the same"
    ):
        compare_audits(first, other)
    assert compare_audits(first, same).measures
