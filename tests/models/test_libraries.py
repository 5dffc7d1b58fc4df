"""Models of timm and torchvision, and of the user's own functions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from models.conftest import images
from shiftscope import audit
from shiftscope.errors import InputError
from shiftscope.models import Fix, load_model, save_model
from shiftscope.models.family import Normalise
from shiftscope.surgery.compare import fix


@pytest.mark.parametrize("name", ["resnet18", "test_convnext"])
def test_timm_model_can_be_audited(name: str) -> None:
    zoo.timm()
    with pytest.warns(UserWarning, match=f"timm:{name} has random weights"):
        loaded = load_model(f"timm:{name}", size=64)
    assert loaded.image == (3, 64, 64)
    assert loaded.mean is not None
    names = ["mouton2020", "zhang2019", "chaman2021-zero", "michaeli2023", "azulay2018"]
    found = audit(
        loaded.model, images(3, 3, 72), torch.zeros(3, dtype=torch.long), size=64, mean=loaded.mean, protocols=names, max_shift=1
    )
    assert {row.protocol for row in found.rows} == {"unshifted", *names}
    assert all(torch.isfinite(torch.tensor(row.estimate.value)) for row in found.rows)
    assert found.cost.forward <= found.cost.distinct


def test_bare_name_takes_size_and_normalisation_from_timm() -> None:
    timm = zoo.timm()
    with pytest.warns(UserWarning, match=r"random weights"):
        loaded = load_model("resnet18")
    assert (loaded.image, loaded.spec.factory) == ((3, 224, 224), "timm:resnet18")
    assert loaded.mean == timm.create_model("resnet18").pretrained_cfg["mean"]


def test_options_replace_size_and_normalisation_of_the_library() -> None:
    models = zoo.torchvision_models()
    with pytest.warns(UserWarning, match=r"random weights"):
        loaded = load_model("torchvision:resnet18", size=96, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert loaded.image == (3, 96, 96)
    assert next(part for part in loaded.model.modules() if isinstance(part, Normalise)).deviation.tolist() == [1, 1, 1]
    plain = models.get_model("resnet18", weights=None).eval()
    plain.load_state_dict(loaded.model[1].state_dict())
    with torch.no_grad():
        assert torch.allclose(loaded.model(images(2, 3, 64)), plain(images(2, 3, 64)), atol=1e-6)


def test_fixed_timm_model_is_saved_and_loaded(tmp_path: Path) -> None:
    zoo.timm()
    with pytest.warns(UserWarning, match=r"random weights"):
        loaded = load_model("timm:resnet18", size=32)
    fixes = (Fix(kind="blur", filter_size=3),)
    surgery = fix(loaded.model, [("blur", 3)], image=(3, 32, 32))
    save_model(tmp_path / "f.safetensors", surgery.model, loaded.spec.model_copy(update={"fixes": fixes}))
    again = load_model(str(tmp_path / "f.safetensors"))
    with torch.no_grad():
        assert torch.equal(again.model(images(2, 3, 32)), surgery.model.eval()(images(2, 3, 32)))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_unknown_name_of_a_library_is_refused(library: str) -> None:
    zoo.timm()
    with pytest.raises(InputError, match=f"{library} has no model 'resnet1'"):
        load_model(f"{library}:resnet1")


def test_library_that_fails_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> nn.Module:
        raise RuntimeError("no luck")

    monkeypatch.setattr(zoo.timm(), "create_model", broken)
    with pytest.raises(InputError, match=r"timm cannot build resnet18 \(no luck\)"):
        load_model("timm:resnet18")
    with pytest.raises(InputError, match=r"timm cannot download the weights of resnet18 \(no luck\)"):
        load_model("timm:resnet18", weights=Path("pretrained"))


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm cannot be imported .*pip install 'shiftscope\[zoo\]'"):
        load_model("timm:resnet18")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:thing", "cannot be imported"),
        ("my_models:missing", "has no attribute 'missing'"),
        ("my_models:number", "must return a torch.nn.Module, got int"),
        ("my_models:failing", "failed when called without arguments .RuntimeError: no luck"),
    ],
)
def test_bad_factory_is_refused(reference: str, message: str, factory: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(reference)
