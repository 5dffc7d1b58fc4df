"""Read, explain and anchor one small model of every kind of transformer, with random weights in double precision.

    python benchmarks/token_models.py [NAME ...]

For each model: how many blocks are seen, which causes are confirmed, what circular shifts still change in the anchored copy
(relative to the largest output), and the ratio of multiply-adds.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from shiftscope.explanations.causes import causes_of
from shiftscope.explanations.trial import Trial, draw_shifts
from shiftscope.graphs.invariance import output_change, random_steps
from shiftscope.graphs.tokens import read_tokens
from shiftscope.models.huggingface import Classifier
from shiftscope.surgery import anchor

LIBRARIES = import_module("zoo")  # of tests/, which makes torchvision import without CUDA


def _timm(name: str, size: int, **settings: Any) -> Callable[[], tuple[nn.Module, int]]:
    return lambda: (LIBRARIES.timm().create_model(name, num_classes=5, **settings), size)


def _vit() -> tuple[nn.Module, int]:
    from transformers import ViTConfig, ViTForImageClassification

    options: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return Classifier(ViTForImageClassification(ViTConfig(**options, image_size=32, patch_size=8))), 32


def _swin() -> tuple[nn.Module, int]:
    from transformers import SwinConfig, SwinForImageClassification

    options: dict[str, Any] = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
    return Classifier(SwinForImageClassification(SwinConfig(**options, image_size=32, patch_size=2))), 32


def _torchvision_swin() -> tuple[nn.Module, int]:
    options: dict[str, Any] = {
        "patch_size": [2, 2],
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": [4, 4],
    }
    return LIBRARIES.torchvision_models().SwinTransformer(**options, num_classes=5), 32


def _torchvision_vit() -> tuple[nn.Module, int]:
    options: dict[str, Any] = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
    return LIBRARIES.torchvision_models().VisionTransformer(**options, image_size=32, num_classes=5), 32


SMALL_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TWO: dict[str, Any] = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2)}
SMALL_SWIN: dict[str, Any] = {"img_size": 32, "patch_size": 2, "window_size": 4, **TWO}
FOUR: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2)}
MODELS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "vit": _timm("vit_tiny_patch16_224", 32, **SMALL_VIT),
    "vit, mean, no embedding": _timm("vit_tiny_patch16_224", 32, **SMALL_VIT, pos_embed="none", global_pool="avg"),
    "vit, registers": _timm("vit_small_patch14_reg4_dinov2", 32, **SMALL_VIT),
    "vit, relative bias": _timm("vit_relpos_small_patch16_224", 32, **SMALL_VIT),
    "deit, distilled": _timm("deit_tiny_distilled_patch16_224", 32, **SMALL_VIT),
    "cait": _timm("cait_xxs24_224", 32, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2),
    "beit": _timm("beit_base_patch16_224", 32, **SMALL_VIT),
    "eva02": _timm("eva02_tiny_patch14_224", 32, **SMALL_VIT),
    "swin": _timm("swin_tiny_patch4_window7_224", 32, **SMALL_SWIN),
    "swinv2": _timm("swinv2_tiny_window8_256", 32, **SMALL_SWIN),
    "swinv2-cr": _timm("swinv2_cr_tiny_224", 64, img_size=64, embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=8),
    "twins-svt": _timm("twins_svt_small", 64, img_size=64, **FOUR | {"depths": (2, 2, 2, 2)}, wss=(4, 4, 4, 2)),
    "twins-pcpvt": _timm("twins_pcpvt_small", 64, img_size=64, **FOUR),
    "pvt-v2": _timm("pvt_v2_b0", 64, **FOUR),
    "maxvit": _timm("maxvit_nano_rw_256", 64, img_size=64, depths=(1, 1), embed_dim=(32, 64), stem_width=8),
    "coatnet": _timm("coatnet_nano_rw_224", 64, img_size=64, depths=(1, 1, 1, 1), embed_dim=(32, 32, 64, 64), stem_width=8),
    "mixer": _timm("mixer_s32_224", 64, img_size=64),
    "convnext": _timm("convnext_atto", 128, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), conv_mlp=False),
    "hiera": _timm("hiera_tiny_224", 64, img_size=64, embed_dim=12, num_heads=1, stages=(1, 1, 1, 1)),
    "xcit": _timm("xcit_nano_12_p16_224", 64, img_size=64, embed_dim=16, depth=2, num_heads=2),
    "levit": _timm("levit_128s", 64, img_size=64),
    "poolformer": _timm("poolformer_s12", 64),
    "mobilevit": _timm("mobilevit_xxs", 64),
    "transformers vit": _vit,
    "transformers swin": _swin,
    "torchvision vit": _torchvision_vit,
    "torchvision swin": _torchvision_swin,
}


def row(name: str) -> str:
    """Return what holds for one model."""
    torch.manual_seed(0)
    model, size = MODELS[name]()
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim > 1 else 0.02))
    images = torch.rand(4, 3, size, size, dtype=torch.float64)
    tokens = read_tokens(model, images[:1])
    if tokens is None:
        return f"{name:24} no token maps"
    trial = Trial(images, draw_shifts(4, 2, 8, torch.Generator().manual_seed(0)), "circular")
    causes = causes_of(model, trial, None, trial.measure(model, name), tokens=tokens, seed=0)
    shares = " ".join(f"{each.name} {'?' if each.share is None else format(each.share.value, '.2f')}," for each in causes.causes)
    surgery = anchor(model, image=(3, size, size))
    change = output_change(surgery.model, images[:2], random_steps(4, (size, size), (1, 1)))
    ratio = surgery.after.multiply_adds / surgery.before.multiply_adds if surgery.before and surgery.after else 0.0
    blocks = f"{name:24} {len(tokens.blocks)} blocks, factor {tokens.factor}; {shares}"
    shown = "?" if change is None else f"{change:.0e}"
    said = surgery.changes[-1].why[:60]
    return f"{blocks} anchored: {surgery.changed} changed, shifts change {shown}, cost {ratio:.2f}: {said}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for each in sys.argv[1:] or MODELS:
        try:
            print(row(each), flush=True)
        except Exception as error:  # one model must not end the table
            print(f"{each:24} {type(error).__name__}: {str(error)[:150]}", flush=True)
