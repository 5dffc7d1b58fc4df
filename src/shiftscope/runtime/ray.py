"""Jobs as tasks of a Ray cluster. It knows no study.

Without an address a cluster is started on this machine, on its loopback, and ended afterwards. With one, the nodes need the same
version of this package. A task whose process or node dies is done again elsewhere, a few times.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from shiftscope.errors import InputError
from shiftscope.runtime.processes import RETRIES, Answer, Report, Work, attempt, content_of, settle

__all__ = ["Ray"]

OBJECT_STORE_BYTES = 256 * 2**20
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_REACH = 10.0
#: What only the head node has, without which there is no cluster.
HEAD = {"node:__internal_head__": 0.001}


@dataclass(frozen=True)
class Ray:
    """The machines of a Ray cluster; each job takes one core, and a share of a GPU where that is asked for.

    Attributes:
        address: of a running cluster; None starts one on this machine.
        workers: cores of the one that is started; None takes all.
        gpus: share of a GPU that each job takes, 0.25 for four at once on each.

    Raises:
        InputError: impossible numbers; Ray is not installed; the cluster cannot be reached, or has no such GPU.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0
    away: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"`workers` must be 1 or more, got {self.workers}.")
        if self.workers is not None and self.address is not None:
            raise InputError("`workers` sizes a cluster that is started here; one with an `address` has its own size.")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise InputError(f"`gpus` must be a share from 0 to 1, or whole GPUs, got {self.gpus:g}.")

    def run(self, work: Work, jobs: Sequence[Any], report: Report) -> Iterator[tuple[Any, Any]]:
        """See :class:`shiftscope.runtime.processes.Executor`."""
        if not jobs:
            return
        with _session(self) as ray:
            if self.gpus and all(node["Resources"].get("GPU", 0) < self.gpus for node in ray.nodes() if node["Alive"]):
                raise InputError(f"no node of the Ray cluster has {self.gpus:g} GPU. Leave --gpus out, or add such a node.")
            board = ray.remote(num_cpus=0, resources=HEAD, max_restarts=-1, max_task_retries=-1)(_Board).remote()
            ray.get(board.take.remote())  # it is there before the first task tells something
            task = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=RETRIES)(_task)
            pending = {task.remote(work, job, number, board): job for number, job in enumerate(jobs)}
            try:
                while pending:
                    ready, _ = ray.wait(list(pending), timeout=SECONDS_BETWEEN_LOOKS)
                    for number, event in ray.get(board.take.remote()):
                        report(jobs[number], event)
                    for reference in ready:
                        job = pending.pop(reference)
                        yield job, content_of(_answer(ray, reference, job))
            finally:
                for reference in pending:
                    ray.cancel(reference, force=True)


class _Board:
    """Where tasks write what they tell."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Any]] = []

    def tell(self, number: int, event: Any) -> None:
        self.events.append((number, event))

    def take(self) -> list[tuple[int, Any]]:
        events, self.events = self.events, []
        return events


def _task(work: Work, job: Any, number: int, board: Any) -> Answer:
    import ray

    settle()
    told: list[Any] = []

    def tell(event: Any) -> None:
        told[:] = [board.tell.remote(number, event)]

    answer = attempt(work, job, tell)
    ray.get(told)  # they arrive in order, and before the answer
    return answer


def _answer(ray: Any, reference: Any, job: Any) -> Answer:
    try:
        answer: Answer = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise InputError(
            f"the Ray cluster lost the same job {RETRIES + 1} times ({job}): {reason}. If a node ended it for want of memory, "
            "let fewer run at once."
        ) from error
    return answer


@contextmanager
def _session(how: Ray) -> Iterator[Any]:
    """Ray, connected; what was started here is ended."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError as error:
        raise InputError("--executor ray needs Ray. Install it with pip install 'shiftscope[ray]'.") from error
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
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise InputError(f"the Ray cluster at {how.address or 'this machine'} cannot be used: {reason}.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Fail at once where nobody listens; Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, found, port = address.rpartition("://")[2].rpartition(":")
    if found and port.isdecimal():
        socket.create_connection((host, int(port)), SECONDS_TO_REACH).close()
