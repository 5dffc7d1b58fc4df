"""Models of every kind answer as the network they were made from, and what cannot be read is told in a sentence."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import zoo
from models.test_loading import FACTORY, Evil
from shiftscope import audit
from shiftscope.errors import InputError
from shiftscope.models import load_model
from shiftscope.models.batches import InBatches
from shiftscope.models.family import Normalise
from shiftscope.models.files import _is_size
from shiftscope.surgery import antialias

EXTRA = """
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small()

    def forward(self, batch):
        one = self.inner(batch)
        return {"logits": one, "features": 2 * one}

def colour():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def bad():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "more_models.py").write_text(FACTORY + EXTRA)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "more_models:small"


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 81, 3)).eval()


def images(count: int = 5, channels: int = 1, size: int = 20) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def exported_to_onnx(model: nn.Module, path: Path, *, batch: int | None, size: int = 20, **options: object) -> Path:
    pytest.importorskip("onnxscript", reason="needs onnx, onnxruntime and onnxscript (extra `onnx`)")
    pytest.importorskip("onnxruntime", reason="needs onnx, onnxruntime and onnxscript (extra `onnx`)")
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            model, (images(batch or 2, size=size),), path, dynamic_shapes=dynamic, dynamo=True, verbose=False, **options
        )
    return path


@pytest.mark.parametrize("batch", [None, 4])
def test_an_onnx_file_answers_as_the_network_did(batch: int | None, tmp_path: Path) -> None:
    model = network()
    loaded = load_model(str(exported_to_onnx(model, tmp_path / "model.onnx", batch=batch)))
    assert loaded.image == (1, 20, 20)
    for count in (1, 4, 7):
        with torch.no_grad():
            assert torch.allclose(loaded.model(images(count)), model(images(count)), atol=1e-5)


def test_a_trained_network_and_its_onnx_file_have_the_same_audit(run: Path, tmp_path: Path) -> None:
    loaded = load_model(str(run))
    other = load_model(str(exported_to_onnx(loaded.model, tmp_path / "model.onnx", batch=4)))
    each, labels = images(30), torch.arange(30) % 10
    names = ["mouton2020", "zhang2019", "michaeli2023", "hendrycks2019", "tmeasures", "myburgh2021"]
    one, two = (audit(known.model, each, labels, protocols=names, max_shift=3) for known in (loaded, other))
    assert one.cost.distinct == two.cost.distinct
    for first, second in zip(one.rows, two.rows, strict=True):
        assert second.estimate.value == pytest.approx(first.estimate.value, abs=1e-4), first.measure
    for name, values in one.maps().items():
        assert torch.allclose(two.maps()[name], values, atol=1e-4)


def test_several_outputs_of_an_onnx_file_have_their_names(factory: str, tmp_path: Path) -> None:
    pair = load_model("more_models:Pair").model
    path = exported_to_onnx(pair, tmp_path / "pair.onnx", batch=3, output_names=["logits", "features"])
    found = load_model(str(path)).model(images(5))
    assert sorted(found) == ["features", "logits"]
    assert torch.allclose(found["features"], 2 * found["logits"])
    assert len(found["logits"]) == 5


def test_normalisation_can_be_put_before_a_file(tmp_path: Path) -> None:
    path = exported_to_onnx(network(), tmp_path / "model.onnx", batch=None)
    loaded = load_model(str(path), mean=(0.5,), std=(0.25,))
    assert loaded.mean == (0.5,)
    with torch.no_grad():
        assert torch.allclose(loaded.model(images()), network()((images() - 0.5) / 0.25), atol=1e-5)


@pytest.mark.parametrize("batch", [None, 3])
def test_an_exported_program_answers_as_the_network_did(batch: int | None, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(_program(network(), batch), path)
    loaded = load_model(str(path))
    assert loaded.image == (1, 20, 20)
    assert not loaded.model.training
    for count in (1, 3, 7):
        with torch.no_grad():
            assert torch.allclose(loaded.model(images(count)), network()(images(count)), atol=1e-6)
    assert audit(loaded.model, images(), protocols=["mouton2020"]).cost.images == 5


def _program(model: nn.Module, batch: int | None) -> torch.export.ExportedProgram:
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (images(batch or 2),), dynamic_shapes=dynamic)


def _rewritten(path: Path, target: Path, change: dict[str, bytes]) -> Path:
    """The archive with other contents in files of these names, or more files."""
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as made:
        for name in given.namelist():
            made.writestr(name, change.pop(name.rpartition("/")[2], None) or given.read(name))
        for name, content in change.items():
            made.writestr(f"model/data/constants/{name}", content)
    return target


def test_an_archive_with_a_pickle_is_refused_and_it_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt2"
    torch.export.save(_program(network(), 3), path)
    evil = io.BytesIO()
    torch.save(Evil(), evil)
    weights = json.dumps({"config": {"a": {"path_name": "weight_0", "use_pickle": True}}}).encode()
    changes = (
        {"model.pt": evil.getvalue()},
        {"opaque_obj_0": pickle.dumps(Evil())},
        {"custom_obj_0": pickle.dumps(Evil())},
        {"model_weights_config.json": weights},
    )
    for change in changes:
        with pytest.raises(InputError, match=r"holds a pickle .* which is not read, because it can run anything"):
            load_model(str(_rewritten(path, tmp_path / "evil.pt2", dict(change))))
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("place", ["guards_code", "expr_str"])
def test_code_in_an_archive_does_not_run(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, code = tmp_path / "model.pt2", "open('was_here', 'w')"
    torch.export.save(_program(network(), None), path)
    with zipfile.ZipFile(path) as archive:
        told = json.loads(archive.read(next(name for name in archive.namelist() if name.endswith("models/model.json"))))
    if place == "guards_code":
        changed = json.dumps(told | {"guards_code": [code]})
        loaded = load_model(str(_rewritten(path, tmp_path / "evil.pt2", {"model.json": changed.encode()})))
        with torch.no_grad():
            assert torch.allclose(loaded.model(images(3)), network()(images(3)), atol=1e-6)
    else:
        changed = re.sub(r'"expr_str": "[^"]*"', f'"expr_str": "{code}"', json.dumps(told))
        assert code in changed
        with pytest.raises(InputError, match=r"gives a size as .* which is not read, because it can run anything"):
            load_model(str(_rewritten(path, tmp_path / "evil.pt2", {"model.json": changed.encode()})))
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    ("text", "is_size"),
    [
        ("Symbol('s31', positive=True, integer=True)", True),
        ("Add(Integer(-1), Mul(Integer(8), Symbol('s0', integer=True)))", True),
        ("(s0 // 2) + 1", True),
        ("exit()", False),
        ("Symbol('exit()')", False),
        ("s0.__class__", False),
        ("[s0 for s0 in s1]", False),
        ("(", False),
    ],
)
def test_sizes_are_told_from_code(text: str, is_size: bool) -> None:
    assert _is_size(text) == is_size


def test_a_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(2 * 18 * 18, 3)).train()
    torch.export.save(_program(model, 2), tmp_path / "model.pt2")
    with pytest.raises(InputError, match=r"was exported in training mode \(`dropout`\). Call model.eval\(\)"):
        load_model(str(tmp_path / "model.pt2"))


def test_batches_of_one_size_are_filled_up_and_cut() -> None:
    seen = []

    def run_of_four(batch: Tensor) -> tuple[Tensor, Tensor]:
        assert len(batch) == 4
        seen.append(batch)
        return batch.sum((1, 2, 3)), batch

    sums, copies = InBatches(run_of_four, 4)(images(6))
    assert torch.equal(copies, images(6))
    assert torch.allclose(sums, images(6).sum((1, 2, 3)))
    assert len(seen) == 2
    with pytest.raises(InputError, match=r"cannot be traced \(its layers are in a file that can only be run\)"):
        antialias(InBatches(run_of_four, 4))


@pytest.mark.parametrize("name", ["resnet18", "test_convnext"])
def test_a_model_of_timm_goes_through_an_audit(name: str) -> None:
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


def test_a_library_tells_size_and_normalisation_and_options_come_first() -> None:
    timm = zoo.timm()
    with pytest.warns(UserWarning, match=r"random weights"):
        loaded = load_model("resnet18")
    assert (loaded.image, loaded.origin.factory) == ((3, 224, 224), "timm:resnet18")
    assert loaded.mean == timm.create_model("resnet18").pretrained_cfg["mean"]
    with pytest.warns(UserWarning, match=r"random weights"):
        other = load_model("torchvision:resnet18", size=96, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert other.image == (3, 96, 96)
    assert next(part for part in other.model.modules() if isinstance(part, Normalise)).deviation.tolist() == [1, 1, 1]
    batch = images(2, 3, 64)
    with torch.no_grad():
        plain = zoo.torchvision_models().get_model("resnet18", weights=None).eval()
        plain.load_state_dict(other.model[1].state_dict())
        assert torch.equal(other.model(batch), plain(batch))


def test_weights_come_from_safetensors_and_state_dicts(factory: str, tmp_path: Path) -> None:
    made = load_model(factory).model
    weights = {name: torch.full_like(value, 0.5) for name, value in made.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.pt")
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "c.pth")
    for file in ("w.safetensors", "w.pt", "c.pth"):
        loaded = load_model(factory, weights=tmp_path / file, mean=(0.1,), std=(0.2,))
        assert all(torch.equal(value, weights[name]) for name, value in loaded.model[1].state_dict().items())


def test_mean_and_deviation_must_be_numbers(factory: str) -> None:
    with pytest.raises(InputError, match=r"`mean` and `std` must be numbers, got \(nan,\)"):
        load_model(factory, mean=(float("nan"),), std=(1.0,))


def test_bad_weights_are_told_in_a_sentence_and_no_pickle_runs(
    factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    for file, told in {
        "whole.pt": "holds more than tensors, or is damaged. A pickled model is not read",
        "evil.pt": "holds more than tensors, or is damaged",
        "none.pt": "is not a state dict",
        "other.pt": "do not fit the model",
        "missing.pt": "does not exist",
        "pretrained": "are those of timm and torchvision",
    }.items():
        with pytest.raises(InputError, match=told):
            load_model(factory, weights=Path(file))
    assert not (tmp_path / "was_here").exists()


def test_bad_files_and_names_are_told_in_a_sentence(factory: str, tmp_path: Path, run: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    (tmp_path / "bad.pt2").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "odd.pt2", "w") as archive:
        archive.writestr("x/models/model.json", "{}")
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.rand(2, 3),)), tmp_path / "vector.pt2")
    zoo.timm()
    cases: dict[str, tuple[str, dict[str, object]]] = {
        "bad.onnx cannot be run by onnxruntime": (str(tmp_path / "bad.onnx"), {}),
        "none.onnx does not exist": (str(tmp_path / "none.onnx"), {}),
        "bad.pt2 is not a whole torch.export archive": (str(tmp_path / "bad.pt2"), {}),
        "none.pt2 is not a whole torch.export archive": (str(tmp_path / "none.pt2"), {}),
        "odd.pt2 cannot be read by torch.export": (str(tmp_path / "odd.pt2"), {}),
        "must take one tensor of images": (str(tmp_path / "vector.pt2"), {}),
        "timm knows no model 'resnet1'": ("timm:resnet1", {}),
        "torchvision knows no model 'resnet1'": ("torchvision:resnet1", {}),
        "'more_models:bad' failed when it was called": ("more_models:bad", {}),
        "`mean` and `std` must be given together": (factory, {"mean": (0.5,)}),
        "`size` must be 1 or more pixels, got 0": (factory, {"size": 0}),
        "`size` 30 does not fit: the model takes images of 1x20x20": (str(run), {"size": 30}),
        "`weights` belong to a model that is made by name": (str(run), {"weights": Path("x.pt")}),
        "`mean` and `std` are known of": (str(run), {"mean": (0.5,), "std": (1.0,)}),
    }
    for told, (name, options) in cases.items():
        with pytest.raises(InputError, match=told):
            load_model(name, **options)


def test_an_onnx_file_of_an_unknown_opset_is_told(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx (extra `onnx`)")
    path = exported_to_onnx(network(), tmp_path / "model.onnx", batch=1)
    model = onnx.load(path)
    model.opset_import[0].version = 9999
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(InputError, match=r"new.onnx cannot be run by onnxruntime .*Export it again, with an opset"):
        load_model(str(tmp_path / "new.onnx"))


def test_an_onnx_file_of_something_else_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra `onnx`)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(nn.Linear(3, 2), (torch.rand(2, 3),), tmp_path / "v.onnx", dynamo=True, verbose=False)
    with pytest.raises(InputError, match=r"must take one tensor of images"):
        load_model(str(tmp_path / "v.onnx"))


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs onnxruntime: pip install"):
        load_model(str(tmp_path / "a.onnx"))
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InputError, match=r"timm cannot be imported .*pip install 'shiftscope\[zoo\]'"):
        load_model("timm:resnet18")


def test_a_fix_of_a_librarys_model_comes_back(tmp_path: Path) -> None:
    from shiftscope.models import Fix, save_model
    from shiftscope.surgery.compare import fixed

    zoo.timm()
    with pytest.warns(UserWarning, match=r"random weights"):
        loaded = load_model("timm:resnet18", size=32)
    fixes = (Fix(kind="blur", filter_size=3),)
    surgery = fixed(loaded, fixes, image=(3, 32, 32))
    save_model(tmp_path / "f.safetensors", surgery.model, loaded.origin.model_copy(update={"fixes": fixes}))
    again = load_model(str(tmp_path / "f.safetensors"), trust=True)
    with torch.no_grad():
        assert torch.equal(again.model(images(2, 3, 32)), surgery.model.eval()(images(2, 3, 32)))


def test_what_a_library_cannot_make_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> nn.Module:
        raise RuntimeError("no luck")

    monkeypatch.setattr(zoo.timm(), "create_model", broken)
    with pytest.raises(InputError, match=r"timm:resnet18: it cannot be made \(no luck\)"):
        load_model("timm:resnet18")
    with pytest.raises(InputError, match=r"timm:resnet18: the weights cannot be fetched \(no luck\)"):
        load_model("timm:resnet18", weights=Path("pretrained"))
