"""Commands gate a model: exit codes, files for CI, and an audit's own settings for the next one."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from cli.conftest import Command
from shiftscope.models import load_model
from zoo import timm

AUDIT = ("audit", "my_models:small", "--size", "20", "--data", "digits", "--images", "40", "--protocol", "mouton2020")
OTHER = """
from my_models import small

def other():
    model = small()
    model[3].weight.data -= model[3].weight.data.mean(dim=1, keepdim=True)
    model[3].bias.data.zero_()
    return model
"""


@pytest.fixture
def baseline(shiftscope: Command, tmp_path: Path) -> Path:
    """Return a file with what `audit --json` printed."""
    done = shiftscope(*AUDIT, "--max-shift", "2", "--seed", "5", "--json")
    assert done.code == 0, done.err
    (tmp_path / "baseline.json").write_text(done.out)
    return tmp_path / "baseline.json"


@pytest.mark.parametrize(
    ("condition", "code", "outcome"),
    [("top-1 change > 0.9", 0, "passes"), ("top-1 change < 0.9", 1, "fails"), ("mcs of mouton2020 < -0.99", 0, "passes")],
)
def test_condition_decides_the_exit_code(shiftscope: Command, condition: str, code: int, outcome: str, tmp_path: Path) -> None:
    done = shiftscope(*AUDIT, "--fail-if", condition, "--junit", "ci/gate.xml", "--summary", "gate.md")
    assert done.code == code, done.err
    assert f"Gate {outcome}: " in done.out
    (suite,) = ElementTree.parse(tmp_path / "ci" / "gate.xml").getroot()
    assert suite.get("failures") == str(code)
    assert f"Gate {outcome}: " in (tmp_path / "gate.md").read_text()


def test_undecided_is_its_own_outcome_and_strict_decides(shiftscope: Command) -> None:
    printed = json.loads(shiftscope(*AUDIT, "--json").out)
    value = next(row["estimate"]["value"] for row in printed["rows"] if row["measure"] == "top1_change")
    condition = ("--fail-if", f"top-1 change > {value - 0.001}")
    done, strict = shiftscope(*AUDIT, *condition, "--json"), shiftscope(*AUDIT, *condition, "--strict", "--json")
    assert (done.code, json.loads(done.out)["gate"]["outcome"]) == (0, "undecided")
    assert (strict.code, json.loads(strict.out)["gate"]["outcome"]) == (1, "fails")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--fail-if", "top-1 change"), "must be MEASURE > NUMBER"),
        (("--fail-if", "worst_case < 0.5"), "Add --protocol every-shift or michaeli2023."),
        (("--fail-if", "mcs of every-shift < 0.5"), "Add --protocol every-shift."),
        (("--summary", "gate.md"), "need a condition"),
        (("--fail-if", "mcs < 0", "--summary", "my_models.py/gate.md"), "`summary` my_models.py/gate.md cannot be written"),
    ],
)
def test_impossible_condition_exits_with_2(shiftscope: Command, options: tuple[str, ...], problem: str) -> None:
    done = shiftscope(*AUDIT, *options)
    assert done.code == 2
    assert problem in " ".join(done.err.split())


def test_check_measures_with_the_settings_of_the_baseline(
    shiftscope: Command, baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text(OTHER)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    same = shiftscope("check", "baseline.json", "--trust", "--json")
    assert same.code == 0, same.err
    content, known = json.loads(same.out), json.loads(baseline.read_text())
    assert content["gate"]["outcome"] == "passes"
    for field in ("settings", "rows", "values"):
        assert {**content["audit"], "settings": None}[field] == {**known, "settings": None}[field]
    other = shiftscope("check", "baseline.json", "theirs.py:other", "--junit", "gate.xml")
    assert other.code == 1, other.out + other.err
    assert "Gate fails: " in other.out
    assert ElementTree.parse(tmp_path / "gate.xml").getroot()[0].get("failures") != "0"
    assert (tmp_path / "step.md").read_text().count("### Stability under shifts") == 2
    assert shiftscope("check", "baseline.json", "theirs.py:other", "--tolerance", "2").code == 0
    negative = shiftscope("check", "baseline.json", "nothing", "--tolerance", "-1")
    assert negative.code == 2
    assert "`tolerance` must be 0 or more, got -1" in negative.err


def test_condition_on_a_measure_of_studies_lists_those_of_the_audit(shiftscope: Command) -> None:
    done = shiftscope(*AUDIT, "--fail-if", "test accuracy < 5 %")
    assert done.code == 2
    assert "is not part of this audit. Choose one of accuracy, " in " ".join(done.err.split())


def test_check_says_that_images_are_normalised_otherwise_and_takes_how(shiftscope: Command, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "from my_models import small\n\ndef prepared():\n    return small(), {'mean': 0.5, 'std': 0.2}\n"
    )
    words = tuple("theirs.py:prepared" if word == "my_models:small" else word for word in AUDIT)
    printed = shiftscope(*words, "--json")
    assert printed.code == 0, printed.err
    (tmp_path / "baseline.json").write_text(printed.out)
    found = [
        shiftscope("check", "baseline.json", "my_models:small", *given)
        for given in ((), ("--mean", "0.5", "--std", "0.2"), ("--std", "0.2"))
    ]
    warning = "The baseline's images were normalised by mean 0.5 and std 0.2, and this model's are not normalised."
    assert [warning in " ".join(done.err.split()) for done in found] == [True, False, False]
    assert found[1].code == 0, found[1].err
    assert "Gate passes: all" in found[1].out
    assert found[2].code == 2


def test_check_of_an_export_numbers_classes_as_the_named_baseline_did(shiftscope: Command, tmp_path: Path) -> None:
    """The network names its classes in an order of its own; its ONNX file names none, and the folders' order is another one."""
    for library in ("onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="needs the extra `onnx`")
    names, draws = ("wasp", "ant", "bee"), np.random.default_rng(0)
    for number in range(12):
        picture = np.zeros((16, 16, 3), np.uint8)
        picture[..., number % 3] = draws.integers(60, 255)
        (tmp_path / "photos" / names[number % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "photos" / names[number % 3] / f"{number}.png")
    model = timm().create_model("test_vit", num_classes=3, global_pool="avg").eval()
    timm().models.save_for_hf(model, tmp_path / "vit", model_config={"label_names": list(names)}, safe_serialization=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        loaded = load_model(f"timm:local-dir:{tmp_path / 'vit'}")
        torch.onnx.export(loaded.model, (torch.rand(1, 3, 160, 160),), tmp_path / "vit.onnx", dynamo=True, verbose=False)
    assert loaded.classes == names
    options = ("--data", "photos", "--protocol", "mouton2020", "--max-shift", "1", "--json")
    done = shiftscope("audit", "timm:local-dir:vit", *options)
    assert done.code == 0, done.err
    (tmp_path / "baseline.json").write_text(done.out)
    assert json.loads(done.out)["classes"] == list(names)
    assert json.loads(shiftscope("audit", "vit.onnx", *options).out)["classes"] == sorted(names)
    check = shiftscope("check", "baseline.json", "vit.onnx", "--json")
    assert check.code == 0, check.out + check.err
    (accuracy,) = [each for each in json.loads(check.out)["comparison"]["measures"] if each["measure"] == "accuracy"]
    assert accuracy["change"]["value"] == 0
    assert accuracy["after"] == accuracy["before"]


def test_labels_are_left_out_if_one_folder_is_misnamed_and_others_are_elsewhere(shiftscope: Command, tmp_path: Path) -> None:
    for name in ("ant", "bees", "wasp"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "photos" / name / "0.png")
    model = timm().create_model("test_vit", num_classes=3)
    names = ["wasp", "ant", "bee"]
    timm().models.save_for_hf(model, tmp_path / "vit", model_config={"label_names": names}, safe_serialization=True)
    done = shiftscope("audit", "timm:local-dir:vit", "--data", "photos", "--protocol", "mouton2020", "--max-shift", "1", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert "Labels are ignored: the model's classes are 0 wasp, 1 ant, 2 bee, without bees." in found["notes"]
    assert not [row for row in found["rows"] if row["measure"] == "accuracy"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda known: known.pop("settings"), "does not say how it was measured"),
        (lambda known: known["provenance"].update(data_sha256="0"), "the images differ from those that baseline.json"),
        (lambda known: known.update(schema_version=99), "was written by a later version of shiftscope"),
        (lambda known: known.pop("rows"), "holds no audit (rows: is missing)"),
        (
            lambda known: known["rows"][1].update(views=3),
            "measures of baseline.json cannot be measured on this model: mean cosine",
        ),
        (lambda known: known["cost"].update(images=10**30), "holds no audit (cost.images: "),
        (lambda known: known["rows"][0]["estimate"].update(count=-1), "holds no audit (rows.0.estimate.count: "),
    ],
)
def test_baseline_that_says_too_little_exits_with_2(shiftscope: Command, baseline: Path, change, problem: str) -> None:
    known = json.loads(baseline.read_text())
    change(known)
    baseline.write_text(json.dumps(known))
    done = shiftscope("check", "baseline.json", "--trust")
    assert done.code == 2
    assert problem in " ".join(done.err.split())
    assert shiftscope("check", "nothing.json").code == 2


@pytest.mark.parametrize("place", ["/dev/zero", "pipe"])
def test_baseline_that_never_ends_is_refused(shiftscope: Command, place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for words in (("check", place), ("compare", place, place)):
        done = shiftscope(*words)
        assert (done.code, done.err.rstrip()) == (2, f"shiftscope: {place} is not a regular file. Check the path.")


def test_compare_of_one_audit_asks_for_another(shiftscope: Command, baseline: Path) -> None:
    done = shiftscope("compare", str(baseline))
    assert (done.code, "Give another audit to compare an audit with" in done.err) == (2, True)


def test_compare_sets_two_audits_side_by_side(shiftscope: Command, baseline: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(OTHER)
    arguments = [each.replace("my_models:small", "theirs.py:other") for each in AUDIT]
    made = shiftscope(*arguments, "--max-shift", "2", "--seed", "5", "--json")
    (tmp_path / "o.json").write_text(made.out)
    done = shiftscope("compare", "baseline.json", "o.json", "--json")
    measures = {each["measure"]: each for each in json.loads(done.out)["measures"]}
    assert set(measures) == {"accuracy", "mcs", "top1_change"}
    assert all(each["paired"] for each in measures.values())
    change = measures["top1_change"]
    assert change["change"]["value"] == pytest.approx(change["after"]["value"] - change["before"]["value"])
    printed = shiftscope("compare", "o.json", "o.json")
    assert "Of 3 measures of o.json: 3 equal." in printed.out
    assert shiftscope("compare", "baseline.json", "my_models.py").code == 2
