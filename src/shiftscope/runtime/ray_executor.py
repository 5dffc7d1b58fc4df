"""Run several jobs at once, as tasks of a Ray cluster.

Without an address, a cluster is started on this machine and stopped afterwards. It listens on the loopback interface only, asks
for a token that only this process and its children know, and ends when this process does, however it ends (``ray_head``). With
an address, the nodes need the same version of this package, and ``RAY_AUTH_MODE`` says whether a token is asked for. If
the process or node of a task dies, the task runs again elsewhere, a few times.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, ClassVar

from shiftscope.errors import InputError, first_line
from shiftscope.runtime.executors import RETRIES, JobReport, JobResult, Work, prepare_process, result_of, run_job

__all__ = ["Ray"]

#: Ray takes the machine's own address for 127.0.0.1, except where it supports no clusters of several machines.
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
#: Ray asks addresses of cloud providers where it runs, even with usage statistics switched off. Behind this proxy nobody is.
PROXY, NOBODY = "http_proxy", "http://127.0.0.1:9"
SECONDS_TO_END = 20.0
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
                f"`gpus` must be a share from 0 to 1 or a whole number of GPUs, got {self.gpus:g}.",
                "Use 0.5 for two jobs per GPU.",
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

    if os.environ.get(PROXY) == NOBODY:
        del os.environ[PROXY]
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
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield sys.modules["ray"]
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # what `ray start --head` asks for by default, but `ray.init` does not give
    if how.address is None:
        os.environ.update(LOOPBACK_ONLY)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise InputError("--executor ray needs Ray.", "Install it with: pip install 'shiftscope[ray]'.") from error
    with _cluster(how.workers) if how.address is None else nullcontext(how.address) as address:
        try:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", job_config=_job_config())
        except (OSError, RuntimeError, ValueError) as error:
            where, reason = how.address or "this machine", first_line(error).rstrip(".")
            raise InputError(
                f"the Ray cluster at {where} cannot be used: {reason}.", "Check its address with `ray status`."
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _cluster(workers: int | None) -> Iterator[str]:
    """Start a cluster on this machine, in a process that ends it; yield its address.

    Raises:
        InputError: it does not start.
    """
    package = str(Path(__file__).parents[2])
    paths = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if package not in paths and Path(package).name != "site-packages":
        paths.append(package)
    environment = {PROXY: NOBODY} | os.environ | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
    command = [sys.executable, "-P", "-m", "shiftscope.runtime.ray_head", "" if workers is None else str(workers)]
    with TemporaryFile() as errors, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, text=True, env=environment
    ) as head:  # fmt: skip
        try:
            address = head.stdout.readline().strip() if head.stdout else ""
            if not address:
                errors.seek(0)
                reason = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise InputError(
                    f"no Ray cluster can be started on this machine: {reason.rstrip('.')}.", "Use --executor processes."
                )
            yield address
        finally:
            _end(head)


def _end(head: subprocess.Popen[str]) -> None:
    """Let a cluster's process end it, and wait for that."""
    if head.stdin is not None:
        with suppress(OSError):
            head.stdin.close()
    try:
        head.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        head.kill()


def _job_config() -> Any:
    """Return settings of a job whose tasks cannot import from this process's current folder by accident: Ray would add it."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _ImportPath()
    return config


class _ImportPath(list[str]):
    """Folders that a cluster's workers import from: those that this process imports from, too."""

    def extend(self, folders: Iterable[str]) -> None:
        """Add folders."""
        super().extend(folder for folder in folders if folder in sys.path)


def _check_reachable(address: str) -> None:
    """Connect to an address once: Ray itself would try for minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, found, port = address.rpartition("://")[2].rpartition(":")
    if found and port.isdecimal():
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
