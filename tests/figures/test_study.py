"""A study's folder is drawn as far as its records allow, and every figure left out is named with its reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import pages
from shiftscope.cli import main
from shiftscope.errors import InputError
from shiftscope.figures.study import write_figures, write_main_figure
from shiftscope.studies.folder import read_folder
from small import Finished

ALLOWED = [
    "mcs_curve",
    "mcs_centred_curve",
    "test_accuracy_curve",
    "sensitivity",
    "accuracy_invariance",
    "mcs_shift",
    "top1_change_shift",
    "layers",
]


@pytest.fixture(scope="module")
def study(trained: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(trained.out, tmp_path_factory.mktemp("figures") / "study"))


def test_figures_are_written_and_those_left_out_are_named(study: Path, tmp_path: Path) -> None:
    written, left_out = write_figures(study, out=tmp_path, formats=("svg",))
    assert written == ALLOWED
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.svg" for name in written}
    assert "mcs_grid: it needs two settings that vary, and this study varies 1." in left_out
    assert "antialias: no setting is measured both with and without a filter." in left_out
    assert all("max_shift" not in path.read_text() for path in tmp_path.iterdir()), "labels are words"


def test_study_without_finished_runs_is_refused(study: Path, tmp_path: Path) -> None:
    empty = pages.without(study, "record.json", 0, tmp_path / "none")
    with pytest.raises(InputError, match="holds no finished run"):
        write_figures(empty, out=tmp_path / "figures")
    write_main_figure(read_folder(empty))
    assert list(empty.glob("figure.*")) == []


def test_unwritable_figure_is_reported(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"mcs_curve\.svg cannot be written") as caught:
        write_figures(study, out=tmp_path / "file", formats=("svg",))
    assert caught.value.remedy == "Make room, or choose another folder with --out."


def test_figures_command_names_both(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", str(study), "--out", str(tmp_path), "--format", "svg"]) == 0
    printed = capsys.readouterr().out
    assert "antialias: no setting is measured both with and without a filter." in printed
    assert "mcs_curve, mcs_centred_curve" in printed
