"""Progress is bars on a terminal and plain lines elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from shiftscope.cli import bars
from shiftscope.cli.bars import ProgressDisplay, time_left
from shiftscope.runtime.progress import JobEvent, Stage
from shiftscope.studies import records
from shiftscope.studies.records import Record
from shiftscope.studies.runner import RunEnded, RunStarted
from shiftscope.training.loop import Epoch, Step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the time that progress sees."""
    now = [0.0]
    monkeypatch.setattr(bars, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


@pytest.fixture
def display(clock: Callable[[float], None]) -> ProgressDisplay:
    """A display without a terminal."""
    shown = Progress(console=Console(stderr=True, width=200), disable=True, get_time=lambda: bars.monotonic())
    return ProgressDisplay(shown, "loading the model")


def test_quick_work_prints_no_progress(display: ProgressDisplay, clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clock(1.5)
    display.report(Stage("measuring", 64, 128))
    assert capsys.readouterr().err == ""


def test_long_stage_prints_a_line_every_five_seconds_with_the_time_left(
    display: ProgressDisplay, clock: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for second, done in ((0, 0), (3, 10), (4, 15), (9, 50), (12, 60), (18, 100)):
        clock(second)
        display.report(Stage("measuring", done, 100))
    assert capsys.readouterr().err.splitlines() == [
        "measuring  10/100  about 27 s left",
        "measuring  50/100  about 9 s left",
        "measuring  100/100",
    ]


def test_new_stage_starts_its_clock_again(display: ProgressDisplay, clock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    clock(100)
    display.report(Stage("reading", 3, 0))
    display.report(Stage("measuring", 0, 10))
    clock(110)
    display.report(Stage("measuring", 5, 10))
    assert capsys.readouterr().err.splitlines() == ["reading  3", "measuring  5/10  about 10 s left"]


@pytest.fixture
def record(run: Path) -> Record:
    """A finished run's record."""
    finished = records.read(run)
    assert finished is not None
    return finished.record


def test_training_shows_epoch_loss_accuracy_and_time_left(
    display: ProgressDisplay, record: Record, clock: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    clock(10)
    display.report(RunStarted(0, 2, "factor 4, seed 0", 4.0))
    display.report(Step(1, 20, 0, 10, 0.5, 1000.0))
    display.report(Epoch(1, 0.5, 0.9, None, 0.95, 0.2, 1000.0, 10.0))
    clock(20)
    display.report(Step(2, 20, 0, 10, 0.25, 1000.0))
    display.report(RunEnded(record, found=False))
    first, second, ended = capsys.readouterr().err.splitlines()
    assert first == "0/2 done  factor 4, seed 0: training  0/40  epoch 1  loss 0.5000  1,000 images/s"
    assert second.startswith("0/2 done  factor 4, seed 0: training  10/40  epoch 2  loss 0.2500  validation 95.00%")
    assert second.endswith("about 30 s left")
    assert ended == f"1/2 done  factor 4, seed 0  {record.training.sentence}  mean cosine similarity {record.results['mcs']}"


def test_time_left_of_the_first_training_is_an_upper_bound(
    display: ProgressDisplay, clock: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    clock(10)
    display.report(RunStarted(0, 2, "factor 4, seed 0", None))
    display.report(Step(1, 20, 0, 10, 0.5, 1000.0))
    clock(20)
    display.report(Step(2, 20, 0, 10, 0.25, 1000.0))
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("10/200  epoch 2  loss 0.2500  1,000 images/s  at most 3 minutes left")
    )


def test_found_runs_do_not_count_in_the_time_left(display: ProgressDisplay, record: Record, clock: Any) -> None:
    clock(10)
    for done in (0, 1):
        display.report(RunStarted(done, 4, f"seed {done}", None))
        display.report(RunEnded(record, found=True))
    display.report(JobEvent("seed 2", 2, 4, Stage("reading", 0, 0)))
    clock(110)
    display.report(JobEvent("seed 2", 3, 4, RunEnded(record, found=False)))
    everything = next(task for task in display.bars.tasks if task.description == "all runs")
    assert (everything.completed, everything.total) == (3, 4)
    assert time_left(everything) == "about 2 minutes left"


def test_terminal_shows_a_bar_for_every_job(record: Record) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with Progress(console=console, auto_refresh=False) as shown:
        display = ProgressDisplay(shown, "loading PyTorch")
        for label in ("factor 1, seed 0", "factor 4, seed 0"):
            display.report(JobEvent(label, 0, 2, Stage("measuring", 32, 64)))
        assert {task.description for task in shown.tasks} == {
            "all runs",
            "factor 1, seed 0: measuring",
            "factor 4, seed 0: measuring",
        }
        display.report(JobEvent("factor 1, seed 0", 1, 2, RunEnded(record, found=False)))
        assert "factor 1, seed 0: measuring" not in {task.description for task in shown.tasks}
    assert "1/2 done  factor 1, seed 0" in screen.getvalue()
