"""Do a study in several processes that share its folder, on one machine or on many, without a coordinator.

Each process starts with its own share of the runs and continues with the others' shares, so that another process does the runs of
a killed one. A run is claimed by a lock on its folder, which the system frees when the process dies. Where the file system has no
locks, each process does its own share only. The process that finishes the last run writes the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from shiftscope.errors import InputError
from shiftscope.runtime.executors import Executor
from shiftscope.runtime.files import claimed, locked
from shiftscope.runtime.progress import Event, JobEvent, Report, silent
from shiftscope.studies import records
from shiftscope.studies.records import Finished
from shiftscope.studies.runner import Job, PlannedStudy, RunEnded, RunStarted, copy_finished, do_claimed, plan_study, prepare
from shiftscope.studies.spec import Study
from shiftscope.tables import Table

__all__ = ["Shard", "run_shard"]

#: Long enough for all processes of a large array that start at the same moment to write the study's file in turn.
SECONDS_TO_PREPARE = 120.0


@dataclass(frozen=True)
class Shard:
    """One of several processes.

    Attributes:
        number: its number, from 1.
        of: number of processes.

    Raises:
        InputError: there is no such shard.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise InputError(f"`shard` must be I/N with I from 1 to N, got {self.number}/{self.of}.", "Number shards from 1.")

    def order(self, jobs: Sequence[Job]) -> list[tuple[Job, bool]]:
        """Return all jobs, own share (every N-th job) first, each with whether it belongs to that share."""
        mine = jobs[self.number - 1 :: self.of]
        others = [job for number in range(self.number, self.number + self.of - 1) for job in jobs[number % self.of :: self.of]]
        return [*((job, True) for job in mine), *((job, False) for job in others)]


@dataclass(frozen=True)
class _Try:
    """A run to do unless another process does it.

    Attributes:
        job: the run.
        mine: whether it belongs to this process's share, which is done even on file systems without locks.
        reuse: folder to copy a finished run from.
    """

    job: Job
    mine: bool
    reuse: Path | None

    def __str__(self) -> str:
        return str(self.job)


def run_shard(
    study: Study,
    shard: Shard,
    *,
    out: Path,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    executor: Executor | None = None,
    reuse: Path | None = None,
    report: Report = silent,
) -> Table | None:
    """Do runs of a study until nothing is left that no other process does, and write its tables if all runs are finished.

    The files and tables are those of :func:`shiftscope.studies.runner.run_study` on equal machines, apart from times.

    Args:
        study: what to train and measure.
        shard: where this process begins.
        out: the study's folder, which all processes see.
        data_dir: a local folder that holds the data set; None for the usual places.
        device: where to train and measure.
        executor: carries out several runs at once on this machine; None does one after the other.
        reuse: a study's folder, or a folder of such folders, from which finished runs are copied.
        report: called with each event.

    Returns:
        One row per cell; None while other processes are at work on runs that are missing.

    Raises:
        InputError: the executor's machines do not see the folder, and see :func:`shiftscope.studies.runner.run_study`.
        OSError: a file cannot be written; finished runs are kept.
    """
    if executor is not None and executor.remote:
        raise InputError(
            "the processes of `shard` share a folder, which jobs of this executor do not see.", "Leave out one of the two."
        )
    plan = plan_study(study, out=out, data_dir=data_dir, device=device, reuse=reuse, report=report)
    with locked(out, seconds=SECONDS_TO_PREPARE):
        prepare(plan)
    tries = [_Try(job, mine, reuse) for job, mine in shard.order(plan.jobs)]
    missing = _missing(tries)
    while missing and len(left := _do_free(plan, missing, executor, report)) < len(missing):
        missing = left
    finished = {job.planned.id: records.read(job.planned.folder) for job in plan.jobs}
    whole = {name: found for name, found in finished.items() if found is not None}
    if len(whole) < len(finished):
        return None
    _tidy(plan)
    with locked(out, seconds=SECONDS_TO_PREPARE):
        return plan.summarise(whole)


def _missing(tries: Sequence[_Try]) -> list[_Try]:
    return [each for each in tries if records.read(each.job.planned.folder) is None]


def _do_free(plan: PlannedStudy, missing: Sequence[_Try], executor: Executor | None, report: Report) -> list[_Try]:
    """Do the missing runs that no other process does, and return those still missing afterwards."""
    if executor is None:
        for each in missing:
            if (found := _try(each, report, partial(_start, plan, each.job, report))) is not None:
                report(RunEnded(found.record, found=False))
        return _missing(missing)
    done = len(plan.jobs) - len(missing)

    def tell(each: _Try, event: Event) -> None:
        report(JobEvent(each.job.label, done, len(plan.jobs), event))

    for each, found in executor.run(_try, missing, tell):
        if found is not None:
            done += 1
            tell(each, RunEnded(found.record, found=False))
    return _missing(missing)


def _start(plan: PlannedStudy, job: Job, report: Report) -> None:
    """Say that a run starts, and how many are finished, here or by other processes."""
    done = sum(records.read(each.planned.folder) is not None for each in plan.jobs)
    report(RunStarted(done, len(plan.jobs), job.label, None))


def _try(each: _Try, report: Report, start: Callable[[], None] = lambda: None) -> Finished | None:
    """Do a run; return None if another process does it, or has done it."""
    planned = each.job.planned
    with claimed(planned.folder) as claim:
        if claim is False or (claim is None and not each.mine) or records.read(planned.folder) is not None:
            return None
        if each.reuse is not None:
            copy_finished(planned, each.reuse)
            if (known := records.read(planned.folder)) is not None:
                return known
        start()
        return do_claimed(each.job, report)


def _tidy(plan: PlannedStudy) -> None:
    """Remove files left by processes that were killed between writing a run's record and finishing the run."""
    for job in plan.jobs:
        with claimed(job.planned.folder) as claim:
            if claim:
                job.planned.checkpoint().remove()
