"""Measure how much of an `explain` and of an `audit` goes into verification.

    python benchmarks/checking.py [NAME ...] [--rounds 3] [--images 32]

Verification is everything that does not measure but checks: graphs and copies compared with the model, geometry and token maps
compared with what runs, the trial of the guarantee, promises of equivariant copies, counterfactuals tried before they count, and
dense outputs compared with direct ones. The functions that do it are wrapped while the whole command runs, and CPU time inside
the outermost of them is counted, so that nothing counts twice. Shares are medians with their range over rounds, and the first
round is left out. Weights are random.

Photos are audited by two protocols only, because verification costs the same in larger audits; digits by the default ones.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any
from unittest import mock

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from shiftscope.audits import audit
from shiftscope.datasets.dataset import DataSpec, load
from shiftscope.engine.runner import Runner
from shiftscope.explanations import explain
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.executors import keep_freed_memory
from shiftscope.runtime.seeds import stream

LIBRARIES = importlib.import_module("zoo")  # of tests/, which makes torchvision import without CUDA
#: What is verified -> module and function that does it.
CHECKS = {
    "graphs and copies": (("graphs.tracing", "check_traced"), ("graphs.probing", "difference")),
    "geometry": (
        ("graphs.geometry", "geometry_of"),
        ("graphs.tokens", "read_tokens"),
        ("graphs.observed", "observe"),
        ("graphs.observed", "extent_seen"),
    ),
    "guarantee": (("explanations.guarantee", "guarantee_of"),),
    "promise": (("surgery.promise", "try_promise"),),
    "counterfactuals": (
        ("graphs.invariance", "output_change"),
        ("explanations.heads", "head_change"),
        ("explanations.heads", "tokens_go_on"),
        ("explanations.token_causes", "_effect"),
        ("surgery.anchor", "confirmed_positions"),
    ),
}
PROTOCOLS = ["mouton2020", "zhang2019"]


class Clock:
    """CPU seconds spent in verification, by kind."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.inside = False

    def wrapped(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that makes the same call and counts its time, unless it is inside another that is counted."""

        def counted(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return call(*arguments, **options)
            self.inside, started = True, process_time()
            try:
                return call(*arguments, **options)
            finally:
                self.spent[kind] += process_time() - started
                self.inside = False

        return counted

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count while the ``with`` statement runs, wherever the package refers to the functions."""
        with ExitStack() as patches:
            for kind, places in CHECKS.items():
                for module, name in places:
                    call = getattr(importlib.import_module(f"shiftscope.{module}"), name)
                    users = [
                        each for key, each in sys.modules.items() if key.startswith("shiftscope") and vars(each).get(name) is call
                    ]
                    for user in users:
                        patches.enter_context(mock.patch.object(user, name, self.wrapped(kind, call)))
            apart = self.wrapped("dense against direct", Runner._apart)
            patches.enter_context(mock.patch.object(Runner, "_apart", lambda *given: apart(*given)))
            yield


def photos(count: int) -> Tensor:
    """Return crops of 224x224 pixels of scikit-learn's two photos."""
    generator, crops = stream(0, "images"), []
    for number in range(count):
        photo = torch.tensor(load_sample_images().images[number % 2]).permute(2, 0, 1)[None] / 255
        top, left = (int(torch.randint(side - 224, (1,), generator=generator)) for side in photo.shape[2:])
        crops.append(photo[..., top : top + 224, left : left + 224])
    return torch.cat(crops)


def resnet(count: int) -> tuple[nn.Module, Tensor]:
    """Return torchvision's ResNet-18 and photos."""
    torch.manual_seed(0)
    return LIBRARIES.torchvision_models().resnet18().eval(), photos(count)


def vit(count: int) -> tuple[nn.Module, Tensor]:
    """Return timm's ViT-Tiny and photos."""
    torch.manual_seed(0)
    return LIBRARIES.timm().create_model("vit_tiny_patch16_224").eval(), photos(count)


def digits(_: int) -> tuple[nn.Module, Tensor]:
    """Return the network of the study of the digits at factor 4, and its 359 test images."""
    data = load(DataSpec(name="digits", image_size=20, canvas=40))
    images = data.canvas.place(data.test.images)
    spec = NetworkSpec(channels=(8, 16, 32), factor=4, input_size=images.shape[2], input_channels=1)
    return build(spec, generator=stream(0, "weights")).eval(), images


NETWORKS = {"digits": digits, "vit": vit, "resnet": resnet}


def share(run: Callable[[], object]) -> tuple[float, dict[str, float]]:
    """Return the CPU seconds of a run, and those that verification took, by kind."""
    clock, started = Clock(), process_time()
    with clock.counting():
        run()
    return process_time() - started, clock.spent


def report(title: str, bar: float, run: Callable[[], object], rounds: int) -> None:
    """Print the share of verification in one command."""
    found = [share(run) for _ in range(rounds + 1)][1:] if rounds > 1 else [share(run)]
    shares = [sum(spent.values()) / total for total, spent in found]
    kinds = sorted({kind for _, spent in found for kind in spent})
    parts = ", ".join(f"{kind} {median(spent.get(kind, 0.0) / total for total, spent in found):.2%}" for kind in kinds)
    middle, low, high = median(shares), min(shares), max(shares)
    total = median(total for total, _ in found)
    print(
        f"{title:18} {total:7.1f} s of CPU, verification {middle:.2%} [{low:.2%}, {high:.2%}] (bar {bar:.0%}): {parts}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="one is not counted besides; 1: the first is counted")
    parser.add_argument("--images", type=int, default=32, help="photos")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} rounds, median [least, greatest]")
    for name in arguments.names or NETWORKS:
        model, images = NETWORKS[name](arguments.images)
        protocols = PROTOCOLS if name != "digits" else None
        report(f"{name}, audit", 0.02, lambda: audit(model, images, protocols=protocols), arguments.rounds)  # noqa: B023 - called before the loop goes on
        report(f"{name}, explain", 0.15, lambda: explain(model, images), arguments.rounds)  # noqa: B023 - called before the loop goes on
