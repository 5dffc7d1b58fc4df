"""Detectors of torchvision and Hugging Face, with random weights, are audited as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from shiftscope.audits import audit
from shiftscope.tasks.boxes import Boxes

FEW = {"weights": None, "weights_backbone": None, "num_classes": 4}
QUICK = {"rpn_pre_nms_top_n_test": 20, "rpn_post_nms_top_n_test": 8, "box_detections_per_img": 6, "box_score_thresh": 0.0}


def torchvision_detector(name: str) -> nn.Module:
    detection = zoo.torchvision_detection()
    torch.manual_seed(0)
    if name == "ssdlite":
        return detection.ssdlite320_mobilenet_v3_large(**FEW, detections_per_img=20, topk_candidates=20).eval()
    return detection.fasterrcnn_mobilenet_v3_large_320_fpn(**FEW, **QUICK, min_size=64, max_size=64).eval()


def hugging_face_detector(name: str) -> nn.Module:
    transformers = zoo.importable("transformers", "transformers")
    torch.manual_seed(0)
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 16}
    if name == "yolos":
        sizes = {"image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 6, "num_labels": 3}
        return transformers.YolosForObjectDetection(transformers.YolosConfig(**small, **sizes)).eval()
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6, "num_labels": 3}
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    settings = {"backbone_config": backbone, "use_pretrained_backbone": False, "use_timm_backbone": False, "backbone": None}
    config = transformers.DetrConfig(**layers, **heads, **settings)
    return transformers.DetrForObjectDetection(config).eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torchvision's anchors
@pytest.mark.parametrize(
    "name", [pytest.param("ssdlite", marks=pytest.mark.slow), pytest.param("fasterrcnn", marks=pytest.mark.slow), "yolos", "detr"]
)
def test_detector_is_recognised_and_audited(name: str) -> None:
    model = torchvision_detector(name) if name in ("ssdlite", "fasterrcnn") else hugging_face_detector(name)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    shown = audit(model, images, protocols=["mouton2020"], max_shift=4)
    assert shown.task == "boxes"
    found = audit(model, images, protocols=["mouton2020"], max_shift=4, task=Boxes(threshold=0.01))
    assert 0 <= found.estimate("boxes_cut", "mouton2020").value <= 1
