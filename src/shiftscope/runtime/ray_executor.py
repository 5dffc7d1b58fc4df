"""Run several jobs at once, as tasks of a Ray cluster.

Without an address, a cluster is started on this machine, on its loopback interface, and stopped afterwards. With one, the nodes
need the same version of this package. If the process or node of a task dies, the task runs again elsewhere, a few times.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from shiftscope.errors import InputError, first_line
from shiftscope.runtime.executors import RETRIES, JobReport, JobResult, Work, prepare_process, result_of, run_job

__all__ = ["Ray"]

OBJECT_STORE_BYTES = 256 * 2**20
SECONDS_BETWEEN_POLLS = 0.5
SECONDS_TO_CONNECT = 10.0
#: A resource that only the head node has: what must not be lost with another node runs there.
HEAD = {"node:__internal_head__": 0.001}


@dataclass(frozen=True)
class Ray:
    """Runs jobs on the machines of a Ray cluster; each job takes one core and, if asked for, a share of a GPU.

    Attributes:
        address: of a running cluster; None starts one on this machine.
        workers: cores of the cluster that is started; None takes all.
        gpus: share of a GPU that each job takes, 0.25 for four at once on each.

    Raises:
        InputError: the numbers are impossible, Ray is not installed, or the cluster cannot be reached or has no such GPU.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0
    remote: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"`workers` must be 1 or more, got {self.workers}.", "Leave it out to use every core.")
        if self.workers is not None and self.address is not None:
            raise InputError(
                "`workers` sets the size of a cluster that is started here, and a cluster with an `address` has its own.",
                "Give one of them.",
            )
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise InputError(
                f"`gpus` must be a share from 0 to 1 or a whole number of GPUs, got {self.gpus:g}.", "Use 0.5 for two jobs a GPU."
            )

    def run(self, work: Work, jobs: Sequence[Any], report: JobReport) -> Iterator[tuple[Any, Any]]:
        """Run jobs, see :meth:`shiftscope.runtime.executors.Executor.run`."""
        if not jobs:
            return
        with _session(self) as ray:
            if self.gpus and all(node["Resources"].get("GPU", 0) < self.gpus for node in ray.nodes() if node["Alive"]):
                raise InputError(f"no node of the Ray cluster has {self.gpus:g} GPU.", "Leave --gpus out, or add such a node.")
            board = ray.remote(num_cpus=0, resources=HEAD, max_restarts=-1, max_task_retries=-1)(_Board).remote()
            ray.get(board.take.remote())  # the board exists before the first task posts an event
            task = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=RETRIES)(_task)
            pending = {task.remote(work, job, number, board): job for number, job in enumerate(jobs)}
            try:
                while pending:
                    ready, _ = ray.wait(list(pending), timeout=SECONDS_BETWEEN_POLLS)
                    for number, event in ray.get(board.take.remote()):
                        report(jobs[number], event)
                    for reference in ready:
                        job = pending.pop(reference)
                        yield job, result_of(_fetch(ray, reference, job))
            finally:
                for reference in pending:
                    ray.cancel(reference, force=True)


class _Board:
    """An actor on which tasks post their events."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Any]] = []

    def post(self, number: int, event: Any) -> None:
        self.events.append((number, event))

    def take(self) -> list[tuple[int, Any]]:
        events, self.events = self.events, []
        return events


def _task(work: Work, job: Any, number: int, board: Any) -> JobResult:
    import ray

    prepare_process()
    posted: list[Any] = []

    def report(event: Any) -> None:
        posted[:] = [board.post.remote(number, event)]

    result = run_job(work, job, report)
    ray.get(posted)  # events arrive in order, and before the result
    return result


def _fetch(ray: Any, reference: Any, job: Any) -> JobResult:
    try:
        result: JobResult = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise InputError(
            f"the Ray cluster lost the same job {RETRIES + 1} times ({job}): {first_line(error).rstrip('.')}.",
            "If a node ended it because memory ran out, run fewer at once.",
        ) from error
    return result


@contextmanager
def _session(how: Ray) -> Iterator[Any]:
    """Connect to the cluster, or start one; stop what was started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError as error:
        raise InputError("--executor ray needs Ray.", "Install it with: pip install 'shiftscope[ray]'.") from error
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if how.address is None:
            local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES, "_node_ip_address": "127.0.0.1"}
            ray.init("local", num_cpus=how.workers, **local, **quiet)
        else:
            _check_reachable(how.address)
            ray.init(address=how.address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        where, reason = how.address or "this machine", first_line(error).rstrip(".")
        raise InputError(
            f"the Ray cluster at {where} cannot be used: {reason}.", "Check its address with `ray status`."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Connect to an address once: Ray itself would try for minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, found, port = address.rpartition("://")[2].rpartition(":")
    if found and port.isdecimal():
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
