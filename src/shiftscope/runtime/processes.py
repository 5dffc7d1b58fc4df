"""Ways to carry out several jobs at once. They know no study.

A job is handed to a function with a report for whatever the function tells meanwhile. Results come back in the order in which
jobs finish. A process that dies (killed, or out of memory) loses its job in flight, which is given to a new one, a few times.
:class:`Processes` uses processes of this machine; :class:`shiftscope.runtime.ray.Ray` the machines of a Ray cluster.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from shiftscope.errors import InputError

__all__ = [
    "RETRIES",
    "Answer",
    "Executor",
    "Processes",
    "Report",
    "Work",
    "attempt",
    "content_of",
    "keep_freed_memory",
    "sensible_workers",
    "settle",
]

#: Does a job; told events go to its second argument. A function of a module, so that another process finds it.
Work = Callable[[Any, Callable[[Any], None]], Any]
#: Called with the job and what it tells.
Report = Callable[[Any, Any], None]
#: A job whose process died is given out again so many times.
RETRIES = 2
SECONDS_TO_END = 5.0
# Names of the GNU C library's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 256 * 2**20


@runtime_checkable
class Executor(Protocol):
    """A way to carry out jobs.

    Attributes:
        away: whether a job may be done where this machine's folders are not.
    """

    away: ClassVar[bool]

    def run(self, work: Work, jobs: Sequence[Any], report: Report) -> Iterator[tuple[Any, Any]]:
        """Do jobs.

        Args:
            work: does a job.
            jobs: to be done; they and the results travel between processes.
            report: told what a job tells.

        Yields:
            each job with its result, as they finish.

        Raises:
            InputError: a job was refused, or what does it died at the same job more than ``RETRIES`` times.
            OSError: a job could not write.
            RuntimeError: a job failed; the message carries its traceback.
        """
        ...


#: What came of a job, as something that travels between processes.
Answer = tuple[Literal["done", "refused", "disk", "failed"], Any]


def attempt(work: Work, job: Any, tell: Callable[[Any], None]) -> Answer:
    """Do a job, and say what came of it."""
    try:
        return "done", work(job, tell)
    except InputError as error:
        return "refused", str(error)
    except OSError as error:
        return "disk", (error.errno, error.strerror or str(error))
    except Exception:  # whatever went wrong is told where the jobs came from
        return "failed", traceback.format_exc()


def content_of(answer: Answer) -> Any:
    """The result; a failure is raised here as what it was there."""
    kind, content = answer
    if kind == "refused":
        raise InputError(content)
    if kind == "disk":
        raise OSError(*content)
    if kind == "failed":
        raise RuntimeError(f"a job failed in another process:\n{content}")
    return content


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for the rest of its life; whether the system's allocator can be told so.

    A training step on the CPU frees tensors of tens of megabytes and asks for them again at once. By default the GNU C
    library gives such blocks back to the system, which clears every page of the next one: a third of the time of a step of a
    factor 1 network (``benchmarks/training.py``). It is a setting of the whole process, so a program chooses it, not a library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, TOP_PAD_BYTES)])


def settle() -> None:
    """Ready a process of its own for jobs: one thread, and freed memory kept."""
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()


def sensible_workers(bytes_each: int) -> int:
    """As many processes as cores and memory carry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # this system tells it otherwise
        return cores
    return max(1, min(cores, free // bytes_each))


@dataclass(frozen=True)
class Processes:
    """Processes of this machine, each with one thread for its arithmetic. They end with the one that made them.

    Attributes:
        workers: how many.

    Raises:
        InputError: fewer than one.
    """

    workers: int
    away: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"`workers` must be 1 or more, got {self.workers}.")

    def run(self, work: Work, jobs: Sequence[Any], report: Report) -> Iterator[tuple[Any, Any]]:
        """See :class:`Executor`."""
        waiting = deque((job, 0) for job in jobs)
        crew = [_Worker(work) for _ in range(min(self.workers, len(jobs)))]
        try:
            for number in range(len(crew)):
                _begin(crew, number, waiting, work)
            while busy := {worker.connection: worker for worker in crew if worker.job is not None}:
                for ready in wait(list(busy)):
                    worker = busy[ready]  # type: ignore[index]  # wait hands back what it was given
                    job, tries = worker.job or (None, 0)
                    try:
                        kind, content = worker.connection.recv()
                    except (EOFError, OSError):
                        _give_again(waiting, worker, job, tries)
                        _begin(crew, crew.index(worker), waiting, work)
                        continue
                    if kind == "told":
                        report(job, content)
                        continue
                    worker.job = None
                    yield job, content_of((kind, content))
                    _begin(crew, crew.index(worker), waiting, work)
        finally:
            for worker in crew:
                worker.end()


class _Worker:
    """A process and the job it has in hand, with how often that was given out before."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, os.getpid()), daemon=True)
        with _deaf_to_interrupts():  # so is the process from its first moment; see _serve
            self.process.start()
        theirs.close()
        self.job: tuple[Any, int] | None = None

    def take(self, job: tuple[Any, int]) -> bool:
        """Begin a job; False where the process is dead."""
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
    """Send values, tensors as well. ``Connection.send`` would lend the other process an open file for each tensor."""
    connection.send_bytes(pickle.dumps(content))


def _begin(crew: list[_Worker], number: int, waiting: deque[tuple[Any, int]], work: Work) -> None:
    """Let a worker take the next job, if there is one; another in its place where it died meanwhile."""
    while waiting and not (crew[number].process.is_alive() and crew[number].take(waiting[0])):
        crew[number].end()
        crew[number] = _Worker(work)
    if waiting:
        waiting.popleft()


def _give_again(waiting: deque[tuple[Any, int]], dead: _Worker, job: Any, tries: int) -> None:
    """Put the job of a process that died back in front."""
    dead.process.join()
    code = dead.process.exitcode or 0
    dead.end()
    if tries >= RETRIES:
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        raise InputError(
            f"a worker process ended {how} at the same job {tries + 1} times ({job}). If the system ended it for want of memory, "
            "use fewer --workers."
        )
    waiting.appendleft((job, tries + 1))


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C for the duration, where this thread decides on it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(work: Work, connection: Connection, parent: int) -> None:
    """A worker's life: one job after the other, until the other end is closed."""
    # Ctrl-C reaches every process of a terminal; the one that gave out the jobs answers it, for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(parent)
    settle()
    with suppress(EOFError, BrokenPipeError):
        while True:
            job = connection.recv()
            _send(connection, attempt(work, job, lambda event: _send(connection, ("told", event))))


def _end_with(parent: int) -> None:
    """Let the system end this process with the one that made it, so that no orphan writes beside a command that goes on."""
    if sys.platform != "linux":
        return  # elsewhere it ends with the next thing it tells
    parent_death_signal = 1
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
