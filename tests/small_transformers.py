"""Small transformers: of timm, of transformers, of torch and home-made, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo import timm

#: Names or classes of timm, and settings that make a model small, for images of 32x32 pixels.
SMALL: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "beit": {"name": "beit_base_patch16_224", "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "relative": {
        "name": "vit_relpos_small_patch16_224",
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 2,
    },
    "maxvit": {"name": "maxvit_nano_rw_256", "depths": (1, 1), "embed_dim": (32, 32), "stem_width": 8, "img_size": 32},
    "coatnet": {"name": "coatnet_nano_rw_224", "depths": (1, 1, 1, 1), "embed_dim": (32, 32, 64, 64), "stem_width": 8},
    "mixer": {"kind": "MlpMixer", "patch_size": 8, "embed_dim": 24, "num_blocks": 2},
    "twins": {
        "name": "twins_svt_small",
        "img_size": 32,
        "patch_size": 2,
        "embed_dims": (8, 8, 16, 16),
        "depths": (2, 2, 1, 1),
        "num_heads": (1, 1, 2, 2),
        "wss": (4, 4, 2, 2),
        "sr_ratios": (4, 2, 2, 1),
    },
    "pvt": {"name": "pvt_v2_b0", "depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)},
    "swin": {
        "name": "swin_tiny_patch4_window7_224",
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 12,
        "depths": (2, 2),
        "num_heads": (2, 2),
    },
}


def small(kind: str, *, image: int = 32, **settings: Any) -> nn.Module:
    """Return a small model of timm with random weights, in evaluation mode.

    Weights are larger than timm's, so that a transformer of two blocks responds to what it sees as a trained one does.
    """
    torch.manual_seed(0)
    options = {**SMALL[kind], "num_classes": 5, **({} if kind == "pvt" else {"img_size": image}), **settings}
    library = timm()
    made = library.models.mlp_mixer.MlpMixer if options.pop("kind", "") == "MlpMixer" else library.create_model
    model = (made(options.pop("name"), **options) if "name" in options else made(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.05))
    return model
