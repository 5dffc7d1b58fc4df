"""Train small detectors on scenes of digits, audit them at every shift up to 8 pixels, and write the table of results/detection.

Three backbones, trained alike: subsampling by 8, by 8 with anti-aliased pools, and by 4. Held-out digits; no object comes within
nine pixels of a border. Their AP by COCO's definition over all 17x17 shifts, what survives a shift, and the period that the maps
over shifts show. Last come the time of the audit and that of the bare forward passes of its views.

    python benchmarks/detection.py [--steps 500] [--images 24] [--out results/detection]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import process_time

import torch
from safetensors.torch import save_file
from torch import nn

from digit_scenes import DigitDetector, Scene, draw_scenes, train
from shiftscope import audit, grid
from shiftscope.audits import Audit
from shiftscope.audits.periods import periods
from shiftscope.runtime.provenance import provenance
from shiftscope.shifts import translate
from shiftscope.tables import Cell, Table

REACH, MARGIN = 8, 10
NETWORKS = {"factor 8": (8, False), "factor 8, anti-aliased": (8, True), "factor 4": (4, False)}
MEASURES = ("ap", "ap_worst", "ap_range", "ap50", "ap_small", "ap_medium", "box_survival", "confidence_change")
MORE = ("confidence_change_small", "confidence_change_medium", "worst_confidence_change", "box_jitter")
#: Whose maps' periods the table gives.
PERIODS = ("box_jitter", "confidence_change", "confidence_change_small", "confidence_change_medium")


def audited(model: nn.Module, scenes: list[Scene]) -> Audit:
    """Return the audit of a detector at every shift."""
    images = torch.stack([scene.image for scene in scenes])
    truth = [{"boxes": scene.boxes, "labels": scene.labels} for scene in scenes]
    return audit(model, images, truth=truth, protocols=["every-shift"], max_shift=REACH, task="boxes")


def row(name: str, found: Audit) -> dict[str, Cell]:
    """Return a network's row of the table."""
    cells: dict[str, Cell] = {"network": name}
    cells |= {measure: found.estimate("every-shift", measure) for measure in (*MEASURES, *MORE)}
    named = periods(found.surveys[f"zero {REACH}"])
    for measure in PERIODS:
        period = named[measure]
        cells[f"period of {measure}"] = f"{period.pixels} ({period.power[period.pixels]:.0%})" if period.pixels else "none"
    return cells


def bare_seconds(model: nn.Module, scenes: list[Scene]) -> float:
    """Return the time of the forward passes of every view alone."""
    images, shifts = torch.stack([scene.image for scene in scenes]), grid(REACH)
    started = process_time()
    with torch.inference_mode():
        for image in images:
            for part in shifts.split(64):
                model(translate(image.expand(len(part), -1, -1, -1), part))
    return process_time() - started


def main() -> None:
    """Train, audit and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--images", type=int, default=24)
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
        found = audited(model, scenes)
        whole, bare = process_time() - started, bare_seconds(model, scenes)
        print(
            f"{name}: trained in {trained:.0f} s, audited in {whole:.0f} s, {whole / bare:.2f} times the bare passes", flush=True
        )
        print(*(note for note in found.notes if "repeats" in note), sep="\n", flush=True)
        rows.append(row(name, found))
        notes.append(f"{name}: {trained:.0f} s of training, audit {whole / bare:.2f} times the bare forward passes.")
        if chosen.keep:
            save_file(model.state_dict(), chosen.keep / f"{name.replace(' ', '-').replace(',', '')}.safetensors")
    title = f"Detectors of digits under every shift up to {REACH} pixels"
    about = f"{chosen.images} scenes of {sum(len(scene.labels) for scene in scenes)} held-out digits; {chosen.steps} steps."
    table = Table(title, tuple(rows[0]), tuple(rows), (about, *notes), provenance("cpu"))
    print(table.to_markdown())
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "table.md").write_text(table.to_markdown(), encoding="utf-8")
    (chosen.out / "table.csv").write_text(table.to_csv(), encoding="utf-8")


if __name__ == "__main__":
    main()
