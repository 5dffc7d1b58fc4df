"""Train small detectors on scenes of digits, audit them at every shift up to 8 pixels, and write the table of results/detection.

Three backbones, trained alike: subsampling by 8, by 8 with anti-aliased pools, and by 4. Held-out digits; no object comes within
nine pixels of a border. Their AP by COCO's definition over all 17x17 shifts, what survives a shift, and the period that the maps
over shifts show.

    python benchmarks/detection.py [--steps 500] [--images 24] [--out results/detection]
    python benchmarks/detection.py --cost 7

With ``--cost`` no table is written; an audit of each network and its bare forward passes take turns, so many rounds. The bare
passes get the batches that the audit gave it, and form no views. Of the audit's CPU time, what the task spends on comparing,
judging against ground truth and average precision counts as matching. The rest is forming views, reading what the model returns
(both are timed by themselves), finding periods, and tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from digit_scenes import DigitDetector, Scene, draw_scenes, train
from interleaving import interleaved, ratios
from shiftscope import audit, grid
from shiftscope.audits import Audit, AuditOptions, Session, block_size
from shiftscope.audits.periods import periods
from shiftscope.audits.views import views_of
from shiftscope.runtime.provenance import provenance
from shiftscope.tables import Cell, Table
from shiftscope.tasks import Pair, Totals
from shiftscope.tasks.boxes import Boxes
from shiftscope.tasks.detections import Detections

Given = TypeVar("Given")
Found = TypeVar("Found")

REACH, MARGIN = 8, 10
NETWORKS = {"factor 8": (8, False), "factor 8, anti-aliased": (8, True), "factor 4": (4, False)}
MEASURES = ("ap", "ap_worst", "ap_range", "ap50", "ap_small", "ap_medium", "box_survival", "confidence_change")
MORE = ("confidence_change_small", "confidence_change_medium", "worst_confidence_change", "box_jitter")
#: Where the cost is.
COST = "What an audit costs beside the bare forward passes: results/benchmarks/detection.txt."
#: Whose maps' periods the table gives.
PERIODS = ("box_jitter", "confidence_change", "confidence_change_small", "confidence_change_medium")


def audited(model: Callable[[Tensor], Any], scenes: list[Scene], task: str | Boxes = "boxes") -> Audit:
    """Return the audit of a detector at every shift."""
    images = torch.stack([scene.image for scene in scenes])
    truth = [{"boxes": scene.boxes, "labels": scene.labels} for scene in scenes]
    return audit(model, images, truth=truth, protocols=["every-shift"], max_shift=REACH, task=task)


def row(name: str, found: Audit) -> dict[str, Cell]:
    """Return a network's row of the table."""
    cells: dict[str, Cell] = {"network": name}
    cells |= {measure: found.estimate(measure, "every-shift") for measure in (*MEASURES, *MORE)}
    named = periods(found.surveys[f"zero {REACH}"])
    for measure in PERIODS:
        period = named[measure]
        cells[f"period of {measure}"] = f"{period.pixels} ({period.power[period.pixels]:.0%})" if period.pixels else "none"
    return cells


@dataclass(frozen=True)
class TimedBoxes(Boxes):
    """The task with lists of the CPU seconds of each call that matches or judges, and of each that reads."""

    spent: list[float] = field(default_factory=list)
    reading: list[float] = field(default_factory=list)

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Detections]:
        """Read, and note the time."""
        started = process_time()
        found = super().read(output, count, size)
        self.reading.append(process_time() - started)
        return found

    def compare_all(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Compare, and note the time."""
        return self._timed(super().compare_all, pairs)

    def leads(self, pairs: Sequence[Pair]) -> list[float]:
        """Match for the certificate, and note the time."""
        return self._timed(super().leads, pairs)

    def records_all(self, pairs: Sequence[Pair]) -> list[Tensor | None]:
        """Judge, and note the time."""
        return self._timed(super().records_all, pairs)

    def pack(self, records: Tensor) -> Tensor:
        """Pack what was judged, and note the time."""
        return self._timed(super().pack, records)

    def totals(self, records: Tensor) -> Totals:
        """Compute average precision, and note the time."""
        return self._timed(super().totals, records)

    def _timed(self, run: Callable[[Given], Found], values: Given) -> Found:
        started = process_time()
        found = run(values)
        self.spent.append(process_time() - started)
        return found


def recorded(model: nn.Module, scenes: list[Scene]) -> list[Tensor]:
    """Return the batches that an audit gives the model."""
    batches = list[Tensor]()

    def run(batch: Tensor) -> Any:
        batches.append(batch.clone())
        return model(batch)

    audited(run, scenes)
    views = len(scenes) * len(grid(REACH))
    while sum(len(batch) for batch in batches) > views:  # the first ones only try the model
        del batches[0]
    return batches


def forming(model: nn.Module, scenes: list[Scene]) -> Callable[[], float]:
    """Return a function that forms the views of an audit, and returns the CPU seconds it took."""
    images = torch.stack([scene.image for scene in scenes])
    options = AuditOptions(protocols=["every-shift"], max_shift=REACH, task="boxes")
    measurer = Session.start(model, images[:1], options, labelled=False).measurer

    def run() -> float:
        started = process_time()
        for indices in torch.arange(len(images)).split(block_size(measurer.framing.size)):
            plan = measurer.plan(indices)
            for rows in torch.arange(len(plan.rows)).split(measurer.batch_size):
                views_of(plan, rows, images[indices], measurer.framing)
        return process_time() - started

    return run


def print_cost(name: str, model: nn.Module, scenes: list[Scene], rounds: int) -> None:
    """Print an audit's time in parts, beside the bare forward passes of its views."""
    batches, matching, reading = recorded(model, scenes), list[float](), list[float]()

    def whole() -> float:
        task, started = TimedBoxes(), process_time()
        audited(model, scenes, task)
        matching.append(sum(task.spent))
        reading.append(sum(task.reading))
        return process_time() - started

    def bare() -> float:
        started = process_time()
        with torch.inference_mode():
            for batch in batches:
                model(batch)
        return process_time() - started

    found = interleaved({"audit": whole, "bare": bare, "views": forming(model, scenes)}, rounds)
    views, passes = sum(len(batch) for batch in batches), found["bare"]
    matched = matching[1:]
    rest = [each - other - one for each, other, one in zip(found["audit"], matched, passes, strict=True)]
    parts = {"passes": passes, "matching": matched, "rest": rest, "views": found["views"], "reading": reading[1:]}
    spent = ", ".join(f"{what} {1000 * median(each) / views:.3f} ms" for what, each in parts.items())
    print(f"{name}: {views:,} views; a view: {spent} (views and reading are in the rest)")
    without = [each - other for each, other in zip(found["audit"], matched, strict=True)]
    together = [one + other for one, other in zip(passes, matched, strict=True)]
    for what, one, other in (
        ("(passes + matching + rest) / passes", found["audit"], passes),
        ("(passes + rest) / passes", without, passes),
        ("(passes + matching + rest) / (passes + matching)", found["audit"], together),
        (
            "(passes + matching + rest) / (passes + matching + views)",
            found["audit"],
            [one + other for one, other in zip(together, found["views"], strict=True)],
        ),
    ):
        value, spread = ratios(one, other)
        print(f"    {what}: {value:.3f} {spread}", flush=True)


def main() -> None:
    """Train, audit and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--cost", type=int, default=0, metavar="ROUNDS", help="measure only what an audit costs")
    parser.add_argument("--out", type=Path, default=Path("results/detection"))
    parser.add_argument("--keep", type=Path, help="folder for the trained weights")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    scenes = draw_scenes(chosen.images, 1, held_out=True, margin=MARGIN)
    rows, notes = [], list[str]()
    for name, (factor, blur) in NETWORKS.items():
        torch.manual_seed(0)
        model = DigitDetector(factor, blur=blur)
        started = process_time()
        train(model, chosen.steps)
        trained, started = process_time() - started, process_time()
        if chosen.cost:
            print_cost(name, model, scenes, chosen.cost)
            continue
        found = audited(model, scenes)
        whole = process_time() - started
        print(f"{name}: trained in {trained:.0f} s, audited in {whole:.0f} s", flush=True)
        print(*(note for note in found.notes if "repeats" in note), sep="\n", flush=True)
        rows.append(row(name, found))
        notes.append(f"{name}: {trained:.0f} s of training, {whole:.0f} s of audit.")
        if chosen.keep:
            save_file(model.state_dict(), chosen.keep / f"{name.replace(' ', '-').replace(',', '')}.safetensors")
    if chosen.cost:
        return
    title = f"Detectors of digits under every shift up to {REACH} pixels"
    about = f"{chosen.images} scenes of {sum(len(scene.labels) for scene in scenes)} held-out digits; {chosen.steps} steps."
    table = Table(title, tuple(rows[0]), tuple(rows), (about, *notes, COST), provenance("cpu"))
    print(table.to_markdown())
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "table.md").write_text(table.to_markdown(), encoding="utf-8")
    (chosen.out / "table.csv").write_text(table.to_csv(), encoding="utf-8")


if __name__ == "__main__":
    main()
