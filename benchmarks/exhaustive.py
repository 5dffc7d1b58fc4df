"""Every shift of every image: the dense method compared with direct, with its theoretical limit, and with other tools.

    python benchmarks/exhaustive.py [--data-dir DIR] [--rounds 5] [--images 128]

For each network, interleaved, in single precision: the time of all shifts of some images by ``direct`` (the model run on each
shifted copy; its overhead over plain forward passes is printed, too) and by ``dense``, and their ratio in each round; then the
ratio to direct with the model's weights in channels-last order, which dense always uses and direct only if the user sets it.

The *limit* is the largest ratio that arithmetic alone allows: the real multiply-adds of direct over those of dense, both counted
while they run (convolutions, matrix products; a real Fourier transform of n points counts 2.5 n log2 n / 2). Everything else
(pooling, activations, copies) counts in the time and not in the limit.

Then: the largest difference between the methods, peak memory for 1,000 and 10,000 images, and tmeasures (PyPI, in a folder of its
own on PYTHONPATH; skipped if not installed), which accepts any model: the variance of its output layer over transformations, for
the same model, images and shifts.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from math import exp, log, log2
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from interleaving import interleaved, ratios, seconds
from shiftscope.datasets.dataset import DataSpec, load
from shiftscope.engine.outputs import shift_outputs, stream_outputs
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.executors import keep_freed_memory
from shiftscope.runtime.seeds import stream
from shiftscope.shifts import Mode, grid
from shiftscope.surveys import survey


class Block(nn.Module):
    """Two circular convolutions beside a shortcut, as in a residual network."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, padding_mode="circular", bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, padding_mode="circular", bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Return the block's maps."""
        rest = self.norms[1](self.second(torch.relu(self.norms[0](self.first(maps)))))
        return torch.relu(rest + self.shortcut(maps))


def circular_resnet() -> nn.Module:
    """Build a residual network of 16 to 128 channels, subsampling factor 8, with global average pooling."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 3, padding=1, padding_mode="circular")
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2), Block(64, 128, 2)]
    return nn.Sequential(stem, nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()


def family(**settings: Any) -> nn.Module:
    """Build an untrained network of the paper's family; the time does not depend on its weights."""
    return build(NetworkSpec(**settings), generator=stream(0, "weights")).eval()


def digits(count: int, data_dir: Path | None) -> Tensor:
    """Return MNIST on its canvas if available, otherwise noise of the same size."""
    if data_dir or os.environ.get("SHIFTSCOPE_DATA"):
        data = load(DataSpec(name="mnist"), data_dir=data_dir)
        return data.canvas.place(data.test.images[:count])
    images = torch.zeros(count, 1, 40, 40)
    images[:, :, 6:34, 6:34] = torch.rand(count, 1, 28, 28, generator=stream(0, "images"))
    return images


def colours(count: int, canvas: int) -> Tensor:
    """Return noise of CIFAR-10's size on a canvas."""
    images = torch.zeros(count, 3, canvas, canvas)
    margin = (canvas - 32) // 2
    images[:, :, margin : margin + 32, margin : margin + 32] = torch.rand(count, 3, 32, 32, generator=stream(0, "images"))
    return images


def multiply_adds(run: Callable[[], object]) -> float:
    """Count the real multiply-adds of a call: those of PyTorch's counter, and of Fourier transforms."""
    extra = 0.0

    def counted(transform: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(maps: Tensor, s: tuple[int, int], dim: tuple[int, int] = (-2, -1)) -> Tensor:
            nonlocal extra
            transforms = maps.numel() / (maps.shape[dim[0]] * maps.shape[dim[1]])
            extra += transforms * 2.5 * s[0] * s[1] * log2(s[0] * s[1]) / 2
            return transform(maps, s=s, dim=dim)

        return call

    before = torch.fft.rfft2, torch.fft.irfft2
    torch.fft.rfft2, torch.fft.irfft2 = counted(before[0]), counted(before[1])
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.fft.rfft2, torch.fft.irfft2 = before
    return float(counter.get_total_flops()) / 2 + extra


def compare(title: str, model: nn.Module, images: Tensor, shifts: Tensor, *, mode: Mode, rounds: int) -> tuple[float, float]:
    """Print one network's line; return the ratio of times and its limit."""
    few = images[: max(4, len(images) // 4)]
    dense_blocks = _dense_pass(model, images, shifts, mode)
    direct_adds = multiply_adds(lambda: model(images[:1])) * len(shifts)
    dense_adds = multiply_adds(dense_blocks) / len(images)
    limit = direct_adds / dense_adds
    last = deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    runs = {
        "direct": seconds(lambda: shift_outputs(model, few, shifts, mode=mode, method="direct")),
        "channels last": seconds(lambda: shift_outputs(last, few, shifts, mode=mode, method="direct")),
        "dense": seconds(lambda: shift_outputs(model, images, shifts, mode=mode, method="dense")),
    }
    found = interleaved(runs, rounds)
    direct = [time / len(few) for time in found["direct"]]
    other = [time / len(few) for time in found["channels last"]]
    dense = [time / len(images) for time in found["dense"]]
    ratio, spread = ratios(direct, dense)
    a, b = (shift_outputs(model, few, shifts, mode=mode, method=method).values for method in ("direct", "dense"))
    difference = float(((a - b).norm(dim=-1) / a.norm(dim=-1)).max())
    print(
        f"{title:<44} {len(shifts):>5} shifts  direct {1e3 * median(direct):8.2f}  dense {1e3 * median(dense):7.2f} ms an image  "
        f"ratio {ratio:6.1f} {spread:<14} limit {limit:6.1f} ({direct_adds / 1e6:,.0f} / {dense_adds / 1e6:,.1f} M)  "
        f"of limit {ratio / limit:.2f}  difference {difference:.1e}  "
        f"channels last: ratio {ratios(other, dense)[0]:.1f}",
        flush=True,
    )
    return ratio, limit


def _dense_pass(model: nn.Module, images: Tensor, shifts: Tensor, mode: Mode) -> Callable[[], object]:
    """Return a function that runs dense on all images, without the check against direct and without the unshifted pass."""
    from shiftscope.engine.dense import Dense, choose
    from shiftscope.engine.direct import Canvas, Direct

    canvas = Canvas(mode, 0.0, (images.shape[2], images.shape[3]))
    direct = Direct(model, canvas, torch.device("cpu"))
    with torch.inference_mode():
        dense, reason = choose(direct, images, shifts, method="dense", batch_size=None)
    assert isinstance(dense, Dense), reason

    def run() -> None:
        with torch.no_grad():
            for part in images.split(dense.batch_size):
                dense(part)

    return run


def overhead(model: nn.Module, images: Tensor, shifts: Tensor, rounds: int) -> None:
    """Print the overhead of direct over plain forward passes of prepared batches."""
    ready = images.contiguous()

    def plain() -> None:
        with torch.inference_mode():
            for _ in range(len(shifts) + 1):
                model(ready)

    runs = {"plain": seconds(plain), "direct": seconds(lambda: shift_outputs(model, images, shifts, method="direct"))}
    found = interleaved(runs, rounds)
    ratio, spread = ratios(found["direct"], found["plain"])
    print(f"direct over plain forward passes, batch {len(images)}: {ratio:.3f} {spread}", flush=True)


def compare_tmeasures(model: nn.Module, images: Tensor, reach: int, rounds: int) -> None:
    """Print the time of tmeasures for the same outputs: standard deviations over transformations, averaged over images."""
    try:
        import tmeasures as tm
        from tmeasures.pytorch.activations_iterator import ActivationsModule
        from tmeasures.pytorch.transformations.affine import TranslationGenerator
    except ImportError:
        print("tmeasures: not installed (pip install tmeasures==1.2.11), skipped")
        return
    size, shifts = images.shape[2], grid(reach)
    steps = [(-dx / size, -dy / size) for dy, dx in shifts.tolist()]

    class Last(ActivationsModule):  # type: ignore[misc]  # an untyped package
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def activation_names(self) -> list[str]:
            return ["output"]

        def forward_activations(self, batch: Tensor) -> list[Tensor]:
            return [self.model(batch)]

    transformations = TranslationGenerator(steps)
    measure_options = tm.pytorch.PyTorchMeasureOptions(batch_size=256, verbose=False)
    measure = tm.pytorch.TransformationVarianceInvariance()
    theirs: list[Tensor] = []
    ours: list[Tensor] = []

    def run_theirs() -> None:
        theirs[:] = [measure.eval(list(images), transformations, Last(), measure_options).layers[0]]

    def run_ours() -> None:
        outputs = shift_outputs(model, images, shifts)
        ours[:] = [outputs.values.std(dim=1).mean(dim=0)]

    found = interleaved({"tmeasures": seconds(run_theirs), "shiftscope": seconds(run_ours)}, rounds)
    ratio, spread = ratios(found["tmeasures"], found["shiftscope"])
    difference = float((theirs[0].flatten() - ours[0]).abs().max() / ours[0].abs().max())
    print(
        f"tmeasures over shiftscope, {len(images)} images, {len(shifts)} shifts, factor 4: {ratio:.1f} {spread}; "
        f"their standard deviations of the outputs differ by {difference:.1e}",
        flush=True,
    )


def peak_megabytes(count: int) -> None:
    """Print the peak memory of a survey of ``count`` images, generated batch by batch.

    From Linux's high-water mark if available: ``getrusage`` of a child process includes its parent's size.
    """
    model = family(factor=4)

    def batches() -> Iterator[Tensor]:
        for _ in range(count // 250):
            yield digits(250, None)

    survey(stream_outputs(model, batches(), grid(8)))
    status = Path("/proc/self/status")
    marks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
    print((float(marks[0]) if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024)


def memory() -> None:
    """Print the peak memory of 1,000 and of 10,000 images, each in its own process."""
    environment = {name: value for name, value in os.environ.items() if name != "SHIFTSCOPE_DATA"}
    peaks = {}
    for count in (1000, 10_000):
        command = [sys.executable, __file__, "--peak", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        peaks[count] = float(done.stdout)
    growth = peaks[10_000] / peaks[1000] - 1
    print(f"peak memory: {peaks[1000]:.0f} MB for 1,000 images, {peaks[10_000]:.0f} MB for 10,000: {growth:+.1%}", flush=True)


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST; noise of its size without it")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take the median of (default: 5)")
    parser.add_argument("--images", type=int, default=128, help="images for dense (default: 128)")
    parser.add_argument("--peak", type=int, help="only print the peak memory of a survey of this many images")
    options = parser.parse_args()
    keep_freed_memory()
    if options.peak:
        peak_megabytes(options.peak)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, median [least, greatest]")
    images = digits(options.images, options.data_dir)
    found = []
    for factor in (1, 2, 4, 8):
        found.append(
            compare(f"MNIST, factor {factor}", family(factor=factor), images, grid(8), mode="zero", rounds=options.rounds)
        )
    means = [exp(sum(log(pair[index]) for pair in found) / len(found)) for index in (0, 1)]
    worst = min(ratio / limit for ratio, limit in found)
    print(f"geometric mean: ratio {means[0]:.1f}, limit {means[1]:.1f}; least share of its limit {worst:.2f}")
    compare("MNIST, factor 4, m = 16", family(factor=4), images, grid(16), mode="zero", rounds=options.rounds)
    cifar = family(channels=(32, 64, 128), factor=4, pool_kernel=5, input_size=50, input_channels=3)
    compare("CIFAR-10 50x50, factor 4, pool kernel 5", cifar, colours(8, 50), grid(8), mode="zero", rounds=options.rounds)
    everywhere = torch.cartesian_prod(torch.arange(32), torch.arange(32))
    compare("circular residual network, all of 32x32", circular_resnet(), colours(8, 32), everywhere, mode="circular", rounds=3)
    overhead(family(factor=8), digits(256, options.data_dir), grid(3), options.rounds)
    overhead(family(factor=1), digits(64, options.data_dir), grid(1), options.rounds)
    compare_tmeasures(family(factor=4), images[:32], 8, min(options.rounds, 3))
    memory()


if __name__ == "__main__":
    main()
