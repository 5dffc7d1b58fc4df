"""``shiftscope fix --train`` trains the fixed model and its control, saves what it saw, and refuses what it cannot train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.conftest import Command

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


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--epochs", "2"), "--epochs describes a training. Add --train DATA."),
        (("--train", "digits", "--epochs", "0"), "`epochs` must be 1 or more, got 0"),
        (("--train", "digits", "--learning-rate", "nan"), "`learning_rate` must be above 0, got nan"),
        (("--train", "nowhere"), "'nowhere'"),
        (("--train", "digits", "--train-images", "0"), "`train_images` must be 1 or more, got 0"),
    ],
)
def test_impossible_training_exits_with_2(shiftscope: Command, arguments: tuple[str, ...], problem: str) -> None:
    done = shiftscope(*MODEL, *arguments)
    assert done.code == 2
    assert problem in done.err
