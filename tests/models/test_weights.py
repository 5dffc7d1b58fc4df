"""Weights are read from safetensors and state dicts, and no pickle is executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.conftest import Malicious
from shiftscope.errors import InputError
from shiftscope.models import load_model


def weights() -> dict[str, Tensor]:
    return {name: torch.full_like(value, 0.5) for name, value in load_model("my_models:small").model.state_dict().items()}


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "checkpoint.pth"])
def test_weights_are_read_from_every_kind_of_file(file: str, factory: str) -> None:
    if file == "w.safetensors":
        save_file(weights(), file)
    elif file == "w.pt":
        torch.save(weights(), file)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights().items()}}, file)
    loaded = load_model(factory, weights=Path(file), mean=(0.1,), std=(0.2,))
    assert all(torch.equal(value, weights()[name]) for name, value in loaded.model[1].state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), "holds more than tensors, or is damaged; a pickled model is not read"),
        ({"epoch": 3}, "is not a state dict"),
        ({"a": torch.zeros(2)}, "do not fit the model"),
    ],
)
def test_file_without_fitting_weights_is_refused(content: object, message: str, factory: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=message):
        load_model(factory, weights=tmp_path / "w.pt")


def test_pickle_is_refused_and_not_executed(factory: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(InputError, match="holds more than tensors, or is damaged"):
        load_model(factory, weights=tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": Path("missing.pt")}, "does not exist"),
        ({"weights": Path("pretrained")}, "are for models of timm and torchvision"),
        ({"mean": (0.5,)}, "`mean` and `std` must be given together"),
        ({"mean": (0.5,), "std": (0.0,)}, "`std` positive"),
        ({"mean": (float("nan"),), "std": (1.0,)}, r"`mean` and `std` must be finite numbers, got \(nan,\)"),
    ],
)
def test_bad_options_of_weights_are_refused(options: dict[str, object], message: str, factory: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(factory, **options)
