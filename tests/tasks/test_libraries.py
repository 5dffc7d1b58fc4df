"""Models of libraries, with random weights: their outputs are read as they come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import shiftscope as ss
from shiftscope.models import load_model
from zoo import importable, torchvision_models


def images(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_depth_model_of_transformers_is_loaded_and_recognised(tmp_path: Path) -> None:
    transformers = importable("transformers", "transformers")
    config = transformers.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    transformers.DPTForDepthEstimation(config).save_pretrained(tmp_path)
    found = ss.audit(load_model(f"hf:{tmp_path}").model, images(), protocols=["mouton2020"])
    assert found.task == "depth"
    assert found.estimate("depth_change", "mouton2020").value > 0


def test_segmentation_model_of_transformers_is_loaded(tmp_path: Path) -> None:
    transformers = importable("transformers", "transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8, num_labels=6
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    found = ss.audit(load_model(f"hf:{tmp_path}").model, images(), task="segmentation", protocols=["mouton2020"])
    assert found.units["mouton2020"].shape == (6,)


def test_segmentation_model_of_torchvision_is_read() -> None:
    model = torchvision_models().segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    found = ss.audit(model, images(), task="segmentation", protocols=["chaman2021-circular"])
    assert 0 < found.estimate("mASSC", "chaman2021-circular").value <= 1


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_embedding_of_timm_is_read(name: str) -> None:
    timm = importable("timm", "zoo")
    options = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, pretrained=False, num_classes=0, **options).eval()
    found = ss.audit(model, images(), task="embedding", protocols=["mouton2020"])
    assert [row.measure for row in found.rows] == ["mcs", "retrieval", "neighbour_rank"]
