"""Jobs on a real Ray cluster of two nodes, their failures, and a study that loses a worker and a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import helpers
from shiftscope.audits.folder import AuditSpec
from shiftscope.audits.job import run_audit, run_shards
from shiftscope.errors import InputError
from shiftscope.runtime.progress import JobEvent
from shiftscope.runtime.ray_executor import Ray
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import RunEnded, run_study
from small import SMALL, one_thread

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]
MEMORY = {"object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each on this machine, and this process connected to them."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    tests = str(Path(helpers.__file__).parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([tests, *filter(None, [before])])
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **MEMORY})
    nodes.second = nodes.add_node(num_cpus=1, **MEMORY)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def test_every_job_is_done_once_and_its_events_arrive(cluster: Any) -> None:
    heard: list[tuple[int, object]] = []
    done = list(Ray().run(helpers.square, range(5), lambda job, event: heard.append((job, event))))
    assert sorted(done) == [(job, job * job) for job in range(5)]
    assert sorted(heard) == sorted((job, (part, job)) for job in range(5) for part in ("half", "whole"))


@pytest.mark.parametrize(
    ("work", "job", "kind", "told"),
    [
        (helpers.die, 7, InputError, "the Ray cluster lost the same job 3 times \\(7\\)"),
        (helpers.fail, "input", InputError, "do otherwise"),
        (helpers.fail, "disk", OSError, "No space left"),
        (helpers.fail, "bug", RuntimeError, "ZeroDivisionError: bug"),
    ],
)
def test_failures_keep_their_kind(cluster: Any, work: Any, job: object, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        list(Ray().run(work, [job], lambda *_: None))


def test_gpu_that_no_node_has_is_refused(cluster: Any) -> None:
    with pytest.raises(InputError, match=r"no node of the Ray cluster has 0\.25 GPU"):
        list(Ray(gpus=0.25).run(helpers.square, [1], lambda *_: None))


def tasks() -> list[int]:
    """Return the processes that work on a task."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and (folder / "cmdline").read_bytes().startswith(b"ray::_task"):
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def test_study_that_loses_a_worker_and_a_node_has_the_undisturbed_table(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL.replace("max_epochs = 2", "max_epochs = 40"))
    study = load_study(str(tmp_path / "small.toml"))
    with one_thread():
        run_study(study, out=tmp_path / "calm")
    lost: list[str] = []

    def disturb(event: object) -> None:
        if not isinstance(event, JobEvent):
            return
        if not lost and (at_work := tasks()):
            os.kill(at_work[0], signal.SIGKILL)
            lost.append("worker")
        elif lost == ["worker"] and event.done:
            cluster.remove_node(cluster.second, allow_graceful=False)
            lost.append("node")

    run_study(study, out=tmp_path / "disturbed", executor=Ray(), report=disturb)
    assert lost == ["worker", "node"]
    assert (tmp_path / "disturbed" / "table.csv").read_text() == (tmp_path / "calm" / "table.csv").read_text()
    calm, disturbed = (
        {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")} for name in ("calm", "disturbed")
    )
    assert disturbed == calm


def test_older_records_are_measured_again_and_not_trained_again(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL.replace("seeds = 2", "seeds = 1"))
    study = load_study(str(tmp_path / "small.toml"))
    with one_thread():
        first = run_study(study, out=tmp_path / "out")
    for record in (tmp_path / "out").rglob("record.json"):
        record.write_text(record.read_text().replace('"schema_version": ', '"schema_version": -'))
    events: list[Any] = []
    again = run_study(study, out=tmp_path / "out", executor=Ray(), report=events.append)
    assert again.to_csv() == first.to_csv()
    told = [event.event for event in events if isinstance(event, JobEvent)]
    assert sum(isinstance(event, RunEnded) for event in told) == 2
    assert "Epoch" not in {type(event).__name__ for event in told}


def test_shards_of_an_audit_on_the_cluster_equal_one_run(cluster: Any, tmp_path: Path) -> None:
    spec = AuditSpec(model="helpers:network", size=20, images=150, protocols=("mouton2020", "every-shift"), max_shift=2)
    with one_thread():
        whole = run_audit(spec)
    several = run_shards(spec, Ray(), shards=3, out=tmp_path / "out")
    assert several.table().rows == whole.table().rows
    assert (tmp_path / "out" / "audit.json").exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Ray(workers=0), "`workers` must be 1 or more, got 0"),
        (lambda: Ray(address="127.0.0.1:1", workers=2), "`workers` sets the size of a cluster that is started here"),
        (lambda: Ray(gpus=-1.0), "`gpus` must be a share from 0 to 1 or a whole number of GPUs, got -1"),
        (lambda: Ray(gpus=1.5), "`gpus` must be a share from 0 to 1 or a whole number of GPUs, got 1.5"),
    ],
)
def test_impossible_numbers_are_refused(make: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()


def test_command_starts_its_own_cluster_and_stops_it(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL.replace("seeds = 2", "seeds = 1").replace("[1, 4]", "[4]"))
    command = [sys.executable, "-m", "shiftscope", "study", "small.toml", "--executor", "ray", "--workers", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1/1 done" in done.stderr
    assert (tmp_path / "studies" / "small" / "table.csv").exists()
    elsewhere = [*command[:-2], "--address", "127.0.0.1:1", "--out", "other"]
    wrong = subprocess.run(elsewhere, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "the Ray cluster at 127.0.0.1:1 cannot be used" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    time.sleep(1)
    assert not tasks()


#: 127.0.0.1, the same as an IPv6 address, and ::1, as /proc/net/tcp has them.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_cluster_of_a_killed_command_listens_on_loopback_and_ends_with_it(tmp_path: Path) -> None:
    program = (
        "import helpers, sys\nfrom shiftscope.runtime.ray_executor import Ray\n"
        "for _ in Ray(workers=1).run(helpers.sleep, ['x'], lambda job, event: print(event, flush=True)): pass"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(helpers.__file__).parent), *filter(None, sys.path)])}
    (tmp_path / "signal.py").write_text("open('ran', 'w')")
    running = subprocess.Popen([sys.executable, "-P", "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, env=environment)
    assert running.stdout is not None
    worker = int(running.stdout.readline())
    cluster = descendants(running.pid)
    assert worker in cluster
    addresses = {address for process in cluster for address in listening(process)}
    running.kill()
    running.communicate()
    deadline = time.monotonic() + 20
    while any(map(runs, cluster)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, cluster))
    assert addresses
    assert addresses <= LOOPBACK
    assert not (tmp_path / "ran").exists()


def runs(process: int) -> bool:
    """Return whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(process: int) -> set[int]:
    """Return the processes below a process."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found, new = set(), {process}
    while new:
        found |= new
        new = {child for child, parent in parents.items() if parent in new} - found
    return found - {process}


def listening(process: int) -> set[str]:
    """Return the addresses that a process listens on, in hexadecimal as /proc has them."""
    sockets = set()
    for file in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            sockets.add(str(file.readlink()))
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}
