"""Every line of the page "Bring your model" runs, on small models under its names; a local server stands for the hub."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import zoo
from loopback_hub import serving
from pictures import png
from shiftscope.cli import main
from shiftscope.models import Fix, load_model, save_model
from shiftscope.surgery import antialias
from small import Finished

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
COMMANDS = re.findall(r"^\| .* \| `(shiftscope .*)` \|$", PAGE.read_text(), re.MULTILINE)
FACTORY = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, trained: Finished) -> Path:
    """Return a folder with everything that the page's commands name."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "photos").mkdir()
    (folder / "project").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        pixels = torch.randint(0, 255, (80, 96, 3), generator=generator, dtype=torch.uint8).numpy()
        (folder / "photos" / f"{number}.png").write_bytes(png(pixels))
    for file in (folder / "mine.py", folder / "project" / "mine.py"):
        file.write_text(FACTORY)
    shutil.copytree(trained.out, folder / "studies" / "digits")
    _timm_files(folder)
    _transformers_folder(folder / "checkpoint")
    _graphs(folder)
    return folder


def _timm_files(folder: Path) -> None:
    timm = zoo.timm()
    tuned = timm.create_model("resnet18", num_classes=2)
    torch.save({"state_dict": {f"model.{name}": value for name, value in tuned.state_dict().items()}}, folder / "last.ckpt")
    timm.models.save_for_hf(tuned, folder / "tuned", safe_serialization=True)
    timm.models.save_for_hf(timm.create_model("resnet18"), folder / "hub", safe_serialization=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights
        loaded = load_model("timm:test_resnet", size=64)
    copy = antialias(loaded.model).model
    save_model(folder / "fixed.safetensors", copy, loaded.spec.model_copy(update={"fixes": (Fix(kind="blur", filter_size=3),)}))


def _transformers_folder(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers (extra `transformers`)")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2)
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)


def _graphs(folder: Path) -> None:
    scope: dict[str, object] = {}
    exec(FACTORY, scope)
    model = scope["network"]().eval()
    assert isinstance(model, nn.Module)
    save_file(model.state_dict(), folder / "best.safetensors")
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3, 64, 64),)), folder / "model.pt2")
    onnx = pytest.importorskip("onnx", reason="needs onnx and onnxruntime (extra `onnx`)")
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = (
        onnx.helper.make_node("GlobalAveragePool", ["images"], ["means"]),
        onnx.helper.make_node("Flatten", ["means"], ["out"]),
    )
    graph = onnx.helper.make_graph(nodes, "means", [value("images", kind, [None, 3, 64, 64])], [value("out", kind, [None, 3])])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_page_runs(
    command: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    served = ("checkpoint", "microsoft/resnet-50") if "microsoft" in command else ("hub", "timm/resnet18.a1_in1k")
    small = "--images 2 --protocol mouton2020 --max-shift 1 --json" + (
        " --size 64" if "mine:" in command or "mine.py" in command else ""
    )
    with serving(workplace / served[0], served[1], kind="model") as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        main(shlex.split(f"{command} {small}")[1:])
    assert '"mouton2020"' in capfd.readouterr().out


@pytest.mark.parametrize("options", ["", "--mean=0.5 --mean=0.5 --mean=0.5 --std=0.5 --std=0.5 --std=0.5"])
@pytest.mark.parametrize("file", ["model.onnx", "model.pt2 --trust"])
def test_model_whose_layers_are_in_a_file_is_not_changed(
    file: str, options: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workplace)
    command = f"fix {file} {options} --with blur --data photos --images 2 --out {tmp_path / 'fixed.safetensors'}"
    assert main(shlex.split(command)) == 2
    assert "are in a file that can only be run" in capfd.readouterr().err
    assert not (tmp_path / "fixed.safetensors").exists()


def test_page_has_a_command_for_every_kind() -> None:
    assert len(COMMANDS) >= 13
