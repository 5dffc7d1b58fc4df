"""Ways to carry out jobs: here, one after the other, or in processes of this machine. They know no study.

A job is handed to a function with a report for whatever the function tells meanwhile. Results come back in the order in which
jobs finish. A process that dies (killed, or out of memory) loses its job in flight, which is given to a new one, a few times.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from shiftscope.errors import InputError

__all__ = ["Work", "here", "in_processes", "sensible_workers"]

Job = TypeVar("Job")
Result = TypeVar("Result")
#: Does a job; told events go to its second argument.
Work = Callable[[Job, Callable[[Any], None]], Result]
#: A job whose process died is given out again so many times.
RETRIES = 2
SECONDS_TO_END = 5.0


def here(work: Work[Job, Result], jobs: Sequence[Job], *, report: Callable[[Job, Any], None]) -> Iterator[tuple[Job, Result]]:
    """Do jobs one after the other in this process.

    Args:
        work: does a job.
        jobs: to be done.
        report: told what a job tells.

    Yields:
        each job with its result.
    """
    for job in jobs:
        yield job, work(job, lambda event, job=job: report(job, event))  # type: ignore[misc]  # bound at once


def in_processes(
    work: Work[Job, Result], jobs: Sequence[Job], *, workers: int, report: Callable[[Job, Any], None]
) -> Iterator[tuple[Job, Result]]:
    """Do jobs in so many processes of this machine, each with one thread for its arithmetic.

    Args:
        work: does a job; a function of a module, so that another process finds it.
        jobs: to be done; they and the results travel between processes.
        workers: how many processes.
        report: told what a job tells.

    Yields:
        each job with its result, as they finish.

    Raises:
        InputError: a process died at the same job more than twice.
        OSError: a job could not write.
        RuntimeError: a job failed; the message carries the other process's traceback.
    """
    waiting = deque((job, 0) for job in jobs)
    crew = [_Worker(work) for _ in range(min(workers, len(jobs)))]
    try:
        for number in range(len(crew)):
            _begin(crew, number, waiting, work)
        while busy := {worker.connection: worker for worker in crew if worker.job is not None}:
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]  # wait hands back what it was given
                job, tries = worker.job if worker.job is not None else (None, 0)
                try:
                    kind, content = worker.connection.recv()
                except (EOFError, OSError):
                    _give_again(waiting, worker, job, tries)
                    _begin(crew, crew.index(worker), waiting, work)
                    continue
                if kind == "told":
                    report(job, content)  # type: ignore[arg-type]  # a busy worker has a job
                elif kind == "refused":
                    raise InputError(content)
                elif kind == "disk":
                    raise OSError(*content)
                elif kind == "failed":
                    raise RuntimeError(f"a job failed in another process:\n{content}")
                else:
                    worker.job = None
                    yield job, content  # type: ignore[misc]  # likewise
                    _begin(crew, crew.index(worker), waiting, work)
    finally:
        for worker in crew:
            worker.end()


def sensible_workers(bytes_each: int) -> int:
    """As many processes as cores and memory carry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # this system tells it otherwise
        return cores
    return max(1, min(cores, free // bytes_each))


class _Worker:
    """A process and the job it has in hand, with how often that was given out before."""

    def __init__(self, work: Callable[..., Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.job: tuple[Any, int] | None = None

    def take(self, job: tuple[Any, int]) -> bool:
        """Begin a job; False where the process is dead."""
        try:
            self.connection.send(job[0])
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


def _begin(crew: list[_Worker], number: int, waiting: deque[tuple[Any, int]], work: Callable[..., Any]) -> None:
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


def _serve(work: Callable[..., Any], connection: Connection) -> None:
    """A worker's life: one job after the other, until the other end is closed."""
    # Ctrl-C reaches every process of a terminal; the one that gave out the jobs answers it, for all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from shiftscope.lab.memory import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("done", work(job, lambda event: connection.send(("told", event)))))
        except InputError as error:
            connection.send(("refused", str(error)))
        except OSError as error:
            connection.send(("disk", (error.errno, error.strerror or str(error))))
        except Exception:  # whatever went wrong is told where the jobs came from
            connection.send(("failed", traceback.format_exc()))
