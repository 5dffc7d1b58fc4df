"""The command line prints what was computed, speaks JSON where asked, and answers bad input with one sentence and exit code 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shiftscope.cli import main
from small import SMALL

TINY = SMALL.replace("seeds = 2", "seeds = 1").replace("[1, 4]", "[4]")


def shiftscope(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shiftscope", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )


def test_theory_as_json_has_the_promised_form() -> None:
    done = shiftscope("theory", "--json")
    tables = json.loads(done.stdout)["tables"]
    assert done.returncode == 0
    assert all({"name", "columns", "rows"} <= set(table) for table in tables)
    assert tables[0]["rows"][1] == {
        "shift": 1,
        "output": [0, 0, 0, 1, 2, 1, 2, 0],
        "similarity": 1.0,
        "movement": 1.0,
        "cosine in place": 0.6,
    }


def test_a_reader_who_has_had_enough_ends_a_command_without_a_word() -> None:
    command = [sys.executable, "-m", "shiftscope", "theory", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, told = process.communicate(timeout=120)
    assert (process.returncode, told) == (141, b"")


def test_theory_prints_every_table_with_its_sentence() -> None:
    printed = shiftscope("theory").stdout
    for text in (
        "0 0 0 0 1 2 1 2",
        "0 0 2 2",
        "subsampling breaks equivariance",
        "homogeneity 1 at factor 2",
        "fully connected layer",
    ):
        assert text in printed


def test_selfcheck_passes_and_prints_a_table() -> None:
    done = shiftscope("selfcheck", "--json")
    assert done.returncode == 0, done.stdout
    rows = json.loads(done.stdout)["rows"]
    assert {row["verdict"] for row in rows} == {"passed"}
    assert f"{len(rows)} of {len(rows)} passed." in shiftscope("selfcheck").stdout


def test_study_prints_its_table_and_then_finds_it_finished(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    first = shiftscope("study", "tiny.toml", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "factor" in first.stdout
    assert "Saved in studies/tiny" in first.stdout
    assert "1/1 done  factor 4, seed 0" in first.stderr
    assert (tmp_path / "studies" / "tiny" / "report.html").is_file()
    again = shiftscope("study", "tiny.toml", "--json", cwd=tmp_path)
    assert "found finished" in again.stderr
    row = json.loads(again.stdout)["rows"][0]
    assert row["factor"] == 4
    assert -1 <= row["mcs"]["low"] <= row["mcs"]["value"] <= row["mcs"]["high"] <= 1


def test_a_full_disk_is_told_and_finished_runs_are_kept(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the network's weights do not fit."""
    (tmp_path / "tiny.toml").write_text(TINY)
    code = (
        "import resource, signal, sys; from shiftscope.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "sys.exit(main(['study', 'tiny.toml']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "the study in studies/tiny stopped (File too large). Finished runs are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert shiftscope("study", "tiny.toml", cwd=tmp_path).returncode == 0


def test_ctrl_c_says_how_to_go_on_and_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(TINY.replace("max_epochs = 2", "max_epochs = 5000\npatience = 5000"))
    running = subprocess.Popen(
        [sys.executable, "-m", "shiftscope", "study", "long.toml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    begun, deadline = tmp_path / "studies" / "long" / "study.json", time.monotonic() + 150
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert begun.exists()
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Stopped. Finished runs are in studies/long; the same command goes on from there." in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("study", "imagenet"), "there is no study 'imagenet'"),
        (("study", "three.toml"), "has 3 mistakes"),
        (("study", "tiny.toml", "--seeds", "0"), "`seeds` must be one or more"),
        (("study", "tiny.toml", "--seeds", "many"), "many"),
        (("study", "tiny.toml", "--set", "data.canvas"), "`--set` must be PATH=VALUE"),
        (("study", "tiny.toml", "--set", "data.canvass=3"), "'data.canvass' is not a setting"),
        (("study", "tiny.toml", "--device", "tpu"), "`device` must be auto, cpu or an available cuda device, got 'tpu'"),
        (("study", "mnist", "--data-dir", "nowhere"), "`data_dir` must be an existing folder, got nowhere"),
        (("study", "small_canvas.toml"), "`data.canvas` must be at least as large as the image"),
        (("study", "far.toml"), "content would be cut"),
        (("study", "tiny.toml", "--out", "tiny.toml/out"), "cannot be written"),
        (("studdy",), "studdy"),
        (("study", "--colour"), "--colour"),
    ],
)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "three.toml").write_text(
        'title = "x"\n[data]\ncanvass = 1\n[network]\npool_kernel = 9\n[grid]\nnetwork.factor = [3]\n'
    )
    (tmp_path / "small_canvas.toml").write_text(TINY.replace("image_size = 10", "image_size = 24"))
    (tmp_path / "far.toml").write_text(TINY.replace("max_shift = 6", "max_shift = 7"))
    before = sorted(os.listdir(tmp_path))
    done = shiftscope(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sorted(os.listdir(tmp_path)) == before


def test_help_names_every_command_and_option() -> None:
    assert all(word in shiftscope("--help").stdout for word in ("theory", "study"))
    assert all(word in shiftscope("study", "--help").stdout for word in ("--data-dir", "--seeds", "--out", "--json", "--device"))


def test_fix_plans_measures_and_writes_a_file_that_can_be_fixed_again(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    assert shiftscope("study", "tiny.toml", cwd=tmp_path).returncode == 0
    run = str(next((tmp_path / "studies" / "tiny" / "runs").iterdir()))
    planned = shiftscope("fix", run, "--with", "blur", "--plan", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "MaxBlurPool2d" in planned.stdout or "BlurPool2d after the nonlinearity" in planned.stdout
    assert "Before and after" not in planned.stdout
    done = shiftscope(
        "fix", run, "--with", "gap", "--with", "blur", "--images", "20", "--out", "f.safetensors", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    changes, measures = json.loads(done.stdout)["tables"]
    assert any(row["becomes"] != "-" for row in changes["rows"])
    assert [row["model"] for row in measures["rows"]] == ["before", "before", "after", "after"]
    again = shiftscope("fix", "f.safetensors", "--with", "circular", "--plan", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("fix", "nothing", "--with", "blur"), "there is no model 'nothing'"),
        (("fix", "nothing"), "--with"),
        (("fix", "nothing", "--with", "glue"), "glue"),
        (("fix", "nothing", "--with", "blur", "--out", "f.pt"), "`out` must be a .safetensors file, got f.pt"),
    ],
)
def test_what_cannot_be_fixed_is_told_in_a_sentence(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = shiftscope(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


EXPLAINED = """
import torch
from torch import nn

class Dark(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) / 0

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10))

def dark():
    return Dark()
"""


def test_explain_prints_and_writes_causes_layers_and_fixes(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(EXPLAINED)
    asked = ("explain", "my_models:small", "--data", "digits", "--canvas", "20", "--images", "12", "--max-shift", "3")
    done = shiftscope(*asked, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("owed to the head", "Invariance is impossible", "Every layer's response to shifts", "--with gap"):
        assert text in done.stdout
    assert done.stderr.startswith("the model as it is\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"{name}.{ending}" for name in ("causes", "layers", "fixes") for ending in ("md", "csv")),
        "explanation.json",
    }
    content = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert content["main_cause"] == "head"
    assert content["settings"]["largest shift"] == "3 pixels"
    assert content["fixes"]["rows"][0]["command"].startswith("shiftscope fix my_models:small --with gap")


def test_explain_as_json_is_the_explanation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "told_models.py").write_text(EXPLAINED)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = [
        "explain",
        "told_models:small",
        "--data",
        "digits",
        "--canvas",
        "20",
        "--images",
        "4",
        "--mode",
        "circular",
        "--json",
    ]
    assert main(asked) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["graph"]["head"] == "flatten"
    assert content["settings"]["border"] == "circular"
    assert [row["layer"] for row in content["layers"]["rows"]] == ["canvas", "0", "1", "output"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("my_models:small", "--data", "digits", "--canvas", "30"), "`model` fails on images of shape (4, 1, 30, 30): "),
        (("my_models:dark", "--data", "digits"), "values that are not finite, for 4 of 4 images"),
        (("my_models:small", "--data", "digits", "--canvas", "20", "--images", "1"), "`images` must be 2 or more"),
        (("my_models:small", "--data", "digits", "--canvas", "20", "--max-shift", "20"), "`max_shift` must be 1 to 19 pixels"),
        (("my_models:other",), "has no attribute 'other'"),
        (("my_models:small", "--data", "digits", "--canvas", "20", "--out", "my_models.py/out"), "cannot be written"),
    ],
)
def test_what_explain_cannot_do_is_said_in_one_sentence(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    (tmp_path / "my_models.py").write_text(EXPLAINED)
    done = shiftscope("explain", *arguments, *(() if "--images" in arguments else ("--images", "4")), cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
