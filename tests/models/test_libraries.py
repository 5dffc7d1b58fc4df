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
from shiftscope.surgery.compare import apply_fixes


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


@pytest.mark.parametrize(("name", "fix"), [("resnet18", Fix(kind="blur", filter_size=3)), ("test_vit", Fix(kind="anchor"))])
def test_fixed_timm_model_is_saved_and_loaded(name: str, fix: Fix, tmp_path: Path) -> None:
    zoo.timm()
    with pytest.warns(UserWarning, match=r"random weights"):
        loaded = load_model(f"timm:{name}", size=32)
    fixes = (fix,)
    surgery = apply_fixes(loaded.model, [(fix.kind, fix.filter_size)], image=(3, 32, 32))
    assert surgery.changed
    save_model(tmp_path / "f.safetensors", surgery.model, loaded.spec.model_copy(update={"fixes": fixes}))
    again = load_model(str(tmp_path / "f.safetensors"))
    with torch.no_grad():
        assert torch.equal(again.model(images(2, 3, 32)), surgery.model.eval()(images(2, 3, 32)))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_unknown_name_of_a_library_is_refused_with_close_ones(library: str) -> None:
    zoo.timm()
    with pytest.raises(InputError, match=f"{library} has no model 'resnet1'. Did you mean resnet1"):
        load_model(f"{library}:resnet1")
    with pytest.raises(InputError, match=f"{library} has no model 'qqqqqqqq'. See "):
        load_model(f"{library}:qqqqqqqq")


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


#: Small models of timm: convolutional, with a head in a part of its own, a transformer, two heads.
TIMM_MODELS = ["test_resnet", "test_convnext", "test_vit", "deit_tiny_distilled_patch16_224"]


def checkpoint(model: nn.Module, path: Path) -> Path:
    """Save a model as a training script does, with a prefix and beside other things."""
    torch.save({"epoch": 1, "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}}, path)
    return path


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_fine_tuned_timm_checkpoint_decides_classes(name: str, tmp_path: Path) -> None:
    tuned = zoo.timm().create_model(name, num_classes=2).eval()
    loaded = load_model(f"timm:{name}", weights=checkpoint(tuned, tmp_path / "tuned.ckpt"))
    mean, std = (torch.tensor(tuned.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    batch = images(1, *tuned.pretrained_cfg["input_size"][:2])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(batch), tuned((batch - mean) / std))
    assert (loaded.spec.classes, loaded.embedding) == (2, False)
    assert loaded.weights.endswith("tuned.ckpt (`state_dict`; prefix `model.` removed), 2 classes")


def test_checkpoint_decides_channels_and_drops_statistics_of_others(tmp_path: Path) -> None:
    tuned = zoo.timm().create_model("test_resnet", num_classes=4, in_chans=1).eval()
    loaded = load_model("timm:test_resnet", weights=checkpoint(tuned, tmp_path / "grey.ckpt"))
    assert loaded.image == (1, 160, 160)
    assert (loaded.spec.classes, loaded.spec.channels, loaded.mean) == (4, 1, None)
    assert loaded.preprocessing.source == "timm's pretrained_cfg, without its normalisation of 3 channels"
    with torch.no_grad():
        assert torch.equal(loaded.model(images(2, 1, 64)), tuned(images(2, 1, 64)))


def test_checkpoint_without_a_head_gives_embeddings(tmp_path: Path) -> None:
    body = zoo.timm().create_model("test_resnet", num_classes=0).eval()
    loaded = load_model("timm:test_resnet", weights=checkpoint(body, tmp_path / "body.ckpt"))
    assert (loaded.embedding, loaded.spec.classes) == (True, 0)
    assert loaded.weights.endswith(", no head, so embeddings")


def test_fine_tuned_torchvision_checkpoint_decides_classes(tmp_path: Path) -> None:
    tuned = zoo.torchvision_models().get_model("squeezenet1_1", weights=None, num_classes=2).eval()
    loaded = load_model("torchvision:squeezenet1_1", weights=checkpoint(tuned, tmp_path / "tuned.ckpt"))
    with torch.no_grad():
        assert torch.equal(loaded.model[1](images(2, 3, 64)), tuned(images(2, 3, 64)))
    assert loaded.spec.classes == 2


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would leave no room for names
    other = zoo.timm().create_model("test_convnext", num_classes=2)
    with pytest.raises(InputError, match=r"do not fit the model: \d+ missing \(conv1.weight, .* unexpected \(.*stem"):
        load_model("timm:resnet18", weights=checkpoint(other, Path("other.ckpt")))


def test_size_builds_a_transformer_for_it(tmp_path: Path) -> None:
    tuned = zoo.timm().create_model("test_vit", num_classes=2, img_size=96).eval()
    file = checkpoint(tuned, tmp_path / "tuned.ckpt")
    with pytest.raises(InputError, match=r"1 of another shape .pos_embed is 1x37x64 in the file and 1x101x64"):
        load_model("timm:test_vit", weights=file)
    loaded = load_model("timm:test_vit", weights=file, size=96)
    with torch.no_grad():
        assert torch.equal(loaded.model[1](images(2, 3, 96)), tuned(images(2, 3, 96)))
    assert loaded.image == (3, 96, 96)
    assert (loaded.preprocessing.size, loaded.preprocessing.source) == (96, "timm's pretrained_cfg; size from the options")


def test_fixed_copy_of_a_fine_tuned_model_is_loaded_as_it_was(tmp_path: Path) -> None:
    tuned = zoo.timm().create_model("test_resnet", num_classes=2)
    options = {"weights": checkpoint(tuned, tmp_path / "tuned.ckpt"), "size": 64, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    loaded = load_model("timm:test_resnet", **options)
    copy = apply_fixes(loaded.model, [("blur", 3)], image=(3, 64, 64)).model
    fixes = {"fixes": (Fix(kind="blur", filter_size=3),)}
    save_model(tmp_path / "f.safetensors", copy, loaded.spec.model_copy(update=fixes))
    again = load_model(str(tmp_path / "f.safetensors"))
    with torch.no_grad():
        assert torch.equal(again.model(images(2, 3, 64)), copy.eval()(images(2, 3, 64)))
    assert (again.image, again.mean, again.preprocessing.shorter_side()) == (
        loaded.image,
        loaded.mean,
        loaded.preprocessing.shorter_side(),
    )


def timm_folder(tmp_path: Path) -> tuple[nn.Module, Path]:
    """Save a fine-tuned model as timm does for the hub."""
    timm = zoo.timm()
    tuned = timm.create_model("test_resnet", num_classes=2).eval()
    folder = tmp_path / "tuned"
    timm.models.save_for_hf(tuned, folder, safe_serialization=True)
    return tuned, folder


def test_folder_of_a_timm_model_brings_its_weights(tmp_path: Path) -> None:
    tuned, folder = timm_folder(tmp_path)
    loaded = load_model(f"timm:local-dir:{folder}")
    with torch.no_grad():
        assert torch.equal(loaded.model[1](images(2, 3, 64)), tuned(images(2, 3, 64)))
    assert loaded.weights == str(folder)
    with pytest.raises(InputError, match=r"timm cannot load the model in .*none"):
        load_model(f"timm:local-dir:{tmp_path / 'none'}")
