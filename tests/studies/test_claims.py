"""A study beside its source: differences, ranks and verdicts agree with independent restatements, missing runs are said."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from helpers import as_users_import_it
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean_over_seeds
from shiftscope.studies.claims import Held, _claims, _ranks, _statistic, _verdict, compare
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study
from shiftscope.studies.spec import Claim, Source
from small import SMALL

CLAIMS = """
[[source.claims]]
text = "factor 4 is above factor 1"
of = { network.factor = 4 }
less = { network.factor = [1] }

[[source.claims]]
text = "all is below 2"
of = {}
expect = "below"
bound = 2

[[source.claims]]
text = "of what is not here"
of = { network.factor = 8 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("comparison")
    (base / "small.toml").write_text(SMALL + CLAIMS)
    run_study(load_study(str(base / "small.toml")), out=base / "out")
    return base / "out"


def test_cells_stand_beside_the_source_and_claims_have_verdicts(folder: Path) -> None:
    cells, claims = compare(folder)
    row = cells.rows[1]
    assert isinstance(row["mcs"], Estimate)
    assert (row["factor"], row["seeds"], row["source_mcs"]) == (4, 2, 0.5)
    assert row["difference_mcs"].value == pytest.approx(row["mcs"].value - 0.5)
    assert row["difference_mcs"].low == pytest.approx(row["mcs"].low - 0.5)
    assert [claim["verdict"] for claim in claims.rows][1:] == ["holds", "not in this study: factor 8"]
    first = claims.rows[0]["number"]
    assert first.value == pytest.approx(cells.rows[1]["mcs"].value - _mean(folder, 1, "mcs"))
    assert first.low < first.value < first.high
    centred = claims.rows[0]["number_centred"]
    assert centred.value == pytest.approx(_mean(folder, 4, "mcs_centred") - _mean(folder, 1, "mcs_centred"))
    assert claims.rows[1]["verdict_centred"] == "holds"
    assert json.dumps(claims.to_json())


def _mean(folder: Path, factor: int, measure: str) -> float:
    records = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/record.json")]
    return float(np.mean([each["results"][measure]["value"] for each in records if each["spec"]["network"]["factor"] == factor]))


def test_missing_runs_are_said_and_not_judged(folder: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    shutil.copytree(folder, part)
    for path in (part / "runs").iterdir():
        if json.loads((path / "record.json").read_text())["spec"]["network"]["factor"] == 1:
            shutil.rmtree(path)
    cells, claims = compare(part)
    assert [row["seeds"] for row in cells.rows] == [0, 2]
    assert "1 cells are not measured yet" in cells.notes[0]
    assert claims.rows[0]["verdict"] == "not measured: 1 of 2 cells are missing"


def held(number: int, mean: float, **settings: object) -> Held:
    generator = torch.Generator().manual_seed(number)
    return Held(settings, {"mcs": mean + 0.01 * torch.randn(3, 200, generator=generator)}, number)


def test_a_cells_estimate_is_that_of_the_study() -> None:
    several = held(3, 0.995)
    assert several.estimate("mcs") == mean_over_seeds(several.values["mcs"], bounds=(-1.0, 1.0))


def test_the_rank_correlation_is_scipys() -> None:
    means, printed = [0.3, 0.5, 0.4, 0.9, 0.8], [0.1, 0.2, 0.3, 0.4, 0.5]
    cells = [held(place, mean) for place, mean in enumerate(means, start=1)]
    note = _ranks(cells, [{"mcs": number} for number in printed], "mcs", "mcs")
    expected = stats.spearmanr(means, printed).statistic
    assert f"over 5 cells {expected:.3f} [{expected:.3f}, {expected:.3f}]" in note
    assert _ranks(cells[:3], [{"mcs": 0.1}] * 3, "mcs", "mcs") == ""
    assert _ranks(cells, [{"mcs": 0.1}] * 5, "mcs", "mcs") == "mcs: all cells are alike, so that there is no rank correlation."


def test_differences_of_cells_are_paired_over_images() -> None:
    """Two cells that differ by a constant on the same images have a difference without spread; resampled apart they would not."""
    values = torch.rand(1, 300, generator=torch.Generator().manual_seed(0))
    of, less = Held({}, {"mcs": values + 0.1}, 1), Held({}, {"mcs": values}, 2)
    value, draws, _ = _statistic(Claim(text="x"), [of], [less])
    assert value == pytest.approx(0.1)
    assert np.ptp(draws) < 1e-5
    assert np.ptp(of.draws("mcs")) > 0.01


def test_a_range_is_the_largest_less_the_smallest() -> None:
    cells = [held(1, 0.3), held(2, 0.7), held(3, 0.5)]
    value, draws, spreads = _statistic(Claim(text="x", kind="range"), cells, [])
    assert value == pytest.approx(max(cell.mean("mcs") for cell in cells) - min(cell.mean("mcs") for cell in cells))
    assert abs(float(np.median(draws)) - value) < 0.01
    assert spreads == [cells[1].spread("mcs"), cells[0].spread("mcs")]


def test_a_range_of_equal_cells_is_not_found_to_be_one() -> None:
    """Four cells of the same mean, each of three networks that scatter: their range is below any bound, not above."""
    verdicts = []
    for trial in range(30):
        generator = torch.Generator().manual_seed(trial)
        scattered = [0.5 + 0.05 * torch.randn(3, 1, generator=generator).expand(3, 20) for _ in range(4)]
        cells = [Held({}, {"mcs": values}, number) for number, values in enumerate(scattered, start=1)]
        claim = Claim(text="x", kind="range", expect="above", bound=0.025)
        verdicts.append(_verdict(claim, cells[0].counted(*_statistic(claim, cells, []), "mcs")))
    assert verdicts.count("holds") <= 6


def test_a_claim_is_not_judged_on_a_part_of_its_cells() -> None:
    cells = [held(1, 0.3, **{"network.factor": 1}), held(2, 0.5, **{"network.factor": 2})]
    source = Source(title="t", claims=(Claim.model_validate({"text": "x", "of": {"network.factor": [2, 4]}}),))
    assert _claims(load_study("digits"), source, cells).rows[0]["verdict"] == "not in this study: factor 4"


def test_one_image_decides_nothing() -> None:
    assert _verdict(Claim(text="x"), Estimate(0.5, 0.5, 0.5, count=1)) == "undecided"


@pytest.mark.parametrize(
    ("expect", "bound", "low", "high", "verdict"),
    [
        ("above", 0.0, 0.1, 0.2, "holds"),
        ("above", 0.0, -0.2, -0.1, "does not hold"),
        ("above", 0.0, -0.1, 0.1, "undecided"),
        ("below", 0.5, 0.1, 0.4, "holds"),
        ("below", 0.5, 0.6, 0.7, "does not hold"),
        ("below", 0.5, 0.4, 0.7, "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(expect: str, bound: float, low: float, high: float, verdict: str) -> None:
    assert (
        _verdict(
            Claim.model_validate({"text": "x", "expect": expect, "bound": bound}), Estimate((low + high) / 2, low, high, count=9)
        )
        == verdict
    )


def test_what_cannot_be_compared_is_told_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    plain = as_users_import_it(importlib.import_module("shiftscope.studies.claims"))
    with pytest.raises(InputError, match=r"study\.json cannot be read"):
        plain.compare(tmp_path)
    empty, sourceless, broken = tmp_path / "empty", tmp_path / "sourceless", tmp_path / "broken"
    for path in (empty, sourceless, broken):
        path.mkdir()
        shutil.copy(folder / "study.json", path)
    with pytest.raises(InputError, match="holds no finished run"):
        plain.compare(empty)
    document = json.loads((folder / "study.json").read_text())
    (sourceless / "study.json").write_text(json.dumps(document | {"source": None, "name": "mine"}))
    with pytest.raises(InputError, match="has no source to compare with"):
        plain.compare(sourceless)
    (broken / "study.json").write_text('{"title": 3}')
    with pytest.raises(InputError, match="is not a study: "):
        plain.compare(broken)
    (broken / "study.json").write_text(json.dumps(document | {"network": {"colour": 3}}))
    with pytest.raises(InputError, match=r"is not a study: network\.colour: is not a known setting"):
        plain.compare(broken)
