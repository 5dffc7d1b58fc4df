"""Commands on studies run, resume, show and refuse them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cli.conftest import STUDY, Command


def test_study_prints_its_table_and_finds_its_runs_finished_afterwards(shiftscope: Command, tmp_path: Path) -> None:
    first = shiftscope("study", "tiny.toml")
    assert first.code == 0, first.err
    assert "subsampling" in first.out
    assert "Saved in studies/tiny: table.md, table.csv" in first.out
    assert "1/1 done  factor 4, seed 0" in first.err
    assert (tmp_path / "studies" / "tiny" / "report.html").is_file()
    again = shiftscope("study", "tiny.toml", "--json")
    assert "found finished" in again.err
    row = json.loads(again.out)["rows"][0]
    assert row["factor"] == 4
    assert -1 <= row["mcs"]["low"] <= row["mcs"]["value"] <= row["mcs"]["high"] <= 1


def test_folder_of_a_changed_study_has_the_whole_change_in_its_name(shiftscope: Command, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "tiny,learning_rate=0.05").write_text("")
    done = shiftscope("study", "tiny.toml", "--set", "training.learning_rate=0.05")
    assert done.code == 2
    assert "studies/tiny,learning_rate=0.05" in done.err


def test_report_writes_only_the_file_it_is_asked_for(shiftscope: Command, run: Path, tmp_path: Path) -> None:
    done = shiftscope("report", str(run.parent.parent), "--out", "page.html")
    assert (done.code, done.out) == (0, "Saved in page.html.\n")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_figures_are_written_or_left_out_with_a_reason(shiftscope: Command, run: Path) -> None:
    done = shiftscope("figures", str(run.parent.parent), "--out", "figures", "--format", "svg")
    assert done.code == 0
    assert "Left out: " in done.out or "figures: nothing" not in done.out
    assert all(name.endswith(".svg") for name in os.listdir("figures"))


def test_open_without_a_page_says_how_to_write_it(shiftscope: Command, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("{}")
    done = shiftscope("open", ".")
    assert (done.code, done.err) == (
        2,
        "shiftscope: . holds no report.html. Write it with `shiftscope report .`.\n",
    )


@pytest.mark.parametrize("command", ["report", "open", "compare", "figures"])
@pytest.mark.parametrize(("folder", "problem"), [("photos", "holds n"), ("nowhere", "nowhere")])
def test_folder_of_photos_or_no_folder_is_refused_by_what_it_is(
    shiftscope: Command, tmp_path: Path, command: str, folder: str, problem: str
) -> None:
    (tmp_path / "photos").mkdir()
    done = shiftscope(command, folder)
    assert done.code == 2
    assert problem in done.err
    assert "study.json" not in done.err
    assert ("there is no folder nowhere." in done.err) == (folder == "nowhere")


@pytest.mark.parametrize(
    ("command", "out", "reason"),
    [
        ("report", "taken", "it is a folder"),
        ("report", "tiny.toml/page.html", "tiny.toml is a file"),
        ("report", "tiny.toml/deep/page.html", "tiny.toml is a file"),
        ("figures", "tiny.toml", "it is a file"),
    ],
)
def test_place_that_cannot_be_written_is_found_before_the_work(
    shiftscope: Command, run: Path, tmp_path: Path, command: str, out: str, reason: str
) -> None:
    (tmp_path / "taken").mkdir()
    done = shiftscope(command, str(run.parent.parent), "--out", out)
    kind = "folder" if command == "figures" else "file"
    assert (done.code, done.out) == (2, "")
    assert done.err.strip() == f"shiftscope: `out` {out} cannot be written ({reason}). Choose another {kind}."


def test_two_studies_are_not_compared_but_each_with_its_paper(shiftscope: Command, run: Path) -> None:
    folder = str(run.parent.parent)
    done = shiftscope("compare", folder, folder)
    assert done.code == 2
    assert f"Give it alone: `shiftscope compare {folder}`." in done.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("study", "imagenet"), "there is no study 'imagenet'"),
        (("study", "three.toml"), "has 3 mistakes"),
        (("study", "tiny.toml", "--seeds", "0"), "`seeds` must be 1 to 10,000, got 0."),
        (("study", "tiny.toml", "--set", "data.canvas"), "`--set` must be PATH=VALUE"),
        (("study", "tiny.toml", "--set", "network.factor=1,2"), "Write several values as a list, network.factor=[1,2], and"),
        (("study", "tiny.toml", "--set", "seeds=1", "--set", "seeds=2"), "`--set` gives seeds twice. Give it once."),
        (("study", "tiny.toml", "--set", "data.canvass=3"), "'data.canvass' is not a setting"),
        (("study", "tiny.toml", "--device", "tpu"), "`device` must be auto, cpu or an available cuda device, got 'tpu'"),
        (("study", "tiny.toml", "--gpus", "0.5"), "`--gpus` is for jobs of a cluster only. Add `--executor ray` or"),
        (("study", "mnist", "--data-dir", "nowhere"), "`data_dir` must be an existing folder, got nowhere"),
        (("study", "small_canvas.toml"), "`data.canvas` must be at least as large as the image"),
        (("study", "far.toml"), "content would be cut"),
        (("study", "tiny.toml", "--out", "tiny.toml/out"), "cannot be written"),
    ],
)
def test_invalid_study_exits_with_2_and_writes_nothing(
    shiftscope: Command, tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "three.toml").write_text(
        'title = "x"\n[data]\ncanvass = 1\n[network]\npool_kernel = 9\n[grid]\nnetwork.factor = [3]\n'
    )
    (tmp_path / "small_canvas.toml").write_text(STUDY.replace("image_size = 10", "image_size = 24"))
    (tmp_path / "far.toml").write_text(STUDY.replace("max_shift = 6", "max_shift = 7"))
    before = sorted(os.listdir(tmp_path))
    done = shiftscope(*arguments)
    assert (done.code, done.out) == (2, "")
    assert problem in done.err
    assert sorted(os.listdir(tmp_path)) == before


def test_run_is_found_by_the_name_that_list_shows(shiftscope: Command, run: Path) -> None:
    folder = str(run.parent.parent)
    listed = shiftscope("list", folder, "--json")
    names = [row["run"] for row in json.loads(listed.out)["rows"]]
    assert listed.code == 0
    named = shiftscope("audit", folder, "--run", names[0], "--images", "4", "--protocol", "mouton2020", "--json")
    direct = shiftscope("audit", str(run), "--images", "4", "--protocol", "mouton2020", "--json")
    by_folder = shiftscope("audit", folder, "--run", run.name, "--images", "4", "--protocol", "mouton2020", "--json")
    assert (named.code, direct.code, by_folder.code) == (0, 0, 0), named.err
    assert json.loads(named.out)["rows"] == json.loads(direct.out)["rows"] == json.loads(by_folder.out)["rows"]
    unknown = shiftscope("audit", folder, "--run", "seed=99")
    assert unknown.code == 2
    assert f"holds no run 'seed=99'. It holds {names[0]}" in unknown.err


def test_set_writes_into_a_folder_of_its_own(shiftscope: Command, tmp_path: Path) -> None:
    done = shiftscope("study", "tiny.toml", "--set", "training.max_epochs=2", "--json")
    assert done.code == 0, done.err
    assert "(training.max_epochs = 2)" in json.loads(done.out)["title"]
    assert (tmp_path / "studies" / "tiny,max_epochs=2" / "table.csv").is_file()
