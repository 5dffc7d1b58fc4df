"""A study's records beside the source's numbers: cell by cell, in rank, and claim by claim. It trains and measures nothing.

Every statement has an interval, from draws that take the networks of each cell apart and the test images, which all cells of a
data set share, together (see ``measures``). A claim *holds* where the whole interval lies on the side that was claimed, *does not
hold* where it lies on the other, and is *undecided* else: at this number of networks and images it cannot be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from shiftscope import estimates as measures
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, VarianceComponent
from shiftscope.measures import MEASURES
from shiftscope.studies import records
from shiftscope.studies.loading import read_study
from shiftscope.studies.measuring import MEASURES as OF_OUTPUTS
from shiftscope.studies.records import Finished
from shiftscope.studies.spec import Claim, Source, Study, short
from shiftscope.tables import Table

__all__ = ["compare"]

#: Fewer cells than this have no rank correlation worth the name.
CELLS_FOR_RANKS = 4
#: Claims about ``mcs`` are asked of this measure as well.
CENTRED = "mcs_centred"


@dataclass(frozen=True)
class Held:
    """A cell and what its finished runs measured.

    Attributes:
        settings: of the cell.
        values: by measure, [seed, image]; empty where no run is finished.
        number: of the cell, for the bootstrap.
    """

    settings: Mapping[str, Any]
    values: Mapping[str, Tensor]
    number: int
    _drawn: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    def draws(self, measure: str) -> np.ndarray:
        """Bootstrap draws of a measure's mean; made once."""
        if measure not in self._drawn:
            self._drawn[measure] = measures.bootstrap(self.values[measure], group=self.number)
        return self._drawn[measure]

    def mean(self, measure: str) -> float:
        """A measure's mean over networks and images."""
        return float(self.values[measure].double().mean())

    def estimate(self, measure: str) -> Estimate | None:
        """A measure's mean with its interval, as the study's table has it; None where it was not measured."""
        if measure in OF_OUTPUTS and measure in self.values:
            return MEASURES[measure].estimate_over_seeds(self.values[measure])
        spreads = [self.spread(measure)] if measure in self.values else []
        return self.counted(self.mean(measure), self.draws(measure), spreads, measure) if spreads else None

    def spread(self, measure: str, share: float = 1.0) -> VarianceComponent:
        """How much a measure's mean varies with the networks, where it has such a share in an estimate."""
        return measures.variance_component(self.values[measure], share)

    def counted(self, value: float, draws: np.ndarray, spreads: Sequence[VarianceComponent], measure: str) -> Estimate:
        """A number that follows from this cell's and others' draws, with as many networks and images as this one has."""
        low, high = measures.confidence_interval(value, draws, spreads)
        seeds, count = self.values[measure].shape
        return Estimate(value, min(float(low), value), max(float(high), value), count=count, seeds=seeds)


def compare(folder: Path) -> tuple[Table, Table]:
    """A study's cells beside the source's, and its claims with their verdicts.

    Args:
        folder: of a study, whole or in part: ``study.json`` and ``runs/``.

    Returns:
        a row a cell, with rank correlations in the notes; and a row a claim.

    Raises:
        InputError: no study there, one without a source, or none of its runs finished.
    """
    study = read_study(folder)
    source = study.source
    if source is None:
        raise InputError(f"{folder} has no source to compare with. Add a [source] table with cells or claims to the study.")
    cells = _held(study, folder)
    if not any(cell.values for cell in cells):
        raise InputError(f"{folder} holds no finished run of this form. Run `shiftscope study` with --out {folder} first.")
    return _cells(study, source, cells), _claims(study, source, cells)


def _held(study: Study, folder: Path) -> list[Held]:
    """Each cell with its finished runs, found by their content ids."""
    found: dict[str, Finished] = {}
    for path in sorted((folder / "runs").glob("*/")):
        run = records.read(path)
        if run is not None and run.record.training.status != "diverged":
            found[path.name] = run
    checksums = {run.record.provenance["data_sha256"] for run in found.values()}
    cells = []
    for number, cell in enumerate(study.cells(), start=1):
        ids = [run.content_id(checksum) for run in cell.runs for checksum in checksums]
        runs = [found[name] for name in ids if name in found]
        shared = set.intersection(*(set(run.values) for run in runs)) if runs else set()
        values = {name: torch.stack([run.values[name].float() for run in runs]) for name in sorted(shared)}
        cells.append(Held(cell.settings, values, number))
    return cells


def _cells(study: Study, source: Source, cells: list[Held]) -> Table:
    printed = [study.source_numbers(cell.settings) for cell in cells]
    names = list(dict.fromkeys(name for numbers in printed for name in numbers)) or ["mcs"]
    rows = []
    for cell, numbers in zip(cells, printed, strict=True):
        row: dict[str, Any] = {short(path): value for path, value in cell.settings.items()}
        row["seeds"] = len(next(iter(cell.values.values()))) if cell.values else 0
        for name in names:
            ours = cell.estimate(name)
            row |= {name: ours}
            if any(name in each for each in printed):
                row |= {f"source_{name}": numbers.get(name), f"difference_{name}": _less(ours, numbers.get(name))}
        rows.append(row)
    axes = tuple(short(path) for path in study.axes())
    compared = tuple(column for name in names for column in (name, f"source_{name}", f"difference_{name}") if column in rows[0])
    columns = (*axes, "seeds", *compared)
    origin = f"source_...: as printed, {source.title}. " if any(printed) else ""
    notes = [f"{origin}In brackets: 95 % intervals. {_counted(cells)}"]
    pairs = [(name, name) for name in names] + [(CENTRED, "mcs")] * ("mcs" in names)
    notes += [note for ours, theirs in pairs if (note := _ranks(cells, printed, ours, theirs))]
    return Table(f"{study.title}: beside the source", columns, tuple(rows), tuple(notes))


def _less(ours: Estimate | None, printed: float | None) -> Estimate | None:
    if ours is None or printed is None:
        return None
    return Estimate(ours.value - printed, ours.low - printed, ours.high - printed, ours.count, ours.seeds)


def _ranks(cells: list[Held], printed: list[dict[str, float]], name: str, source: str) -> str:
    """Spearman's rank correlation of a measure with one of the source, over the cells that have both."""
    pairs = zip(cells, printed, strict=True)
    both = [(cell, numbers[source]) for cell, numbers in pairs if source in numbers and name in cell.values]
    if len(both) < CELLS_FOR_RANKS:
        return ""
    theirs = rankdata([number for _, number in both])
    if np.ptp(theirs) == 0 or np.ptp([cell.mean(name) for cell, _ in both]) == 0:
        return f"{name}: all cells are alike, so that there is no rank correlation."
    value = float(np.corrcoef(rankdata([cell.mean(name) for cell, _ in both]), theirs)[0, 1])
    drawn = rankdata(np.stack([cell.draws(name) for cell, _ in both]), axis=0)
    centred, aim = drawn - drawn.mean(axis=0), theirs - theirs.mean()
    norms = np.linalg.norm(centred, axis=0) * np.linalg.norm(aim)  # 0 where a draw has all cells alike, which is no correlation
    low, high = measures.percentile_interval((centred * aim[:, None]).sum(axis=0) / np.where(norms > 0, norms, 1))
    beside = "the source" if name == source else f"the source's {source}"
    return f"{name}: Spearman's rank correlation with {beside} over {len(both)} cells {value:.3f} [{low:.3f}, {high:.3f}]."


def _claims(study: Study, source: Source, cells: list[Held]) -> Table:
    rows = []
    for claim in source.claims:
        row: dict[str, Any] = {"claim": claim.text, "number": None, "expected": f"{claim.expect} {claim.bound:g}"}
        of, less = _selected(cells, claim.of), _selected(cells, claim.less)
        missing = sum(claim.measure not in cell.values for cell in (*of, *less))
        absent = _absent(cells, claim.of) or _absent(cells, claim.less or {})
        if absent or not of or (claim.less is not None and not less):
            rows.append(row | {"verdict": f"not in this study{absent}"})
            continue
        if missing:
            rows.append(row | {"verdict": f"not measured: {missing} of {len(of) + len(less)} cells are missing"})
            continue
        number = _number(claim, of, less)
        row |= {"number": number, "verdict": _verdict(claim, number)}
        if claim.measure == "mcs" and all(CENTRED in cell.values for cell in (*of, *less)):
            centred = claim.model_copy(update={"measure": CENTRED})
            number = _number(centred, of, less)
            row |= {"number_centred": number, "verdict_centred": _verdict(centred, number)}
        rows.append(row)
    columns = ["claim", "number", "expected", "verdict"]
    notes = "holds: the whole 95 % interval lies on the side that was claimed; does not hold: on the other; undecided: on both. "
    if any("number_centred" in row for row in rows):
        columns += ["number_centred", "verdict_centred"]
        notes += "centred: of outputs less their mean over classes, a part that the optimiser moves and the loss does not see. "
    return Table(f"{study.title}: claims", tuple(columns), tuple(rows), (notes + _counted(cells),))


def _selected(cells: list[Held], which: Mapping[str, tuple[Any, ...]] | None) -> list[Held]:
    if which is None:
        return []
    return [cell for cell in cells if all(cell.settings.get(path) in values for path, values in which.items())]


def _absent(cells: list[Held], which: Mapping[str, tuple[Any, ...]]) -> str:
    """What a claim is about and no cell is; a claim is not judged on a part of its cells."""
    for path, values in which.items():
        for value in values:
            if all(cell.settings.get(path) != value for cell in cells):
                return f": {short(path)} {value}"
    return ""


def _number(claim: Claim, of: list[Held], less: list[Held]) -> Estimate:
    return of[0].counted(*_statistic(claim, of, less), claim.measure)


def _statistic(claim: Claim, of: list[Held], less: list[Held]) -> tuple[float, np.ndarray, list[VarianceComponent]]:
    """A claim's number, its draws, and how much it varies with each cell's networks."""
    name = claim.measure
    values, draws = np.array([cell.mean(name) for cell in of]), np.stack([cell.draws(name) for cell in of])
    if claim.kind == "range":
        # Draws spread wider than what they are drawn from, so that their ranges lie too high: they are reflected.
        value = float(np.ptp(values))
        ends = {cell.number: cell for cell in (of[int(values.argmax())], of[int(values.argmin())])}
        return value, np.maximum(2 * value - np.ptp(draws, axis=0), 0.0), [cell.spread(name) for cell in ends.values()]
    spreads = [cell.spread(name, 1 / len(cells)) for cells in (of, less) for cell in cells]
    if not less:
        return float(values.mean()), draws.mean(axis=0), spreads
    other = np.stack([cell.draws(name) for cell in less]).mean(axis=0)
    return float(values.mean() - np.mean([cell.mean(name) for cell in less])), draws.mean(axis=0) - other, spreads


def _verdict(claim: Claim, number: Estimate) -> str:
    if number.count == 1:
        return "undecided"
    low, high = number.low, number.high
    if claim.expect == "below":
        low, high = 2 * claim.bound - high, 2 * claim.bound - low
    return "holds" if low > claim.bound else "does not hold" if high < claim.bound else "undecided"


def _counted(cells: list[Held]) -> str:
    """How many networks stand behind the cells."""
    seeds = sorted({len(next(iter(cell.values.values()))) for cell in cells if cell.values})
    missing = sum(not cell.values for cell in cells)
    span = f"{seeds[0]} to {seeds[-1]}" if seeds[0] < seeds[-1] else str(seeds[0])
    text = f"{span} trained network{'' if seeds[-1] == 1 else 's'} a cell."
    if seeds[0] == 1:
        text += " From one network nothing is known of how much another training would differ: its interval is over images only."
    return text + (f" {missing} cells are not measured yet." if missing else "")
