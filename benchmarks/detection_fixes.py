"""Fix the detectors of ``benchmarks/detection.py``, and write results/detection/fixes: what each fix gains, and what it costs.

Every scene is measured at all 288 shifts up to 8 pixels, by the detector before and after, and differences are of the same scenes
and shifts. Fixes go into the trained weights, without further training; the last row holds a network that was trained with
anti-aliased pools against the one trained without.

    python benchmarks/detection.py --keep WEIGHTS
    python benchmarks/detection_fixes.py WEIGHTS [--images 24] [--out results/detection]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from detection import MARGIN, NETWORKS, REACH
from digit_scenes import SIDE, DigitDetector, Scene, draw_scenes
from shiftscope.engine.framing import Shifting
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.runtime.provenance import provenance
from shiftscope.shifts import Mode
from shiftscope.surgery import FixKind, Surgery, Wrapping
from shiftscope.surgery.compare import apply_fixes
from shiftscope.surgery.task_compare import UNSHIFTED, compare_tasks
from shiftscope.tables import Cell, Table
from shiftscope.tasks import find_task

MEASURES = ("ap", "ap_worst", "box_survival", "confidence_change", "box_jitter")
#: Fixes, and what comes in at the border of the shifts that they are measured under.
FIXES: tuple[tuple[FixKind, Mode], ...] = (
    ("canonical", "zero"),
    ("canonical", "circular"),
    ("blur", "zero"),
    ("circular", "zero"),
    ("aps", "zero"),
    ("average", "zero"),
)


def compared(before: DigitDetector, surgery: Surgery, scenes: list[Scene], border: Mode) -> Table:
    """Return a detector before and after a fix, at every shift."""
    truth = [{"boxes": scene.boxes, "labels": scene.labels} for scene in scenes]
    images = torch.stack([scene.image for scene in scenes])
    return compare_tasks(before, surgery, find_task("boxes"), images, Shifting(max_shift=REACH, mode=border), truth=truth)


def row(network: str, fix: str, border: str, found: Table, side: str = "after") -> dict[str, Cell]:
    """Return a fix's row: each measure, and by how much it differs from that before the fix."""
    cells: dict[str, Cell] = {"network": network, "fix": fix, "shifts": border}
    rows: Mapping[tuple[str, str], Mapping[str, Cell]] = {(str(r["shifts"]), str(r["measure"])): r for r in found.rows}
    for measure in MEASURES:
        cells[measure] = rows[border, measure][side]
        cells[f"difference_{measure}"] = rows[border, measure]["difference"] if side == "after" else None
    unshifted = rows[UNSHIFTED, "ap"]
    cells["unshifted"] = unshifted[side]
    cells["unshifted difference"] = unshifted["difference"] if side == "after" else None
    return cells


def rows_of(network: str, detector: DigitDetector, scenes: list[Scene], notes: list[str]) -> Iterator[dict[str, Cell]]:
    """Yield a row for each fix, and a note for each that cannot be."""
    yield row(network, "none", "zero", compared(detector, Surgery(detector, ()), scenes, "zero"), "before")
    for fix, border in FIXES:
        wrapping = Wrapping(border, task=find_task("boxes"))
        try:
            surgery = apply_fixes(detector, [(fix, 3 if fix == "blur" else 1)], wrapping=wrapping, image=(1, SIDE, SIDE))
        except InputError as error:
            notes.append(f"{fix}: {error}")
            continue
        yield row(network, fix, border, compared(detector, surgery, scenes, border))
        print(network, fix, border, flush=True)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("results/detection"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    scenes = draw_scenes(chosen.images, 1, held_out=True, margin=MARGIN)
    networks = dict[str, DigitDetector]()
    for name, (factor, blur) in NETWORKS.items():
        networks[name] = DigitDetector(factor, blur=blur).eval()
        networks[name].load_state_dict(load_file(chosen.weights / f"{name.replace(' ', '-').replace(',', '')}.safetensors"))
    rows, notes = list[dict[str, Cell]](), list[str]()
    for name in ("factor 8", "factor 4"):
        rows += rows_of(name, networks[name], scenes, notes)
    trained = Surgery(networks["factor 8, anti-aliased"], ())
    found = compared(networks["factor 8"], trained, scenes, "zero")
    rows.append(row("factor 8", "trained with anti-aliased pools", "zero", found))
    objects = sum(len(scene.labels) for scene in scenes)
    about = (
        f"{chosen.images} scenes of {objects} held-out digits, each at all 288 shifts up to {REACH} pixels. Differences are "
        "after less before, of the same scenes and shifts; of what survives a shift over the scenes with a confident "
        "detection before and after. Intervals: 95 %, over scenes; one network each. Unshifted: average precision without shifts."
    )
    table = Table("Fixes of detectors of digits", tuple(rows[0]), tuple(rows), (about, *dict.fromkeys(notes)), provenance("cpu"))
    assert all(isinstance(each["ap"], Estimate) for each in rows)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "fixes.md").write_text(table.to_markdown(), encoding="utf-8")
    (chosen.out / "fixes.csv").write_text(table.to_csv(), encoding="utf-8")
    print(table.to_markdown())


if __name__ == "__main__":
    main()
