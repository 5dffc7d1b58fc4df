"""Jobs through submitit: on this machine as it starts them there, their failures, and a study that equals one without."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import helpers
from shiftscope.cli.options import ExecutorOptions
from shiftscope.errors import InputError
from shiftscope.runtime.executors import Executor, Processes
from shiftscope.runtime.submitit_executor import Submitit
from shiftscope.studies.loading import load_study
from shiftscope.studies.runner import run_study
from small import TINY, one_thread

pytest.importorskip("submitit", reason="the extra `submitit` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def ignore(*_: object) -> None:
    pass


@pytest.fixture(autouse=True)
def import_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs import the modules of the tests."""
    folders = [str(Path(helpers.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))


@pytest.fixture(autouse=True)
def collect_open_files() -> Iterator[None]:
    """Collect the log files that submitit leaves open, while their warnings are ignored, not in a test of another file."""
    yield
    gc.collect()


def test_job_of_a_killed_process_is_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)  # it waits 15 s for the file of a process that has died
    (tmp_path / "seen").mkdir()
    heard: list[object] = []
    job = (str(tmp_path / "seen"), 1)
    found = Submitit(cluster="local", folder=tmp_path / "jobs").run(helpers.die_once, [job], lambda *said: heard.append(said[0]))
    assert list(found) == [(job, 1)]
    assert heard == [job, job]


@pytest.mark.parametrize("workers", [None, 2])
def test_every_job_is_done_once(workers: int | None, tmp_path: Path) -> None:
    executor = Submitit(workers, cluster="debug", folder=tmp_path)
    assert isinstance(executor, Executor) and not executor.remote
    with one_thread():
        assert sorted(executor.run(helpers.square, range(5), ignore)) == [(job, job * job) for job in range(5)]


@pytest.mark.parametrize(
    ("job", "kind", "told"),
    [("input", InputError, "do otherwise"), ("disk", OSError, "No space left"), ("bug", RuntimeError, "ZeroDivisionError: bug")],
)
def test_failures_keep_their_kind(job: str, kind: type[Exception], told: str, tmp_path: Path) -> None:
    with one_thread(), pytest.raises(kind, match=told):
        list(Submitit(cluster="debug", folder=tmp_path).run(helpers.fail, [job], ignore))


def test_study_equals_one_in_this_process_and_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    study = load_study(str(tmp_path / "tiny.toml"))
    with one_thread():
        alone = run_study(study, out=tmp_path / "alone")
    table = run_study(study, out=tmp_path / "out", executor=Submitit(cluster="local", folder=tmp_path / "jobs"))
    assert table.to_csv() == alone.to_csv()
    names = [sorted(path.name for path in (tmp_path / folder).rglob("runs/*/*")) for folder in ("alone", "out")]
    assert names[0] == names[1]


def test_interrupted_job_asks_to_be_submitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm sends a signal before it preempts a job; submitit then asks the job how to go on."""
    from submitit.helpers import DelayedSubmission

    submitted: list[Any] = []

    class Recorder:
        def submit(self, *what: Any) -> Any:
            submitted.append(what)
            raise KeyboardInterrupt

    monkeypatch.setattr(Submitit, "_executor", lambda _: Recorder())
    with pytest.raises(KeyboardInterrupt):
        list(Submitit(folder=tmp_path).run(helpers.square, [3], ignore))
    task, work, job = submitted[0]
    again = task.checkpoint(work, job)
    assert isinstance(again, DelayedSubmission)
    assert again.function(*again.args) == ("done", 9)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"workers": 0}, "`workers` must be 1 or more, got 0"),
        ({"gpus": -1}, "`gpus` must be 0 or more, got -1"),
        ({"parameters": {"no_such": 1}, "cluster": "local"}, "submitit refuses its parameters"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        list(Submitit(folder=tmp_path, **settings).run(helpers.square, [1], ignore))


@pytest.mark.parametrize(
    ("options", "workers", "expected"),
    [
        (
            {"executor": "submitit", "submit": ("timeout_min=5", "slurm_partition=gpu")},
            3,
            Submitit(3, 0, {"timeout_min": 5, "slurm_partition": "gpu"}),
        ),
        ({"executor": "submitit", "gpus": 2.0}, None, Submitit(None, 2)),
        ({"device": "cuda"}, None, Processes(2, ("4", "7"))),
        ({"device": "cuda"}, 3, Processes(3, ("4", "7"))),
        ({"device": "cuda:1"}, None, None),
        ({"device": "cpu"}, 2, Processes(2)),
    ],
)
def test_command_line_chooses_the_executor(
    options: dict[str, Any], workers: int | None, expected: Executor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    assert ExecutorOptions(**options).start(workers) == expected


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"submit": ("timeout_min=5",)}, "`--submit` is for submitit only"),
        ({"address": "here:1"}, "`--address` is for a Ray cluster only"),
        ({"executor": "submitit", "address": "here:1"}, "`--address` is for a Ray cluster only"),
        ({"gpus": 1.0}, "`--gpus` is for jobs of a cluster only"),
        ({"executor": "submitit", "gpus": 0.5}, "must be a whole number with submitit"),
        ({"executor": "submitit", "submit": ("timeout",)}, "`--submit` must be NAME=VALUE, got 'timeout'"),
    ],
)
def test_options_without_their_executor_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        ExecutorOptions(device="cpu", **options).start(None)
