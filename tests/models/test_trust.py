"""No code of a file runs, and nothing that a file names is downloaded, unless the user trusts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from shiftscope.cli import main
from shiftscope.datasets.dataset import DataSpec
from shiftscope.errors import InputError
from shiftscope.models import load_model
from shiftscope.models.family import NetworkSpec, build
from shiftscope.models.spec import METADATA_KEY, ModelSpec, save_model
from shiftscope.runtime import network
from shiftscope.runtime.seeds import stream
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study

HARM = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("harm").touch()

def made():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
"""
SMALL = {
    "network.factor": [1, 2],
    "network.channels": [2, 4],
    "data.image_size": 8,
    "data.canvas": 16,
    "data.train_images": 100,
    "data.test_images": 20,
    "training.max_epochs": 1,
    "measure.max_shift": 2,
}


@pytest.fixture
def harmful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file whose code must not run; it writes ``harm`` beside itself."""
    (tmp_path / "harmful.py").write_text(HARM)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "harmful.py"


def names_code(file: Path) -> None:
    """Write weights whose metadata names the harmful code."""
    weights = {"1.weight": torch.zeros(10, 256), "1.bias": torch.zeros(10)}
    save_file(weights, file, metadata={METADATA_KEY: json.dumps({"factory": "harmful.py:made"})})


@pytest.mark.parametrize("command", ["audit", "explain", "certify"])
def test_folder_of_a_run_names_no_code(harmful: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    names_code(Path("run/model.safetensors"))
    assert main([command, "run", "--images", "4"]) == 2
    assert "run/model.safetensors is not trusted, and loading it would call `harmful.py:made`" in capsys.readouterr().err
    assert not Path("harm").exists()
    assert isinstance(load_model("run", trust=True).model, nn.Module)
    assert Path("harm").exists()


def test_study_whose_networks_were_replaced_runs_no_code(harmful: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_study(load_study("digits", seeds=1, changes=SMALL), out=Path("study"))
    for run in Path("study/runs").iterdir():
        assert load_file(run / "model.safetensors")
        names_code(run / "model.safetensors")
    main(["report", "study"])
    main(["study", "digits", "--seeds", "1", "--out", "other", "--reuse", "study", "--workers", "1", *_sets()])
    assert main(["audit", "study", "--run", "factor=2,seed=0", "--images", "4"]) == 2
    assert not Path("harm").exists()


def _sets() -> list[str]:
    return [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]


def test_gate_runs_the_code_that_its_baseline_names_only_if_trusted(harmful: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = ["audit", "harmful.py:made", "--size", "16", "--images", "8", "--protocol", "mouton2020", "--json"]
    assert main(audit) == 0
    Path("baseline.json").write_text(capsys.readouterr().out)
    Path("harm").unlink()
    assert main(["check", "baseline.json"]) == 2
    assert "baseline.json names harmful.py:made, and loading that runs code" in " ".join(capsys.readouterr().err.split())
    assert not Path("harm").exists()
    assert main(["check", "baseline.json", "harmful.py:made"]) == 0
    assert main(["check", "baseline.json", "--trust"]) == 0


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("model", "hf:somebody/model", "names hf:somebody/model, and the Hugging Face hub is not contacted"),
        ("model", "timm:hf-hub:somebody/model", "names timm:hf-hub:somebody/model, and the Hugging Face hub is not contacted"),
        ("data", "somebody/set", "names the images somebody/set, and the Hugging Face hub is not contacted"),
    ],
)
def test_gate_contacts_no_hub_for_its_baseline(
    harmful: Path, setting: str, value: str, problem: str, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(Path("net.safetensors"), build(NetworkSpec(input_size=40), generator=stream(0, "weights")), _spec("digits"))
    assert main(["audit", "net.safetensors", "--images", "8", "--protocol", "mouton2020", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    known["settings"][setting] = value
    Path("baseline.json").write_text(json.dumps(known))
    assert main(["check", "baseline.json"]) == 2
    assert problem in " ".join(capsys.readouterr().err.split())


def _spec(data: str) -> ModelSpec:
    return ModelSpec(network=NetworkSpec(input_size=40), data=DataSpec(name=data, image_size=20))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a connection is tried."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(network.socket, "create_connection", refuse)
    monkeypatch.setattr(network.socket, "getaddrinfo", refuse)


def test_images_that_a_file_names_are_not_downloaded(harmful: Path, offline: None) -> None:
    pytest.importorskip("datasets", reason="needs datasets (extra `hub`)")
    save_model(Path("net.safetensors"), build(NetworkSpec(input_size=40), generator=stream(0, "weights")), _spec("somebody/set"))
    from shiftscope.audits.subject import SubjectSpec, open_subject

    with pytest.raises(
        InputError, match=r"'somebody/set' is not cached, and the Hugging Face hub is not contacted for what a file"
    ):
        open_subject(SubjectSpec(model="net.safetensors"))


@pytest.mark.parametrize("address", ["http://h:notaport", "http://["])
def test_damaged_address_of_a_proxy_is_one_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (extra `hub`)")
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(InputError, match=r"the environment variable HTTPS_PROXY is no address .*Correct or unset it\."):
        network.hub_answers()


def test_libraries_stay_offline_only_for_the_duration() -> None:
    constants = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub (extra `hub`)").constants
    before = constants.HF_HUB_OFFLINE
    with network.hub_offline():
        assert constants.HF_HUB_OFFLINE
        assert not network.hub_answers()
    assert before == constants.HF_HUB_OFFLINE
