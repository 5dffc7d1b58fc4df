"""Measure what a first answer costs: an audit and an explanation of a ResNet-18 on photos, beside the bare forward passes.

    python benchmarks/first_answer.py [--images 32] [--explained 16] [--rounds 3] [--photos DIR] [--first]

Photos of mixed sizes are made up and saved as JPEG files, unless a folder is given. Needs timm; weights are random. Printed, as
medians over rounds in which alternatives take turns, with their range, in seconds of CPU time, which other work on the machine
hardly changes, and of the clock:

- the floor: the quickest of the model's bare forward passes, in inference mode, by memory format and batch size;
- an audit, decoding included, beside the floor for the views that it runs, in the format that an audit of 256 photos chooses;
- the part of an audit in which dense is compared with direct, on the paper's network, under all shifts of up to 8 pixels;
- an explanation beside the bare passes of all views that it runs, through the model and its copies, and beside the floor;
- its pass through all layers beside the bare passes of the same views.

With ``--first``, the command is run on 256 photos in a process of its own, and the seconds to its first lines are printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from unittest import mock

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from interleaving import ratios
from shiftscope.audits.folder import AuditSpec, merge_audit
from shiftscope.audits.job import AuditJob, open_audited, run_shard
from shiftscope.audits.subject import Subject
from shiftscope.engine.direct import Direct
from shiftscope.engine.formats import as_channels_last, channels_last_is_quicker
from shiftscope.engine.framing import frame
from shiftscope.engine.outputs import shift_outputs
from shiftscope.engine.runner import Runner
from shiftscope.explanations import explain
from shiftscope.explanations.layers import layer_responses
from shiftscope.explanations.trial import draw_shifts
from shiftscope.models.family import NetworkSpec, build
from shiftscope.runtime.executors import keep_freed_memory
from shiftscope.shifts import grid

SIZES = ((320, 240), (480, 360), (500, 375), (640, 480), (1024, 768))
BATCHES = (16, 32, 64)
VIEWS_OF_256 = 3_563
Seconds = tuple[float, float]


def photos(folder: Path, count: int) -> None:
    """Write photos of mixed sizes: noise at all scales, weighted as in natural images."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        layers = [torch.randn(1, 3, side, side, generator=generator) / side**0.5 for side in (2, 4, 8, 16, 32, 64, 128, 256)]
        image = torch.cat([functional.interpolate(layer, (height, width), mode="bicubic") for layer in layers]).sum(
            0, keepdim=True
        )
        pixels = (image[0] - image.min()) / (image.max() - image.min()) * 255
        Image.fromarray(pixels.byte().permute(1, 2, 0).numpy()).save(folder / f"{number:04d}.jpg", quality=90)


def timed(run: Callable[[], object]) -> Seconds:
    """Return the seconds that a call takes: of CPU time over all threads, and of the clock."""
    processor, clock = process_time(), perf_counter()
    run()
    return process_time() - processor, perf_counter() - clock


def bare(model: nn.Module, images: Tensor, batch: int, *, channels_last: bool) -> Seconds:
    """Return the seconds that a bare forward pass takes, an image."""
    batches = [as_channels_last(each) if channels_last else each for each in images.split(batch)]
    with torch.inference_mode():
        found = timed(lambda: [model(each) for each in batches])
    return found[0] / len(images), found[1] / len(images)


def line(name: str, found: list[Seconds], base: list[Seconds], inverse: bool = False) -> None:
    """Print the ratio of two measurements, of CPU time and of the clock."""
    text = [name.ljust(62)]
    for kind, label in enumerate(("CPU", "clock")):
        one, other = [each[kind] for each in found], [each[kind] for each in base]
        middle, spread = ratios(other, one) if inverse else ratios(one, other)
        text.append(f"{label} {middle:.3f} {spread}")
    print("   ".join(text), flush=True)


def floor(model: nn.Module, image: Tensor, rounds: int) -> tuple[bool, int, float]:
    """Return format, batch size and CPU seconds an image of the quickest bare passes."""
    images = image.expand(max(BATCHES), -1, -1, -1).contiguous()
    ways = [(channels_last, batch) for channels_last in (False, True) for batch in BATCHES]
    found: dict[tuple[bool, int], list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way in ways:
            found[way].append(bare(model, images, way[1], channels_last=way[0])[0])
    medians = {way: median(each[1:]) for way, each in found.items()}
    for (channels_last, batch), seconds in medians.items():
        name = "channels last" if channels_last else "usual format "
        print(f"  bare, {name}, batches of {batch:3}: {1e3 * seconds:.1f} ms an image")
    best = min(medians, key=medians.__getitem__)
    return *best, medians[best]


def audited(spec: AuditSpec, subject: Subject, rounds: int) -> None:
    """Measure audits."""
    model, image, count = subject.loaded.model, subject.images.example(), subject.images.count
    image = image[:, :, : subject.images.size, : subject.images.size]
    channels_last, batch, _ = floor(model, image, rounds)
    with torch.inference_mode():
        trial = timed(lambda: channels_last_is_quicker(model, image, passes=VIEWS_OF_256))
        chosen = channels_last_is_quicker(model, image, passes=VIEWS_OF_256)
    runs, floors = list[Seconds](), list[Seconds]()
    for _ in range(rounds):
        with TemporaryDirectory() as out:
            job = AuditJob(spec, 1, 1, Path(out), channels_last=chosen)
            seconds = timed(partial(run_shard, job, subject=subject))
            cost = merge_audit(Path(out)).cost
        views = cost.forward + cost.checks
        before = bare(model, image.expand(max(BATCHES), -1, -1, -1).contiguous(), batch, channels_last=channels_last)
        after = bare(model, image.expand(max(BATCHES), -1, -1, -1).contiguous(), batch, channels_last=channels_last)
        floors.append((views * (before[0] + after[0]) / 2, views * (before[1] + after[1]) / 2))
        runs.append(seconds)
    print(f"audit of {count} photos: {views:,} views; format: {'channels last' if chosen else 'usual'}")
    line("rate of an audit over that of the floor", runs, floors, inverse=True)
    share = trial[0] / (floors[0][0] / views * VIEWS_OF_256)
    print(f"trial of formats: {trial[0]:.2f} s of CPU time, {share:.1%} of an audit of 256 photos")


def checked(rounds: int) -> None:
    """Measure the comparison of dense with direct."""
    spec = NetworkSpec(channels=(32, 64, 128), factor=4, input_size=50, input_channels=3)
    network = build(spec, generator=torch.Generator().manual_seed(0)).eval()
    images = torch.rand(64, 3, 50, 50, generator=torch.Generator().manual_seed(1))
    spent: list[float] = []

    def comparing(self: Runner, *arguments: object) -> float:
        started = process_time()
        found: float = apart(self, *arguments)  # type: ignore[arg-type]  # passed on
        spent.append(process_time() - started)
        return found

    apart = Runner._apart
    shares = list[float]()
    with mock.patch.object(Runner, "_apart", comparing):
        for _ in range(rounds):
            spent.clear()
            total, _clock = timed(lambda: shift_outputs(network, images, grid(8)))
            shares.append(sum(spent) / total)
    spread = f"[{min(shares):.1%}, {max(shares):.1%}]"
    print(f"comparison of dense with direct: {median(shares):.1%} of the outputs under 289 shifts {spread}")


@contextmanager
def recorded(passes: list[tuple[nn.Module, tuple[int, ...]]]) -> Iterator[None]:
    """Record which models receive batches of which shape."""
    once = Direct.once

    def recording(self: Direct, batch: Tensor) -> Tensor:
        passes.append((self.model, tuple(batch.shape)))  # type: ignore[arg-type]  # all are modules here
        return once(self, batch)

    with mock.patch.object(Direct, "once", recording):
        yield


def explained(model: nn.Module, images: Tensor, rounds: int) -> None:
    """Measure explanations."""
    passes: list[tuple[nn.Module, tuple[int, ...]]] = []
    with recorded(passes):
        explain(model, images)
    shifts = draw_shifts(len(images), 4, 8, torch.Generator().manual_seed(0))
    noise = torch.rand(256, *images.shape[1:])

    def replay() -> None:
        with torch.inference_mode():
            for each, shape in passes:
                each.eval()(noise[: shape[0]] if shape[1:] == tuple(noise.shape[1:]) else torch.rand(shape))

    views = images.repeat(5, 1, 1, 1).split(60)

    def same_views() -> None:
        with torch.inference_mode():
            for each in views:
                model(each)

    alternatives: dict[str, Callable[[], object]] = {
        "explain": lambda: explain(model, images),
        "passes": replay,
        "layers": lambda: layer_responses(model, images, shifts),
        "views": same_views,
    }
    found: dict[str, list[Seconds]] = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, run in alternatives.items():
            found[name].append(timed(run))
    count = sum(shape[0] for _, shape in passes)
    print(f"explanation of {len(images)} photos: {count:,} views through the model and its copies, {5 * len(images):,} distinct")
    line("explanation over the bare passes of all its views", found["explain"], found["passes"])
    line("explanation over the bare passes of the distinct views", found["explain"], found["views"])
    line("pass through all layers over the bare passes of its views", found["layers"], found["views"])


def first(folder: Path) -> None:
    """Run the command on 256 photos, and print when its first lines appear."""
    photos(folder, 32)
    for number, copy in enumerate(sorted(folder.iterdir()) * 7):
        shutil.copy(copy, folder / f"copy{number:04d}.jpg")
    code = "import zoo; zoo.timm(); from shiftscope.cli import main; main()"
    command = [sys.executable, "-u", "-c", code, "audit", "timm:resnet18", "--data", str(folder)]
    started = perf_counter()
    paths = [str(Path(__file__).resolve().parents[1] / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdout is not None
    for text in process.stdout:
        print(f"{perf_counter() - started:6.1f} s  {text.rstrip()[:110]}", flush=True)
        if text.startswith("First answer"):
            break
    process.kill()
    process.wait()


def main() -> None:
    """Parse the options, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--explained", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--part", choices=["audit", "explain"])
    parser.add_argument("--first", action="store_true")
    options = parser.parse_args()
    import_module("zoo").timm()  # of tests/, which makes torchvision import without CUDA
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds, median [least, greatest]")
    with TemporaryDirectory() as made:
        folder = options.photos or Path(made)
        if options.first:
            first(folder)
            return
        if options.photos is None:
            photos(folder, max(options.images, options.explained))
        spec = AuditSpec(model="timm:resnet18", data=str(folder), images=options.images)
        subject = open_audited(spec)
        if options.part in (None, "audit"):
            audited(spec, subject, options.rounds)
            checked(options.rounds)
        if options.part in (None, "explain"):
            side = subject.images.size
            images = frame(subject.images.read(0, options.explained).images, side, "zero", None).images
            explained(subject.loaded.model, images, options.rounds)


if __name__ == "__main__":
    main()
