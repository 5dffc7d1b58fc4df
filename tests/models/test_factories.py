"""Models of the user's own functions, in importable modules and in files, with the preprocessing that they state."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from models.conftest import images
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.errors import InputError
from shiftscope.models import absolute_reference, load_model
from shiftscope.models.family import Normalise

FILE = """
from dataclasses import dataclass
import neighbour
from torch import nn

@dataclass
class Settings:
    classes: int = 3

def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, Settings().classes))

def described():
    return network(), {"size": 24, "mean": (0.5,), "std": (0.25,)}

def strangely_described():
    return network(), 3

class Namespace:
    network = staticmethod(network)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of models and a module that it imports; it is not the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text(FILE)
    (folder / "neighbour.py").write_text("")
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def test_random_weights_are_the_same_in_every_command(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (load_model("project/mine.py:network").model(images(2)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(1), expected)  # the caller's random state is left alone


@pytest.mark.parametrize("attribute", ["network", "Namespace.network"])
@pytest.mark.parametrize("relative", [True, False])
def test_function_in_a_file_is_called(attribute: str, relative: bool, folder: Path) -> None:
    before = list(sys.path)
    loaded = load_model(f"{'project' if relative else folder}/mine.py:{attribute}")
    assert loaded.model(images(2)).shape == (2, 3)
    assert loaded.code == ""  # the reference names the file
    assert sys.path == before


def test_module_names_the_file_that_ran(factory: str) -> None:
    assert load_model(factory).code == "my_models.py of the current folder"
    assert load_model("torch.nn:Identity").code == nn.__file__


def test_file_runs_again_after_it_changed(folder: Path) -> None:
    load_model("project/mine.py:network")
    (folder / "mine.py").write_text(FILE.replace("classes: int = 3", "classes: int = 55"))
    assert load_model("project/mine.py:network").model(images(2)).shape == (2, 55)


def test_two_files_of_one_name_are_two_modules(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE.replace("classes: int = 3", "classes: int = 4").replace("import neighbour", ""))
    three, four = (load_model(f"{file}:network").model(images(1)).shape[1] for file in ("project/mine.py", "mine.py"))
    assert (three, four) == (3, 4)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:thing", r"cannot be imported .* is on the import path, because the model is given as `module:factory`"),
        ("my_models:missing", "has no attribute 'missing'"),
        ("my_models:number", "must return a torch.nn.Module, got int"),
        ("my_models:failing", "failed when called without arguments .RuntimeError: no luck"),
        ("none.py:thing", "none.py does not exist"),
        ("broken.py:thing", "cannot be imported .SyntaxError"),
        ("my_models.py:failing", "failed when called without arguments .RuntimeError: no luck"),
        ("project/mine.py:strangely_described", "returns a model and a int, which does not describe preprocessing"),
    ],
)
def test_bad_factory_is_refused(reference: str, message: str, factory: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def")
    with pytest.raises(InputError, match=message):
        load_model(reference)


def test_preprocessing_beside_the_model_is_applied(folder: Path) -> None:
    loaded, bare = load_model("project/mine.py:described"), load_model("project/mine.py:network")
    bare.model.load_state_dict(loaded.model[1].state_dict())
    with torch.no_grad():
        assert torch.allclose(loaded.model(images(2)), bare.model((images(2) - 0.5) / 0.25), atol=1e-6)
    assert loaded.image == (1, 24, 24)
    assert loaded.preprocessing == Preprocessing(size=24, mean=(0.5,), std=(0.25,), source="the factory")
    assert (bare.preprocessing, bare.image) == (Preprocessing(), None)


TIMM_FACTORIES = """
import timm
from torch import nn

def whole():
    return timm.create_model("test_resnet", num_classes=2)

def part():
    return nn.Sequential(whole(), nn.Softmax(1))

def stated():
    model = whole()
    return model, timm.data.resolve_model_data_config(model, {"img_size": 96})
"""


@pytest.fixture
def timm_file(tmp_path: Path) -> Path:
    zoo.timm()
    (tmp_path / "with_timm.py").write_text(TIMM_FACTORIES)
    return tmp_path / "with_timm.py"


def test_timm_model_of_a_factory_brings_its_preprocessing(timm_file: Path) -> None:
    loaded = load_model(f"{timm_file}:whole")
    assert isinstance(loaded.model[0], Normalise)
    assert loaded.image == (3, 160, 160)
    assert loaded.preprocessing.source == "timm's pretrained_cfg"
    assert loaded.mean == loaded.model[1].pretrained_cfg["mean"]


def test_timm_model_within_a_model_is_named_and_not_normalised(timm_file: Path) -> None:
    loaded = load_model(f"{timm_file}:part")
    assert loaded.preprocessing == Preprocessing(source="unknown: only its part `0` is a timm model")
    assert not any(isinstance(part, Normalise) for part in loaded.model.modules())


def test_configuration_of_timm_beside_the_model_is_read(timm_file: Path) -> None:
    loaded = load_model(f"{timm_file}:stated")
    assert loaded.image == (3, 96, 96)
    assert loaded.preprocessing.source == "the factory"


def test_options_come_before_what_the_model_says(timm_file: Path) -> None:
    loaded = load_model(f"{timm_file}:whole", size=64, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert (loaded.image, loaded.mean) == ((3, 64, 64), (0.0,) * 3)
    assert loaded.preprocessing.source == "timm's pretrained_cfg; normalisation from the options; size from the options"


def test_reference_for_another_working_directory_names_the_same(folder: Path, tmp_path: Path) -> None:
    assert absolute_reference("project/mine.py:network") == f"{folder}/mine.py:network"
    assert absolute_reference("timm:local-dir:project") == f"timm:local-dir:{folder}"
    assert absolute_reference("hf:project") == f"hf:{folder}"
    assert absolute_reference("project") == str(folder)
    assert absolute_reference("hf:owner/name") == "hf:owner/name"
    assert absolute_reference("mine:network") == "mine:network"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "dict(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))",
            r"must be of images in \[0, 1\], got 123.7, 116.3, 103.5. Divide",
        ),
        ("dict(interpolation='bicubicc')", "`interpolation` must be one of bilinear, .*, got 'bicubicc'"),
    ],
)
def test_preprocessing_of_other_images_is_refused(given: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"from torch import nn\n\ndef make():\n    return nn.Conv2d(3, 1, 1), {given}\n")
    with pytest.raises(InputError, match=message):
        load_model(f"{tmp_path / 'own.py'}:make")
