"""Run a study: find finished runs, run the missing ones, and make the tables from the records.

Stopping it at any moment loses at most an epoch or two of each training under way (half a minute of short epochs), or one
measurement. Runs on machines without access to the study's folder start again. A lock keeps a second command out of the folder;
:mod:`shiftscope.studies.shards` lets several share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from shiftscope.datasets.dataset import Dataset, DataSpec, load
from shiftscope.engine.direct import ran_out_of_memory
from shiftscope.errors import InputError
from shiftscope.runtime.executors import Executor, Work
from shiftscope.runtime.files import locked, remove_temporary_files, write_text, writing
from shiftscope.runtime.inputs import read_bytes
from shiftscope.runtime.progress import Event, JobEvent, Report, silent
from shiftscope.studies import records
from shiftscope.studies.loading import read_study
from shiftscope.studies.records import Finished, Record
from shiftscope.studies.single_run import PlannedRun, execute
from shiftscope.studies.spec import Cell, Run, Study, short
from shiftscope.studies.tables import summarise
from shiftscope.tables import Table

__all__ = ["Job", "PlannedStudy", "RunEnded", "RunStarted", "copy_finished", "do_claimed", "plan_study", "prepare", "run_study"]

#: The parts of a study that say how its networks are made and measured.
RECIPE = ("data", "network", "training", "measure", "overrides")
#: Largest file of a run, bytes.
LARGEST_FILE = 1 << 30


@dataclass(frozen=True)
class RunStarted(Event):
    """A run starts, or was found finished.

    Attributes:
        done: number of finished runs of the study.
        of: number of runs in the study.
        label: the grid's settings and the seed.
        epochs: mean number of epochs of the runs finished so far; None before the first.
    """

    done: int
    of: int
    label: str
    epochs: float | None


@dataclass(frozen=True)
class RunEnded(Event):
    """A run is finished and on disk.

    Attributes:
        record: of the run.
        found: whether it was finished before.
    """

    record: Record
    found: bool


@dataclass(frozen=True)
class Job:
    """Everything that a run needs, wherever it is done.

    Attributes:
        planned: the run.
        label: the run in words.
        data_dir: a local folder that holds the data set; None for the usual places.
        device: where to compute.
        files: files of the run from an earlier session, name -> content, for a machine without access to its folder.
    """

    planned: PlannedRun
    label: str
    data_dir: Path | None
    device: str
    files: Mapping[str, bytes]

    def __str__(self) -> str:
        return self.label


def run_study(
    study: Study,
    *,
    out: Path,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    executor: Executor | None = None,
    reuse: Path | None = None,
    report: Report = silent,
) -> Table:
    """Do the missing runs of a study and write its tables.

    Args:
        study: what to train and measure.
        out: the study's folder, which gets ``study.json``, ``runs/<content id>/`` and tables.
        data_dir: a local folder that holds the data set; None for the usual places (:func:`shiftscope.datasets.dataset.load`).
        device: where to train and measure.
        executor: carries out several runs at once, each with one thread; None does one after the other, with all threads. The
            last bits of results depend on the number of threads.
        reuse: a study's folder, or a folder of such folders, from which finished runs with the same specification and the same
            images are copied.
        report: called with each event.

    Returns:
        One row per cell, every number an estimate over seeds and test images.

    Raises:
        InputError: the data or the shifts are impossible, which is found before anything is written; ``reuse`` is not a folder;
            ``out`` cannot be written, or another command works in it; a run needs too much memory; the process of a run dies
            several times.
        OSError: a file cannot be written; finished runs are kept.
    """
    plan = plan_study(study, out=out, data_dir=data_dir, device=device, reuse=reuse, report=report)
    with locked(out):
        prepare(plan)
        if reuse is not None:
            for job in plan.jobs:
                copy_finished(job.planned, reuse)
        finished = _finish(plan.jobs, executor, report)
    return plan.summarise(finished)


@dataclass(frozen=True)
class PlannedStudy:
    """A study whose images are loaded and whose runs have their ids.

    Attributes:
        study: what to train and measure.
        out: its folder.
        cells: of its grid.
        jobs: its runs, one seed of every cell before the next seed of any, so that a study stopped half-way has a complete table.
        ids: run -> content id.
    """

    study: Study
    out: Path
    cells: Sequence[Cell]
    jobs: Sequence[Job]
    ids: Mapping[Run, str]

    def summarise(self, finished: Mapping[str, Finished]) -> Table:
        """Write the study's tables, and return the first.

        Args:
            finished: content id -> run, of all runs.
        """
        return summarise(self.study, [[finished[self.ids[run]] for run in cell.runs] for cell in self.cells], self.out)


def plan_study(
    study: Study,
    *,
    out: Path,
    data_dir: Path | None,
    device: torch.device | str,
    reuse: Path | None,
    report: Report,
) -> PlannedStudy:
    """Load a study's images, make its folder, and check that both suit the study; the arguments are those of :func:`run_study`.

    Raises:
        InputError: the data or the shifts are impossible; ``reuse`` is not a folder; ``out`` cannot be written or holds another
            study, or runs on other images.
    """
    if reuse is not None and not reuse.is_dir():
        raise InputError(f"`reuse` must be a folder, got {reuse}.", "Give a study's folder, or a folder of several.")
    cells = study.cells()
    runs = [(cell, cell.runs[place]) for place in range(len(study.seeds)) for cell in cells]
    data = {spec: load(spec, data_dir=data_dir, report=report) for spec in dict.fromkeys(run.data for _, run in runs)}
    for _, run in runs:
        _check_margin(run, data[run.data])
    ids = {run: run.content_id(data[run.data].checksum) for _, run in runs}
    jobs = {
        ids[run]: Job(PlannedRun(run, ids[run], out / "runs" / ids[run]), _label(cell, run), data_dir, str(device), {})
        for cell, run in runs
    }
    _make_folder(out)
    _refuse_other_images(out, data)
    return PlannedStudy(study, out, cells, list(jobs.values()), ids)


def prepare(plan: PlannedStudy) -> None:
    """Write a study's specification into its folder, which the caller has locked.

    Raises:
        InputError: the folder holds another study, or cannot be written.
    """
    _refuse_other_study(plan.out, plan.study)
    _prepare(plan.out, plan.study)


def _refuse_other_study(out: Path, study: Study) -> None:
    """Raise an error if a folder holds a study with other network settings: its tables would be lost.

    Another grid, other seeds and other variants extend or narrow a study.
    """
    try:
        known = read_study(out)
    except InputError:  # no study yet, or one that cannot be read
        return
    differing = [name for name in RECIPE if getattr(known, name) != getattr(study, name)]
    differing += [name for name in known.variants.keys() & study.variants.keys() if known.variants[name] != study.variants[name]]
    if differing:
        raise InputError(
            f"`out` {out} holds another study ({known.title}): the settings of `{differing[0]}` differ.",
            "Choose another folder with --out.",
        )


def _refuse_other_images(out: Path, data: Mapping[DataSpec, Dataset]) -> None:
    """Raise an error if a folder has runs on another version of a data set, because a table must not mix two."""
    for record in records.heads(out / "runs"):
        now = data.get(record.spec.data)
        if now is not None and record.provenance.get("data_sha256") != now.checksum:
            raise InputError(
                f"`out` {out} has runs on other images of {record.spec.data.name!r} than those that are there now.",
                "Choose another folder with --out, or remove the runs.",
            )


def copy_finished(planned: PlannedRun, reuse: Path) -> None:
    """Copy a run that another study has finished, unless this study has it.

    Args:
        planned: the run.
        reuse: a study's folder, or a folder of such folders.
    """
    if records.read(planned.folder) is not None:
        return
    for other in (reuse / "runs" / planned.id, *sorted(reuse.glob(f"*/runs/{planned.id}"))):
        if records.read(other) is not None:
            records.write_files(planned.folder, _contents(other))
            return


def _finish(jobs: Sequence[Job], executor: Executor | None, report: Report) -> dict[str, Finished]:
    """Return every run by id, after doing the missing ones."""
    finished: dict[str, Finished] = {}
    missing = []

    def start(job: Job) -> None:
        report(RunStarted(len(finished), len(jobs), job.label, _mean_epochs(finished)))

    for job in jobs:
        known = records.read(job.planned.folder)
        if known is None:
            missing.append(job)
            continue
        job.planned.checkpoint().remove()  # the command may have been killed after the record and before this
        start(job)
        finished[job.planned.id] = known
        report(RunEnded(known.record, found=True))
    if executor is not None:
        _finish_at_once(executor, missing, finished, len(jobs), report)
        return finished
    for job in missing:
        start(job)
        finished[job.planned.id] = do(job, report)
        report(RunEnded(finished[job.planned.id].record, found=False))
    return finished


def _finish_at_once(executor: Executor, jobs: Sequence[Job], finished: dict[str, Finished], of: int, report: Report) -> None:
    """Let an executor do jobs, and add their runs to ``finished``."""

    def tell(job: Job, event: Event) -> None:
        report(JobEvent(job.label, len(finished), of, event))

    work: Work = do
    if executor.remote:
        work, jobs = _do_away, [replace(job, files=_files_to_resume(job.planned)) for job in jobs]
    for job, result in executor.run(work, jobs, tell):
        planned = job.planned
        if executor.remote:
            records.write_files(planned.folder, result)
            result = records.read_finished(planned.folder)
        finished[planned.id] = result
        planned.checkpoint().remove()
        tell(job, RunEnded(finished[planned.id].record, found=False))


def _files_to_resume(planned: PlannedRun) -> dict[str, bytes]:
    """Return the files of a training to be measured again, or the checkpoint of one under way; none for a new run."""
    path = planned.checkpoint().path
    return records.trained_files(planned.folder) or ({path.name: path.read_bytes()} if path.exists() else {})


def do(job: Job, report: Report) -> Finished:
    """Do a run, in this process or in another one on this machine.

    Raises:
        InputError: another command does this run, and see :func:`do_claimed`.
        OSError: a file cannot be written.
    """
    job.planned.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.planned.folder):
        return do_claimed(job, report)


def do_claimed(job: Job, report: Report) -> Finished:
    """Do a run in a folder that no other process works in.

    Args:
        job: the run.
        report: called with each event.

    Raises:
        InputError: the run needs too much memory; this machine's images differ from those that the run was planned with.
        OSError: a file cannot be written.
    """
    planned = job.planned
    data = _load_once(planned.spec.data, job.data_dir)
    if planned.spec.content_id(data.checksum) != planned.id:
        raise InputError(
            f"this machine's {planned.spec.data.name!r} images differ from those that run `{job.label}` was planned with.",
            "Bring the same files to every machine.",
        )
    try:
        return execute(planned, data, job.device, report)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        raise InputError(
            f"the run `{job.label}` needs more memory than there is.",
            "Do fewer runs at once (--workers), or lower `training.batch_size`, `data.canvas` or `network.channels`.",
        ) from error


def _do_away(job: Job, report: Report) -> dict[str, bytes]:
    """Do a run on a machine without access to the study's folder; return its files."""
    with TemporaryDirectory() as place:
        folder = Path(place) / job.planned.id
        records.write_files(folder, job.files)
        # A training resumes from its checkpoint; saving new ones makes no sense in a folder that is about to disappear.
        do(replace(job, planned=replace(job.planned, folder=folder, resumable=bool(job.files))), report)
        return _contents(folder)


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of a run's files, by name.

    Raises:
        InputError: one is larger than a run's files are.
    """
    return {path.name: read_bytes(path, limit=LARGEST_FILE) for path in folder.iterdir() if path.is_file()}


@lru_cache(maxsize=2)
def _load_once(spec: DataSpec, data_dir: Path | None) -> Dataset:
    """Load a data set once per process."""
    return load(spec, data_dir=data_dir)


def _check_margin(run: Run, data: Dataset) -> None:
    margin = data.canvas.margin(data.test.images.shape[2:])
    for name, shift in (("measure.max_shift", run.measure.max_shift), ("training.translate", run.training.translate)):
        if shift > margin and not run.data.allow_cut:
            raise InputError(
                f"`{name}` must be at most {margin}, got {shift}: a canvas of {run.data.canvas} pixels leaves {margin} around "
                "the image, and content would be cut.",
                "Use a larger `data.canvas`, or set `data.allow_cut`.",
            )


def _make_folder(out: Path) -> None:
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)


def _prepare(out: Path, study: Study) -> None:
    with _writing(out):
        remove_temporary_files(out)
        write_text(out / "study.json", study.model_dump_json(indent=2) + "\n")


def _writing(out: Path) -> AbstractContextManager[None]:
    return writing(f"`out` {out}", "Choose another folder with --out.")


def _label(cell: Cell, run: Run) -> str:
    return ", ".join([*(f"{short(path)} {value}" for path, value in cell.settings.items()), f"seed {run.seed}"])


def _mean_epochs(finished: Mapping[str, Finished]) -> float | None:
    epochs = [run.record.training.epochs for run in finished.values()]
    return sum(epochs) / len(epochs) if epochs else None
