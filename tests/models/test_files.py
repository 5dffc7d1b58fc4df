"""Models from ONNX files and ``.pt2`` archives return what the networks they were exported from return."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import warnings
import zipfile
from pathlib import Path
from threading import Timer

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.conftest import Malicious, images
from shiftscope import audit
from shiftscope.audits.subject import SubjectSpec, open_subject
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.errors import InputError
from shiftscope.models import load_model
from shiftscope.models.files import FixedBatches, read_onnx
from shiftscope.surgery import antialias

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

UNKNOWN_OPSET = 9999


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 81, 3)).eval()


def export_onnx(model: nn.Module, path: Path, *, batch: int | None, size: int = 20, **options: object) -> Path:
    pytest.importorskip("onnxscript", reason="needs onnx, onnxruntime and onnxscript (extra `onnx`)")
    pytest.importorskip("onnxruntime", reason="needs onnx, onnxruntime and onnxscript (extra `onnx`)")
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            model, (images(batch or 2, size=size),), path, dynamic_shapes=dynamic, dynamo=True, verbose=False, **options
        )
    return path


def export_program(model: nn.Module, path: Path, *, batch: int | None) -> Path:
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (images(batch or 2),), dynamic_shapes=dynamic), path)
    return path


@pytest.mark.parametrize("batch", [None, 4])
def test_onnx_file_equals_its_network(batch: int | None, tmp_path: Path) -> None:
    loaded = load_model(str(export_onnx(network(), tmp_path / "model.onnx", batch=batch)))
    assert loaded.image == (1, 20, 20)
    for count in (1, 4, 7):
        with torch.no_grad():
            assert torch.allclose(loaded.model(images(count)), network()(images(count)), atol=1e-5)


def test_onnx_file_has_the_audit_of_its_network(run: Path, tmp_path: Path) -> None:
    loaded = load_model(str(run))
    exported = load_model(str(export_onnx(loaded.model, tmp_path / "model.onnx", batch=4)))
    labels = torch.arange(30) % 10
    names = ["mouton2020", "zhang2019", "michaeli2023", "hendrycks2019", "tmeasures", "myburgh2021"]
    expected, found = (audit(model, images(30), labels, protocols=names, max_shift=3) for model in (loaded.model, exported.model))
    assert found.cost.distinct == expected.cost.distinct
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert row.estimate.value == pytest.approx(other.estimate.value, abs=1e-4), row.measure
    for name, values in expected.maps().items():
        assert torch.allclose(found.maps()[name], values, atol=1e-4)


def test_onnx_file_with_several_outputs_returns_them_by_name(factory: str, tmp_path: Path) -> None:
    pair = load_model("my_models:Pair").model
    path = export_onnx(pair, tmp_path / "pair.onnx", batch=3, output_names=["logits", "features"])
    found = load_model(str(path)).model(images(5))
    assert sorted(found) == ["features", "logits"]
    assert torch.allclose(found["features"], 2 * found["logits"])
    assert len(found["logits"]) == 5


def test_file_says_its_size_and_not_how_it_normalises(tmp_path: Path) -> None:
    loaded = load_model(str(export_onnx(network(), tmp_path / "model.onnx", batch=None)))
    assert loaded.preprocessing == Preprocessing(size=20, source="unknown: the file does not say")
    assert loaded.known_channels == 1


def flattening(path: Path, *shape: int) -> str:
    """Export a model that flattens images of a shape."""
    pytest.importorskip("onnxscript", reason="needs onnx, onnxruntime and onnxscript (extra `onnx`)")
    pytest.importorskip("onnxruntime", reason="needs onnx, onnxruntime and onnxscript (extra `onnx`)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(nn.Flatten(), (torch.rand(2, *shape),), path, dynamo=True, verbose=False)
    return str(path)


def test_onnx_file_with_channels_last_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"takes images \[image, height, width, channel\], with 3 channels last. Export it for"):
        load_model(flattening(tmp_path / "last.onnx", 20, 24, 3))


def test_onnx_file_of_images_that_are_not_square_is_measured(tmp_path: Path) -> None:
    path = flattening(tmp_path / "wide.onnx", 1, 20, 24)
    loaded = load_model(path)
    assert (loaded.image, loaded.preprocessing.size) == ((1, 20, 24), (20, 24))
    subject = open_subject(SubjectSpec(model=path, data="digits", images=4))
    assert subject.facts["input"] == "1x20x24"
    assert audit(loaded.model, subject.read()[0].images, protocols=["mouton2020"], max_shift=1).cost.images == 4
    with pytest.raises(InputError, match="`size` 24x20 does not fit: the model takes images of 1x20x24"):
        load_model(path, size=(24, 20))


def test_onnx_file_of_any_size_says_its_channels(tmp_path: Path) -> None:
    class Means(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return batch.mean(dim=(2, 3))

    pytest.importorskip("onnxscript", reason="needs onnx, onnxruntime and onnxscript (extra `onnx`)")
    pytest.importorskip("onnxruntime", reason="needs onnx, onnxruntime and onnxscript (extra `onnx`)")
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        example = torch.rand(2, 3, 20, 24)
        torch.onnx.export(Means(), (example,), tmp_path / "any.onnx", dynamic_shapes=(sizes,), dynamo=True, verbose=False)
    loaded = load_model(str(tmp_path / "any.onnx"))
    assert (loaded.image, loaded.known_channels) == (None, 3)


def test_mean_and_std_normalise_in_front_of_a_file(tmp_path: Path) -> None:
    path = export_onnx(network(), tmp_path / "model.onnx", batch=None)
    loaded = load_model(str(path), mean=(0.5,), std=(0.25,))
    assert loaded.mean == (0.5,)
    with torch.no_grad():
        assert torch.allclose(loaded.model(images()), network()((images() - 0.5) / 0.25), atol=1e-5)


def test_onnx_file_of_an_unknown_opset_is_refused(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx (extra `onnx`)")
    model = onnx.load(export_onnx(network(), tmp_path / "model.onnx", batch=1))
    model.opset_import[0].version = UNKNOWN_OPSET
    onnx.save(model, tmp_path / "new.onnx")
    with pytest.raises(
        InputError, match=r"new.onnx is damaged, or is not a model that the installed onnxruntime reads. .* with an older opset"
    ):
        load_model(str(tmp_path / "new.onnx"))


def test_onnx_file_without_images_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra `onnx`)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(nn.Linear(3, 2), (torch.rand(2, 3),), tmp_path / "vector.onnx", dynamo=True, verbose=False)
    with pytest.raises(InputError, match=r"must take one tensor of images"):
        load_model(str(tmp_path / "vector.onnx"))


def test_onnx_file_that_is_damaged_or_missing_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra `onnx`)")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad.onnx is damaged, or is not a model"):
        load_model(str(tmp_path / "bad.onnx"))
    with pytest.raises(InputError, match=r"none.onnx does not exist"):
        load_model(str(tmp_path / "none.onnx"))


def endless(path: Path) -> Path:
    """Write an ONNX file whose graph holds a loop of 10^12 steps."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    count = onnx.numpy_helper.from_array(np.array(10**12), "count")
    always = onnx.numpy_helper.from_array(np.array(True), "always")
    step = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Identity", ["state"], ["next"])],
        "step",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", kinds.INT64), ("on", kinds.BOOL))]
        + [helper.make_tensor_value_info("state", kinds.FLOAT, None)],
        [helper.make_tensor_value_info("still", kinds.BOOL, []), helper.make_tensor_value_info("next", kinds.FLOAT, None)],
    )
    mean = helper.make_node("ReduceMean", ["x"], ["mean"])
    nodes = [mean, helper.make_node("Loop", ["count", "always", "mean"], ["y"], body=step)]
    takes = helper.make_tensor_value_info("x", kinds.FLOAT, ["n", 1, 8, 8])
    graph = helper.make_graph(nodes, "graph", [takes], [helper.make_tensor_value_info("y", kinds.FLOAT, None)], [count, always])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_signal_stops_an_onnx_file_at_work(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, _ = read_onnx(endless(tmp_path / "endless.onnx"))
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            model(torch.zeros(1, 1, 8, 8))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_onnx_file_without_onnxruntime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.onnx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs onnxruntime. Install it with: pip install"):
        load_model(str(tmp_path / "a.onnx"))


@pytest.mark.parametrize("batch", [None, 3])
def test_trusted_archive_equals_its_network(batch: int | None, tmp_path: Path) -> None:
    loaded = load_model(str(export_program(network(), tmp_path / "model.pt2", batch=batch)), trust=True)
    assert loaded.image == (1, 20, 20)
    assert not loaded.model.training
    for count in (1, 3, 7):
        with torch.no_grad():
            assert torch.allclose(loaded.model(images(count)), network()(images(count)), atol=1e-6)
    assert audit(loaded.model, images(), protocols=["mouton2020"]).cost.images == 5


@pytest.mark.parametrize("content", ["plain", "malicious"])
def test_archive_is_refused_without_trust_and_nothing_is_executed(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = export_program(network(), tmp_path / "model.pt2", batch=3)
    if content == "malicious":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("model/data/constants/custom_obj_0", pickle.dumps(Malicious()))
    with pytest.raises(InputError, match=r"reading a .pt2 archive can run code .* as ONNX, .* pass --trust"):
        load_model(str(path))
    assert not (tmp_path / "executed").exists()


def test_archive_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(2 * 18 * 18, 3)).train()
    path = export_program(model, tmp_path / "model.pt2", batch=2)
    with pytest.raises(InputError, match=r"was exported in training mode \(`dropout`\). Call model.eval\(\)"):
        load_model(str(path), trust=True)


def test_archive_without_images_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.rand(2, 3),)), tmp_path / "vector.pt2")
    with pytest.raises(InputError, match=r"must take one tensor of images .*, got 1 inputs"):
        load_model(str(tmp_path / "vector.pt2"), trust=True)


def test_archive_that_is_damaged_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.pt2").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "odd.pt2", "w") as archive:
        archive.writestr("x/models/model.json", "{}")
    with pytest.raises(InputError, match=r"bad.pt2 is damaged, or is not an archive"):
        load_model(str(tmp_path / "bad.pt2"), trust=True)
    with pytest.raises(InputError, match=r"odd.pt2 is damaged, or is not an archive"):
        load_model(str(tmp_path / "odd.pt2"), trust=True)
    with pytest.raises(InputError, match=r"none.pt2 does not exist"):
        load_model(str(tmp_path / "none.pt2"), trust=True)


def test_torch_logs_nothing_about_an_archive_that_lacks_weights(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Conv2d(1, 2, 3), (torch.rand(2, 1, 8, 8),)), tmp_path / "whole.pt2")
    with zipfile.ZipFile(tmp_path / "whole.pt2") as whole, zipfile.ZipFile(tmp_path / "less.pt2", "w") as less:
        for name in whole.namelist():
            if "weight_1" not in name:
                less.writestr(name, whole.read(name))
    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("torch.export"), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        with pytest.raises(InputError, match=r"less.pt2 is damaged"):
            load_model(str(tmp_path / "less.pt2"), trust=True)
    finally:
        logger.removeHandler(handler)
    assert not records
    assert logging.root.manager.disable == logging.NOTSET


def run_of_four(batch: Tensor) -> tuple[Tensor, Tensor]:
    assert len(batch) == 4
    return batch.sum((1, 2, 3)), batch


def test_fixed_batches_pads_the_last_batch_and_drops_its_padding() -> None:
    sums, copies = FixedBatches(run_of_four, 4)(images(6))
    assert torch.equal(copies, images(6))
    assert torch.allclose(sums, images(6).sum((1, 2, 3)))


def test_layers_in_a_file_cannot_be_changed() -> None:
    with pytest.raises(InputError, match=r"cannot be traced \(its layers are in a file that can only be run\)"):
        antialias(FixedBatches(run_of_four, 4))
