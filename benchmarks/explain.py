"""Time the comparison of all layers against the two forward passes that it needs at least.

    python benchmarks/explain.py [--data-dir DIR] [--rounds 5] [--images 128]

Timed for each network, interleaved, in fp32, with one shift an image:

- `layer_responses` on all layers;
- the comparisons inside it (subtraction of the response to a blank image, Fourier transforms, cosines, homogeneity, pools at
  stride 1), where they are called;
- two forward passes over the same images in batches of the same size, one of them over images that are shifted already.

The rest shifts images, reads the graph, runs hooks and collects numbers: some 50 ms once and little for each image, so that
without its comparisons `layer_responses` costs about two forward passes where these take seconds.

Then peak memory is measured for 300 and for 3,000 images, each in a process of its own.

With ``--known EPOCHS`` instead, networks whose main cause is known are trained on the digits and explained.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from exhaustive import circular_resnet, colours, digits, family
from interleaving import interleaved, ratios
from shiftscope.datasets.dataset import DataSpec, load
from shiftscope.explanations import Explanation, explain, probes
from shiftscope.explanations.layers import BATCH, layer_responses
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.executors import keep_freed_memory
from shiftscope.runtime.seeds import stream
from shiftscope.shifts import sample, translate
from shiftscope.training.loop import train
from shiftscope.training.recipe import Recipe

KNOWN: dict[str, dict[str, Any]] = {
    "stride 1, circular, mean over positions": {"factor": 1, "padding": "circular", "head": "gap"},
    "stride 2, circular, mean over positions": {"factor": 2, "padding": "circular", "head": "gap"},
    "stride 2, circular, flattened": {"factor": 2, "padding": "circular", "head": "flatten"},
    "stride 1, zeros around, mean over positions": {"factor": 1, "padding": "same", "head": "gap"},
}


def timed(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Return a function that makes the same call and adds the time it takes to ``spent[0]``."""

    def counted(*arguments: Any, **options: Any) -> Any:
        started = perf_counter()
        result = call(*arguments, **options)
        spent[0] += perf_counter() - started
        return result

    return counted


def compare(title: str, model: nn.Module, images: Tensor, rounds: int) -> None:
    """Time one network and print a line."""
    shifts = sample(len(images), 8, stream(0, "shifts"))[:, None]
    moved = translate(images, shifts[:, 0])
    comparisons: list[float] = []

    def every_layer() -> float:
        spent = [0.0]
        with ExitStack() as patches:
            for name in ("responses", "homogeneities", "at_stride_one", "_minus"):
                patches.enter_context(mock.patch.object(probes, name, timed(getattr(probes, name), spent)))
            started = perf_counter()
            layer_responses(model, images, shifts)
            total = perf_counter() - started
        comparisons.append(spent[0])
        return total

    def two_passes() -> float:
        started = perf_counter()
        with torch.inference_mode():
            for part in (*images.split(BATCH), *moved.split(BATCH)):
                model(part)
        return perf_counter() - started

    found = interleaved({"every layer": every_layer, "two passes": two_passes}, rounds)
    total, bare, inside = found["every layer"], found["two passes"], comparisons[-rounds:]
    rest = [time - spent for time, spent in zip(total, inside, strict=True)]
    print(
        f"{title:<40} two passes {1e3 * median(bare) / len(images):7.2f} ms an image  without comparisons over them "
        f"{ratios(rest, bare)[0]:.2f} {ratios(rest, bare)[1]:<14}  comparisons over them {ratios(inside, bare)[0]:.2f} "
        f"{ratios(inside, bare)[1]:<14}  all over them {ratios(total, bare)[0]:.2f}",
        flush=True,
    )


def known(epochs: int) -> None:
    """Train networks whose main cause is known on the digits, and print a table of their explanations."""
    data = load(DataSpec(image_size=20, validation_images=150))
    images = data.canvas.place(data.test.images[:64])
    print("| network | test accuracy | invariance | loss | head | borders | aliasing | loss at multiples | main cause |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, settings in KNOWN.items():
        spec = NetworkSpec(channels=(8, 16, 32), **settings)
        network = build(spec, generator=stream(0, "weights"))
        train(network, (data.train, data.validation), Recipe(max_epochs=epochs), place=data.canvas.place, seed=0)
        found = explain(network.eval(), images, data.test.labels[:64], mode="circular", max_shift=19)
        assert isinstance(found, Explanation)
        shares = {each.name: each.share for each in found.causes.causes if each.share is not None}
        percent = [f"{100 * shares[cause].value:.1f} %" if cause in shares else "" for cause in ("head", "borders", "aliasing")]
        lattice = "" if found.causes.lattice_loss is None else f"{found.causes.lattice_loss.value:.1g}"
        before = found.causes.before
        row = (name, before.accuracy, found.guarantee.status, f"{before.loss.value:.2g}", *percent, lattice)
        print("| " + " | ".join(map(str, (*row, found.causes.main or "no loss"))) + " |", flush=True)


def peak_megabytes(count: int) -> None:
    """Print the peak memory of `layer_responses` over ``count`` images, made batch by batch."""
    model = family(factor=4, channels=(4, 8, 16))

    def batches() -> Iterator[Tensor]:
        for _ in range(count // 50):
            yield digits(50, None)

    layer_responses(model, batches(), torch.tensor([[3, -2]]))
    lines = Path("/proc/self/status").read_text().splitlines()
    print(float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024)


def memory() -> None:
    """Print the peak memory for 300 and for 3,000 images."""
    peaks = {}
    for count in (300, 3000):
        done = subprocess.run([sys.executable, __file__, "--peak", str(count)], check=True, capture_output=True, text=True)
        peaks[count] = float(done.stdout)
    print(f"peak memory: {peaks[300]:.0f} MB for 300 images, {peaks[3000]:.0f} MB for 3,000: {peaks[3000] / peaks[300] - 1:+.1%}")


def main() -> None:
    """Parse the options, measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument(
        "--known",
        type=int,
        metavar="EPOCHS",
        help="train networks whose main cause is known for EPOCHS epochs, and print their table",
    )
    parser.add_argument("--peak", type=int, help="print the peak memory for this many images, and nothing else")
    options = parser.parse_args()
    keep_freed_memory()
    if options.known:
        known(options.known)
        return
    if options.peak:
        peak_megabytes(options.peak)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, median [least, greatest]")
    images = digits(options.images, options.data_dir)
    for factor in (1, 4, 8):
        compare(f"MNIST, factor {factor}", family(factor=factor), images, options.rounds)
    cifar = family(channels=(32, 64, 128), factor=4, pool_kernel=5, input_size=50, input_channels=3)
    compare("CIFAR-10 50x50, factor 4, pool kernel 5", cifar, colours(options.images // 2, 50), options.rounds)
    compare("circular residual network, 32x32", circular_resnet(), colours(options.images // 2, 32), options.rounds)
    memory()


if __name__ == "__main__":
    main()
