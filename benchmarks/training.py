"""Time the training loop against its lower bound and against an ordinary PyTorch loop, in images per second.

    python benchmarks/training.py [--data-dir DIR] [--rounds 7] [--parts pools]

Measured for networks of factor 8 and factor 1 (channels 16-32-64, 40x40 canvas, batches of 128), interleaved, in several rounds:

- floor: forward, backward and step alone, on one batch already placed. No loop can be faster.
- ours: the loop of ``shiftscope.training``, from uint8 images in random order to the step, without and with random shifts.
- ordinary: what a user would otherwise write: a ``DataLoader`` over a data set that pads, normalises and shifts one image at a
  time, in the default memory format.

Printed: median images per second and, per round, the ratio to that round's floor (median, least and greatest). Then the gains of
bf16, of its products in single precision, of ReLU and max pooling in one compiled pass, and of keeping freed memory (in separate
processes, because the setting cannot be undone).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from interleaving import interleaved, ratios
from shiftscope.datasets.dataset import Canvas, DataSpec, load
from shiftscope.datasets.sources import Labelled
from shiftscope.models.family import Network, NetworkSpec, build
from shiftscope.runtime.executors import keep_freed_memory
from shiftscope.runtime.seeds import stream
from shiftscope.training import mixed
from shiftscope.training.loop import train, train_step
from shiftscope.training.pools import fast_max_pools
from shiftscope.training.recipe import Recipe, make_optimizer

BATCH = 128
SHIFT = 6
MEAN, DEVIATION = 0.1307, 0.3081


class Ordinary(Dataset[tuple[Tensor, int]]):
    """A data set that pads, shifts and normalises one image at a time."""

    def __init__(self, data: Labelled, shift: int) -> None:
        self.data, self.shift = data, shift

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.data.images[index].float() / 255
        dy, dx = torch.randint(-self.shift, self.shift + 1, (2,)).tolist() if self.shift else (0, 0)
        image = nn.functional.pad(image, (6 + dx, 6 - dx, 6 + dy, 6 - dy))
        return (image - MEAN) / DEVIATION, int(self.data.labels[index])


def network(factor: int, *, normalise: bool = True) -> Network:
    """Return an untrained network of a factor."""
    return build(NetworkSpec(factor=factor, normalise=normalise), generator=stream(0, "weights"))


def floor(factor: int, data: Labelled, recipe: Recipe, *, fast: bool = False) -> Callable[[], float]:
    """Take steps on one placed batch, as many as the data has batches; ``fast``: ReLU and max pooling in one compiled pass."""
    model = network(factor).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    optimizer = make_optimizer(model.parameters(), recipe)
    batch = data[torch.arange(BATCH)]
    images = Canvas(40, torch.zeros(1)).place(batch.images).contiguous(memory_format=torch.channels_last)

    def run() -> float:
        model.train()
        with fast_max_pools(model) if fast else nullcontext():
            started = perf_counter()
            for _ in range(len(data) // BATCH):
                train_step(model, optimizer, images, batch.labels, recipe)
            return len(data) / (perf_counter() - started)

    return run


def ours(factor: int, data: Labelled, recipe: Recipe) -> Callable[[], float]:
    """Train for one epoch and return the speed that it reports."""
    place = Canvas(40, torch.zeros(1)).place

    def run() -> float:
        once = recipe.model_copy(update={"max_epochs": 1})
        training = train(network(factor), (data, data[torch.arange(BATCH)]), once, place=place, seed=0)
        return training.epochs[0].images_per_second

    return run


def ordinary(factor: int, data: Labelled, recipe: Recipe) -> Callable[[], float]:
    """Train for one epoch from a ``DataLoader`` in the main process, the fastest of its usual forms on two cores."""
    model = network(factor, normalise=False)
    optimiser = torch.optim.Adam(model.parameters(), recipe.learning_rate)
    loader = DataLoader(Ordinary(data, recipe.translate), batch_size=BATCH, shuffle=True)

    def run() -> float:
        started = perf_counter()
        for images, labels in loader:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimiser.step()
        return len(data) / (perf_counter() - started)

    return run


def show(title: str, found: dict[str, list[float]], base: str) -> None:
    """Print medians, and ratios to the base of the same round."""
    print(f"\n{title}")
    for name, speeds in found.items():
        middle, spread = ratios(speeds, found[base])
        print(f"  {name:<30} {median(speeds):>9,.0f} images/s   {middle:.3f} of {base}  {spread}", flush=True)


def images(data_dir: Path | None, count: int) -> Labelled:
    """Return MNIST if it is there, else noise of its shape: the speed does not depend on the images."""
    if data_dir or os.environ.get("SHIFTSCOPE_DATA"):
        return load(DataSpec(name="mnist"), data_dir=data_dir).train[torch.arange(count)]
    generator = torch.Generator().manual_seed(0)
    shape = (count, 1, 28, 28)
    return Labelled(
        torch.randint(256, shape, dtype=torch.uint8, generator=generator), torch.randint(10, (count,), generator=generator)
    )


def memory(factor: int, data_dir: Path | None, rounds: int) -> None:
    """Time the loop with and without keeping freed memory, one process per measurement, interleaved."""
    found: dict[str, list[float]] = {"system's allocator": [], "freed memory kept": []}
    for _ in range(rounds):
        for name, keep in zip(found, ("0", "1"), strict=True):
            command = [sys.executable, __file__, "--one", str(factor), "--keep", keep]
            command += ["--data-dir", str(data_dir)] if data_dir else []
            found[name].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    show(f"factor {factor}: keeping freed memory", found, "system's allocator")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", type=int, help="print only the loop's images per second for this factor")
    parser.add_argument("--keep", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="measure only these")
    options = parser.parse_args()
    if options.keep:
        keep_freed_memory()
    if options.one:
        run = ours(options.one, images(options.data_dir, 10 * BATCH), Recipe(batch_size=BATCH))
        run()
        print(run())
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, median and [least, greatest]")
    for factor, count in ((8, 40 * BATCH), (1, 8 * BATCH)):
        data = images(options.data_dir, count)
        for part in options.parts or PARTS:
            PARTS[part](factor, data, options)


def _loops(factor: int, data: Labelled, options: argparse.Namespace) -> None:
    plain, shifted = Recipe(batch_size=BATCH), Recipe(batch_size=BATCH, translate=SHIFT)
    ways = {
        "floor": floor(factor, data, plain),
        "ours": ours(factor, data, plain),
        "ours, random shifts": ours(factor, data, shifted),
        "ordinary": ordinary(factor, data, plain),
        "ordinary, random shifts": ordinary(factor, data, shifted),
    }
    show(f"factor {factor}, fp32, epochs of {len(data)} images", interleaved(ways, options.rounds), "floor")


def _precisions(factor: int, data: Labelled, options: argparse.Namespace) -> None:
    ways = {name: ours(factor, data, Recipe(batch_size=BATCH, precision=name)) for name in ("fp32", "bf16")}
    show(f"factor {factor}, precision", interleaved(ways, options.rounds), "fp32")


def _products(factor: int, data: Labelled, options: argparse.Namespace) -> None:
    """Time bf16 by PyTorch and by single precision of rounded values, whichever this processor's default is."""
    recipe = Recipe(batch_size=BATCH, precision="bf16")
    run = floor(factor, data, recipe, fast=torch.get_num_threads() == 1)

    def by(quick: bool) -> Callable[[], float]:
        def timed() -> float:
            with patch.object(mixed, "has_quick_bfloat16", lambda: quick):
                return run()

        return timed

    ways = {"PyTorch's bf16": by(True), "bf16 in single precision": by(False)}
    told = "quick" if mixed.has_quick_bfloat16() else "slow"
    show(f"factor {factor}, bf16, which counts as {told} here, steps alone", interleaved(ways, options.rounds), "PyTorch's bf16")


def _pools(factor: int, data: Labelled, options: argparse.Namespace) -> None:
    for precision in ("fp32", "bf16"):
        recipe = Recipe(batch_size=BATCH, precision=precision)
        ways = {name: floor(factor, data, recipe, fast=name == "one pass") for name in ("PyTorch's pools", "one pass")}
        show(f"factor {factor}, {precision}, steps alone", interleaved(ways, options.rounds), "PyTorch's pools")


#: What to measure for each factor, in this order.
PARTS: dict[str, Callable[[int, Labelled, argparse.Namespace], None]] = {
    "loops": _loops,
    "precisions": _precisions,
    "products": _products,
    "pools": _pools,
    "memory": lambda factor, _, options: memory(factor, options.data_dir, 3),
}


if __name__ == "__main__":
    main()
