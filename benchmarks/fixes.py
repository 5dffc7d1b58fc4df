"""Hold every fix against the others on one trained CIFAR-10 network.

    python benchmarks/fixes.py RUN --data-dir DATA --out FOLDER [--images 6000] [--epochs 4] [--tested 1000] [--certified 200]

RUN is the folder of a run of `shiftscope study cifar10`. Each row is a copy of its network with a fix, some of them trained on
images that the network saw in its own training; all are measured on the same test images. FOLDER keeps finished rows and the
checkpoint of the training that runs, so that the same command resumes; `table.md` in it is written anew after each row.

The certified shares are exhaustive. Those of an average follow from the network's outputs at all shifts up to 8 + reach, because
two shifts of content that stays whole are one; this is compared with the average itself on sampled images and shifts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftscope import certify
from shiftscope.datasets.dataset import Canvas, load
from shiftscope.datasets.sources import Labelled
from shiftscope.engine.outputs import shift_outputs
from shiftscope.errors import InputError
from shiftscope.estimates import proportion
from shiftscope.measures import MEASURES
from shiftscope.models import load_model
from shiftscope.runtime.progress import Event
from shiftscope.runtime.seeds import stream
from shiftscope.shifts import grid, sample, translate
from shiftscope.similarity import cosine
from shiftscope.surgery import Average, Canonical, FixKind, operate
from shiftscope.tables import Cell, Table
from shiftscope.training import FineTuning, fine_tune
from shiftscope.training.checkpoint import Checkpoint
from shiftscope.training.loop import Epoch

SHIFT, RADII = 8, (1, 4, 8)
#: Outputs that lead by less than this share of their norm are no answer.
LEAST_LEAD = 1e-4
#: Polyphase sampling needs sides that are multiples of 8.
CANVAS_OF_EIGHTS = 56


@dataclass(frozen=True)
class Row:
    """A fix, and the training after it.

    Attributes:
        kinds: fixes of layers, in order.
        around: puts a wrapper around the network.
        reach: of an average.
        training: settings; None for none.
        canvas: height and width of the canvas, pixels.
        certified: share of the images to certify, of a model that runs each shift by itself.
    """

    kinds: tuple[FixKind, ...] = ()
    around: Callable[[nn.Module], nn.Module] | None = None
    reach: int = 0
    training: dict[str, Any] | None = None
    canvas: int = 50
    certified: float = 1.0


RANDOM: dict[str, Any] = {}
ROWS = {
    "none": Row(),
    "blur": Row(("blur",)),
    "aps": Row(("aps",)),
    "gap": Row(("gap",)),
    "canonical": Row(around=Canonical, certified=0.5),
    "average-9": Row(around=Average, reach=1),
    "average-289": Row(around=lambda model: Average(model, reach=SHIFT), reach=SHIFT),
    "fine-tuned": Row(training=RANDOM),
    "fine-tuned, kl": Row(training={"consistency": "kl"}),
    "all shifts in a step": Row(training={"every_shift": True, "precision": "fp32", "batch_size": 16, "max_epochs": 1}),
    "blur, fine-tuned": Row(("blur",), training=RANDOM),
    "gap, fine-tuned": Row(("gap",), training=RANDOM),
    "gap + aps, fine-tuned": Row(("gap", "aps"), training={"max_epochs": 2}, canvas=CANVAS_OF_EIGHTS, certified=0.5),
    "fine-tuned, kl + canonical": Row(around=Canonical, training={"consistency": "kl"}, certified=0.5),
}


class Clock:
    """Adds up the processor's time of a training over its sessions, in a file.

    Args:
        file: that holds the seconds so far.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.began = file, process_time()
        self.before = float(file.read_text()) if file.exists() else 0.0

    def __call__(self, event: Event) -> None:
        """Note the time after an epoch."""
        if isinstance(event, Epoch):
            self.file.write_text(str(self.seconds))
            print(f"  epoch {event.epoch}: loss {event.loss:.3f}, validation {event.validation_accuracy:.3f}", flush=True)

    @property
    def seconds(self) -> float:
        """The time so far."""
        return self.before + process_time() - self.began


@dataclass
class Bench:
    """The network, its images, and where rows are kept."""

    options: argparse.Namespace
    kept: Path = field(init=False)

    def __post_init__(self) -> None:
        self.kept = self.options.out / "rows"
        self.kept.mkdir(parents=True, exist_ok=True)
        self.loaded = load_model(str(self.options.run))
        assert self.loaded.spec.data is not None
        asked = self.loaded.spec.data.model_copy(update={"train_images": None})
        data = load(asked, data_dir=self.options.data_dir)
        self.origin, self.training = data.origin, data.train[: self.options.images]
        self.validation, self.test = data.validation[:1000], data.test[: self.options.tested]

    def placed(self, data: Labelled, canvas: int) -> tuple[Tensor, Tensor]:
        """Return images on their canvas, and labels."""
        return Canvas(canvas, torch.zeros(3)).place(data.images), data.labels

    @cached_property
    def dense(self) -> Tensor:
        """Outputs of the network at all shifts up to 8 + 8 pixels, [image, shift, class]."""
        images, _ = self.placed(self.test[: self.options.certified], 50)
        blocks = [shift_outputs(self.loaded.model, block, grid(2 * SHIFT), method="dense").values for block in images.split(16)]
        return torch.cat(blocks)

    def model(self, name: str, row: Row) -> tuple[nn.Module, float]:
        """Return a row's model, and the processor's time of its training in seconds."""
        model = self.loaded.model
        for kind in row.kinds:
            image = (3, row.canvas, row.canvas)
            model = operate(kind, model, filter_size=3 if kind == "blur" else 1, image=None if kind == "gap" else image).model
        seconds = 0.0
        if row.training is not None:
            model, seconds = self.trained(name, model, row)
        return (model if row.around is None else row.around(model)).eval(), seconds

    def trained(self, name: str, model: nn.Module, row: Row) -> tuple[nn.Module, float]:
        """Train a copy; of rows that differ in their wrapper only, the training is that of the first."""
        name = name.removesuffix(" + canonical")
        file = self.kept / f"{name}.safetensors"
        clock = Clock(self.kept / f"{name}.seconds")
        own = {"precision": "bf16", "max_epochs": self.options.epochs, "learning_rate": 1e-3, "learning_rate_decay": 0.7}
        found = fine_tune(
            model,
            *self.placed(self.training, row.canvas),
            FineTuning(**{**own, "translate": SHIFT, **(row.training or {})}),
            validation=self.placed(self.validation, row.canvas),
            report=clock,
            checkpoint=_Kept(file, seconds=0.0),
        )
        if found.stopped:
            raise KeyboardInterrupt
        print(f"  {found.training.sentence}", flush=True)
        seconds = clock.seconds if found.training.resumed_after == 0 else clock.before
        return found.model, seconds

    def measured(self, name: str, row: Row) -> dict[str, Any]:
        """Return a row's numbers."""
        model, seconds = self.model(name, row)
        images, labels = self.placed(self.test, row.canvas)
        shifts = sample(len(images), SHIFT, stream(0, "measure"))
        moved = translate(images, shifts)
        reference, shifted = outputs(model, images), outputs(model, moved)
        tops = reference.argmax(1)
        vectors = model if not row.reach else Average(self.loaded.model, reach=row.reach, of="logits")
        alike = cosine(outputs(vectors, images), outputs(vectors, moved)) if row.reach else cosine(reference, shifted)
        certified, count = self.certified(model, row, images, labels)
        return {
            "test_accuracy": (tops == labels).tolist(),
            "mcs": alike.tolist(),
            "top1_change": (shifted.argmax(1) != tops).tolist(),
            "certified": {str(radius): values.tolist() for radius, values in certified.items()},
            "images certified": count,
            "milliseconds": milliseconds(model, images[:64]),
            "minutes": seconds / 60,
        }

    def certified(self, model: nn.Module, row: Row, images: Tensor, labels: Tensor) -> tuple[dict[int, Tensor], int]:
        """Return by radius whether each image is right at every shift up to it."""
        count = int(row.certified * self.options.certified)
        images, labels = images[:count], labels[:count]
        if row.reach:
            assert isinstance(model, Average)
            averaged = averages(self.dense[:count], row.reach)
            check(model, images, averaged)
            return right_within(averaged, labels), count
        found = certify(model, images, labels, radius=SHIFT)
        assert found.right is not None
        return {radius: found.right & (found.radii >= radius) for radius in RADII}, count


class _Kept(Checkpoint):
    """A checkpoint that is also written after the last epoch, so that a finished training is not repeated."""

    def restore(self, state: Any) -> None:
        """Restore, and keep the state for the end."""
        super().restore(state)
        add = state.add_epoch

        def add_epoch(*values: Any) -> None:
            add(*values)
            if not state.diverged:
                self.save(state)

        state.add_epoch = add_epoch


def averages(values: Tensor, reach: int) -> Tensor:
    """Return the average's outputs at all shifts up to 8, from the network's at all up to 16: [image, shift, class]."""
    side = 4 * SHIFT + 1
    maps = values.softmax(-1).reshape(len(values), side, side, -1).permute(0, 3, 1, 2)
    inner = maps[:, :, SHIFT - reach : side - SHIFT + reach, SHIFT - reach : side - SHIFT + reach]
    means = functional.avg_pool2d(inner.double(), 2 * reach + 1, 1)
    return means.flatten(2).transpose(1, 2).log().float()


def check(model: Average, images: Tensor, averaged: Tensor) -> None:
    """Compare composed averages with the average itself, on sampled images and shifts."""
    generator = torch.Generator().manual_seed(0)
    some, shifts = (
        torch.randperm(len(images), generator=generator)[:8],
        torch.randperm(averaged.shape[1], generator=generator)[:6],
    )
    for number in shifts.tolist():
        moved = translate(images[some], grid(SHIFT)[number].expand(len(some), 2))
        apart = (outputs(model, moved).exp() - averaged[some, number].exp()).abs().max()
        if float(apart) > 1e-5:
            raise SystemExit(f"composed averages differ from the average by {float(apart):.1e}")


def right_within(values: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """Return by radius whether the label leads, beyond rounding, at every shift up to it."""
    others = values.scatter(2, labels[:, None, None].expand(-1, values.shape[1], 1), float("-inf")).amax(2)
    own = values.gather(2, labels[:, None, None].expand(-1, values.shape[1], 1))[..., 0]
    leads = own - others > LEAST_LEAD * values.norm(dim=2)
    rings = grid(SHIFT).abs().amax(1)
    return {radius: leads[:, rings <= radius].all(1) for radius in RADII}


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Run a model in batches."""
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in images.split(64)])


def milliseconds(model: nn.Module, images: Tensor) -> float:
    """Return the processor's time for an image, the least of five passes, with maps in the faster layout."""
    model, images = deepcopy(model).to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    times = []
    for _ in range(5):
        began = process_time()
        outputs(model, images)
        times.append((process_time() - began) * 1000 / len(images))
    return min(times)


def cells(name: str, found: dict[str, Any], base: float) -> dict[str, Cell]:
    """Return a table's row."""
    if "impossible" in found:
        return {"fix": name, "impossible": found["impossible"]}
    row: dict[str, Cell] = {"fix": name}
    for label, measure in (("test_accuracy", "test_accuracy"), ("mcs", "mcs"), ("top1_change", "top1_change")):
        row[label] = MEASURES[measure].estimate(torch.tensor(found[label]))
    for radius, values in found["certified"].items():
        row[f"right at every shift to {radius}"] = proportion(torch.tensor(values))
    cost = round(found["milliseconds"] / base, 1)
    return {
        **row,
        "images certified": found["images certified"],
        "time of an image": cost,
        "training, minutes": round(found["minutes"], 1),
    }


def table(bench: Bench) -> Table:
    """Return the table of all rows so far."""
    known = {
        name: json.loads((bench.kept / f"{name}.json").read_text()) for name in ROWS if (bench.kept / f"{name}.json").exists()
    }
    rows = tuple(cells(name, found, known["none"]["milliseconds"]) for name, found in known.items())
    columns = tuple(dict.fromkeys(column for row in rows for column in row if column != "impossible"))
    options = bench.options
    notes = (
        f"{len(bench.test):,} test images, {bench.origin}; run {options.run.name}. Mean cosine similarity and top-1 change: each "
        f"image under one random shift of up to {SHIFT} pixels; of averages the cosine is that of mean logits. Right at every "
        "shift: of all whole-pixel shifts up to the radius. Intervals: 95 %.",
        f"Trainings: {len(bench.training):,} of the network's own training images, Adam, one random shift an image and step, "
        f"{options.epochs} epochs, but 1 on all shifts and 2 of gap + aps; the best epoch on 1,000 validation images. Minutes: "
        f"of one core. Time of an image: as a multiple of the network's {known['none']['milliseconds']:.1f} ms.",
        *(f"{name} is impossible: {found['impossible']}" for name, found in known.items() if "impossible" in found),
    )
    return Table("Every fix on one CIFAR-10 network", columns, tuple(row for row in rows if "impossible" not in row), notes)


def main() -> None:
    """Measure the rows that are missing, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, help="folder of a study's run on CIFAR-10, on a canvas of 50")
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and the table")
    parser.add_argument("--images", type=int, default=6000, help="training images")
    parser.add_argument("--epochs", type=int, default=4, help="the most epochs of a training on random shifts")
    parser.add_argument("--tested", type=int, default=1000, help="test images")
    parser.add_argument("--certified", type=int, default=200, help="of these, images to certify")
    bench = Bench(parser.parse_args())
    for name, row in ROWS.items():
        file = bench.kept / f"{name}.json"
        if file.exists():
            continue
        print(name, flush=True)
        try:
            found = bench.measured(name, row)
        except InputError as error:
            found = {"impossible": str(error)}
        file.write_text(json.dumps(found))
        (bench.options.out / "table.md").write_text(table(bench).to_markdown())
    print(table(bench).to_markdown())


if __name__ == "__main__":
    main()
