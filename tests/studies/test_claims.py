"""Claims and comparisons: numbers agree with independent computations, and verdicts follow from intervals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean_over_seeds
from shiftscope.studies.claims import Judgement, MeasuredCell, Verdict, judge
from shiftscope.studies.comparison import Comparison, RankCorrelation, compare, rank_correlation
from shiftscope.studies.folder import read_folder
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study
from shiftscope.studies.spec import Claim, Study
from small import SMALL, Finished

CLAIMS = """
[[source.claims]]
text = "factor 4 is above factor 1"
of = { network.factor = 4 }
less = { network.factor = [1] }

[[source.claims]]
text = "everything is below 2"
of = {}
expect = "below"
bound = 2

[[source.claims]]
text = "about a factor that the study does not have"
of = { network.factor = 8 }
"""


@pytest.fixture(scope="module")
def folder(trained: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two factors and two seeds, with claims."""
    base = tmp_path_factory.mktemp("comparison")
    shutil.copytree(trained.out / "runs", base / "out" / "runs")
    (base / "small.toml").write_text(SMALL + CLAIMS)
    run_study(load_study(str(base / "small.toml")), out=base / "out")
    return base / "out"


@pytest.fixture(scope="module")
def comparison(folder: Path) -> Comparison:
    return compare(read_folder(folder))


def mean_of_records(folder: Path, factor: int, measure: str) -> float:
    records = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/record.json")]
    return float(np.mean([each["results"][measure]["value"] for each in records if each["spec"]["network"]["factor"] == factor]))


def cell(number: int, mean: float, **settings: object) -> MeasuredCell:
    """Three networks and 200 images whose values scatter around a mean."""
    generator = torch.Generator().manual_seed(number)
    return MeasuredCell(settings, {"mcs": mean + 0.01 * torch.randn(3, 200, generator=generator)}, number)


def test_compare_cell_has_difference_to_source(comparison: Comparison) -> None:
    row = comparison.cells[1]
    ours, difference = row.ours["mcs"], row.difference("mcs")
    assert (row.settings, row.networks, row.source) == ({"network.factor": 4}, 2, {"mcs": 0.5})
    assert ours is not None
    assert difference is not None
    assert (difference.value, difference.low) == pytest.approx((ours.value - 0.5, ours.low - 0.5))
    assert comparison.cells[0].difference("mcs") is None


def test_compare_claim_number_is_difference_of_means(folder: Path, comparison: Comparison) -> None:
    first, second, _ = comparison.claims
    assert first.number is not None
    assert first.centred is not None
    assert first.centred.number is not None
    for judgement, measure in ((first, "mcs"), (first.centred, "mcs_centred")):
        expected = mean_of_records(folder, 4, measure) - mean_of_records(folder, 1, measure)
        assert judgement.number is not None
        # Values per image are stored as multiples of 1/4096; the records' estimates come from the values before that.
        assert judgement.number.value == pytest.approx(expected, abs=1 / 4096)
        assert judgement.number.low < judgement.number.value < judgement.number.high
    assert (second.verdict, second.centred.verdict) == (Verdict.HOLDS, Verdict.HOLDS)


def test_compare_claim_about_unknown_setting_names_it(comparison: Comparison) -> None:
    third = comparison.claims[2]
    assert (third.verdict, third.absent, third.number) == (Verdict.NOT_IN_STUDY, {"network.factor": 8}, None)
    assert str(third) == "not in this study: factor 8"


def test_compare_json_has_numbers_as_fields(comparison: Comparison) -> None:
    found = json.loads(json.dumps(comparison.to_json()))
    assert found["cells"][1]["settings"] == {"network.factor": 4}
    measures = found["cells"][1]["measures"]["mcs"]
    assert measures["source"] == 0.5
    assert measures["difference"]["value"] == pytest.approx(measures["ours"]["value"] - 0.5)
    claim = found["claims"][0]
    assert (claim["text"], claim["expect"], claim["bound"]) == ("factor 4 is above factor 1", "above", 0.0)
    assert set(claim["number"]) == {"value", "low", "high", "count", "seeds"}
    assert claim["verdict"] in {"holds", "does not hold", "undecided"}
    assert [table["columns"][0] for table in found["tables"]] == ["factor", "claim"]


def test_compare_tables_show_fields(comparison: Comparison) -> None:
    cells, claims = comparison.tables()
    assert cells.rows[1]["difference_mcs"] == comparison.cells[1].difference("mcs")
    assert [row["verdict"] for row in claims.rows] == [str(each) for each in comparison.claims]
    assert claims.rows[0]["number_centred"] == comparison.claims[0].centred.number


def test_compare_names_the_paper(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "study.json").read_text())
    named = shutil.copytree(folder, tmp_path / "named")
    source = document["source"] | {"title": "table 2", "paper": "Ada, On Shifts, 2026"}
    (named / "study.json").write_text(json.dumps(document | {"source": source}))
    found = compare(read_folder(named))
    assert found.tables()[0].notes[0].startswith("source: as printed, table 2 (Ada, On Shifts, 2026); difference: ours minus")
    assert found.to_json()["paper"] == "Ada, On Shifts, 2026"


def test_compare_missing_runs_are_not_judged(folder: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    for path in (part / "runs").iterdir():
        if json.loads((path / "record.json").read_text())["spec"]["network"]["factor"] == 1:
            shutil.rmtree(path)
    found = compare(read_folder(part))
    assert [row.networks for row in found.cells] == [0, 2]
    assert "Cells without a measured network: 1." in found.tables()[0].notes[0]
    first = found.claims[0]
    assert (first.verdict, first.cells_missing, first.cells) == (Verdict.NOT_MEASURED, 1, 2)
    assert str(first) == "not measured: 1 of 2 cells are missing"


def test_compare_without_source_or_runs_raises(folder: Path, tmp_path: Path) -> None:
    empty, sourceless = tmp_path / "empty", tmp_path / "sourceless"
    for path in (empty, sourceless):
        path.mkdir()
        shutil.copy(folder / "study.json", path)
    with pytest.raises(InputError, match="holds no finished run"):
        compare(read_folder(empty))
    document = json.loads((folder / "study.json").read_text())
    (sourceless / "study.json").write_text(json.dumps(document | {"source": None, "name": "mine"}))
    with pytest.raises(InputError, match=r"has no source to compare with\. Add a \[source\] table"):
        compare(read_folder(sourceless))


def test_cell_estimate_is_that_of_the_study() -> None:
    several = cell(3, 0.995)
    assert several.estimate("mcs") == mean_over_seeds(several.values["mcs"], bounds=(-1.0, 1.0))


def test_rank_correlation_agrees_with_scipy() -> None:
    means, printed = [0.3, 0.5, 0.4, 0.9, 0.8], [0.1, 0.2, 0.3, 0.4, 0.5]
    cells = [cell(place, mean) for place, mean in enumerate(means, start=1)]
    found = rank_correlation(cells, [{"mcs": number} for number in printed], "mcs", "mcs")
    assert found is not None
    expected = pytest.approx(stats.spearmanr(means, printed).statistic)
    assert (found.cells, found.value, found.low, found.high) == (5, expected, expected, expected)


@pytest.mark.parametrize("noise", [0.3, 0.6])
def test_rank_correlation_interval_covers_a_high_correlation_that_noise_hides(noise: float) -> None:
    """The true order is the source's, so that the true correlation is 1; noise of the images swaps neighbours."""
    printed = [{"mcs": 0.05 * place} for place in range(1, 13)]
    covered = 0
    for seed in range(20):
        drawn = torch.randn(12, 40, generator=torch.Generator().manual_seed(seed)) * noise * 0.05 * 40**0.5
        values = torch.arange(1, 13)[:, None] * 0.05 + drawn
        cells = [MeasuredCell({}, {"mcs": each[None]}, number) for number, each in enumerate(values, start=1)]
        found = rank_correlation(cells, printed, "mcs", "mcs")
        assert found is not None
        assert found.low <= found.value <= found.high
        covered += found.high == 1
    assert covered >= 17


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.8809, 0.8811, "0.881 (other images would hardly change a rank)"), (0.8804, 0.882, "0.881 [0.880, 0.882]")],
)
def test_rank_correlation_shows_an_interval_only_if_it_has_a_width(low: float, high: float, shown: str) -> None:
    text = str(RankCorrelation("mcs", "mcs", 8, 0.881, low, high))
    assert text == f"mean cosine similarity: Spearman's rank correlation with the source over 8 cells {shown}."


def test_rank_correlation_needs_four_cells() -> None:
    cells = [cell(place, mean) for place, mean in enumerate((0.3, 0.5, 0.4), start=1)]
    assert rank_correlation(cells, [{"mcs": 0.1 * place} for place in range(3)], "mcs", "mcs") is None


def test_rank_correlation_of_equal_cells_has_no_value() -> None:
    cells = [cell(place, mean) for place, mean in enumerate((0.3, 0.5, 0.4, 0.6), start=1)]
    assert rank_correlation(cells, [{"mcs": 0.1}] * 4, "mcs", "mcs") == RankCorrelation("mcs", "mcs", 4)


def test_difference_pairs_cells_over_images() -> None:
    """Two cells that differ by a constant on the same images have a difference without spread; unpaired draws would spread."""
    values = torch.rand(1, 300, generator=torch.Generator().manual_seed(0))
    of, less = (MeasuredCell({"network.factor": f}, {"mcs": values + 0.1 * (f > 1)}, f) for f in (4, 1))
    claim = Claim(text="x", of={"network.factor": (4,)}, less={"network.factor": (1,)})
    number = judge(claim, [of, less]).number
    assert number is not None
    assert number.value == pytest.approx(0.1)
    assert number.high - number.low < 1e-5
    assert np.ptp(of.draws("mcs")) > 0.01


def test_range_is_largest_minus_smallest() -> None:
    cells = [cell(1, 0.3), cell(2, 0.7), cell(3, 0.5)]
    number = judge(Claim(text="x", kind="range"), cells).number
    assert number is not None
    assert number.value == pytest.approx(cells[1].mean("mcs") - cells[0].mean("mcs"))
    assert number.low < number.value < number.high
    assert number.high - number.low < 0.1


def test_range_of_equal_cells_seldom_holds() -> None:
    """Four cells have the same mean, and each has three networks that scatter: their range is not above any bound."""
    verdicts = []
    for trial in range(30):
        generator = torch.Generator().manual_seed(trial)
        scattered = [0.5 + 0.05 * torch.randn(3, 1, generator=generator).expand(3, 20) for _ in range(4)]
        cells = [MeasuredCell({}, {"mcs": values}, number) for number, values in enumerate(scattered, start=1)]
        verdicts.append(judge(Claim(text="x", kind="range", expect="above", bound=0.025), cells).verdict)
    assert verdicts.count(Verdict.HOLDS) <= 6


def test_lead_is_over_the_highest_other_cell() -> None:
    cells = [cell(1, 0.3, **{"network.factor": 1}), cell(2, 0.7, **{"network.factor": 2}), cell(3, 0.5, **{"network.factor": 4})]
    claim = Claim(text="x", kind="lead", of={"network.factor": (2,)})
    number = judge(claim, cells).number
    assert number is not None
    assert number.value == pytest.approx(cells[1].mean("mcs") - cells[2].mean("mcs"))
    assert 0 < number.low < number.value < number.high < 0.4
    among = judge(claim.model_copy(update={"less": {"network.factor": (1, 2)}}), cells).number
    assert among is not None
    assert among.value == pytest.approx(cells[1].mean("mcs") - cells[0].mean("mcs"))


def test_lead_of_equal_cells_seldom_holds() -> None:
    """The highest of five equal cells is picked after the fact; against the other four it leads by chance alone."""
    verdicts = []
    for trial in range(40):
        generator = torch.Generator().manual_seed(trial)
        cells = [
            MeasuredCell({"network.factor": number}, {"mcs": 0.5 + 0.1 * torch.randn(3, 60, generator=generator)}, number)
            for number in range(1, 6)
        ]
        verdicts.append(judge(Claim(text="x", kind="lead", of={"network.factor": (1,)}), cells).verdict)
    assert verdicts.count(Verdict.HOLDS) <= 3


def test_cells_without_spread_leave_room_for_unseen_images() -> None:
    """No image of 20 keeps its answer in two cells: their difference is not sure to be below 0.02."""
    cells = [MeasuredCell({"network.factor": f}, {"worst_case": torch.zeros(1, 20)}, number=f) for f in (1, 4)]
    claim = Claim(
        text="x",
        measure="worst_case",
        of={"network.factor": (4,)},
        less={"network.factor": (1,)},
        expect="below",
        bound=0.02,
    )
    found = judge(claim, cells)
    assert found.verdict is Verdict.UNDECIDED
    assert found.number is not None
    assert found.number.high == pytest.approx(1.96**2 / (20 + 1.96**2), abs=1e-3)  # the upper end of Wilson's 0 of 20
    assert found.number.low == pytest.approx(-found.number.high)


def test_verdict_of_one_network_a_cell_says_so() -> None:
    def found(seeds: int) -> str:
        values = torch.rand(seeds, 50, generator=torch.Generator().manual_seed(0)) / 100
        return str(judge(Claim(text="x", bound=0.5, expect="below"), [MeasuredCell({}, {"mcs": values}, 1)]))

    assert (found(1), found(3)) == ("holds here", "holds")


def test_judge_needs_every_cell_of_claim() -> None:
    cells = [cell(1, 0.3, **{"network.factor": 1}), cell(2, 0.5, **{"network.factor": 2})]
    found = judge(Claim(text="x", of={"network.factor": (2, 4)}), cells)
    assert (found.verdict, found.absent) == (Verdict.NOT_IN_STUDY, {"network.factor": 4})


def test_judge_one_image_is_undecided() -> None:
    assert judge(Claim(text="x"), [MeasuredCell({}, {"mcs": torch.full((2, 1), 0.5)}, 1)]).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize(
    ("expect", "bound", "verdict"),
    [
        ("above", 0.4, Verdict.HOLDS),
        ("above", 0.6, Verdict.DOES_NOT_HOLD),
        ("above", None, Verdict.UNDECIDED),
        ("below", 0.6, Verdict.HOLDS),
        ("below", 0.4, Verdict.DOES_NOT_HOLD),
        ("below", None, Verdict.UNDECIDED),
    ],
)
def test_verdict_needs_whole_interval_on_one_side(expect: str, bound: float | None, verdict: Verdict) -> None:
    """The cell's mean is about 0.5, with a narrow interval; None stands for a bound inside it."""
    measured = cell(1, 0.5)
    claim = Claim.model_validate({"text": "x", "expect": expect, "bound": measured.mean("mcs") if bound is None else bound})
    found: Judgement = judge(claim, [measured])
    assert found.verdict is verdict
    assert isinstance(found.number, Estimate)


def test_claims_may_name_settings_that_all_cells_share(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "study.json").read_text())
    shared = shutil.copytree(folder, tmp_path / "shared")
    kernel = read_folder(folder).cells[0].planned[0].network.pool_kernel
    claims = [{"text": "all", "of": {"network.pool_kernel": [number]}, "expect": "below", "bound": 2} for number in (kernel, 5)]
    (shared / "study.json").write_text(json.dumps(document | {"source": document["source"] | {"claims": claims}}))
    assert [each.verdict for each in compare(read_folder(shared)).claims] == [Verdict.HOLDS, Verdict.NOT_IN_STUDY]


def test_lead_over_no_other_cell_is_not_in_the_study() -> None:
    claim = Claim(text="the best", kind="lead", of={"network.factor": (1,)})
    assert judge(claim, [cell(1, 0.5, **{"network.factor": 1})]).verdict is Verdict.NOT_IN_STUDY


def test_cells_are_found_by_settings_that_are_lists() -> None:
    cells = [{"network.factor": factor, "network.channels": [4, 8], "mcs": 0.5 * factor} for factor in (1, 2)]
    claim = {"text": "more", "of": {"network.factor": [2], "network.channels": [[4, 8]]}, "less": {"network.factor": [1]}}
    study = Study.model_validate(
        {
            "name": "a",
            "title": "t",
            "seeds": 1,
            "network": {"channels": [4, 8]},
            "grid": {"network.factor": [1, 2]},
            "source": {"title": "p", "cells": cells, "claims": [claim]},
        }
    )
    assert study.source_numbers({"network.factor": 2}) == {"mcs": 1.0}
    assert study.source is not None
    measured = [
        MeasuredCell({**cell.settings, "network.channels": (4, 8)}, {"mcs": torch.rand(1, 20) * 0.1 + number}, number)
        for number, cell in enumerate(study.cells())
    ]
    assert judge(study.source.claims[0], measured).verdict == Verdict.HOLDS
