"""A study's folder: which runs belong to which cell, their labels, and what is reported missing or damaged."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from shiftscope.errors import InputError
from shiftscope.studies.comparison import compare
from shiftscope.studies.folder import StudyFolder, read_folder
from shiftscope.studies.loading import load_study
from small import Finished


@pytest.fixture
def folder(trained: Finished, tmp_path: Path) -> Path:
    """A copy of a finished study that a test may change."""
    shutil.copytree(trained.out, tmp_path / "copy")
    return tmp_path / "copy"


def give_other_id(run: Path, name: str) -> Path:
    """Turn a run's folder into one whose id another rule made."""
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps(record | {"id": name}))
    return run.rename(run.with_name(name))


def test_record_with_older_id_is_in_table_and_comparison(folder: Path) -> None:
    before = read_folder(folder)
    older = give_other_id(before.cells[1].folders[0], "0123456789ab")
    results = read_folder(folder)
    assert older in results.cells[1].folders
    assert results.missing == ()
    table, comparison = results.table(), compare(results)
    assert table.rows == before.table().rows
    assert [row["mcs"] for row in table.rows] == [cell.ours["mcs"] for cell in comparison.cells]
    assert [row["seeds"] for row in table.rows] == [cell.networks for cell in comparison.cells] == [2, 2]


def test_current_id_wins_over_older_id(folder: Path) -> None:
    current = read_folder(folder).cells[0].folders[0]
    shutil.copytree(current, folder / "copied")
    (folder / "copied").rename(folder / "runs" / current.name[::-1])
    give_other_id(folder / "runs" / current.name[::-1], "000000000000")
    assert read_folder(folder).cells[0].folders[0] == current
    assert read_folder(folder).runs_finished == 4


def test_list_of_runs_says_what_each_folder_holds(folder: Path) -> None:
    with (folder / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"]: folder / row["folder"] for row in rows} == read_folder(folder).labels()
    assert all(int(row["epochs"]) > 0 and 0 <= float(row["train_accuracy"]) <= 1 for row in rows)


def test_labels_name_the_settings_that_vary(folder: Path) -> None:
    labels = read_folder(folder).labels()
    assert list(labels) == ["factor=1,seed=0", "factor=1,seed=1", "factor=4,seed=0", "factor=4,seed=1"]
    spec = json.loads((labels["factor=4,seed=1"] / "record.json").read_text())["spec"]
    assert (spec["network"]["factor"], spec["seed"]) == (4, 1)


def test_missing_names_damaged_unfinished_and_absent_runs(folder: Path) -> None:
    labels = read_folder(folder).labels()
    (labels["factor=1,seed=0"] / "record.json").write_text("{")
    (labels["factor=1,seed=1"] / "record.json").unlink()
    shutil.rmtree(labels["factor=4,seed=0"])
    results = read_folder(folder)
    assert results.damaged == (
        f"{labels['factor=1,seed=0'] / 'record.json'} is damaged (not a complete record); the run is left out.",
    )
    assert results.missing == (
        *results.damaged,
        f"Run {labels['factor=1,seed=1'].name} is not finished: it has no record yet.",
        "subsampling factor 1: none of 2 runs is finished.",
        "subsampling factor 4: 1 of 2 runs are finished.",
    )
    assert (results.runs_finished, results.runs_planned) == (1, 4)
    assert compare(results).damaged == results.damaged


def test_numbers_beyond_a_measures_bounds_are_damage(folder: Path) -> None:
    file = read_folder(folder).labels()["factor=1,seed=0"] / "record.json"
    record = json.loads(file.read_text())
    record["results"]["mcs"].update(value=1.0000002, high=1.0000002)  # as single precision rounds a mean of ones
    file.write_text(json.dumps(record))
    assert read_folder(folder).damaged == ()
    record["results"]["mcs"].update(value=1e308, low=-1e308)
    file.write_text(json.dumps(record))
    (sentence,) = read_folder(folder).damaged
    assert sentence.endswith("is damaged (its 'mcs' lies beyond -1 to 1); the run is left out.")


def test_read_folder_without_study_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no study\. Give the folder that `shiftscope study` wrote"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": 3}, "is not a study: title: must be text, got 3"),
        ({"network": {"colour": 3}}, "is not a study: network.colour: is not a known setting"),
    ],
)
def test_read_folder_with_wrong_study_raises(folder: Path, change: dict[str, object], message: str) -> None:
    document = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(document | change))
    with pytest.raises(InputError) as caught:
        read_folder(folder)
    assert message in str(caught.value)


def test_run_is_found_by_its_own_label_only() -> None:
    first, second, third = (Path(name) for name in ("0123456789ab", "123456789abc", "23456789abcd"))
    folder = StudyFolder(Path("out"), load_study("digits"), ())
    known = {"measure.seed=0,seed=1": first, "measure.seed=1,seed=0": second, "channels=[4, 4],seed=0": third}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudyFolder, "labels", lambda _: known)
        assert [folder.run(label) for label in known] == list(known.values())
        assert folder.run("seed=0, measure.seed=1") == folder.run("123456789abc") == second
        assert folder.run("seed=0,channels=[4,4]") == third
        with pytest.raises(InputError, match="holds no run"):
            folder.run("seed=0,seed=1")
