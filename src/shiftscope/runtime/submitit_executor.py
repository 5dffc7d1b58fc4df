"""Run several jobs at once as jobs of Slurm, through submitit; without Slurm, as processes of this machine.

Jobs run in the folder where the command was started, on machines that see it, and write into the study's or audit's folder
themselves. A job whose process dies is submitted again, a few times. So is one that Slurm preempts, or whose time is up, by
submitit itself, and a training resumes from its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from shiftscope.errors import InputError, first_line
from shiftscope.runtime.executors import (
    RETRIES,
    JobReport,
    JobResult,
    Work,
    prepare_process,
    result_of,
    run_job,
    safe_import_path,
)
from shiftscope.runtime.progress import Stage

__all__ = ["Submitit"]

SECONDS_BETWEEN_POLLS = 0.2


@dataclass(frozen=True)
class Submitit:
    """Runs jobs through submitit. Events of a job stay on its machine; what it prints is in a file of ``folder``.

    Attributes:
        workers: number of jobs at once; None for all.
        gpus: number of GPUs for each job.
        parameters: of ``submitit.AutoExecutor.update_parameters``, such as ``timeout_min`` and ``slurm_partition``.
        folder: for submitit's files, which the machines of the cluster see.
        cluster: ``slurm``, ``local`` or ``debug``; None for Slurm where it is installed, else this machine.

    Raises:
        InputError: the numbers are impossible; submitit is not installed, or refuses the parameters.
    """

    workers: int | None = None
    gpus: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path("submitit")
    cluster: str | None = None
    remote: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"`workers` must be 1 or more, got {self.workers}.", "Leave it out to submit all jobs at once.")
        if self.gpus < 0:
            raise InputError(f"`gpus` must be 0 or more, got {self.gpus}.", "Give the number of GPUs for each job.")

    def run(self, work: Work, jobs: Sequence[Any], report: JobReport) -> Iterator[tuple[Any, Any]]:
        """Run jobs, see :meth:`shiftscope.runtime.executors.Executor.run`; reported is only that a job is in the queue."""
        if not jobs:
            return
        executor = self._executor()
        waiting = [(job, 0) for job in reversed(jobs)]
        running: dict[Any, tuple[Any, int]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (self.workers or len(jobs)):
                    job, tries = waiting.pop()
                    with safe_import_path():
                        running[executor.submit(_Task(), work, job)] = job, tries
                    report(job, Stage("in the queue of the cluster", 0, 0))
                for submitted in [each for each in running if each.done()]:
                    job, tries = running.pop(submitted)
                    if (result := _result(submitted, job, tries)) is None:
                        waiting.append((job, tries + 1))
                    else:
                        yield job, result_of(result)
                time.sleep(SECONDS_BETWEEN_POLLS)
        finally:
            for submitted in running:
                with suppress(Exception):  # it may have ended
                    submitted.cancel()

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise InputError("`--executor submitit` needs submitit.", "pip install 'shiftscope[submitit]'") from error
        resources = {"name": "shiftscope", "cpus_per_task": 1, **({"gpus_per_node": self.gpus} if self.gpus else {})}
        try:
            executor = submitit.AutoExecutor(folder=self.folder / "%j", cluster=self.cluster)
            executor.update_parameters(**{**resources, **self.parameters})
        except (NameError, TypeError, RuntimeError, ValueError) as error:
            raise InputError(
                f"submitit refuses its parameters: {first_line(error).rstrip('.')}.", "Change `--submit`."
            ) from error
        return executor


class _Task:
    """Does a job on a machine of the cluster. submitit calls ``checkpoint`` when the job is to be submitted again."""

    def __call__(self, work: Work, job: Any) -> JobResult:
        prepare_process()
        return run_job(work, job, lambda _: None)

    def checkpoint(self, work: Work, job: Any) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, work, job)


def _result(submitted: Any, job: Any, tries: int) -> JobResult | None:
    """Return the outcome of a submitted job; None if its process died and it is to be submitted again.

    Raises:
        InputError: that happened too often.
    """
    try:
        found: JobResult = submitted.result()
    except Exception as error:  # of submitit: the job ended without a result
        if tries < RETRIES:
            return None
        raise InputError(
            f"a submitted job ended without a result {tries + 1} times ({job}): {first_line(error).rstrip('.')}.",
            f"What it printed is in {submitted.paths.stderr}.",
        ) from error
    return found
