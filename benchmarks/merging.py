"""Measure what merging the parts of a large audit takes: time, memory and bytes, on simulated parts.

`python benchmarks/merging.py` measures a model's audit by the default protocols once, on as many images as a block has. It
then merges N parts, N from 1,000 on: 50 files made from that one, with other numbers in each, which are read, checked and merged
again and again. Each N has a process of its own, whose largest memory is measured. It prints CPU seconds and memory for each N.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from shiftscope.audits.parts import Part, merge_parts
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.results import MOST_VALUES, assemble
from shiftscope.audits.session import AuditOptions, Session
from shiftscope.audits.stored import from_tensors, to_tensors
from shiftscope.runtime.files import write_checked_tensors
from shiftscope.runtime.inputs import read_checked_tensors

SIDE, CLASSES = 32, 10
#: So many different parts are merged again and again.
DIFFERENT = 50


def model() -> nn.Module:
    """Return a small network with random weights, whose answers change under shifts."""
    torch.manual_seed(0)
    features = nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(8 * 15 * 15, CLASSES)).eval()


def first_part(block: int) -> tuple[Part, Session]:
    """Return what a block of images gives by the default protocols, with labels."""
    images = torch.rand(block, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    session = Session.start(model(), images[:1], AuditOptions(), labelled=True, classes=None)
    return session.part(images, torch.arange(block) % CLASSES, indices=torch.arange(block)), session


def files(part: Part, folder: Path) -> list[Path]:
    """Write files of parts like one, each with values of its images in another order."""
    generator = torch.Generator().manual_seed(2)
    tensors = to_tensors(part)
    count = len(next(value for name, value in tensors.items() if name.startswith("each/score")))
    found = [folder / f"{number}.safetensors" for number in range(DIFFERENT)]
    for file in found:
        order = torch.randperm(count, generator=generator)
        write_checked_tensors(file, {name: _ordered(name, value, order) for name, value in tensors.items()})
    return found


def _ordered(name: str, value: Tensor, order: Tensor) -> Tensor:
    per_image = name.startswith("each/") and len(value) == len(order)
    return value[order].contiguous() if per_image else value.contiguous()


def measure(count: int, block: int) -> None:
    """Merge parts and assemble the audit in this process; print seconds, largest memory and rows."""
    part, session = first_part(block)
    with TemporaryDirectory() as folder:
        merge(files(part, Path(folder)), session, count, block)


def merge(written: list[Path], session: Session, count: int, block: int) -> None:
    """Merge so many parts, read from the files in turn, and print the line."""

    def parts() -> Iterator[Part]:
        for number in range(count):
            yield from_tensors(read_checked_tensors(written[number % DIFFERENT]), maps=False)

    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    merged = merge_parts(parts(), keep=MOST_VALUES)
    seconds = time.process_time() - start
    protocols: tuple[Protocol, ...] = session.measurer.protocols
    borders = {each.name: session.framing.border(each) for each in protocols}
    found = assemble(merged, protocols, kind=session.kind, borders=borders)
    whole = time.process_time() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        count,
        block,
        written[0].stat().st_size,
        f"{seconds:.3f}",
        f"{whole:.3f}",
        before // 1024,
        after // 1024,
        len(found.rows),
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--block", type=int, default=16, help="images per part: 16 of 224 pixels, 64 of fewer than 128")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.one:
        measure(settings.one, settings.block)
        return
    print(f"{'parts':>9}{'images':>12}{'bytes each':>12}{'merge, s':>10}{'all, s':>9}{'us a part':>11}{'MB':>7}{'MB more':>9}")
    for count in settings.parts:
        command = [sys.executable, __file__, "--one", str(count), "--block", str(settings.block)]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        size, merge, whole, before, after = int(line[2]), float(line[3]), float(line[4]), int(line[5]), int(line[6])
        print(
            f"{count:9,}{count * settings.block:12,}{size:12,}{merge:10.1f}{whole:9.1f}{1e6 * whole / count:11.0f}{after:7,}"
            f"{after - before:9,}",
            flush=True,
        )


if __name__ == "__main__":
    main()
