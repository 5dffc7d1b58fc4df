"""Processes that share a study's folder do every run once, take over what a killed one leaves, and equal one process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shiftscope.errors import InputError
from shiftscope.runtime.executors import Processes
from shiftscope.runtime.files import LOCK, claimed
from shiftscope.studies import records
from shiftscope.studies.runner import RunEnded, RunStarted, run_study
from shiftscope.studies.shards import Shard, run_shard
from small import SMALL, Finished, one_thread
from studies.test_runner import Elsewhere

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
TABLES = ("table.csv", "curves.csv", "layers.csv")  # table.md names times
#: Fields of a record that say when and by which process a run was made.
TIMES = ("started", "seconds", "processor")


def assert_equal(out: Path, expected: Path) -> None:
    """Check that two folders of a study are equal bit for bit, records apart from times."""
    for name in TABLES:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    folders = sorted(path.name for path in (expected / "runs").iterdir())
    assert sorted(path.name for path in (out / "runs").iterdir()) == folders
    for folder in folders:
        one, other = out / "runs" / folder, expected / "runs" / folder
        assert sorted(os.listdir(one)) == sorted(os.listdir(other))  # no lock and no checkpoint is left
        for name in ("model.safetensors", "measures.safetensors.xz"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
        assert without_times(one) == without_times(other)


def without_times(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "record.json").read_text())
    for name in TIMES:
        content["provenance"].pop(name)
    return content


def test_shards_leave_claimed_runs_and_do_the_runs_of_others(trained: Finished, tmp_path: Path) -> None:
    ended: list[object] = []
    held = sorted((trained.out / "runs").iterdir())[0].name
    with one_thread():
        with claimed(tmp_path / "runs" / held):
            assert run_shard(trained.study, Shard(1, 2), out=tmp_path, report=ended.append) is None
            assert run_shard(trained.study, Shard(2, 2), out=tmp_path, report=ended.append) is None
        assert sum(isinstance(each, RunEnded) for each in ended) == 3
        assert [each.done for each in ended if isinstance(each, RunStarted)] == [0, 1, 2]
        assert not (tmp_path / "table.csv").exists()
        table = run_shard(trained.study, Shard(2, 2), out=tmp_path)
    assert table is not None and table.to_csv() == trained.table.to_csv()
    assert_equal(tmp_path, trained.out)
    (tmp_path / "runs" / held / LOCK).touch()  # of a process that was killed after it had finished the run
    assert run_shard(trained.study, Shard(1, 2), out=tmp_path) is not None
    assert_equal(tmp_path, trained.out)


def test_command_for_the_whole_study_refuses_a_run_that_a_shard_holds(trained: Finished, tmp_path: Path) -> None:
    held = tmp_path / "runs" / sorted((trained.out / "runs").iterdir())[0].name
    with claimed(held), one_thread(), pytest.raises(InputError, match="another command is at work in"):
        run_study(trained.study, out=tmp_path)
    assert records.read(held) is None


def test_shard_copies_runs_of_another_study(trained: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftscope.studies.single_run.train", lambda *_, **__: pytest.fail("trained again"))
    assert run_shard(trained.study, Shard(1, 3), out=tmp_path, reuse=trained.out) is not None
    assert_equal(tmp_path, trained.out)


def test_shard_without_locks_does_its_own_share_only(trained: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert run_shard(trained.study, Shard(1, 4), out=tmp_path, reuse=trained.out) is None
    done = [path for path in (tmp_path / "runs").iterdir() if records.read(path) is not None]
    assert len(done) == 1


@pytest.mark.parametrize(("number", "of"), [(0, 2), (3, 2), (1, 0)])
def test_shard_that_does_not_exist_is_refused(number: int, of: int) -> None:
    with pytest.raises(InputError, match="`shard` must be I/N"):
        Shard(number, of)


def test_shard_on_machines_without_the_folder_is_refused(trained: Finished, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="share a folder"):
        run_shard(trained.study, Shard(1, 2), out=tmp_path / "out", executor=Elsewhere())
    assert not (tmp_path / "out").exists()


def test_worker_processes_of_a_shard_leave_claimed_runs(trained: Finished, tmp_path: Path) -> None:
    held = sorted((trained.out / "runs").iterdir())[0].name
    with claimed(tmp_path / "runs" / held):
        assert run_shard(trained.study, Shard(1, 2), out=tmp_path, reuse=trained.out, executor=Processes(1)) is None
    assert [path.name for path in (tmp_path / "runs").iterdir() if records.read(path) is None] == [held]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are stopped and killed by signals")
def test_array_of_the_documentation_finishes_what_a_killed_task_leaves(trained: Finished, tmp_path: Path) -> None:
    """The script of docs/clusters.md, as Slurm starts it: two tasks, of which one is killed while it trains."""
    found = re.search(r'```bash title="study.sbatch"\n(.*?)```', PAGE.read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "study.sbatch").write_text(found[1])
    (tmp_path / "small.toml").write_text(SMALL)
    for name, content in (("srun", 'exec "$@"'), ("shiftscope", f'exec {sys.executable} -m shiftscope "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / name).chmod(0o755)
    first = start(tmp_path, 1)
    wait_for(lambda: list((tmp_path / "out").rglob(f"runs/*/{LOCK}")), first)
    os.killpg(first.pid, signal.SIGSTOP)
    second = start(tmp_path, 2)
    wait_for(lambda: list((tmp_path / "out").rglob("record.json")), second)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    first.communicate()
    said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert_equal(tmp_path / "out", trained.out)
    assert (tmp_path / "out" / "report.html").exists()


def start(folder: Path, task: int) -> subprocess.Popen[bytes]:
    """Start a task of the array, in a process group of its own."""
    slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
    own = {"STUDY": "small.toml", "OUT": "out", "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = ["bash", "study.sbatch"]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | slurm | own, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
