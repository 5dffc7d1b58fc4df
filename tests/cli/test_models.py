"""Commands on models print and write what they measured, and refuse what they cannot measure in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cli.conftest import Command

EXPLAIN = ("explain", "my_models:small", "--data", "digits", "--size", "20")


def test_fix_plan_lists_changes_without_measuring(shiftscope: Command, run: Path) -> None:
    planned = shiftscope("fix", str(run), "--with", "blur", "--plan")
    assert planned.code == 0, planned.err
    assert "BlurPool2d" in planned.out
    assert "features.0" not in planned.out
    assert "Before and after" not in planned.out
    every = shiftscope("fix", str(run), "--with", "blur", "--plan", "--wide")
    assert "features.0" in every.out


def test_fix_writes_a_file_that_can_be_fixed_again(shiftscope: Command, run: Path) -> None:
    done = shiftscope("fix", str(run), "--with", "gap", "--with", "blur", "--images", "20", "--out", "f.safetensors", "--json")
    assert done.code == 0, done.err
    changes, measures = json.loads(done.out)["tables"]
    assert any(row["becomes"] != "-" for row in changes["rows"])
    assert [row["model"] for row in measures["rows"]] == ["before", "before", "after", "after"]
    again = shiftscope("fix", "f.safetensors", "--with", "circular", "--plan")
    assert again.code == 0, again.err


def test_fix_wraps_a_model_and_saves_it(shiftscope: Command, run: Path) -> None:
    given = ("--images", "8", "--max-shift", "2", "--json")
    done = shiftscope("fix", str(run), "--with", "canonical", "--mode", "circular", *given, "--out", "f.safetensors")
    assert done.code == 0, done.err
    fixed = json.loads(done.out)["tables"][1]["rows"][1]
    again = shiftscope("fix", "f.safetensors", "--with", "circular", "--mode", "circular", *given)
    assert again.code == 0, again.err
    assert json.loads(again.out)["tables"][1]["rows"][0]["mcs"]["value"] == pytest.approx(fixed["mcs"]["value"], abs=1e-6)


def test_fix_takes_weights_and_normalisation_and_saves_them(shiftscope: Command, tmp_path: Path) -> None:
    import my_models
    from safetensors.torch import save_file

    save_file(my_models.small().state_dict(), tmp_path / "w.safetensors")
    given = ("--data", "digits", "--size", "20", "--images", "4", "--max-shift", "2", "--json")
    options = ("--with", "circular", "--weights", "w.safetensors", "--mean", "0.5", "--std", "0.25", *given)
    done = shiftscope("fix", "my_models:small", *options, "--out", "f.safetensors")
    assert done.code == 0, done.err
    again = shiftscope("fix", "f.safetensors", "--with", "blur", "--trust", *given)
    assert again.code == 0, again.err
    fixed, loaded = (json.loads(each.out)["tables"][1]["rows"] for each in (done, again))
    assert loaded[0]["mcs"]["value"] == pytest.approx(fixed[2]["mcs"]["value"], abs=1e-4)


def test_fix_that_changes_nothing_writes_nothing(shiftscope: Command, tmp_path: Path) -> None:
    (tmp_path / "still.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(648, 3))\n"
    )
    given = ("still.py:net", "--with", "blur", "--data", "digits", "--size", "20", "--images", "4")
    done = shiftscope("fix", *given, "--out", "f.safetensors")
    assert done.code == 2
    assert "`blur` has nothing to change in still.py:net (stride 1: nothing is subsampled). Choose another fix" in done.err
    assert not (tmp_path / "f.safetensors").exists()
    planned = shiftscope("fix", *given, "--plan")
    assert planned.code == 0
    assert "Nothing was changed." in planned.out
    assert "Next:" not in planned.out


@pytest.mark.parametrize("mean", [("0.1", "0.2", "0.3"), ("0.1,0.2,0.3",), ("0.1,", "0.2, 0.3")])
def test_numbers_may_be_separated_by_commas(shiftscope: Command, mean: tuple[str, ...]) -> None:
    done = shiftscope("audit", "my_models:small", "--data", "digits", "--size", "20", "--mean", *mean, "--std", "0.5,0.6,0.7")
    assert done.err.startswith("shiftscope: the model takes images of 3 channels, but those of digits have 1.")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("nothing", "--with", "blur"), "there is no model 'nothing'"),
        (("nothing",), "--with"),
        (("nothing", "--with", "glue"), "glue"),
        (("nothing", "--with", "blur", "--out", "f.pt"), "`out` must be a .safetensors file, got f.pt"),
        (("nothing", "--with", "blur", "--filter-size", "8"), "`filter_size` must be 1 to 7, got 8"),
        (("nothing", "--with", "gap", "--filter-size", "5"), "`filter_size` is of the filters that `--with blur` adds"),
        (("nothing", "--with", "gap", "--reach", "2"), "`reach` is of `--with average` and `--with canonical`"),
        (("my_models.py", "--with", "blur"), "which function of it makes the model is not said. Give my_models.py:FUNCTION."),
    ],
)
def test_impossible_fix_exits_with_2(shiftscope: Command, arguments: tuple[str, ...], problem: str) -> None:
    done = shiftscope("fix", *arguments)
    assert done.code == 2
    assert problem in done.err


def test_explain_prints_and_writes_causes_layers_and_fixes(shiftscope: Command, tmp_path: Path) -> None:
    done = shiftscope(*EXPLAIN, "--images", "12", "--max-shift", "3", "--out", "out")
    assert done.code == 0, done.err
    assert all(text in done.out for text in ("head", "feature maps", "canonical"))
    files = {f"{name}.{ending}" for name in ("causes", "layers", "fixes") for ending in ("md", "csv")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | {"explanation.json", "report.html"}
    content = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert content["main_cause"] == "head"
    assert content["settings"]["largest shift"] == "3 pixels"
    fixes = {row["fix"]: row for row in content["fixes"]["rows"]}
    start = "shiftscope fix my_models:small --size 20 --data digits --images 12 --max-shift 3"
    assert next(iter(fixes.values()))["command"] == f"{start} --with canonical --out fixed.safetensors"
    # With random weights the mean over positions makes outputs of different images equal, and comes later for that.
    assert fixes["gap"]["command"] == f"{start} --with gap --out fixed.safetensors"
    assert fixes["gap"]["different_images"]["value"] > 0.999


def test_explanation_fits_40_lines_with_the_verdict_first_and_a_command_last(
    shiftscope: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = shiftscope(*EXPLAIN, "--images", "12", "--max-shift", "3")
    lines = done.out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines[:-1])) <= 80
    assert lines[0].startswith("my_models:small")
    assert any(
        line.startswith("After shifts of up to 3 pixels the outputs keep a mean cosine similarity of") for line in lines[:6]
    )
    assert lines[-1].startswith("  shiftscope fix my_models:small ")
    assert lines[-1].endswith("--with canonical --out fixed.safetensors")
    assert len(shiftscope(*EXPLAIN, "--images", "12", "--max-shift", "3", "--wide").out.splitlines()) > 40


def test_explain_json_is_the_explanation(shiftscope: Command) -> None:
    done = shiftscope(*EXPLAIN, "--images", "4", "--mode", "circular", "--json")
    assert done.code == 0, done.err
    content = json.loads(done.out)
    assert content["graph"]["head"] == "flatten"
    assert content["settings"]["border"] == "circular"
    assert [row["layer"] for row in content["layers"]["rows"]] == ["canvas", "0", "1", "output"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("my_models:small", "--data", "digits", "--size", "30"), "the model fails on images of 1x30x30"),
        (("my_models:dark", "--data", "digits"), "the model returned NaN or infinity"),
        (("my_models:small", "--data", "digits", "--size", "20", "--images", "1"), "`images` must be 2 or more"),
        (
            ("my_models:small", "--data", "digits", "--size", "20", "--max-shift", "20"),
            "`max_shift` must be 1 to 10 pixels, half of the image's 20",
        ),
        (("my_models:other",), "has no attribute 'other'"),
        (
            ("my_models:small", "--data", "digits", "--size", "20", "--out", "my_models.py/out"),
            "`out` my_models.py/out cannot be written (my_models.py is a file). Choose another folder.",
        ),
    ],
)
def test_impossible_explanation_exits_with_2(shiftscope: Command, arguments: tuple[str, ...], problem: str) -> None:
    done = shiftscope("explain", *arguments, *(() if "--images" in arguments else ("--images", "4")))
    assert done.code == 2
    assert problem in done.err


GREY = ("my_models:small", "--size", "20", "--images", "6", "--max-shift", "1")


def test_first_line_is_the_same_for_every_command_and_kept_in_what_they_write(shiftscope: Command, tmp_path: Path) -> None:
    audit = shiftscope("audit", *GREY, "--protocol", "mouton2020", "--out", "out")
    merged = shiftscope("audit", "--merge", "out")
    planned = shiftscope("fix", *GREY, "--with", "blur", "--plan", "--json")
    first = planned.err.partition("my_models")[1] + planned.err.partition("my_models")[2].rstrip()
    assert "6 of 1,797 images of scikit-learn load_digits" in " ".join(first.split())
    assert audit.out.startswith(first)
    assert merged.out.startswith(first)
    kept = json.loads((tmp_path / "out" / "audit.json").read_text())["provenance"]
    facts = json.loads(planned.out)["provenance"]
    assert {name: kept[name] for name in facts} == facts
    assert {"weights", "input", "normalisation", "preparation", "data", "precision"} <= set(facts)


@pytest.mark.parametrize(
    ("mode", "protocols"),
    [("zero", {"mouton2020", "myburgh2021"}), ("circular", {"chaman2021-circular"}), ("crop", {"azulay2018"})],
)
def test_mode_keeps_the_protocols_with_that_border(shiftscope: Command, mode: str, protocols: set[str]) -> None:
    done = shiftscope("audit", *GREY, "--mode", mode, "--json")
    assert done.code == 0, done.err
    assert protocols <= {row["protocol"] for row in json.loads(done.out)["rows"]} - {"unshifted"} <= protocols | {"zhang2019"}
    refused = shiftscope("audit", *GREY, "--mode", "crop", "--protocol", "mouton2020")
    assert (refused.code, "the border of mouton2020 is 'zero'" in refused.err) == (2, True)


def test_shard_without_blocks_of_its_own_takes_over_those_of_others(shiftscope: Command) -> None:
    done = shiftscope("audit", *GREY, "--protocol", "mouton2020", "--out", "out", "--shard", "1/2")  # there is one block, in 2/2
    assert "Saved in out" in done.out


def test_labels_of_other_classes_leave_no_accuracy_anywhere(shiftscope: Command) -> None:
    (Path.cwd() / "my_models.py").write_text(Path("my_models.py").read_text().replace("nn.Linear(400, 10)", "nn.Linear(400, 7)"))
    audit = shiftscope("audit", *GREY, "--protocol", "mouton2020", "--json")
    explain = shiftscope("explain", *GREY, "--json")
    fix = shiftscope("fix", *GREY, "--with", "blur", "--json")
    for done in (audit, explain, fix):
        assert done.code == 0, done.err
        assert "Labels are ignored: the model has 7 classes, the data 10." in done.out
    assert "accuracy" not in {row["measure"] for row in json.loads(audit.out)["rows"]}
    assert all(row.get("accuracy") is None for row in json.loads(explain.out)["fixes"]["rows"])
    assert all(row.get("test_accuracy") is None for row in json.loads(fix.out)["tables"][1]["rows"])


@pytest.mark.parametrize("command", [("audit",), ("explain",), ("fix", "--with", "blur")], ids=lambda each: each[0])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--max-shift", "100"), "`max_shift` must be 1 to 10 pixels, half of the image's 20, got 100"),
        (("--data", "my_models/none"), "there is no folder my_models/none, and the data set 'my_models/none' is not cached"),
        (("--data", "./none"), "`data` must be an existing folder, but ./none does not exist"),
    ],
)
def test_every_command_refuses_alike(
    shiftscope: Command, command: tuple[str, ...], options: tuple[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("SHIFTSCOPE_DATA", raising=False)
    name, *rest = command
    done = shiftscope(name, "my_models:small", "--size", "20", *rest, *options)
    assert done.code == 2
    assert problem in done.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "`audit` needs a model, or a folder to merge"),
        (("my_models:small", "--merge", "out"), "Give one of MODEL and --merge"),
        (("my_models:small", "--shard", "1/2"), "`shard` needs a folder for its blocks"),
        (("my_models:small", "--shard", "half", "--out", "out"), "`shard` must be I/N, got 'half'"),
        (("my_models:small", "--shard", "1/2", "--workers", "2", "--out", "out"), "Give one of them"),
    ],
)
def test_impossible_audit_exits_with_2(shiftscope: Command, arguments: tuple[str, ...], problem: str) -> None:
    done = shiftscope("audit", *arguments)
    assert done.code == 2
    assert problem in done.err


QUICK = ("audit", "my_models:small", "--size", "20", "--data", "digits", "--images", "150", "--protocol", "mouton2020")


def test_quick_audit_prints_the_first_answer_and_the_complete_audit_as_next_command(shiftscope: Command) -> None:
    done = shiftscope(*QUICK, "--protocol", "azulay2018", "--quick", "--batch-size", "9")
    assert done.code == 0, done.err
    assert "Intervals: 95 %, over 32 images." in done.out
    assert "azulay2018" not in done.out.rpartition("Next:")[0]
    following = " --protocol mouton2020 --protocol azulay2018 --batch-size 9"
    assert done.out.splitlines()[-1] == f"  shiftscope audit my_models:small --size 20 --data digits --images 150{following}"
    assert "cut content" not in done.out
    further = shiftscope(*QUICK, "--quick", "--max-shift", "7")
    assert "The canvas leaves 5 pixels around these images: larger shifts, of up to 7, cut content." in " ".join(
        further.out.split()
    )
    refused = shiftscope(*QUICK, "--quick", "--out", "out")
    assert (refused.code, "Leave out --out" in refused.err) == (2, True)


def test_audit_in_a_pipe_says_its_first_answer_beside_the_output(shiftscope: Command) -> None:
    done = shiftscope(*QUICK, "--protocol", "azulay2018", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["cost"]["images"] == 150
    assert "First answer, from 32 images: The answer changes for" in " ".join(done.err.split())


@pytest.mark.parametrize("out", [(), ("--out", "out")], ids=["memory", "folder"])
def test_stopped_audit_prints_what_it_has_and_exits_with_130(
    shiftscope: Command, out: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import my_models
    from torch import Tensor, nn

    class Stopped(nn.Module):
        """Ctrl-C while the third block of images is measured."""

        seen = 0

        def __init__(self) -> None:
            super().__init__()
            self.model = my_models.small()

        def forward(self, images: Tensor) -> Tensor:
            Stopped.seen += len(images)
            if Stopped.seen > 1500:
                raise KeyboardInterrupt
            found: Tensor = self.model(images)
            return found

    monkeypatch.setattr(my_models, "stopped", Stopped, raising=False)
    done = shiftscope("audit", "my_models:stopped", *QUICK[2:], "--protocol", "azulay2018", *out)
    assert done.code == 130, done.err
    assert "The answer changes for" in done.out
    assert re.search(r"Stopped after (64|128) of 150 images\.", done.out)
    said = "Finished blocks are in out; run the same command again to resume." if out else "Nothing is saved without --out"
    assert said in done.err


def test_output_chooses_one_of_several_in_every_command(shiftscope: Command) -> None:
    (Path.cwd() / "my_pair.py").write_text(
        "import my_models\n"
        "from torch import nn\n"
        "class Pair(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inner = my_models.small()\n"
        "    def forward(self, images):\n"
        "        scores = self.inner(images)\n"
        "        return {'scores': scores, 'halves': scores / 2}\n"
    )
    options = ("my_pair:Pair", "--size", "20", "--images", "4", "--max-shift", "1", "--output", "halves")
    done = shiftscope("audit", *options, "--protocol", "mouton2020", "--json")
    assert done.code == 0, done.err
    explained = shiftscope("explain", *options, "--json")
    assert explained.code == 0, explained.err
    content = json.loads(explained.out)
    assert content["graph"]["head"] == "flatten"
    assert content["main_cause"]
    fixed = shiftscope("fix", *options, "--with", "gap", "--out", "pair.safetensors", "--json")
    assert fixed.code == 0, fixed.err
    again = shiftscope("audit", "pair.safetensors", *options[3:-2], "--protocol", "mouton2020", "--trust", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["provenance"]["output"] == "halves"


def test_recommended_fix_keeps_the_border_of_the_plan(shiftscope: Command) -> None:
    options = ("my_models:small", "--size", "20", "--images", "4", "--max-shift", "1", "--mode", "circular")
    done = shiftscope("fix", *options, "--with", "canonical", "--with", "blur", "--plan")
    assert done.code == 0, done.err
    command = next(line for line in done.out.splitlines() if line.startswith("  shiftscope fix"))
    assert "--mode circular --max-shift 1 --with canonical --with blur --out" in command
