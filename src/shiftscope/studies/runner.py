"""Runs a study: what is finished is found, what is missing is done, then the table is made from the records alone.

Killing it at any moment and starting it again loses, of the runs in flight, an epoch or two of a training (half a minute where
they are short) or the measuring; trainings done together, or where the study's folder is not, are lost whole. A lock keeps a
second command out of the folder while one is at work there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from shiftscope.datasets.dataset import Dataset, DataSpec, load
from shiftscope.engine.direct import ran_out_of_memory
from shiftscope.errors import InputError
from shiftscope.runtime.files import locked, remove_temporary_files, write_text
from shiftscope.runtime.processes import Executor, Work
from shiftscope.runtime.progress import Event, JobEvent, Report, silent
from shiftscope.studies import records
from shiftscope.studies.records import Finished, Record
from shiftscope.studies.run import Piece, execute
from shiftscope.studies.spec import Cell, Run, Study, short
from shiftscope.studies.tables import summarise
from shiftscope.tables import Table

__all__ = ["RunEnded", "RunStarted", "run_study"]


@dataclass(frozen=True)
class RunStarted(Event):
    """A run begins, or was found finished.

    Attributes:
        number, of: its place in the study.
        label: the grid's settings and the seed.
        epochs: what runs so far needed on average, None before the first.
    """

    number: int
    of: int
    label: str
    epochs: float | None


@dataclass(frozen=True)
class RunEnded(Event):
    """A run is on disk; ``found`` says that it was there before."""

    record: Record
    found: bool


@dataclass(frozen=True)
class _Job:
    """All that a run, or runs trained together, need wherever they are done.

    Attributes:
        pieces: the runs.
        label: in words.
        data_dir: where their data is.
        device: where to compute.
        kept: an earlier training's files of each, for those that are done away from them.
    """

    pieces: tuple[Piece, ...]
    label: str
    data_dir: Path | None
    device: str
    kept: tuple[dict[str, bytes], ...] = ()

    def __str__(self) -> str:
        return self.label


def run_study(
    study: Study,
    *,
    out: Path,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    executor: Executor | None = None,
    together: int = 1,
    reuse: Path | None = None,
    report: Report = silent,
) -> Table:
    """Run what is missing of a study and write its table.

    Args:
        study: what to do.
        out: the study's folder: ``study.json``, ``runs/<content id>/``, ``table.csv`` and ``table.md``.
        data_dir: a local folder that holds the data set (see ``data.load``).
        device: where to train and measure.
        executor: what carries out several runs at once, each with one thread; None does them here, one after the other, with
            all threads. The last bits of results depend on the number of threads.
        together: so many seeds of a cell are trained at once, their weights stacked (see :mod:`shiftscope.training.stacking`).
        reuse: a study's folder, or one of several, whose finished runs are taken over where they are the same: same
            specification, same data.
        report: called with each event.

    Returns:
        a row a cell, every number an estimate over seeds and test images.

    Raises:
        InputError: impossible data or shifts, told before anything is written; ``reuse`` is no folder; a folder that cannot be
            written, or that another command is at work in; a run that memory is too small for; what does the runs dies again
            and again.
        OSError: a file cannot be written; finished runs are kept.
    """
    cells = study.cells()
    # One seed of every cell before the next seed of any, so that a study stopped half-way has a whole table.
    runs = [(cell, cell.runs[place]) for place in range(len(study.seeds)) for cell in cells]
    if reuse is not None and not reuse.is_dir():
        raise InputError(f"`reuse` {reuse} is no folder. Give a study's folder, or one that holds several.")
    if together < 1:
        raise InputError(f"`together` must be 1 or more networks, got {together}.")
    specs = dict.fromkeys(run.data for _, run in runs)
    data = {spec: load(spec, data_dir=data_dir, report=report) for spec in specs}
    for _, run in runs:
        _check_margin(run, data[run.data])
    jobs = {}
    for cell, run in runs:
        name = run.content_id(data[run.data].checksum)
        jobs[name] = _Job((Piece(run, name, out / "runs" / name),), _label(cell, run), data_dir, str(device))
    _make(out)
    with locked(out):
        _refuse_other_images(out, data)
        _prepare(out, study)
        if reuse is not None:
            for job in jobs.values():
                _take_over(job.pieces[0], reuse)
        finished = _done(list(jobs.values()), executor, together, report)
    by_cell = [[finished[run.content_id(data[run.data].checksum)] for run in cell.runs] for cell in cells]
    return summarise(study, by_cell, out)


def _refuse_other_images(out: Path, data: Mapping[DataSpec, Dataset]) -> None:
    """One folder holds runs on one version of each data set, so that no table mixes two."""
    for record in records.heads(out / "runs"):
        now = data.get(record.spec.data)
        if now is not None and record.provenance.get("data_sha256") != now.checksum:
            raise InputError(
                f"{out} holds runs on other images of {record.spec.data.name!r} than there are now. Choose another folder with "
                "--out, or remove the runs."
            )


def _take_over(piece: Piece, reuse: Path) -> None:
    """Copy a run that another study has finished, where there is one and this study has it not."""
    if records.read(piece.folder) is not None:
        return
    for other in (reuse / "runs" / piece.name, *sorted(reuse.glob(f"*/runs/{piece.name}"))):
        if records.read(other) is not None:
            records.put_files(piece.folder, {path.name: path.read_bytes() for path in other.iterdir() if path.is_file()})
            return


def _done(jobs: list[_Job], executor: Executor | None, together: int, report: Report) -> dict[str, Finished]:
    """Every run's record: those there are, and those that are made now."""
    finished: dict[str, Finished] = {}
    place = {job.pieces[0].name: number for number, job in enumerate(jobs, start=1)}

    def started(job: _Job) -> RunStarted:
        return RunStarted(place[job.pieces[0].name], len(jobs), job.label, _mean_epochs(finished))

    missing = []
    for job in jobs:
        kept = records.read(job.pieces[0].folder)
        if kept is None:
            missing.append(job)
            continue
        job.pieces[0].checkpoint().remove()  # a kill can fall between the record and the end of what it makes needless
        report(started(job))
        finished[kept.record.id] = kept
        report(RunEnded(kept.record, found=True))
    missing = _grouped(missing, together)
    if executor is not None:
        _done_by(executor, missing, finished, len(jobs), report)
        return finished
    for job in missing:
        report(started(job))
        for made in _do(job, report):
            finished[made.record.id] = made
            report(RunEnded(made.record, found=False))
    return finished


def _done_by(executor: Executor, missing: list[_Job], finished: dict[str, Finished], of: int, report: Report) -> None:
    """Let an executor do what is missing, and put it to what is finished."""

    def told(job: _Job, event: Event) -> None:
        report(JobEvent(job.label, len(finished), of, event))

    work: Work = _do
    if executor.remote:
        work = _do_away
        missing = [replace(job, kept=tuple(map(_begun, job.pieces))) for job in missing]
    for job, several in executor.run(work, missing, told):
        for piece, made in zip(job.pieces, several, strict=True):
            finished[piece.name] = records.receive(piece.folder, made) if executor.remote else made
            piece.checkpoint().remove()
            told(job, RunEnded(finished[piece.name].record, found=False))


def _begun(piece: Piece) -> dict[str, bytes]:
    """The files of a run that was begun: what is measured anew, or a training on its way."""
    checkpoint = piece.checkpoint().path
    return records.kept_files(piece.folder) or ({checkpoint.name: checkpoint.read_bytes()} if checkpoint.exists() else {})


def _grouped(jobs: list[_Job], together: int) -> list[_Job]:
    """Jobs that differ in their seeds only, so many in one.

    What has been trained already, or in part, goes on alone; layers that draw while training cannot be stacked.
    """
    if together == 1:
        return jobs
    groups: dict[Any, list[_Job]] = {}
    for job in jobs:
        piece = job.pieces[0]
        alone = piece.run.network.sampling == "lps" or bool(_begun(piece))
        groups.setdefault(piece.name if alone else piece.run.model_copy(update={"seed": 0}), []).append(job)
    grouped = []
    for alike in groups.values():
        for start in range(0, len(alike), together):
            some = alike[start : start + together]
            seeds = " ".join(str(job.pieces[0].run.seed) for job in some[1:])
            label = f"{some[0].label} {seeds}".rstrip()
            grouped.append(replace(some[0], pieces=tuple(job.pieces[0] for job in some), label=label))
    return grouped


def _do(job: _Job, report: Report) -> list[Finished]:
    """A job's runs, here or in another process of this machine."""
    data = _loaded(job.pieces[0].run.data, job.data_dir)
    if any(piece.run.content_id(data.checksum) != piece.name for piece in job.pieces):
        raise InputError(
            f"the run `{job.label}` was to see other images of {job.pieces[0].run.data.name!r} than are found where it is done. "
            "Bring the same files to every machine."
        )
    try:
        return execute(job.pieces, data, job.device, report)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise InputError(
            f"the run `{job.label}` needs more memory than there is. Let fewer run at once (--workers), or use a smaller "
            "`training.batch_size`, `data.canvas` or `network.channels`."
        ) from error


def _do_away(job: _Job, report: Report) -> list[dict[str, bytes]]:
    """A job's runs on a machine that need not see the study's folder: the files of each, to be written there."""
    with TemporaryDirectory() as place:
        folders = [Path(place) / piece.name for piece in job.pieces]
        for folder, files in zip(folders, job.kept, strict=True):
            records.put_files(folder, files)
        # A training that was put down is taken up from its file; for any other nothing is kept in a folder that will not last.
        each = zip(job.pieces, folders, job.kept, strict=True)
        pieces = tuple(replace(piece, folder=folder, lasting=bool(files)) for piece, folder, files in each)
        _do(replace(job, pieces=pieces), report)
        return [{path.name: path.read_bytes() for path in piece.folder.iterdir()} for piece in pieces]


@lru_cache(maxsize=2)
def _loaded(spec: DataSpec, data_dir: Path | None) -> Dataset:
    """A process reads its data once."""
    return load(spec, data_dir=data_dir)


def _check_margin(run: Run, data: Dataset) -> None:
    margin = data.canvas.margin(data.test.images.shape[2:])
    for name, shift in (("measure.max_shift", run.measure.max_shift), ("training.translate", run.training.translate)):
        if shift > margin and not run.data.allow_cut:
            raise InputError(
                f"`{name}` must be at most {margin}, got {shift}: the canvas of {run.data.canvas} leaves a margin of {margin} "
                f"pixels around the image, and content would be cut. Use a larger `data.canvas`, or set `data.allow_cut`."
            )


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from error


def _prepare(out: Path, study: Study) -> None:
    try:
        remove_temporary_files(out)
        write_text(out / "study.json", study.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> InputError:
    return InputError(f"`out` {out} cannot be written ({error.strerror}). Choose another folder with --out.")


def _label(cell: Cell, run: Run) -> str:
    return ", ".join([*(f"{short(path)} {value}" for path, value in cell.settings.items()), f"seed {run.seed}"])


def _mean_epochs(finished: dict[str, Finished]) -> float | None:
    epochs = [run.record.training.epochs for run in finished.values()]
    return sum(epochs) / len(epochs) if epochs else None
