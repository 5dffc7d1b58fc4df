"""Anti-aliased pooling compared with antialiased-cnns: time forward, time forward and backward, and peak memory.

    python benchmarks/antialias.py [--rounds 7] [--no-resnet]

Same maps, same values (checked to 1e-5), interleaved rounds, medians with ranges, both memory orders. The limit of each time is
that of reading the input and writing the output, at the bandwidth of a copy of the same map in the same run. A complete ResNet-18
with filters in every place follows: ours, theirs, and without filters. Needs antialiased-cnns, and torchvision for the ResNet.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import antialiased_cnns
import torch
from antialiased_cnns.blurpool import BlurPool
from torch import Tensor, nn

from interleaving import interleaved, seconds
from shiftscope.layers import BlurPool2d, MaxBlurPool2d
from shiftscope.surgery import antialias, cost

SHAPES = ((64, 64, 56, 56), (64, 128, 28, 28), (64, 32, 40, 40), (128, 64, 20, 20))
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
FILTER = 3


def layers(kind: str, channels: int) -> dict[str, nn.Module]:
    """Build our layer and theirs."""
    blur = BlurPool(channels, filt_size=FILTER, stride=2)
    if kind == "BlurPool":
        return {"ours": BlurPool2d(FILTER, 2), "theirs": blur}
    return {"ours": MaxBlurPool2d(2, filter_size=FILTER, stride=2), "theirs": nn.Sequential(nn.MaxPool2d(2, 1), blur)}


def timed(rounds: int, runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Measure the seconds of each, interleaved."""
    return interleaved({name: seconds(run) for name, run in runs.items()}, rounds)


def forward(layer: nn.Module, maps: Tensor) -> Callable[[], object]:
    """Return a function that runs one forward pass without gradients."""

    def run() -> None:
        with torch.no_grad():
            layer(maps)

    return run


def both(layer: nn.Module, maps: Tensor, gradient: Tensor) -> Callable[[], object]:
    """Return a function that runs one forward and backward pass."""
    leaf = maps.detach().clone(memory_format=torch.preserve_format).requires_grad_()

    def run() -> None:
        leaf.grad = None
        layer(leaf).backward(gradient)

    return run


PEAK = """
import sys, torch
sys.path.insert(0, "benchmarks")
from antialias import FORMATS, layers
kind, name, order, *shape = sys.argv[1:]
layer = layers(kind, int(shape[1]))[name]
maps = torch.randn([int(side) for side in shape]).to(memory_format=FORMATS[order])
def now():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1])
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
small = torch.randn(1, int(shape[1]), 8, 8).to(memory_format=FORMATS[order]).requires_grad_()
layer(small).sum().backward()
before = now()
open("/proc/self/clear_refs", "w").write("5")
leaf = maps.requires_grad_()
layer(leaf).square().sum().backward()
print(peak() - before + maps.nbytes // 1024)
"""


def peak_kib(kind: str, name: str, order: str, shape: tuple[int, ...]) -> int:
    """Measure the peak memory of one forward and backward pass, input included, in its own process (Linux)."""
    command = [sys.executable, "-c", PEAK, kind, name, order, *map(str, shape)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def spread(values: list[float]) -> str:
    """Return median and range in milliseconds."""
    return f"{1e3 * statistics.median(values):7.1f} ({1e3 * min(values):.1f}-{1e3 * max(values):.1f})"


def geometric(values: list[float]) -> float:
    """Return the geometric mean."""
    return statistics.geometric_mean(values)


def one_shape(kind: str, shape: tuple[int, ...], order: str, rounds: int, device: str) -> dict[str, float]:
    """Print a line for a shape; return its ratios, theirs over ours."""
    maps = torch.randn(shape, device=device).to(memory_format=FORMATS[order])
    pair = {name: layer.to(device) for name, layer in layers(kind, shape[1]).items()}
    with torch.no_grad():
        difference = (pair["ours"](maps) - pair["theirs"](maps)).abs().max().item()
        gradient = torch.randn_like(pair["theirs"](maps))
    assert difference < 1e-5, difference
    runs = {name: forward(layer, maps) for name, layer in pair.items()} | {"copy": maps.clone}
    ahead = timed(rounds, runs)
    back = timed(rounds, {name: both(layer, maps, gradient) for name, layer in pair.items()})
    median = statistics.median
    moved = (maps.nbytes + gradient.nbytes) / (2 * maps.nbytes)  # a copy reads and writes the map
    limit = median(ahead["copy"]) * moved
    ratios = {"forward": median(ahead["theirs"]) / median(ahead["ours"]), "both": median(back["theirs"]) / median(back["ours"])}
    line = f"{kind:11} {shape!s:18} {order:13} forward {spread(ahead['ours'])} theirs {spread(ahead['theirs'])}"
    line += f" {ratios['forward']:5.2f}x limit {1e3 * limit:.1f} | both {spread(back['ours'])} theirs {spread(back['theirs'])}"
    line += f" {ratios['both']:5.2f}x limit {2e3 * limit:.1f}"
    if device == "cpu" and sys.platform == "linux":
        kib = {name: peak_kib(kind, name, order, shape) for name in pair}
        ratios["memory"] = kib["ours"] / kib["theirs"]
        line += f" | peak {kib['ours'] / 1024:.0f} of {kib['theirs'] / 1024:.0f} MiB {ratios['memory']:.2f}"
    print(line, flush=True)
    return ratios


def plain_resnet() -> nn.Module:
    """Return torchvision's ResNet-18; with a PyTorch without CUDA, two of its operators must be defined before the import."""
    names = torch.library.Library("torchvision", "FRAGMENT")
    for signature in ("nms(Tensor a, Tensor b, float c) -> Tensor", "qnms(Tensor a, Tensor b, float c) -> Tensor"):
        with suppress(RuntimeError):
            names.define(signature)
    models = importlib.import_module("torchvision.models")
    model: nn.Module = models.resnet18()
    return model.eval()


def resnet(rounds: int) -> None:
    """Print the cost of a ResNet-18 with a filter before every subsampling, ours and theirs, forward and with backward."""
    torch.manual_seed(0)
    plain = plain_resnet()
    ours = antialias(plain, filter_size=FILTER, image=(3, 224, 224))
    theirs = antialiased_cnns.resnet18(filter_size=FILTER, pool_only=False).eval()
    if ours.before and ours.after:
        counted = cost(theirs, (3, 224, 224)).multiply_adds
        print(
            f"ResNet-18 multiply-adds: plain {ours.before.multiply_adds:,}, ours {ours.after.multiply_adds:,}, "
            f"theirs {counted:,} (without its filters, whose class is not counted)"
        )
    maps = torch.randn(16, 3, 224, 224)
    models = {"plain": plain, "ours": ours.model.eval(), "theirs": theirs}
    for order, form in FORMATS.items():
        for model in models.values():
            model.to(memory_format=form)
        given = maps.to(memory_format=form)
        gradient = torch.randn(16, 1000)
        for what, runs in (
            ("forward", {name: forward(model, given) for name, model in models.items()}),
            ("both", {name: both(model, given, gradient) for name, model in models.items()}),
        ):
            found = timed(rounds, runs)
            middle = {name: statistics.median(values) for name, values in found.items()}
            line = ", ".join(f"{name} {spread(values)}" for name, values in found.items())
            slower = {name: middle[name] / middle["plain"] - 1 for name in ("ours", "theirs")}
            times = f"slower by {slower['ours']:.0%}, theirs by {slower['theirs']:.0%}"
            print(f"ResNet-18 {order:13} {what:7} {line}: {times}", flush=True)


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--resnet", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        print(
            f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, milliseconds",
            flush=True,
        )
        for kind in ("BlurPool", "MaxBlurPool"):
            found: list[dict[str, float]] = []
            for shape in SHAPES:
                for order in FORMATS:
                    found.append(one_shape(kind, shape, order, options.rounds, device))
                    gc.collect()
            for what in found[0]:
                values = [each[what] for each in found]
                print(
                    f"{kind}: {what} {geometric(values):.2f} (geometric mean), {min(values):.2f} to {max(values):.2f}", flush=True
                )
    if options.resnet:
        resnet(options.rounds)


if __name__ == "__main__":
    main()
