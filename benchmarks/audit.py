"""Measure what several protocols cost in one pass, against the bare forward passes and against one audit per protocol.

    python benchmarks/audit.py [--rounds 5] [--no-resnet]

The benchmark records the views that the model receives during an audit, checks that no view is repeated, and runs the same
batches through the bare model. The three ways take turns, round by round; CPU time, medians with their range. On the paper's
network for CIFAR-10, and on a ResNet-18 (needs torchvision).
"""

from __future__ import annotations

import argparse
import importlib
from contextlib import suppress

import torch
from torch import Tensor, nn

from interleaving import interleaved, processor_seconds, ratios
from shiftscope.audits import audit
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.executors import keep_freed_memory

PROTOCOLS = (
    "mouton2020",
    "zhang2019",
    "zhang2019-diagonal",
    "chaman2021-circular",
    "rojas2022",
    "azulay2018",
    "hendrycks2019",
    "gruver2023",
    "tmeasures",
)


def paper() -> tuple[nn.Module, Tensor, int]:
    """Return the paper's network at factor 4, images of noise with a margin, and the input size."""
    spec = NetworkSpec(channels=(32, 64, 128), factor=4, input_size=50, input_channels=3)
    network = build(spec, generator=torch.Generator().manual_seed(0)).eval()
    return network, torch.rand(64, 3, 58, 58, generator=torch.Generator().manual_seed(1)), 50


def resnet() -> tuple[nn.Module, Tensor, int]:
    """Return torchvision's ResNet-18, images of noise with a margin, and the input size.

    With a PyTorch without CUDA, importing torchvision needs two of its operators to be declared first.
    """
    names = torch.library.Library("torchvision", "FRAGMENT")
    for signature in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
        with suppress(RuntimeError):
            names.define(signature)
    torch.manual_seed(0)
    model: nn.Module = importlib.import_module("torchvision.models").resnet18().eval()
    return model, torch.rand(16, 3, 128, 128, generator=torch.Generator().manual_seed(1)), 112


def measure(name: str, model: nn.Module, images: Tensor, size: int, rounds: int) -> None:
    """Measure one audit, the bare forward passes of its views, and one audit per protocol."""
    batches: list[Tensor] = []

    def recorded(batch: Tensor) -> Tensor:
        batches.append(batch.clone())
        output: Tensor = model(batch)
        return output

    cost = audit(recorded, images, protocols=PROTOCOLS, size=size, max_shift=4).cost
    views = torch.cat(batches[1:])  # the first batch is the example
    assert len(views.flatten(1).unique(dim=0)) == len(views) == cost.forward == cost.distinct

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches[1:]:
                model(batch)

    def together() -> None:
        audit(model, images, protocols=PROTOCOLS, size=size, max_shift=4)

    def apart() -> None:
        for protocol in PROTOCOLS:
            audit(model, images, protocols=[protocol], size=size, max_shift=4)

    ways = {"bare": bare, "together": together, "apart": apart}
    found = interleaved({way: processor_seconds(run) for way, run in ways.items()}, rounds)
    over, spread = ratios(found["together"], found["bare"])
    gain, gain_spread = ratios(found["apart"], found["together"])
    print(
        f"{name:<22}{len(PROTOCOLS)} names, {len(images)} images: {cost.asked:,} views needed, {cost.distinct:,} distinct   "
        f"audit / bare forward passes {over:.3f} {spread}   one audit per protocol / audit {gain:.2f} {gain_spread}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-resnet", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, median [least, greatest]")
    measure("paper, 50x50", *paper(), options.rounds)
    if not options.no_resnet:
        measure("ResNet-18, 112x112", *resnet(), options.rounds)


if __name__ == "__main__":
    main()
