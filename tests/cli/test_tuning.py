"""``shiftscope fix --train`` trains the fixed model and its control, saves what it saw, and refuses what it cannot train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Command
from studies.test_runner import Elsewhere

MODEL = ("fix", "my_models:small", "--size", "20", "--data", "digits", "--images", "20", "--max-shift", "1", "--with", "blur")


def test_training_after_a_fix_is_measured_beside_the_same_without_it(shiftscope: Command, tmp_path: Path) -> None:
    trained = (*MODEL, "--train", "digits", "--train-images", "60", "--epochs", "1", "--consistency", "kl")
    done = shiftscope(*trained, "--out", "f.safetensors", "--json")
    assert done.code == 0, done.err
    table = json.loads(done.out)["tables"][1]
    names = [row["model"] for row in table["rows"]]
    assert names[:3] == ["original", "trained without the fix", "trained with the fix"]
    assert names[3:] == ["gain over original", "gain over trained without the fix"]
    assert any(note.startswith("Trained on 60 images of scikit-learn load_digits (sha256 ") for note in table["notes"])
    assert not (tmp_path / "f.training").exists()
    audited = shiftscope("audit", "f.safetensors", "--trust", "--data", "digits", "--images", "4", "--quick")
    assert audited.code == 0, audited.err
    assert "trained on 60 images of scikit-learn load_digits" in " ".join(audited.out.split())


def test_trainings_with_several_seeds_are_made_again_elsewhere(
    shiftscope: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = (*MODEL, "--train", "digits", "--train-images", "60", "--epochs", "1", "--layer-decay", "0.5", "--seeds", "2")
    here = shiftscope(*trained, "--json")
    monkeypatch.setattr("shiftscope.cli.tuning.FixOptions.start", lambda *_: Elsewhere())
    done = shiftscope(*trained, "--json", "--out", "f.safetensors")
    assert here.code == done.code == 0, done.err
    table = json.loads(done.out)["tables"][1]
    assert table == json.loads(here.out)["tables"][1]
    assert [row["mcs"]["seeds"] for row in table["rows"]] == [1, 2, 2, 2, 2]
    assert any(note.startswith("Trained 2 times, with another seed each time") for note in table["notes"])
    assert not (tmp_path / "f.training").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--epochs", "2"), "`--epochs` is for training only. Add --train DATA."),
        (("--train", "digits", "--epochs", "0"), "`epochs` must be 1 or more, got 0"),
        (("--train", "digits", "--learning-rate", "nan"), "`learning_rate` must be above 0, got nan"),
        (("--train", "nowhere"), "'nowhere'"),
        (("--workers", "2"), "`--workers` is for training only. Add --train DATA."),
        (("--executor", "submitit"), "`--executor` is for training only. Add --train DATA."),
        (("--every-shift",), "`--every-shift` is for training only. Add --train DATA."),
        (("--train", "digits", "--seeds", "0"), "`seeds` must be 1 or more, got 0"),
        (("--train", "digits", "--workers", "0"), "`workers` must be 1 or more, got 0"),
        (("--train", "digits", "--layer-decay", "2"), "`layer_decay` must be above 0, at most 1, got 2.0"),
        (("--train", "digits", "--executor", "submitit"), "Give one with --out"),
        (("--train", "digits", "--train-images", "60", "--every-shift"), "`every_shift` cannot train a model"),
        (("--train", "digits", "--train-images", "0"), "`train_images` must be 1 or more, got 0"),
    ],
)
def test_impossible_training_exits_with_2(shiftscope: Command, arguments: tuple[str, ...], problem: str) -> None:
    done = shiftscope(*MODEL, *arguments)
    assert done.code == 2
    assert problem in done.err
