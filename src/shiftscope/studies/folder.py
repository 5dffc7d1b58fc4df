"""Read a study's folder: which runs belong to which cell, their tables, and what is missing or damaged.

A run belongs to a cell if its record has the specification of one of the cell's runs. The name of its folder, the content id,
does not decide, so records with ids of an older version of the code are found. A study may be unfinished or damaged in places:
:class:`StudyFolder` holds what can be read, and names the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.runtime.files import writing
from shiftscope.runtime.provenance import joined
from shiftscope.studies import records
from shiftscope.studies.loading import read_study
from shiftscope.studies.records import DamagedRecordError, Finished, Record
from shiftscope.studies.sections import VARIANT
from shiftscope.studies.spec import Cell, Run, Study, run_label, short
from shiftscope.studies.tables import certificates_of, curves, gains, layers, run_list, summarise, table_of
from shiftscope.tables import Table, heading

__all__ = ["CellRuns", "StudyFolder", "read_folder"]

#: Most runs that an error lists.
LISTED = 8


@dataclass(frozen=True)
class CellRuns:
    """A cell of a study and its runs on disk.

    Attributes:
        name: the settings that differ between cells, in words.
        settings: of the cell, path -> value.
        planned: the cell's runs, one for each seed.
        finished: the finished runs, in the order of ``planned``.
        older: records of an older version, of runs without a current one.
        folders: of the finished runs and then of the older records.
    """

    name: str
    settings: Mapping[str, Any]
    planned: tuple[Run, ...]
    finished: tuple[Finished, ...]
    older: tuple[Record, ...]
    folders: tuple[Path, ...]

    @property
    def measured(self) -> tuple[Finished, ...]:
        """The finished runs whose training did not diverge."""
        return tuple(run for run in self.finished if run.record.training.status != "diverged")

    @property
    def records(self) -> tuple[Record, ...]:
        """The records in the order of ``folders``."""
        return (*(run.record for run in self.finished), *self.older)

    @property
    def factor(self) -> int:
        """The subsampling factor of the cell's networks."""
        return self.planned[0].network.factor

    def values(self) -> dict[str, Float[Tensor, "seed image"]]:
        """Return the value of every test image, by measure; only measures that all measured runs have."""
        runs = self.measured
        shared = set.intersection(*(set(run.values) for run in runs)) if runs else set()
        return {name: torch.stack([run.values[name].float() for run in runs]) for name in sorted(shared)}

    def map(self, measure: str) -> Float[Tensor, " shift"] | None:
        """Return a measure's mean at each shift over the cell's networks; None if no record has it."""
        maps = [run.maps[measure] for run in self.finished if measure in run.maps]
        return torch.stack(maps).mean(dim=0) if maps else None


@dataclass(frozen=True)
class StudyFolder:
    """A study and its runs on disk.

    Attributes:
        folder: the study's folder.
        study: its specification.
        cells: in the study's order.
        damaged: a sentence for each record that cannot be read.
        unusable: a sentence for each run without a record, or with one of an older version.
    """

    folder: Path
    study: Study
    cells: tuple[CellRuns, ...]
    damaged: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """A sentence for everything that is damaged, unusable or not finished."""
        gaps = (sentence for cell in self.cells for sentence in _gaps(cell))
        return (*self.damaged, *self.unusable, *gaps)

    @property
    def runs_finished(self) -> int:
        """The number of finished runs; records of an older version do not count."""
        return sum(len(cell.finished) for cell in self.cells)

    @property
    def runs_planned(self) -> int:
        """The number of the study's runs."""
        return sum(len(cell.planned) for cell in self.cells)

    def labels(self) -> dict[str, Path]:
        """Return the folder of each run on disk by a readable label, such as ``factor=8,seed=0``."""
        return {
            run_label({path: cell.settings[path] for path in self.study.varied()}, record.spec.seed): folder
            for cell in self.cells
            for record, folder in zip(cell.records, cell.folders, strict=True)
        }

    def run(self, label: str) -> Path:
        """Return the folder of a run by its label, or by the folder's name.

        Raises:
            InputError: there is no such run.
        """
        labels = self.labels()
        wanted = _parts(label)
        found = labels.get(label) or next(
            (folder for name, folder in labels.items() if _parts(name) == wanted or wanted == [folder.name]), None
        )
        if found is None:
            listed = ", ".join(list(labels)[:LISTED]) + (", ..." if len(labels) > LISTED else "") if labels else "no run yet"
            raise InputError(f"{self.folder} holds no run {label!r}.", f"It holds {listed}.")
        return found

    def run_list(self) -> Table:
        """Return a row for each finished run."""
        return run_list(self.study, self._finished)

    def table(self) -> Table:
        """Return a row for each cell; a cell with a single record, of an older version, has that record's numbers."""
        table = table_of(self.study, self._finished)
        rows = [
            row if cell.finished else {**row, **_older_numbers(cell)} for row, cell in zip(table.rows, self.cells, strict=True)
        ]
        columns = tuple(name for name in table.columns if any(row.get(name) is not None for row in rows))
        notes = (*table.notes, *self._note_on_older())
        return Table(table.title, columns, tuple(rows), notes, table.provenance or self._older_provenance())

    def curves(self) -> Table:
        """Return the measures against the largest shift; see :func:`shiftscope.studies.tables.curves`."""
        return curves(self.study, self._measured)

    def layers(self) -> Table:
        """Return every layer's response to shifts; see :func:`shiftscope.studies.tables.layers`."""
        return layers(self.study, self._measured)

    def certificates(self) -> Table:
        """Return how far every shift keeps the answers; see :func:`shiftscope.studies.certified.certified`."""
        return certificates_of(self.study, self._measured)

    def gains(self) -> Table:
        """Return the gain of subsampling beside homogeneity; see :func:`shiftscope.studies.tables.gains`."""
        return gains(self.study, self._measured)

    def write_tables(self) -> bool:
        """Write the study's tables, unless no run is finished or a record is of an older version.

        Returns:
            whether they were written.

        Raises:
            InputError: they cannot be written.
        """
        if not self.runs_finished or any(cell.older for cell in self.cells):
            return False
        with writing(self.folder, "Make room, or write the page alone to another place with --out."):
            summarise(self.study, self._finished, self.folder)
        return True

    @cached_property
    def _finished(self) -> list[list[Finished]]:
        return [list(cell.finished) for cell in self.cells]

    @cached_property
    def _measured(self) -> list[list[Finished]]:
        return [list(cell.measured) for cell in self.cells]

    def _note_on_older(self) -> tuple[str, ...]:
        names = [cell.name for cell in self.cells if not cell.finished and len(cell.older) == 1]
        return (f"From records of an older version, one network each: {'; '.join(names)}.",) if names else ()

    def _older_provenance(self) -> dict[str, str]:
        return joined([record.provenance for cell in self.cells for record in cell.older])


@dataclass(frozen=True)
class _OnDisk:
    """A run's folder and its record; ``finished`` is None if the record is of an older version."""

    path: Path
    record: Record
    finished: Finished | None


def _parts(label: str) -> list[str]:
    """Return the settings in a run's label, whatever their order and the spaces between them."""
    return sorted(re.split(r"\s*,\s*", label.strip()))


def read_folder(folder: Path) -> StudyFolder:
    """Return a study and its runs on disk.

    Args:
        folder: of the study, with ``study.json`` and ``runs/``.

    Raises:
        InputError: the folder has no ``study.json``, or it is not a study.
    """
    study = read_study(folder)
    damaged: list[str] = []
    unusable: list[str] = []
    found: dict[Run, list[_OnDisk]] = {}
    for path in sorted(each for each in (folder / "runs").glob("*") if each.is_dir()):
        try:
            finished = records.load(path)
        except DamagedRecordError as error:
            damaged.append(f"{error}; the run is left out.")
            continue
        record = records.head(path) if finished is None else finished.record
        if record is None:
            unusable.append(f"Run {path.name} is not finished: it has no record yet.")
            continue
        found.setdefault(record.spec.without_derived(), []).append(_OnDisk(path, record, finished))
        if finished is None:
            unusable.append(
                f"Run {path.name} has a record of version {record.schema_version}; the current version is "
                f"{records.RECORD_VERSION}. `shiftscope study` with the same folder measures it again if its weights were kept."
            )
    return StudyFolder(
        folder, study, tuple(_cell_runs(study, cell, found) for cell in study.cells()), tuple(damaged), tuple(unusable)
    )


def _cell_runs(study: Study, cell: Cell, found: Mapping[Run, list[_OnDisk]]) -> CellRuns:
    """Return a cell with its runs on disk, those with a current record first."""
    chosen = [_chosen(run, found[key]) for run in cell.runs if (key := run.without_derived()) in found]
    current = [each for each in chosen if each.finished is not None]
    older = [each for each in chosen if each.finished is None]
    return CellRuns(
        name=_name(study, cell.settings),
        settings=cell.settings,
        planned=cell.runs,
        finished=tuple(each.finished for each in current if each.finished is not None),
        older=tuple(each.record for each in older),
        folders=tuple(each.path for each in (*current, *older)),
    )


def _chosen(run: Run, same: list[_OnDisk]) -> _OnDisk:
    """Return which of several folders with the same run to use: a current record before an older one, then the current id."""

    def rank(each: _OnDisk) -> tuple[bool, bool]:
        return each.finished is not None, each.path.name == run.content_id(each.record.provenance.get("data_sha256", ""))

    return max(same, key=rank)


def _name(study: Study, settings: Mapping[str, Any]) -> str:
    """Return a cell's settings in words, without those that all cells share."""
    words = [str(settings[path]) if path == VARIANT else f"{heading(short(path))} {settings[path]}" for path in study.varied()]
    return ", ".join(words) or "the network"


def _gaps(cell: CellRuns) -> Iterator[str]:
    """Yield a sentence for each missing run or measurement of a cell."""
    lacking = len(cell.planned) - len(cell.finished) - len(cell.older)
    if lacking and lacking == len(cell.planned):
        yield f"{cell.name}: none of {len(cell.planned)} runs is finished."
    elif lacking:
        yield f"{cell.name}: {len(cell.finished)} of {len(cell.planned)} runs are finished."
    for run in cell.finished:
        if run.record.training.status == "diverged":
            yield f"{cell.name}, seed {run.record.spec.seed}: the training diverged, so nothing was measured."


def _older_numbers(cell: CellRuns) -> dict[str, int | float | Estimate]:
    """Return the numbers of a cell's only record, of an older version, as they stand there."""
    if len(cell.older) != 1:
        return {}
    record = cell.older[0]
    return {"seeds": 1, "train_accuracy": record.training.train_accuracy, **record.results}
