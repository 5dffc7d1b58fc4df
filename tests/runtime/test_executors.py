"""Every job is done once whatever happens to the worker processes, and a study in processes equals one without."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import helpers
from shiftscope.errors import InputError
from shiftscope.runtime.executors import Processes, default_workers
from shiftscope.runtime.files import LOCK, locked
from shiftscope.runtime.progress import JobEvent
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import RunEnded, run_study
from shiftscope.studies.spec import Study
from small import SMALL, one_thread

#: Together these take over 20 s.
pytestmark = pytest.mark.slow


def ignore(*_: object) -> None:
    pass


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_is_done_once_and_its_events_arrive(workers: int) -> None:
    heard: list[tuple[int, object]] = []
    done = Processes(workers).run(helpers.square, range(5), lambda job, event: heard.append((job, event)))
    assert sorted(done) == [(job, job * job) for job in range(5)]
    assert sorted(heard) == sorted((job, (part, job)) for job in range(5) for part in ("half", "whole"))


def test_workers_are_processes_with_one_thread_each() -> None:
    found = [result for _, result in Processes(2).run(helpers.who_and_how, range(4), ignore)]
    assert len({process for process, _ in found}) == 2
    assert os.getpid() not in {process for process, _ in found}
    assert {threads for _, threads in found} == {1}


def test_job_of_a_killed_process_is_done_by_another(tmp_path: Path) -> None:
    jobs = [(str(tmp_path), number) for number in range(4)]
    done = list(Processes(2).run(helpers.die_once, jobs, ignore))
    assert sorted(result for _, result in done) == [0, 1, 2, 3]
    assert (tmp_path / "tried1").exists()


def test_each_worker_sees_one_gpu_also_in_place_of_a_killed_one(tmp_path: Path) -> None:
    jobs = [(str(tmp_path), number) for number in range(6)]
    found = list(Processes(2, gpus=("3", "GPU-7")).run(helpers.visible_gpu, jobs, ignore))
    assert (tmp_path / "tried1").exists()
    assert {gpu for _, (gpu, _) in found} == {"3", "GPU-7"}
    gpus_of = {process: {gpu for _, (gpu, number) in found if number == process} for process in {each[1] for _, each in found}}
    assert all(len(gpus) == 1 for gpus in gpus_of.values())
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None


@pytest.mark.parametrize(
    ("work", "job", "kind", "told"),
    [
        (helpers.die, 7, InputError, "ended by signal 9 at the same job 3 times \\(7\\)"),
        (helpers.fail, "input", InputError, "do otherwise"),
        (helpers.fail, "disk", OSError, "No space left"),
        (helpers.fail, "bug", RuntimeError, "ZeroDivisionError: bug"),
    ],
)
def test_failures_keep_their_kind_and_no_process_stays(work, job, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        list(Processes(2).run(work, [job], ignore))
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not show a process's open files")
def test_tensor_results_leave_no_file_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    results = Processes(1).run(helpers.many_tensors, range(2), ignore)
    held = [next(results)]
    assert len(os.listdir("/proc/self/fd")) < before + 10
    held += list(results)
    assert sorted(job for job, _ in held) == [0, 1]
    assert all(torch.equal(tensors["t7"], torch.full((3,), 7.0 + job)) for job, tensors in held)


def test_default_workers_fit_cores_and_memory() -> None:
    assert default_workers(1 << 62) == 1
    assert 1 <= default_workers(1) <= (os.cpu_count() or 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    file = tmp_path_factory.mktemp("study") / "small.toml"
    file.write_text(SMALL.replace("max_epochs = 2", "max_epochs = 12"))
    return load_study(str(file))


@pytest.fixture(scope="module")
def alone(study: Study, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the rows of the study with one thread in this process."""
    out = tmp_path_factory.mktemp("alone")
    with one_thread():
        run_study(study, out=out)
    return rows(out)


def rows(out: Path) -> list[str]:
    return (out / "table.csv").read_text().splitlines()


def test_study_in_processes_equals_one_without_and_resumes_without(study: Study, alone: list[str], tmp_path: Path) -> None:
    """Every number as with one thread in this process, bit for bit."""
    events: list[object] = []
    run_study(study, out=tmp_path / "together", executor=Processes(2), report=events.append)
    assert rows(tmp_path / "together") == alone
    ends = [event for event in events if isinstance(event, JobEvent) and isinstance(event.event, RunEnded)]
    assert [(end.done, end.of) for end in ends] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    again: list[object] = []
    run_study(study, out=tmp_path / "together", report=again.append)
    assert [event.found for event in again if isinstance(event, RunEnded)] == [True] * 4


def test_killed_workers_leave_the_same_table(study: Study, alone: list[str], tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(event: object) -> None:
        children = [child for child in multiprocessing.active_children() if child.pid not in killed]
        if isinstance(event, JobEvent) and len(killed) < 2 and children:
            killed.append(children[0].pid or 0)
            children[0].kill()
            time.sleep(0.1)

    run_study(study, out=tmp_path / "disturbed", executor=Processes(2), report=kill)
    assert len(killed) == 2
    assert rows(tmp_path / "disturbed") == alone
    names = {path.name for path in (tmp_path / "disturbed").rglob("*")}
    assert not [name for name in names if ".tmp" in name or name == LOCK]


def test_locked_folder_refuses_a_second_command_and_names_the_process(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from shiftscope.runtime.files import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    with locked(tmp_path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"another command is at work in {tmp_path} (process {os.getpid()} on " in done.stderr
    assert not (tmp_path / LOCK).exists()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = "import os, sys, pathlib\nfrom shiftscope.runtime.files import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass


def test_fewer_than_one_worker_is_refused() -> None:
    with pytest.raises(InputError, match="`workers` must be 1 or more, got 0"):
        Processes(0)


def runs(process: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """A killed parent leaves no orphan that writes into the folder of a resumed command."""
    code = (
        "import helpers, sys\nfrom shiftscope.runtime.executors import Processes\n"
        "if __name__ == '__main__':\n"
        "    for _ in Processes(2).run(helpers.sleep, sys.argv[1:], lambda job, event: print(event, flush=True)): pass"
    )
    (tmp_path / "parent.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(helpers.__file__).parent), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, "parent.py", "1", "2"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, workers))


def test_ctrl_c_while_a_process_starts_is_not_lost() -> None:
    code = (
        "import os, signal\n"
        "from multiprocessing.context import SpawnProcess\n"
        "from helpers import square\n"
        "from shiftscope.runtime.executors import Processes\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell in the background ignores it
        "start = SpawnProcess.start\n"
        "def start_late(process):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    start(process)\n"
        "    print('held', signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"  # also in the new process
        "SpawnProcess.start = start_late\n"
        "try:\n"
        "    list(Processes(1).run(square, [1, 2], lambda *_: None))\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(helpers.__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("held True\nstopped\n", "", 0)
