"""Runs a study: what is finished is found, what is missing is done, then the table is made from the records alone.

Killing it at any moment and starting it again loses at most the runs in flight. A lock keeps a second command out of the folder
while one is at work there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from shiftscope.engine.direct import ran_out_of_memory
from shiftscope.errors import InputError
from shiftscope.lab import records
from shiftscope.lab.data import Dataset, DataSpec, load
from shiftscope.lab.executors import Executor, Work
from shiftscope.lab.files import locked, sweep, write_text
from shiftscope.lab.measuring import Loading
from shiftscope.lab.records import Finished, Record
from shiftscope.lab.runs import execute
from shiftscope.lab.studies import Cell, Run, Study
from shiftscope.lab.summaries import short, summarise
from shiftscope.lab.training import Epoch, Step
from shiftscope.tables import Table

__all__ = ["Event", "Loading", "Report", "RunEnded", "RunStarted", "Told", "run_study"]


@dataclass(frozen=True)
class RunStarted:
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
class RunEnded:
    """A run is on disk; ``found`` says that it was there before."""

    record: Record
    found: bool


@dataclass(frozen=True)
class Told:
    """What one of several runs at once tells.

    Attributes:
        label: of the run.
        done, of: how many runs are finished, of how many.
        event: what it tells.
    """

    label: str
    done: int
    of: int
    event: Loading | RunEnded | Step | Epoch


Event = Loading | RunStarted | RunEnded | Step | Epoch | Told
Report = Callable[[Event], None]


@dataclass(frozen=True)
class _Job:
    """All that a run needs wherever it is done; ``kept`` are an earlier training's files, for one that is done away from them."""

    run: Run
    name: str
    label: str
    folder: Path
    data_dir: Path | None
    device: str
    kept: dict[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.label


def run_study(
    study: Study,
    *,
    out: Path,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    executor: Executor | None = None,
    report: Report = lambda _: None,
) -> Table:
    """Run what is missing of a study and write its table.

    Args:
        study: what to do.
        out: the study's folder: ``study.json``, ``runs/<content id>/``, ``table.csv`` and ``table.md``.
        data_dir: a local folder that holds the data set (see ``data.load``).
        device: where to train and measure.
        executor: what carries out several runs at once, each with one thread; None does them here, one after the other, with
            all threads. The last bits of results depend on the number of threads.
        report: told how it goes.

    Returns:
        a row a cell, every number an estimate over seeds and test images.

    Raises:
        InputError: impossible data or shifts, told before anything is written; a folder that cannot be written, or that another
            command is at work in; a run that memory is too small for; what does the runs dies again and again.
        OSError: a file cannot be written; finished runs are kept.
    """
    cells = study.cells()
    # One seed of every cell before the next seed of any, so that a study stopped half-way has a whole table.
    runs = [(cell, cell.runs[place]) for place in range(len(study.seeds)) for cell in cells]
    specs = dict.fromkeys(run.data for _, run in runs)
    data = {spec: load(spec, data_dir=data_dir, progress=lambda *at: report(Loading(*at))) for spec in specs}
    for _, run in runs:
        _check_margin(run, data[run.data])
    jobs = {}
    for cell, run in runs:
        name = run.content_id(data[run.data].checksum)
        jobs[name] = _Job(run, name, _label(cell, run), out / "runs" / name, data_dir, str(device))
    _make(out)
    with locked(out):
        _prepare(out, study)
        finished = _done(list(jobs.values()), executor, report)
    by_cell = [[finished[run.content_id(data[run.data].checksum)] for run in cell.runs] for cell in cells]
    return summarise(study, by_cell, out)


def _done(jobs: list[_Job], executor: Executor | None, report: Report) -> dict[str, Finished]:
    """Every run's record: those there are, and those that are made now."""
    finished: dict[str, Finished] = {}
    place = {job.name: number for number, job in enumerate(jobs, start=1)}

    def start(job: _Job) -> None:
        report(RunStarted(place[job.name], len(jobs), job.label, _mean_epochs(finished)))

    def end(job: _Job, found: Finished, *, before: bool) -> None:
        finished[job.name] = found
        report(RunEnded(found.record, found=before))

    missing = []
    for job in jobs:
        kept = records.read(job.folder)
        if kept is None:
            missing.append(job)
            continue
        start(job)
        end(job, kept, before=True)
    if executor is None:
        for job in missing:
            start(job)
            end(job, _do(job, report), before=False)
        return finished

    def told(job: _Job, event: Loading | RunEnded | Step | Epoch) -> None:
        report(Told(job.label, len(finished), len(jobs), event))

    work: Work = _do
    if executor.away:
        work, missing = _do_away, [replace(job, kept=records.kept_files(job.folder)) for job in missing]
    for job, made in executor.run(work, missing, told):
        finished[job.name] = records.receive(job.folder, made) if executor.away else made
        told(job, RunEnded(finished[job.name].record, found=False))
    return finished


def _do(job: _Job, report: Callable[[Loading | Step | Epoch], None]) -> Finished:
    """One run, here or in another process of this machine."""
    data = _loaded(job.run.data, job.data_dir)
    try:
        return execute(job.run, job.name, data, job.folder, job.device, report)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise InputError(
            f"the run `{job.label}` needs more memory than there is. Let fewer run at once (--workers), or use a smaller "
            "`training.batch_size`, `data.canvas` or `network.channels`."
        ) from error


def _do_away(job: _Job, report: Callable[[Loading | Step | Epoch], None]) -> dict[str, bytes]:
    """One run on a machine that need not see the study's folder: its files, to be written there."""
    with TemporaryDirectory() as place:
        folder = Path(place) / job.name
        if job.kept:
            records.put_files(folder, job.kept)
        _do(replace(job, folder=folder), report)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


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
        sweep(out)
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
