"""Run several jobs at once, in processes of this machine.

An executor gives each job to a function, with a callback for the events that the job reports. Results come back in the order in
which jobs finish. If a process dies (killed, or out of memory), its job goes to a new process, a few times.
:class:`Processes` uses processes of this machine, :class:`shiftscope.runtime.ray_executor.Ray` the machines of a Ray cluster,
:class:`shiftscope.runtime.submitit_executor.Submitit` jobs of Slurm.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import platform
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from shiftscope.errors import InputError
from shiftscope.runtime.stopping import SIGNALS

__all__ = [
    "RETRIES",
    "Executor",
    "JobReport",
    "JobResult",
    "Processes",
    "Work",
    "default_workers",
    "free_memory",
    "keep_freed_memory",
    "prepare_process",
    "result_of",
    "run_job",
    "safe_import_path",
    "visible_gpus",
]

#: Does a job, and calls its second argument with events. A function of a module, so that another process can import it.
Work = Callable[[Any, Callable[[Any], None]], Any]
#: Called with a job and an event that it reports.
JobReport = Callable[[Any, Any], None]
#: The outcome of a job, in a form that travels between processes.
JobResult = tuple[Literal["done", "refused", "disk", "failed"], Any]
#: How often a job is started again after its process died.
RETRIES = 2
SECONDS_TO_END = 5.0
# Names of the GNU C library's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 256 * 2**20
#: Which GPUs CUDA shows to a process, as numbers or names, separated by commas.
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


@runtime_checkable
class Executor(Protocol):
    """Runs jobs.

    Attributes:
        remote: whether jobs may run where this machine's folders are missing.
    """

    remote: ClassVar[bool]

    def run(self, work: Work, jobs: Sequence[Any], report: JobReport) -> Iterator[tuple[Any, Any]]:
        """Run jobs.

        Args:
            work: does one job.
            jobs: what to do; jobs and results must be picklable.
            report: called with a job and an event, for each event that a job reports.

        Yields:
            each job with its result, as they finish.

        Raises:
            InputError: a job raised it, or the process of a job died more than ``RETRIES`` times.
            OSError: a job could not write.
            RuntimeError: a job failed; the message carries its traceback.
        """
        ...


def run_job(work: Work, job: Any, report: Callable[[Any], None]) -> JobResult:
    """Run a job and return its outcome, whatever it raises.

    Args:
        work: does the job.
        job: what to do.
        report: called with each event.
    """
    try:
        return "done", work(job, report)
    except InputError as error:
        return "refused", error
    except OSError as error:
        return "disk", (error.errno, error.strerror or str(error))
    except Exception:  # whatever it is, the process that gave out the job reports it
        return "failed", traceback.format_exc()


def result_of(result: JobResult) -> Any:
    """Return the result of a finished job, or raise what the job raised.

    Args:
        result: what :func:`run_job` returned.

    Raises:
        InputError: the job raised it.
        OSError: the job could not write.
        RuntimeError: the job failed; the message carries its traceback.
    """
    kind, content = result
    if kind == "refused":
        raise content
    if kind == "disk":
        raise OSError(*content)
    if kind == "failed":
        raise RuntimeError(f"a job failed in another process:\n{content}")
    return content


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether the system's allocator supports that.

    A training step on the CPU frees tensors of tens of megabytes and asks for them again at once. By default the GNU C
    library gives such blocks back to the system, which clears every page of the next one: a third of the time of a step of a
    factor 1 network (``benchmarks/training.py``). The setting holds for the process, so a program chooses it, not a library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, TOP_PAD_BYTES)])


def prepare_process() -> None:
    """Set up a worker process: one thread, and freed memory stays."""
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    if (tqdm := sys.modules.get("tqdm")) is not None:  # PyTorch imports and calls it where it is installed
        # Its own lock takes semaphores of the system, and Python warns of those of a process that was ended.
        tqdm.tqdm.set_lock(threading.RLock())


def default_workers(bytes_each: int) -> int:
    """Return how many worker processes this machine's cores and free memory allow.

    Args:
        bytes_each: memory that one of them needs.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = free_memory()
    return cores if free is None else max(1, min(cores, free // bytes_each))


def free_memory() -> int | None:
    """Return how many bytes of memory processes may take; None where the system does not say (other than Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process sees, as numbers or names that ``CUDA_VISIBLE_DEVICES`` takes."""
    import torch

    names = [name.strip() for name in os.environ.get(VISIBLE_GPUS, "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return tuple(names[:count] if names else map(str, range(count)))


@dataclass(frozen=True)
class Processes:
    """Runs jobs in processes of this machine, each with one thread. They end with the process that made them.

    Attributes:
        workers: number of processes.
        gpus: numbers or names of GPUs; each process sees only one of them, as ``cuda``, and they take turns. Without any, every
            process sees what this one sees.

    Raises:
        InputError: ``workers`` is less than 1.
    """

    workers: int
    gpus: tuple[str, ...] = ()
    remote: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"`workers` must be 1 or more, got {self.workers}.", "Leave it out to use every core.")

    def run(self, work: Work, jobs: Sequence[Any], report: JobReport) -> Iterator[tuple[Any, Any]]:
        """Run jobs, see :meth:`Executor.run`."""
        waiting = deque((job, 0) for job in jobs)
        workers = [_Worker(work, self._environment(number)) for number in range(min(self.workers, len(jobs)))]
        try:
            for number in range(len(workers)):
                _start_next(workers, number, waiting)
            while busy := {worker.connection: number for number, worker in enumerate(workers) if worker.job is not None}:
                for ready in wait(list(busy)):
                    number = busy[ready]  # type: ignore[index]  # wait returns what it was given
                    worker = workers[number]
                    job, tries = worker.job or (None, 0)
                    try:
                        kind, content = worker.connection.recv()
                    except (EOFError, OSError):
                        _retry(waiting, worker, job, tries)
                        _start_next(workers, number, waiting)
                        continue
                    if kind == "event":
                        report(job, content)
                        continue
                    worker.job = None
                    yield job, result_of((kind, content))
                    _start_next(workers, number, waiting)
        finally:
            for worker in workers:
                worker.process.terminate()  # all at once, before each is waited for
            for worker in workers:
                worker.end()

    def _environment(self, number: int) -> dict[str, str]:
        """Return the variables that a worker process has besides those of this one."""
        return {VISIBLE_GPUS: self.gpus[number % len(self.gpus)]} if self.gpus else {}


class _Worker:
    """A process and its current job, with the number of earlier tries."""

    def __init__(self, work: Work, environment: Mapping[str, str]) -> None:
        self.work, self.environment = work, environment
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work_on_jobs, args=(work, theirs, os.getpid()), daemon=True)
        with _hold_signals(), safe_import_path(), _variables(environment):  # signals until the process ignores them itself
            self.process.start()
        theirs.close()
        self.job: tuple[Any, int] | None = None

    def again(self) -> _Worker:
        """Return a new process in the place of this one."""
        self.end()
        return _Worker(self.work, self.environment)

    def start(self, job: tuple[Any, int]) -> bool:
        """Start a job; return False if the process is dead."""
        try:
            _send(self.connection, job[0])
        except OSError:
            return False
        self.job = job
        return True

    def end(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.job = None
        self.process.terminate()
        self.process.join(SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _send(connection: Connection, content: Any) -> None:
    """Send values, tensors as well. ``Connection.send`` would keep a file open for each tensor."""
    connection.send_bytes(pickle.dumps(content))


def _start_next(workers: list[_Worker], number: int, waiting: deque[tuple[Any, int]]) -> None:
    """Start the next job, if there is one, on a worker, or on a new one in its place if it died."""
    while waiting and not (workers[number].process.is_alive() and workers[number].start(waiting[0])):
        workers[number] = workers[number].again()
    if waiting:
        waiting.popleft()


def _retry(waiting: deque[tuple[Any, int]], dead: _Worker, job: Any, tries: int) -> None:
    """Put the job of a dead process back in front."""
    dead.process.join()
    code = dead.process.exitcode or 0
    dead.end()
    if tries >= RETRIES:
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        raise InputError(
            f"a worker process ended {how} at the same job {tries + 1} times ({job}).",
            "If the system ended it because memory ran out, use fewer --workers.",
        )
    waiting.appendleft((job, tries + 1))


@contextmanager
def _hold_signals() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back for the duration, also in a process that starts meanwhile: they arrive afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it lets signals through again, and the first process would start it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def safe_import_path() -> AbstractContextManager[None]:
    """Keep the current folder off the import path of processes that start for the duration: a ``signal.py`` there would run.

    ``multiprocessing`` starts them with ``python -c``, which puts that folder first until the parent's path arrives.
    """
    return _variables({"PYTHONSAFEPATH": "1"})


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for the duration."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work_on_jobs(work: Work, connection: Connection, parent: int) -> None:
    """Run one job after the other, until the parent closes the connection."""
    # Ctrl-C and a closed terminal reach every process of the terminal; the parent handles them and ends its workers.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _end_with(parent)
    prepare_process()
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = connection.recv()
            _send(connection, run_job(work, job, lambda event: _send(connection, ("event", event))))


def _end_with(parent: int) -> None:
    """Let the system kill this process when its parent dies, so that no orphan writes into the folder of a resumed command."""
    if sys.platform != "linux":
        return  # elsewhere it ends with the next event it sends
    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
