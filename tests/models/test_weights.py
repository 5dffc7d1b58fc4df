"""Weights are read from every usual kind of checkpoint, no pickle is executed, and a mismatch names the weights."""

from __future__ import annotations

import json
import pickle
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.conftest import Malicious
from shiftscope.errors import InputError
from shiftscope.models import load_model

PREFIXES = ["module.", "model.", "backbone.", "encoder.", "net.", "_orig_mod."]


def weights(value: float = 0.5) -> dict[str, Tensor]:
    return {name: torch.full_like(each, value) for name, each in load_model("my_models:small").model.state_dict().items()}


def prefixed(prefix: str, value: float = 0.5) -> dict[str, Tensor]:
    return {f"{prefix}{name}": each for name, each in weights(value).items()}


def are_those(model: nn.Module, value: float = 0.5) -> bool:
    return all(torch.equal(each, weights(value)[name]) for name, each in model.state_dict().items())


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt", "checkpoint.pth"])
def test_weights_are_read_from_every_kind_of_file(file: str, factory: str) -> None:
    if file == "w.safetensors":
        save_file(weights(), file)
    else:
        torch.save(weights(), file)
    loaded = load_model(factory, weights=Path(file), mean=(0.1,), std=(0.2,))
    assert are_those(loaded.model[1])
    assert loaded.weights == file


@pytest.mark.parametrize("prefix", [*PREFIXES, "module.model.", "model._orig_mod.backbone.", "model.model."])
def test_prefix_of_wrappers_is_removed_and_stated(prefix: str, factory: str) -> None:
    torch.save({"state_dict": prefixed(prefix)}, "w.ckpt")
    loaded = load_model(factory, weights=Path("w.ckpt"))
    assert are_those(loaded.model)
    assert loaded.weights == f"w.ckpt (`state_dict`; prefix `{prefix}` removed)"


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "model_ema", "ema", "state_dict_ema"])
def test_wrapper_of_a_checkpoint_is_removed(key: str, factory: str) -> None:
    torch.save({"epoch": 3, key: weights(), "optimizer": {"state": {0: torch.ones(2)}, "lr": 0.1}}, "w.pt")
    loaded = load_model(factory, weights=Path("w.pt"))
    assert are_those(loaded.model)
    assert loaded.weights == f"w.pt (`{key}`)"


def test_plain_weights_come_before_averaged_ones(factory: str) -> None:
    torch.save({"model_ema": prefixed("module.", 0.25) | {"n_averaged": torch.tensor(3)}, "model": weights()}, "w.pt")
    assert are_those(load_model(factory, weights=Path("w.pt")).model)


def test_averaged_model_of_pytorch_is_read(factory: str) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(load_model(factory).model)
    torch.save({"ema": averaged.state_dict()}, "w.pt")
    loaded = load_model(factory, weights=Path("w.pt"))
    assert all(torch.equal(value, averaged.module.state_dict()[name]) for name, value in loaded.model.state_dict().items())
    assert loaded.weights == "w.pt (`ema`; prefix `module.` removed; left out: n_averaged)"


def test_lightning_checkpoint_is_read(factory: str) -> None:
    """Everything that Lightning's Trainer writes, from a module whose hyperparameters are plain values."""
    torch.save(
        {
            "epoch": 4,
            "global_step": 500,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": prefixed("model.") | {"criterion.weight": torch.ones(3)},
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "dirpath": "runs"}},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 0.1, "name": "small"},
        },
        "last.ckpt",
    )
    loaded = load_model(factory, weights=Path("last.ckpt"))
    assert are_those(loaded.model)
    assert loaded.weights.endswith("left out: criterion.weight)")


def test_index_of_several_safetensors_files_is_read(factory: str) -> None:
    names = sorted(weights())
    places = {name: f"model-0000{1 + position % 2}-of-00002.safetensors" for position, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights()[name] for name in names if places[name] == file}, file)
    index = Path("model.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert are_those(load_model(factory, weights=index).model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not the index of safetensors files"),
        ("{}", "is not the index of safetensors files"),
        ('{"weight_map": {"a": "../w.safetensors"}}', "names '../w.safetensors', which does not lie beside it"),
        ('{"weight_map": {"a": ""}}', "names '', which does not lie beside it"),
        ('{"weight_map": {"a": "none.safetensors"}}', "none.safetensors does not exist"),
        ('{"weight_map": {"b": "w.safetensors"}}', "names tensors that its files do not hold: b"),
    ],
)
def test_bad_index_is_refused(content: str, message: str, factory: str) -> None:
    save_file({"a": torch.zeros(2)}, "w.safetensors")
    Path("model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_model(factory, weights=Path("model.safetensors.index.json"))


def test_mismatch_names_the_weights_and_their_shapes(factory: str) -> None:
    """Constructed: one missing, four too many, one of another shape."""
    given = weights() | {f"extra{number}": torch.zeros(1) for number in range(4)} | {"0.weight": torch.zeros(4, 3, 3, 3)}
    del given["4.bias"]
    torch.save(given, "w.pt")
    with pytest.raises(InputError) as failure:
        load_model(factory, weights=Path("w.pt"))
    assert failure.value.problem == (
        "the weights in w.pt do not fit the model: 1 missing (4.bias); 4 unexpected (extra0, extra1 and 2 more); "
        "1 of another shape (0.weight is 4x3x3x3 in the file and 4x1x3x3 in the model)."
    )


def test_weights_for_the_model_twice_are_refused(factory: str) -> None:
    torch.save(prefixed("backbone.") | prefixed("encoder."), "w.pt")
    with pytest.raises(InputError, match=r"holds weights for the model under `encoder.` and `backbone.`"):
        load_model(factory, weights=Path("w.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(2, 2), r"holds more than tensors \(torch.nn.modules.linear.Linear\); only tensors are read"),
        ({"model": {}, "args": Namespace(lr=1)}, r"holds more than tensors \(argparse.Namespace\)"),
        ({"epoch": 3}, "is not a state dict, which holds tensors by name; it holds epoch"),
        (3, "is not a state dict"),
        ({"a": torch.zeros(2)}, "do not fit the model"),
    ],
)
def test_file_without_fitting_weights_is_refused(content: object, message: str, factory: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=message):
        load_model(factory, weights=tmp_path / "w.pt")


@pytest.mark.slow
def test_command_that_converts_a_checkpoint_runs(factory: str, tmp_path: Path) -> None:
    path = tmp_path / "a checkpoint.pt"
    torch.save({"epoch": 3, "state_dict": prefixed("model."), "args": Namespace(lr=1)}, path)
    with pytest.raises(InputError, match="convert it once:\n  python -c") as failure:
        load_model(factory, weights=path)
    command = shlex.split(failure.value.remedy.partition(":\n")[2])
    subprocess.run([sys.executable, *command[1:]], check=True, env={})
    assert are_those(load_model(factory, weights=path.with_suffix(".safetensors")).model)


def test_pickle_is_refused_and_not_executed(factory: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(InputError, match="holds more than tensors, or is damaged"):
        load_model(factory, weights=tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["cut", "header", "empty", "text"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_file_is_not_called_a_pickle(kind: str, suffix: str, factory: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    save_file({"weight" * 8: torch.zeros(40)}, path)
    content = path.read_bytes()
    damaged = {"cut": content[:-30], "header": b"\x80\x02" + content[2:], "empty": b"", "text": b"<html>not found</html>"}
    path.write_bytes(damaged[kind])
    with pytest.raises(InputError, match="is damaged, or is n") as failure:
        load_model(factory, weights=path)
    assert "pickle" not in str(failure.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": Path("missing.pt")}, "does not exist"),
        ({"weights": Path()}, "`weights` must be a file, and . is a folder"),
        ({"weights": Path("pretrained")}, "are for models of timm and torchvision"),
        ({"mean": (0.5,)}, "`mean` and `std` must be given together"),
        ({"mean": (0.5,), "std": (0.0,)}, "`std` positive"),
        ({"mean": (float("nan"),), "std": (1.0,)}, r"`mean` and `std` must be finite numbers, got \(nan,\)"),
    ],
)
def test_bad_options_of_weights_are_refused(options: dict[str, object], message: str, factory: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(factory, **options)
