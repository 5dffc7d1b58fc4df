"""The loss over all 289 shifts and its gradient: in one step, against one shifted copy after the other.

    python benchmarks/all_shifts.py [--data-dir DIR] [--rounds 5] [--images 16]

For each network, interleaved, in single precision, forward and backward: `direct` runs the model on every shifted copy and adds
up gradients, which needs the memory of one copy; `dense` is ``shiftscope.training.AllShifts``, comparison with direct included;
`one random shift` is the step that ordinary augmentation takes. Printed: milliseconds an image (median), and per round the ratios
direct / dense and dense / one random shift (median, least and greatest); then the largest relative error of a parameter's
gradient (against direct in double precision), and the peak memory of a dense step.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from exhaustive import circular_resnet, colours, digits, family
from interleaving import interleaved, ratios, seconds
from shiftscope.runtime.executors import keep_freed_memory
from shiftscope.shifts import Mode, grid, sample, translate
from shiftscope.training import AllShifts

SHIFT = 8
#: Title, network, canvas (None: MNIST's) and border.
CASES: list[tuple[str, Callable[[], nn.Module], int | None, Mode]] = [
    ("MNIST, factor 4", lambda: family(factor=4), None, "zero"),
    ("MNIST, factor 8", lambda: family(factor=8), None, "zero"),
    ("MNIST, factor 4, mean over positions", lambda: family(factor=4, head="gap"), None, "zero"),
    ("CIFAR-10, factor 4, kernel 5", lambda: _cifar(), 50, "zero"),
    ("circular residual network, 32x32", circular_resnet, 32, "circular"),
]


def _cifar() -> nn.Module:
    return family(channels=(32, 64, 128), factor=4, pool_kernel=5, input_size=50, input_channels=3)


def direct_step(model: nn.Module, images: Tensor, labels: Tensor, mode: Mode) -> None:
    """Add up the gradient over all shifts, one shifted copy after the other."""
    model.zero_grad()
    shifts = grid(SHIFT)
    for step in shifts:
        moved = translate(images, step.expand(len(images), 2), mode=mode)
        (functional.cross_entropy(model(moved), labels) / len(shifts)).backward()


def random_step(model: nn.Module, images: Tensor, labels: Tensor, mode: Mode) -> None:
    """Compute the gradient at one random shift of each image."""
    model.zero_grad()
    moved = translate(images, sample(len(images), SHIFT, torch.Generator().manual_seed(0)), mode=mode)
    functional.cross_entropy(model(moved), labels).backward()


def dense_step(model: nn.Module, expected: AllShifts, images: Tensor, labels: Tensor) -> None:
    """Compute the gradient over all shifts in one pass."""
    model.zero_grad()
    expected(images, labels).backward()


def rounding(model: nn.Module, images: Tensor, labels: Tensor, mode: Mode) -> tuple[float, float, float]:
    """Return how far gradients are from direct's in double precision: dense and direct in single, dense in double precision.

    Each is the largest relative difference of a parameter's gradient.
    """
    exact, wide = deepcopy(model).double(), images.double()
    direct_step(exact, wide, labels, mode)
    truth = _gradients(exact)
    direct_step(model, images, labels, mode)
    direct = _apart(_gradients(model), truth)
    dense_step(model, _expected(model, images, mode), images, labels)
    dense = _apart(_gradients(model), truth)
    dense_step(exact, _expected(exact, wide, mode), wide, labels)
    return dense, direct, _apart(_gradients(exact), truth)


def _gradients(model: nn.Module) -> list[Tensor]:
    return [each.grad.double() for each in model.parameters() if each.grad is not None]


def _apart(found: list[Tensor], truth: list[Tensor]) -> float:
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, truth, strict=True))


def _expected(model: nn.Module, images: Tensor, mode: Mode) -> AllShifts:
    return AllShifts(model, size=(images.shape[2], images.shape[3]), max_shift=SHIFT, mode=mode)


def compare(title: str, model: nn.Module, images: Tensor, mode: Mode, rounds: int) -> None:
    """Print one network's line."""
    labels = torch.arange(len(images)) % 10
    expected = _expected(model, images, mode)
    runs = {
        "direct": seconds(lambda: direct_step(model, images, labels, mode)),
        "dense": seconds(lambda: dense_step(model, expected, images, labels)),
        "random": seconds(lambda: random_step(model, images, labels, mode)),
    }
    found = interleaved(runs, rounds)
    cheaper, spread = ratios(found["direct"], found["dense"])
    dearer, others = ratios(found["dense"], found["random"])
    single, direct, double = rounding(model, images[:4], labels[:4], mode)
    times = {name: 1e3 * median(each) / len(images) for name, each in found.items()}
    print(
        f"{title:<37} direct {times['direct']:8.2f}  dense {times['dense']:6.2f}  one random shift {times['random']:6.3f} ms  "
        f"direct / dense {cheaper:5.1f} {spread:<13} dense / one {dearer:5.1f} {others:<13} "
        f"gradient's error: dense {single:.0e}, direct {direct:.0e}, dense in double {double:.0e}",
        flush=True,
    )


def inputs(count: int, canvas: int | None, data_dir: Path | None) -> Tensor:
    """Return the images of a case."""
    return digits(count, data_dir) if canvas is None else colours(count, canvas)


def peak(case: int, count: int) -> None:
    """Print the megabytes that a dense step of a case adds to the process's peak."""
    import resource

    _, make, canvas, mode = CASES[case]
    model, images = make(), inputs(count, canvas, None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dense_step(model, _expected(model, images, mode), images, torch.arange(count) % 10)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST; noise of its size without it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=16, help="images a step")
    parser.add_argument("--peak", type=int, help="only print the peak memory of this case")
    options = parser.parse_args()
    keep_freed_memory()
    if options.peak is not None:
        peak(options.peak, options.images)
        return
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, {options.images} images a step, "
        f"{len(grid(SHIFT))} shifts, median [least, greatest]"
    )
    for title, make, canvas, mode in CASES:
        compare(title, make(), inputs(options.images, canvas, options.data_dir), mode, options.rounds)
    for case, (title, *_) in enumerate(CASES):
        command: list[Any] = [sys.executable, __file__, "--peak", str(case), "--images", str(options.images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"{title:<37} a dense step of {options.images} images adds {float(done.stdout):.0f} MB")


if __name__ == "__main__":
    main()
