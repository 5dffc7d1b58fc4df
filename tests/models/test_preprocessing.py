"""What libraries say about a model's input is read as the libraries themselves apply it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import zoo
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.errors import InputError
from shiftscope.models.image_processors import tried
from shiftscope.models.preprocessing import (
    from_description,
    from_processor,
    from_timm,
    from_torchvision,
    overridden,
    swaps_red_and_blue,
)
from shiftscope.runtime.sizes import Size, both

GREYS = (0, 85, 255)


def photo(grey: int) -> Image.Image:
    """A wide photo of one colour."""
    return Image.fromarray(np.full((200, 300, 3), grey, np.uint8))


def normalised(found: Preprocessing, grey: int) -> Tensor:
    """The value of every channel after a preprocessing, by its definition."""
    mean, std = ((0.0,) * 3, (1.0,) * 3) if found.mean is None else (found.mean, found.std)
    return (torch.tensor([grey / 255] * 3) - torch.tensor(mean)) / torch.tensor(std)


def shorter_side(transforms: Any) -> int:
    """The size to which a pipeline of torchvision's transforms scales photos first."""
    size = transforms.transforms[0].size
    return size if isinstance(size, int) else min(size)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "vit_base_patch16_224", "convnext_tiny", "efficientnet_b3", "mobilenetv3_small_100", "tf_efficientnet_b0"],
)
def test_timm_configuration_is_read_as_timm_applies_it(name: str) -> None:
    timm = zoo.timm()
    cfg = timm.get_pretrained_cfg(name).to_dict()
    found = from_timm(cfg)
    transforms = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg))
    assert found.shorter_side() == shorter_side(transforms)
    assert found.interpolation == transforms.transforms[0].interpolation.value
    for grey in GREYS:
        expected = transforms(photo(grey))
        assert expected.shape == (3, found.size, found.size)
        torch.testing.assert_close(normalised(found, grey), expected[:, 3, 3], rtol=1e-4, atol=1e-4)


def test_every_configuration_of_timm_is_read_as_timm_resolves_it() -> None:
    timm = zoo.timm()
    for name in timm.list_pretrained()[::20]:
        cfg = timm.get_pretrained_cfg(name).to_dict()
        resolved, found = timm.data.resolve_data_config(pretrained_cfg=cfg), from_timm(cfg)
        assert (found.size, found.mean, found.std) == (resolved["input_size"][-1], resolved["mean"], resolved["std"]), name
        assert found.shorter_side() == int(resolved["input_size"][-1] / resolved["crop_pct"]), name
        assert ("centre crop for" in found.source) == (resolved["crop_mode"] != "center"), name


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "swin_v2_t", "inception_v3", "mobilenet_v3_small"])
def test_transforms_of_torchvision_are_read_as_torchvision_applies_them(name: str) -> None:
    transforms = zoo.torchvision_models().get_model_weights(name).DEFAULT.transforms()
    found = from_torchvision(transforms)
    assert found.shorter_side() == transforms.resize_size[0]
    for grey in GREYS:
        expected = transforms(photo(grey))
        assert expected.shape == (3, found.size, found.size)
        torch.testing.assert_close(normalised(found, grey), expected[:, 3, 3], rtol=1e-4, atol=1e-4)


PROCESSORS = [
    ("ViTImageProcessor", {"size": {"height": 64, "width": 64}}, 64, 64),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}}, 64, 80),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 56}}, 56, 64),
    ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}}, 64, 64),
    ("EfficientNetImageProcessor", {"size": {"height": 64, "width": 64}, "rescale_offset": True, "include_top": False}, 64, 64),
    (
        "EfficientNetImageProcessor",
        {"size": {"height": 64, "width": 64}, "rescale_factor": 1 / 127.5, "rescale_offset": True},
        64,
        64,
    ),
    ("ViTImageProcessor", {"size": {"height": 64, "width": 64}, "do_normalize": False}, 64, 64),
    ("ViTImageProcessor", {"size": {"height": 64, "width": 64}, "do_normalize": False, "rescale_factor": 1.0}, 64, 64),
    ("ViTImageProcessor", {"size": {"height": 64, "width": 64}, "do_normalize": False, "do_rescale": False}, 64, 64),
    ("MobileViTImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}, 64, 72),
    ("LevitImageProcessor", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}, 64, 73),
    ("BitImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}, 64, 72),
    ("ViTImageProcessor", {"size": {"height": 96, "width": 48}}, (96, 48), 48),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 112}, "crop_size": {"height": 64, "width": 96}}, (64, 96), 112),
]


@pytest.mark.parametrize(("name", "options", "size", "shorter"), PROCESSORS)
def test_processor_is_read_as_transformers_applies_it(name: str, options: dict[str, Any], size: Size, shorter: int) -> None:
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers", reason="needs transformers (extra `transformers`)")
    processor = getattr(transformers, name)(**options)
    found = from_processor(processor.to_dict())
    assert (found.size, found.shorter_side()) == (size, shorter)
    for grey in GREYS:
        expected = processor(images=photo(grey), return_tensors="pt")["pixel_values"][0].float()  # whole numbers as they are
        assert expected.shape == (3, *both(size))
        torch.testing.assert_close(normalised(found, grey), expected[:, 3, 3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ViTImageProcessor", {}, ""),
        ("MobileViTImageProcessor", {"crop_size": {"height": 224, "width": 224}}, ""),
        ("PerceiverImageProcessor", {}, ", but PerceiverImageProcessor scales or crops otherwise"),
    ],
)
def test_what_a_processor_does_is_tried(name: str, options: dict[str, Any], said: str) -> None:
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers", reason="needs transformers (extra `transformers`)")
    processor = getattr(transformers, f"{name}Pil")(**options)
    config = processor.to_dict()
    found = from_processor(config)
    swapped = swaps_red_and_blue(config)
    assert swapped == name.startswith("MobileViT")
    assert tried(processor, found, swapped=swapped) == replace(found, source=found.source + said)
    wrong = replace(found, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
    corrected = tried(processor, wrong, swapped=swapped)
    assert corrected.source == f"{found.source}, normalised as {name} does{said}"
    for grey in GREYS:
        torch.testing.assert_close(normalised(corrected, grey), normalised(found, grey), rtol=1e-3, atol=1e-3)
    if not said:
        assert "reorders the colours" in tried(processor, found, swapped=not swapped).source


@pytest.mark.parametrize(
    "given",
    [
        {"size": 64, "mean": (0.5,), "std": (0.25,)},
        {"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.25,)},
        {"image_mean": [0.5], "image_std": [0.25], "size": {"height": 64, "width": 64}},
        Preprocessing(size=64, mean=(0.5,), std=(0.25,)),
    ],
)
def test_every_form_of_a_description_is_read(given: Any) -> None:
    found = from_description(given)
    assert (found.size, found.mean, found.std) == (64, (0.5,), (0.25,))
    assert found.source.startswith("the factory")


@pytest.mark.parametrize("given", [3, "photos", {"sise": 3}, [1, 2]])
def test_unknown_description_is_none(given: Any) -> None:
    assert from_description(given) is None


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("the factory", {"size": None, "mean": None, "std": None}, "the factory"),
        ("the factory", {"size": 32, "mean": None, "std": None}, "the factory; size from the options"),
        ("the factory", {"size": 32, "mean": (0.1,), "std": (0.2,)}, "the factory; size and normalisation from the options"),
        ("unknown", {"size": None, "mean": (0.1,), "std": (0.2,)}, "the options"),
        ("unknown", {"size": 32, "mean": None, "std": None}, "unknown; size from the options"),
        ("the options", {"size": 32, "mean": None, "std": None}, "the options"),
    ],
)
def test_options_are_named_as_a_source(source: str, options: dict[str, Any], expected: str) -> None:
    found = overridden(Preprocessing(size=64, mean=(0.5,), std=(0.5,), resize=80, source=source), **options)
    assert found.source == expected
    assert found.shorter_side() == (80 if options["size"] is None else 40)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"mean": 0.5, "std": 0.25}, Preprocessing(mean=(0.5,), std=(0.25,), source="the factory")),
        (
            {"size": [32, 32], "mean": [0, 1, 0.5], "std": torch.ones(3)},
            Preprocessing(size=32, mean=(0.0, 1.0, 0.5), std=(1.0, 1.0, 1.0), source="the factory"),
        ),
        ({"size": [256, 128]}, Preprocessing(size=(256, 128), source="the factory")),
        ({"input_size": (3, 96, 64)}, Preprocessing(size=(96, 64), source="the factory")),
    ],
)
def test_numbers_of_a_factory_are_read_in_any_form(given: dict[str, Any], expected: Preprocessing) -> None:
    assert from_description(given) == expected


@pytest.mark.parametrize("given", [{"size": (32, 0)}, {"size": "big"}, {"size": 0}, {"mean": "grey"}, {"std": [None]}])
def test_what_is_no_number_of_a_factory_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"the factory's `{next(iter(given))}` must be one"):
        from_description(given)
