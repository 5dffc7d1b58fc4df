"""What there is of a study on disk, and what is missing of it, in sentences. It trains and measures nothing.

Unlike a study that is run, a study that is shown may be half done, damaged in places or of an older form: whatever can be read is
handed out, and the rest is named.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.runtime.provenance import joined
from shiftscope.studies import records
from shiftscope.studies.loading import read_study
from shiftscope.studies.records import Finished, Record
from shiftscope.studies.spec import DERIVED, VARIANT, Run, Study, short
from shiftscope.studies.tables import curves, gains, layers, summarise, table_of
from shiftscope.tables import Table

__all__ = ["CellRuns", "StudyFolder", "read_folder"]

#: Settings whose names say less than a few words.
PLAIN = {"antialias": "filter size", "pool_kernel": "pooling kernel"}


@dataclass(frozen=True)
class CellRuns:
    """A cell and what there is of it.

    Attributes:
        name: the settings that vary, in words.
        settings: of the cell, path to value.
        planned: the runs it consists of, one a seed.
        finished: the finished ones, of this form.
        older: records of an older form.
        folders: of the finished runs and then of the older records.
    """

    name: str
    settings: Mapping[str, Any]
    planned: tuple[Run, ...]
    finished: tuple[Finished, ...]
    older: tuple[Record, ...]
    folders: tuple[Path, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        """The records in the order of ``folders``."""
        return (*(run.record for run in self.finished), *self.older)

    @property
    def factor(self) -> int:
        """The subsampling factor of its networks."""
        return self.planned[0].network.factor

    def map(self, measure: str) -> Tensor | None:
        """The mean of each shift over its networks, [shift]; None where no record holds it."""
        maps = [run.maps[measure] for run in self.finished if measure in run.maps]
        return torch.stack(maps).mean(dim=0) if maps else None


@dataclass(frozen=True)
class StudyFolder:
    """A study and what there is of it.

    Attributes:
        folder: where it lies.
        study: what it was to be.
        cells: in the study's order.
        missing: what is not there or cannot be used, a sentence each.
    """

    folder: Path
    study: Study
    cells: tuple[CellRuns, ...]
    missing: tuple[str, ...]

    @property
    def runs_finished(self) -> int:
        """How many runs are finished and of this form."""
        return sum(len(cell.finished) for cell in self.cells)

    @property
    def runs_planned(self) -> int:
        """How many runs the study consists of."""
        return sum(len(cell.planned) for cell in self.cells)

    def table(self) -> Table:
        """A row a cell. A cell known from one record of an older form alone has that record's numbers."""
        table = table_of(self.study, [list(cell.finished) for cell in self.cells])
        rows = [{**row, **_older(cell)} if not cell.finished else row for row, cell in zip(table.rows, self.cells, strict=True)]
        empty = {name for name in table.columns if all(row.get(name) is None for row in rows)}
        kept = tuple(name for name in table.columns if name not in empty)
        return Table(table.title, kept, tuple(rows), (*table.notes, *self._told_older()), table.provenance or self._origin())

    def curves(self) -> Table:
        """MCS and top-1 change against the largest shift; see :func:`shiftscope.studies.tables.curves`."""
        return curves(self.study, self._sound())

    def layers(self) -> Table:
        """Every layer's response; see :func:`shiftscope.studies.tables.layers`."""
        return layers(self.study, self._sound())

    def gains(self) -> Table:
        """Homogeneity and what subsampling gains; see :func:`shiftscope.studies.tables.gains`."""
        return gains(self.study, self._sound())

    def write_tables(self) -> bool:
        """Write the study's tables and figure from what there is, where that is not of an older form; whether it did.

        Raises:
            InputError: they cannot be written.
        """
        if not self.runs_finished or any(cell.older for cell in self.cells):
            return False
        try:
            summarise(self.study, [list(cell.finished) for cell in self.cells], self.folder)
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be written ({error.strerror}). Make room, or write the page alone, elsewhere, with --out."
            ) from error
        return True

    def _sound(self) -> list[list[Finished]]:
        return [[run for run in cell.finished if run.record.training.status != "diverged"] for cell in self.cells]

    def _told_older(self) -> tuple[str, ...]:
        """That some numbers come from records of an older form."""
        names = [cell.name for cell in self.cells if not cell.finished and len(cell.older) == 1]
        return (f"From records of an older form, one network each: {'; '.join(names)}.",) if names else ()

    def _origin(self) -> dict[str, str]:
        """The provenance of older records, where there are no others."""
        return joined([record.provenance for cell in self.cells for record in cell.older])


def read_folder(folder: Path) -> StudyFolder:
    """What there is of a study.

    Args:
        folder: of the study: ``study.json`` and ``runs/``.

    Raises:
        InputError: it holds no study.
    """
    study = read_study(folder)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found, older, reasons = _records(folder)
    cells = []
    for cell in study.cells():
        current = {run.seed: path for run in cell.runs for path, each in found.items() if _same(run, each.record.spec)}
        before = {run.seed: path for run in cell.runs for path, each in older.items() if _same(run, each.spec)}
        outdated = [path for seed, path in before.items() if seed not in current]
        cells.append(
            CellRuns(
                name=_name(study, cell.settings),
                settings=cell.settings,
                planned=cell.runs,
                finished=tuple(found[path] for path in current.values()),
                older=tuple(older[path] for path in outdated),
                folders=(*current.values(), *outdated),
            )
        )
    missing = [*(str(each.message).replace("is computed again", "is left out") for each in told), *reasons, *_gaps(cells)]
    return StudyFolder(folder, study, tuple(cells), tuple(missing))


def _records(folder: Path) -> tuple[dict[Path, Finished], dict[Path, Record], list[str]]:
    """Finished runs, records of an older form, and what is said of folders that are neither."""
    found: dict[Path, Finished] = {}
    older: dict[Path, Record] = {}
    reasons = []
    for path in _folders(folder / "runs"):
        run = records.read(path)
        if run is not None:
            found[path] = run
            continue
        if not (path / records.RECORD).exists():
            reasons.append(f"Run {path.name} is not finished: it has no record yet.")
            continue
        record = _older_record(path)
        if record is not None:
            older[path] = record
            reasons.append(
                f"Run {path.name} has a record of form {record.schema_version}; this is form {records.RECORD_VERSION}. "
                "`shiftscope study` with the same folder measures it anew where its weights were kept."
            )
    return found, older, reasons


def _folders(runs: Path) -> Iterator[Path]:
    return iter(sorted(path for path in runs.glob("*") if path.is_dir()))


def _older_record(path: Path) -> Record | None:
    """A record of an older form, which says the same of how the training ended; None where it is damaged, which was said."""
    try:
        record = Record.model_validate_json((path / records.RECORD).read_bytes())
    except (ValidationError, OSError):
        return None
    return record if record.schema_version != records.RECORD_VERSION else None


def _name(study: Study, settings: Mapping[str, Any]) -> str:
    """A cell's settings in words, those left out that all cells share."""
    varied = {path: settings[path] for path in study.varied()}
    names = {path: PLAIN.get(short(path), short(path).replace("_", " ")) for path in varied}
    return (
        ", ".join(str(value) if path == VARIANT else f"{names[path]} {value}" for path, value in varied.items()) or "the network"
    )


def _same(run: Run, recorded: Run) -> bool:
    """Whether a record is of a run; what follows from the data is known to the record only."""
    derived = {name: getattr(recorded.network, name) for name in DERIVED}
    return run.model_copy(update={"network": run.network.model_copy(update=derived)}) == recorded


def _gaps(cells: list[CellRuns]) -> list[str]:
    """What is missing of each cell."""
    told = []
    for cell in cells:
        lacking = len(cell.planned) - len(cell.finished) - len(cell.older)
        if lacking and lacking == len(cell.planned):
            told.append(f"{cell.name}: none of {len(cell.planned)} runs is finished.")
        elif lacking:
            told.append(f"{cell.name}: {len(cell.finished)} of {len(cell.planned)} runs are finished.")
        for run in cell.finished:
            if run.record.training.status == "diverged":
                told.append(f"{cell.name}, seed {run.record.spec.seed}: the training diverged, so nothing was measured.")
    return told


def _older(cell: CellRuns) -> dict[str, int | float | Estimate]:
    """The numbers of a cell's only record of an older form, as they stand there."""
    if len(cell.older) != 1:
        return {}
    record = cell.older[0]
    return {"seeds": 1, "train_accuracy": record.training.train_accuracy, **record.results}
