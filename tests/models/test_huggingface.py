"""Models of Hugging Face transformers, made on the spot, return what transformers returns; no code of theirs runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zoo
from loopback_hub import COMMIT, serving
from models.conftest import images
from shiftscope import audit
from shiftscope.audits.model import CountedModel
from shiftscope.audits.protocols import Protocol
from shiftscope.errors import InputError
from shiftscope.models import load_model, save_model
from shiftscope.models.spec import Fix
from shiftscope.surgery.fixes import operate

TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**TRANSFORMER, "image_size": 32, "patch_size": 8}
#: Arguments of the smallest configuration of each kind.
CONFIGS: dict[str, dict[str, Any]] = {
    "ViT": VISION,
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "Swin": {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "Dinov2": {**TRANSFORMER, "image_size": 28, "patch_size": 14},
    "Siglip": {"vision_config": VISION, "text_config": {**TRANSFORMER, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}},
    "CLIP": {
        "vision_config": VISION,
        "text_config": {**TRANSFORMER, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2},
        "projection_dim": 12,
    },
}
PROCESSOR = {
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
    "size": {"height": 28, "width": 28},
}


@pytest.fixture
def transformers() -> ModuleType:
    zoo.torchvision_models()
    return pytest.importorskip("transformers", reason="needs transformers (extra `transformers`)")


def saved(library: ModuleType, name: str, folder: Path, *, kind: str = "", processor: dict[str, Any] | None = None) -> nn.Module:
    """Make a small model with random weights, save it, and return it."""
    config = getattr(library, f"{name}Config")(**CONFIGS[name], **({"num_labels": 3} if kind else {}))
    torch.manual_seed(0)
    model = getattr(library, f"{name}{kind or 'Model'}")(config).eval()
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def scaled(size: int = 28) -> torch.Tensor:
    mean, std = (torch.tensor(PROCESSOR[key])[:, None, None] for key in ("image_mean", "image_std"))
    return (images(2, 3, size) - mean) / std


@pytest.mark.parametrize("name", ["ViT", "ResNet", "Swin", "ConvNext", "Dinov2"])
def test_classifier_returns_its_logits(name: str, transformers: ModuleType, tmp_path: Path) -> None:
    size = 28 if name == "Dinov2" else 32
    processor = {**PROCESSOR, "size": {"height": size, "width": size}}
    model = saved(transformers, name, tmp_path / "model", kind="ForImageClassification", processor=processor)
    loaded = load_model(f"hf:{tmp_path / 'model'}")
    with torch.no_grad():
        assert torch.equal(loaded.model(images(2, 3, size)), model(pixel_values=scaled(size)).logits)
    assert (loaded.embedding, loaded.image, loaded.weights) == (False, (3, size, size), str(tmp_path / "model"))
    assert loaded.preprocessing.source.startswith("preprocessor_config.json")
    assert not loaded.model.training


@pytest.mark.parametrize("name", ["ViT", "ResNet", "Swin", "ConvNext", "Dinov2"])
def test_backbone_returns_its_pooled_output(name: str, transformers: ModuleType, tmp_path: Path) -> None:
    model = saved(transformers, name, tmp_path)
    loaded = load_model(f"hf:{tmp_path}")
    batch = images(2, 3, 28 if name == "Dinov2" else 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(batch), model(pixel_values=batch).pooler_output.flatten(1))
    assert (loaded.embedding, loaded.mean) == (True, None)
    assert loaded.preprocessing.source == "unknown: no preprocessor_config.json"


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_model_with_a_text_tower_returns_image_features(name: str, transformers: ModuleType, tmp_path: Path) -> None:
    model = saved(transformers, name, tmp_path)
    loaded = load_model(f"hf:{tmp_path}")
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=images(2, 3, 32)).pooler_output
        expected = model.visual_projection(pooled) if name == "CLIP" else pooled
        assert torch.equal(loaded.model(images(2, 3, 32)), expected)
    assert (loaded.embedding, loaded.image) == (True, (3, 32, 32))


def test_vision_tower_with_its_projection_returns_image_features(transformers: ModuleType, tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(**VISION, projection_dim=12)
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(pixel_values=images(2, 3, 32)).image_embeds
        assert torch.equal(load_model(f"hf:{tmp_path}").model(images(2, 3, 32)), expected)


def test_pooler_without_weights_is_not_used(transformers: ModuleType, tmp_path: Path) -> None:
    """The pooler would be random: the class token is the embedding instead."""
    model = transformers.ViTModel(transformers.ViTConfig(**VISION), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}")
    save_model(tmp_path / "copy.safetensors", loaded.model, loaded.spec)
    again = load_model(str(tmp_path / "copy.safetensors"))
    with torch.no_grad():
        expected = model(pixel_values=images(2, 3, 32)).last_hidden_state[:, 0]
        assert torch.equal(loaded.model(images(2, 3, 32)), expected)
        assert torch.equal(again.model(images(2, 3, 32)), expected)


def test_pretrained_file_does_not_touch_the_global_random_state(transformers: ModuleType, tmp_path: Path) -> None:
    saved(transformers, "ViT", tmp_path)
    state = torch.get_rng_state()
    load_model(f"hf:{tmp_path}")
    assert torch.equal(torch.get_rng_state(), state)


def test_incomplete_weights_are_refused(transformers: ModuleType, tmp_path: Path) -> None:
    saved(transformers, "ViT", tmp_path, kind="ForImageClassification")
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if not name.startswith("classifier")}, tmp_path / "model.safetensors"
    )
    with pytest.raises(
        InputError, match=r"incomplete: 2 of ViTForImageClassification are missing \(classifier.bias, classifier.we"
    ):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["ResNet", "ViT"])
@pytest.mark.parametrize("kind", ["state dict", "prefixed", "saved"])
def test_weights_from_a_file_replace_the_folders(name: str, kind: str, transformers: ModuleType, tmp_path: Path) -> None:
    """What save_pretrained writes has the names of earlier versions; what torch.save writes has those of the model."""
    model = saved(transformers, name, tmp_path / "model", kind="ForImageClassification")
    nn.init.ones_(next(model.classifier.parameters()) if name == "ViT" else model.classifier[1].weight)
    file = tmp_path / "tuned.ckpt"
    if kind == "saved":
        model.save_pretrained(tmp_path / "tuned")
        file = tmp_path / "tuned" / "model.safetensors"
    else:
        prefix = "model." if kind == "prefixed" else ""
        torch.save({"state_dict": {f"{prefix}{key}": value for key, value in model.state_dict().items()}}, file)
    loaded = load_model(f"hf:{tmp_path / 'model'}", weights=file)
    with torch.no_grad():
        assert torch.equal(loaded.model(images(2, 3, 32)), model(pixel_values=images(2, 3, 32)).logits)
    assert loaded.weights.startswith(str(file))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.weight": None}, r"incomplete: 1 of ViTForImageClassification are missing \(classifier.weight\)"),
        ({"extra": torch.ones(2)}, r"do not fit .*: 1 unexpected \(extra\)"),
        ({"classifier.bias": torch.ones(5)}, r"1 of another shape \(classifier.bias is 5 in the file and 3 in the model\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, Any], message: str, transformers: ModuleType, tmp_path: Path
) -> None:
    model = saved(transformers, "ViT", tmp_path / "model", kind="ForImageClassification")
    weights = {**model.state_dict(), **change}
    torch.save({name: value for name, value in weights.items() if value is not None}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=message):
        load_model(f"hf:{tmp_path / 'model'}", weights=tmp_path / "w.pt")


def test_file_of_a_folder_that_holds_more_than_tensors_is_refused(transformers: ModuleType, tmp_path: Path) -> None:
    model = saved(transformers, "ViT", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_model(f"hf:{tmp_path}").embedding
    torch.save({**model.state_dict(), "code": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds more than tensors"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is damaged, or is not JSON"),
        ("[]", "is not the configuration of a model"),
        ("{}", "names no model of transformers"),
        ('{"architecture": "resnet18"}', "names no model of transformers. Give it as timm:local-dir:"),
        ('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}', "is not a classifier, backbone, detector"),
        ('{"model_type": "vit_mae", "mask_ratio": 0.75}', "masks random parts of every image"),
        ('{"model_type": "vit", "architectures": ["ViTModel"]}', "transformers cannot load the model in"),
    ],
)
def test_folder_without_an_image_model_is_refused(config: str, message: str, transformers: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=message):
        load_model(f"hf:{tmp_path}")


def test_text_model_is_refused(transformers: ModuleType, tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**TRANSFORMER, vocab_size=64)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"takes `input_ids`, not images"):
        load_model(f"hf:{tmp_path}")


def test_code_that_a_model_brings_does_not_run(transformers: ModuleType, tmp_path: Path) -> None:
    saved(transformers, "ViT", tmp_path)
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Mine: ...\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="transformers cannot load the model in"):
        load_model(f"hf:{tmp_path}")
    assert not (tmp_path / "executed").exists()


def test_model_of_a_factory_brings_its_processor_and_logits(transformers: ModuleType, tmp_path: Path) -> None:
    model = saved(transformers, "ViT", tmp_path / "model", kind="ForImageClassification", processor={**PROCESSOR, "size": 32})
    folder = str(tmp_path / "model")
    code = f"import transformers\ndef network():\n    return transformers.ViTForImageClassification.from_pretrained({folder!r})\n"
    (tmp_path / "mine.py").write_text(code)
    loaded = load_model(f"{tmp_path / 'mine.py'}:network")
    assert (loaded.image, loaded.mean) == ((3, 32, 32), tuple(PROCESSOR["image_mean"]))
    counted = CountedModel(loaded.model, output=None, device=torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(counted(images(2, 3, 32)), model(pixel_values=scaled(32)).logits)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which finds no hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    use_hub("http://127.0.0.1:9", monkeypatch)
    return tmp_path / "cache"


def use_hub(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def timm_folder(folder: Path) -> None:
    library = zoo.timm()
    library.models.save_for_hf(library.create_model("test_resnet", num_classes=2), folder, safe_serialization=True)


@pytest.mark.parametrize("kind", ["hf", "timm:hf-hub"])
def test_model_of_the_hub_is_downloaded_once(
    kind: str, transformers: ModuleType, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    if kind == "hf":
        saved(transformers, "ResNet", folder, kind="ForImageClassification", processor=PROCESSOR)
        local = load_model(f"hf:{folder}")
    else:
        timm_folder(folder)
        local = load_model(f"timm:local-dir:{folder}")
    with pytest.raises(InputError, match="'someone/small' is not in the local cache, and the Hugging Face hub cannot be reached"):
        load_model(f"{kind}:someone/small")
    with serving(folder, "someone/small", kind="model") as address:
        use_hub(address, monkeypatch)
        first = load_model(f"{kind}:someone/small")
    again = load_model(f"{kind}:someone/small")
    size = local.image[1]
    with torch.no_grad():
        expected = local.model(images(2, 3, size))
        assert torch.equal(first.model(images(2, 3, size)), expected)
        assert torch.equal(again.model(images(2, 3, size)), expected)
    assert first.preprocessing == local.preprocessing
    assert first.weights == f"someone/small@{COMMIT[:8]}"


def test_unknown_model_of_the_hub_is_refused(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    with serving(tmp_path, "someone/small", kind="model") as address:
        use_hub(address, monkeypatch)
        with pytest.raises(InputError, match="the model 'someone/else' cannot be loaded from the Hugging Face hub"):
            load_model("hf:someone/else")
        with pytest.raises(InputError, match=r"'someone/small' has no config.json with model.safetensors or pytorch_model.bin"):
            load_model("hf:someone/small")
    for name in ("a b/c", "/no/such/folder", "./none", "one/two/three"):
        with pytest.raises(InputError, match=f"'{name}' is neither a folder here nor a name on the Hugging Face hub"):
            load_model(f"hf:{name}")


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"transformers cannot be imported .*pip install 'shiftscope\[transformers\]'"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("names", "classes"), [({0: "five", 1: "six", 2: "a tench, Tinca"}, ("five", "six", "a tench, Tinca")), ({}, ())]
)
def test_names_of_classes_are_those_of_the_configuration(
    names: dict[int, str], classes: tuple[str, ...], transformers: ModuleType, tmp_path: Path
) -> None:
    model = saved(transformers, "ResNet", tmp_path / "model", kind="ForImageClassification", processor=PROCESSOR)
    if names:
        model.config.id2label = names
    model.save_pretrained(tmp_path / "model")
    assert load_model(f"hf:{tmp_path / 'model'}").classes == classes


def test_model_that_takes_blue_first_equals_its_pipeline_and_so_does_a_fixed_copy(
    transformers: ModuleType, tmp_path: Path
) -> None:
    """Its processor swaps red and blue and does not normalise, whatever mean and deviation its file holds."""
    processor = transformers.MobileViTImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    model = saved(transformers, "ResNet", tmp_path / "model", kind="ForImageClassification")
    processor.save_pretrained(tmp_path / "model")
    loaded = load_model(f"hf:{tmp_path / 'model'}")
    photo = (images(1, 3, 32) * 255).round()
    with torch.no_grad():
        expected = model(processor(images=photo[0].byte().permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]).logits
        torch.testing.assert_close(loaded.model(photo / 255), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(loaded.model(photo.flip(1) / 255), expected, atol=1e-3)
        surgery = operate("circular", loaded.model, image=(3, 32, 32))
        fixed = loaded.spec.model_copy(update={"fixes": (Fix(kind="circular"),)})
        save_model(tmp_path / "fixed.safetensors", surgery.model, fixed)
        again = load_model(str(tmp_path / "fixed.safetensors"))
        torch.testing.assert_close(again.model(photo / 255), surgery.model(photo / 255))


def test_file_of_a_fixed_copy_keeps_the_names_of_classes(transformers: ModuleType, tmp_path: Path) -> None:
    model = saved(transformers, "ResNet", tmp_path / "model", kind="ForImageClassification", processor=PROCESSOR)
    model.config.id2label = {0: "cat", 1: "ant", 2: "bee"}
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(f"hf:{tmp_path / 'model'}")
    save_model(tmp_path / "fixed.safetensors", loaded.model, loaded.spec)
    assert load_model(str(tmp_path / "fixed.safetensors")).classes == ("cat", "ant", "bee")
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"fixed.safetensors needs the model hf:"):
        load_model(str(tmp_path / "fixed.safetensors"))


@pytest.mark.parametrize(
    ("problem", "task"), [("multi_label_classification", "multilabel"), ("regression", "regression"), (None, "")]
)
def test_problem_type_of_a_classifier_chooses_the_task(
    problem: str | None, task: str, transformers: ModuleType, tmp_path: Path
) -> None:
    model = saved(transformers, "ViT", tmp_path / "model", kind="ForImageClassification")
    model.config.problem_type = problem
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(f"hf:{tmp_path / 'model'}")
    found = audit(loaded.model, images(6, 3, 32), protocols=["every-shift"], max_shift=1)
    assert found.task == task
    if task == "regression":
        (step,) = path = ((1, 2),)
        circular = Protocol("path", 4, "circular", 0, ("all_agree",), drawn=0, path=path)
        with torch.no_grad():
            one, other = (loaded.model(each) for each in (images(6, 3, 32), images(6, 3, 32).roll(step, (2, 3))))
        change = audit(loaded.model, images(6, 3, 32), protocols=[circular]).estimate("value_change").value
        assert change == pytest.approx(float((other - one).abs().mean()), rel=1e-4)
