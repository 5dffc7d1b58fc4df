"""Images a second of the training loop, beside its floor and beside the ordinary loop.

    python benchmarks/training.py [--data-dir DIR] [--rounds 7] [--parts pools]

For a network of factor 8 and one of factor 1 (channels 16-32-64, 40x40 canvas, batches of 128), interleaved, several rounds:

- floor: forward, backward and step alone, on one batch already in place. No loop can be faster.
- ours: ``lab.training``'s loop, from uint8 images in random order to the step, without and with random shifts.
- ordinary: what a user would otherwise write: a ``DataLoader`` over a data set that pads, normalises and shifts image by
  image, default memory format.

Printed: median images a second and, of each round, the ratio to that round's floor (median, least and greatest). Then what
bf16 gains, what rectifying and pooling in one compiled pass gains, and what keeping freed memory gains (that one in processes
of its own, because it cannot be undone in one).
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

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from interleaving import interleaved, ratios
from shiftscope.datasets.dataset import Canvas, DataSpec, load
from shiftscope.datasets.sources import Labelled
from shiftscope.models.family import Network, NetworkSpec, build
from shiftscope.runtime.processes import keep_freed_memory
from shiftscope.runtime.seeds import stream
from shiftscope.training.loop import Recipe, make_optimizer, train, train_step
from shiftscope.training.pools import fast_max_pools
from shiftscope.training.stacking import train_together

BATCH = 128
SHIFT = 6
MEAN, DEVIATION = 0.1307, 0.3081


class Ordinary(Dataset[tuple[Tensor, int]]):
    """Pads, shifts and normalises one image at a time."""

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
    """A fresh network of the factor."""
    return build(NetworkSpec(factor=factor, normalise=normalise), generator=stream(0, "weights"))


def floor(factor: int, data: Labelled, recipe: Recipe, *, quick: bool = False) -> Callable[[], float]:
    """Steps on one batch in place, as many as the data has batches; ``quick``: rectifying and pooling in one compiled pass."""
    model = network(factor).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    optimizer = make_optimizer(model.parameters(), recipe)
    batch = data[torch.arange(BATCH)]
    images = Canvas(40, torch.zeros(1)).place(batch.images).contiguous(memory_format=torch.channels_last)

    def run() -> float:
        model.train()
        with fast_max_pools(model) if quick else nullcontext():
            started = perf_counter()
            for _ in range(len(data) // BATCH):
                train_step(model, optimizer, images, batch.labels, recipe)
            return len(data) / (perf_counter() - started)

    return run


def ours(factor: int, data: Labelled, recipe: Recipe) -> Callable[[], float]:
    """One epoch of the training loop, as it reports its speed."""
    place = Canvas(40, torch.zeros(1)).place

    def run() -> float:
        once = recipe.model_copy(update={"max_epochs": 1})
        training = train(network(factor), (data, data[torch.arange(BATCH)]), once, place=place, seed=0)
        return training.epochs[0].images_per_second

    return run


def three(factor: int, data: Labelled, recipe: Recipe, *, stacked: bool) -> Callable[[], float]:
    """One epoch of three seeds: one after the other, or their weights stacked."""
    place = Canvas(40, torch.zeros(1)).place
    once = recipe.model_copy(update={"max_epochs": 1})
    parts = (data, data[torch.arange(BATCH)])

    def run() -> float:
        models = [network(factor) for _ in range(3)]
        started = perf_counter()
        if stacked:
            train_together(models, parts, once, place=place, seeds=range(3))
        else:
            for seed, model in enumerate(models):
                train(model, parts, once, place=place, seed=seed)
        return 3 * len(data) / (perf_counter() - started)

    return run


def ordinary(factor: int, data: Labelled, recipe: Recipe) -> Callable[[], float]:
    """One epoch of a DataLoader loop, in the fastest of the usual forms on two cores: in the main process."""
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
    """Medians and ratios to the base of the same round."""
    print(f"\n{title}")
    for name, speeds in found.items():
        middle, spread = ratios(speeds, found[base])
        print(f"  {name:<30} {median(speeds):>9,.0f} images/s   {middle:.3f} of {base}  {spread}", flush=True)


def images(data_dir: Path | None, count: int) -> Labelled:
    """MNIST where it is at hand, noise of its shape elsewhere: the speed does not depend on the picture."""
    if data_dir or os.environ.get("SHIFTSCOPE_DATA"):
        return load(DataSpec(name="mnist"), data_dir=data_dir).train[torch.arange(count)]
    generator = torch.Generator().manual_seed(0)
    shape = (count, 1, 28, 28)
    return Labelled(
        torch.randint(256, shape, dtype=torch.uint8, generator=generator), torch.randint(10, (count,), generator=generator)
    )


def memory(factor: int, data_dir: Path | None, rounds: int) -> None:
    """The loop with and without keeping freed memory, a process a measurement, interleaved."""
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
    parser.add_argument("--one", type=int, help="print the loop's images a second for this factor, and nothing else")
    parser.add_argument("--keep", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="measure these only")
    asked = parser.parse_args()
    if asked.keep:
        keep_freed_memory()
    if asked.one:
        run = ours(asked.one, images(asked.data_dir, 10 * BATCH), Recipe(batch_size=BATCH))
        run()
        print(run())
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {asked.rounds} rounds, median and [least, greatest]")
    for factor, count in ((8, 40 * BATCH), (1, 8 * BATCH)):
        data = images(asked.data_dir, count)
        for part in asked.parts or PARTS:
            PARTS[part](factor, data, asked)


def _loops(factor: int, data: Labelled, asked: argparse.Namespace) -> None:
    plain, shifted = Recipe(batch_size=BATCH), Recipe(batch_size=BATCH, translate=SHIFT)
    ways = {
        "floor": floor(factor, data, plain),
        "ours": ours(factor, data, plain),
        "ours, random shifts": ours(factor, data, shifted),
        "ordinary": ordinary(factor, data, plain),
        "ordinary, random shifts": ordinary(factor, data, shifted),
    }
    show(f"factor {factor}, fp32, epochs of {len(data)} images", interleaved(ways, asked.rounds), "floor")


def _precisions(factor: int, data: Labelled, asked: argparse.Namespace) -> None:
    ways = {name: ours(factor, data, Recipe(batch_size=BATCH, precision=name)) for name in ("fp32", "bf16")}
    show(f"factor {factor}, precision", interleaved(ways, asked.rounds), "fp32")


def _pools(factor: int, data: Labelled, asked: argparse.Namespace) -> None:
    for precision in ("fp32", "bf16"):
        recipe = Recipe(batch_size=BATCH, precision=precision)
        ways = {name: floor(factor, data, recipe, quick=name == "one pass") for name in ("PyTorch's pools", "one pass")}
        show(f"factor {factor}, {precision}, steps alone", interleaved(ways, asked.rounds), "PyTorch's pools")


def _seeds(factor: int, data: Labelled, asked: argparse.Namespace) -> None:
    ways = {name: three(factor, data, Recipe(batch_size=BATCH), stacked=name == "stacked") for name in ("in turn", "stacked")}
    show(f"factor {factor}, fp32, three seeds", interleaved(ways, asked.rounds), "in turn")


#: What is measured for each factor, in this order.
PARTS: dict[str, Callable[[int, Labelled, argparse.Namespace], None]] = {
    "loops": _loops,
    "precisions": _precisions,
    "pools": _pools,
    "seeds": _seeds,
    "memory": lambda factor, _, asked: memory(factor, asked.data_dir, 3),
}


if __name__ == "__main__":
    main()
