"""Models are loaded from factories, runs and files, and come back as they were saved."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.conftest import Malicious, images
from shiftscope.errors import InputError
from shiftscope.models import Fix, ModelSpec, load_model, save_model
from shiftscope.models.family import NetworkSpec
from shiftscope.surgery.compare import apply_fixes

BLUR = (Fix(kind="blur", filter_size=3),)
POLYPHASE = (Fix(kind="gap"), Fix(kind="aps"))
CIRCULAR = (Fix(kind="circular"), Fix(kind="lps"))


def test_factory_is_called(factory: str) -> None:
    loaded = load_model(factory)
    assert isinstance(loaded.model, nn.Sequential)
    assert not loaded.model.training
    assert (loaded.spec, loaded.image) == (ModelSpec(factory=factory), None)


def test_run_brings_its_data_and_input_size(run: Path) -> None:
    loaded = load_model(str(run))
    assert loaded.image == (1, 20, 20)
    assert loaded.spec.network is not None
    assert loaded.spec.data is not None
    assert not loaded.model.training


def test_run_without_metadata_is_read_from_its_record(run: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    shutil.copy(run / "record.json", older)
    save_file(load_file(run / "model.safetensors"), older / "model.safetensors")
    first, again = load_model(str(run)), load_model(str(older))
    assert again.spec == first.spec
    with torch.no_grad():
        assert torch.equal(again.model(images()), first.model(images()))


def test_run_with_metadata_needs_no_record(run: Path, tmp_path: Path) -> None:
    loaded = load_model(str(run))
    save_model(tmp_path / "model.safetensors", loaded.model, loaded.spec)
    assert load_model(str(tmp_path)).spec == loaded.spec


def test_metadata_keeps_its_field_names(factory: str) -> None:
    """Files of earlier versions hold them."""
    spec = ModelSpec(factory=factory, mean=(0.1,), deviation=(0.2,), fixes=BLUR)
    assert json.loads(spec.model_dump_json(exclude_none=True)) == {
        "factory": factory,
        "mean": [0.1],
        "deviation": [0.2],
        "fixes": [{"kind": "blur", "filter_size": 3}],
        "tuned": [],
    }


@pytest.mark.parametrize(
    ("source", "fixes"), [("run", BLUR), ("run", POLYPHASE), ("run", CIRCULAR), ("factory", BLUR), ("factory", POLYPHASE)]
)
def test_fixed_model_is_saved_and_loaded(source: str, fixes: tuple[Fix, ...], factory: str, run: Path, tmp_path: Path) -> None:
    loaded = load_model(str(run) if source == "run" else factory)
    surgery = apply_fixes(loaded.model, [(each.kind, each.filter_size) for each in fixes], image=(1, 20, 20))
    save_model(tmp_path / "fixed.safetensors", surgery.model, loaded.spec.model_copy(update={"fixes": fixes}))
    again = load_model(str(tmp_path / "fixed.safetensors"), trust=source == "factory")
    with torch.no_grad():
        assert torch.equal(again.model(images()), surgery.model.eval()(images()))
    assert again.spec.fixes == fixes


def test_file_calls_no_factory_without_trust(factory: str, tmp_path: Path) -> None:
    save_model(tmp_path / "fixed.safetensors", load_model(factory).model, ModelSpec(factory="os:getcwd"))
    with pytest.raises(InputError, match=r"is not trusted, and loading it would call `os:getcwd`, .* pass --trust"):
        load_model(str(tmp_path / "fixed.safetensors"))


@pytest.mark.parametrize("name", ["mean", "deviation"])
def test_run_whose_normalisation_has_another_shape_is_refused(name: str, run: Path, tmp_path: Path) -> None:
    weights, spec = load_file(run / "model.safetensors"), load_model(str(run)).spec
    place = next(each for each in weights if each.rpartition(".")[2] == name)
    damaged = {**weights, place: weights[place].reshape(())}
    save_file(damaged, tmp_path / "model.safetensors", metadata={"shiftscope": spec.model_dump_json(exclude_none=True)})
    with pytest.raises(InputError, match="do not fit"):
        load_model(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 30}, "`size` 30x30 does not fit: the model takes images of 1x20x20"),
        ({"weights": Path("x.pt")}, "`weights` are only for a model that code builds"),
        ({"mean": (0.5,), "std": (1.0,)}, "`mean` and `std` of .* are in its file"),
    ],
)
def test_options_that_contradict_a_run_are_refused(options: dict[str, object], message: str, run: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_model(str(run), **options)


def test_size_below_one_is_refused(factory: str) -> None:
    with pytest.raises(InputError, match="`size` must be 1 to 16,384 pixels, or a height and a width of so many, got 0"):
        load_model(factory, size=0)


def test_std_alone_is_refused(factory: str, run: Path) -> None:
    for name in (factory, str(run)):
        with pytest.raises(InputError, match="`mean` and `std` must be given together, got `std`"):
            load_model(name, std=(0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("malicious.pt", "is not a safetensors file"),
        ("bare.safetensors", "holds weights, but does not name their model"),
        ("foreign.safetensors", "colour: is not a known setting"),
        ("other.safetensors", "do not fit the model"),
        ("empty.safetensors", "names neither a network nor a factory"),
        ("folder", "holds no run"),
        ("none.safetensors", "does not exist"),
        ("nothing", "there is no model 'nothing'"),
    ],
)
def test_bad_reference_is_refused_and_nothing_is_executed(name: str, message: str, factory: str, tmp_path: Path) -> None:
    (tmp_path / "malicious.pt").write_bytes(pickle.dumps(Malicious()))
    save_file({"a": torch.zeros(2)}, tmp_path / "bare.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors", metadata={"shiftscope": '{"colour": 3}'})
    save_model(tmp_path / "other.safetensors", nn.Linear(2, 2), ModelSpec(network=NetworkSpec()))
    save_model(tmp_path / "empty.safetensors", nn.Linear(2, 2), ModelSpec())
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        load_model(name)
    assert not (tmp_path / "executed").exists()


def test_study_folder_is_refused_with_the_command_that_names_its_runs(run: Path) -> None:
    folder = run.parent.parent
    with pytest.raises(
        InputError, match=f"is a study, not a model. Choose a run with --run; `shiftscope list {folder}` names them"
    ):
        load_model(str(folder))


@pytest.mark.parametrize("content", ["{", "{}", '{"spec": {"network": {"factor": 3}, "data": {}}}'])
def test_run_with_a_damaged_record_is_refused(content: str, run: Path, tmp_path: Path) -> None:
    save_file(load_file(run / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(InputError, match=r"record.json is damaged, or is not a complete record"):
        load_model(str(tmp_path))


ZEROS = """
from torch import nn

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 24, 8, 8)
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.norm, self.head = nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24)), nn.Linear(24, 5)
        nn.init.zeros_(self.embed.weight)

    def forward(self, images):
        tokens = self.norm(self.embed(images).flatten(2).transpose(1, 2))
        return self.head((tokens + self.attention(tokens, tokens, tokens)[0]).mean(1))
"""


def test_anchored_copy_with_a_further_fix_is_anchored_by_its_saved_weights(tmp_path: Path) -> None:
    """With the weights that the factory starts from no patch changes any token, so that nothing could be anchored."""
    (tmp_path / "zeros.py").write_text(ZEROS)
    name = f"{tmp_path / 'zeros.py'}:Tokens"
    model = load_model(name).model
    torch.manual_seed(0)
    nn.init.normal_(model.embed.weight)
    fixes = (Fix(kind="anchor"), Fix(kind="circular"))
    surgery = apply_fixes(model, [(fix.kind, fix.filter_size) for fix in fixes], image=(3, 32, 32))
    assert surgery.changed
    save_model(tmp_path / "f.safetensors", surgery.model, ModelSpec(factory=name, fixes=fixes, size=32))
    again = load_model(str(tmp_path / "f.safetensors"), trust=True).model
    with torch.no_grad():
        assert torch.equal(again(images(2, 3, 32)), surgery.model.eval()(images(2, 3, 32)))
        moved = again(images(2, 3, 32).roll((3, 5), (2, 3)))
        assert torch.allclose(moved, again(images(2, 3, 32)), atol=1e-5)


def test_mean_of_images_from_0_to_255_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`mean` must be of images in \[0, 1\], got 123.7. Divide the mean and the"):
        load_model("timm:resnet18", mean=(123.7,), std=(58.4,))
