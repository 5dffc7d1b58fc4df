"""Progress in a notebook or a script: one line that changes in place, and plain lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from shiftscope.runtime import progress
from shiftscope.runtime.progress import Event, JobEvent, ProgressLine, Stage, show_progress
from shiftscope.training.loop import Step


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def shown(events: list[tuple[float, Event]], clock: list[float], stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    line = ProgressLine()
    for at, event in events:
        clock[0] = 100 + at
        line(event)
    return stream.getvalue()


def test_line_changes_in_place_and_goes_away(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        (0, Stage("measuring images", 0, 64)),
        (4, Stage("measuring images", 16, 64)),
        (9, Stage("measuring images", 64, 64)),
    ]
    found = shown(events, clock, Terminal(), monkeypatch)
    first, second = "measuring images 0/64", "measuring images 16/64, about 12 s left"
    assert found == f"\r{first}\r{second}\r{' ' * len(second)}\r"


def test_a_new_stage_starts_its_own_clock(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    events = [(0, Stage("one", 2, 4)), (50, Stage("one", 4, 4)), (60, Stage("two", 1, 4)), (64, Stage("two", 2, 4))]
    assert "two 2/4, about 8 s left" in shown(events, clock, Terminal(), monkeypatch)


def test_elsewhere_lines_come_seldom(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    events = [(at, Stage("measuring images", 1 + int(at), 20)) for at in (0.0, 1.0, 2.0, 6.0, 7.0)]
    assert shown(events, clock, io.StringIO(), monkeypatch).splitlines() == [
        "measuring images 1/20",
        "measuring images 7/20, about 13 s left",
    ]


def test_a_line_fits_the_terminal_and_cannot_move_its_cursor(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    found = shown([(0, Stage("a\x1b[2J" + "b" * 50, 0, 0))], clock, Terminal(), monkeypatch)
    assert "\x1b" not in found
    assert len(found) == 1 + 19


def test_words_of_events() -> None:
    assert Stage("loading the model", 0, 0).words() == "loading the model"
    assert Stage("measuring images", 1280, 0).words() == "measuring images 1,280"
    assert JobEvent("seed 1", 0, 2, Step(2, 10, 1280, 2560, 0.25, 900.0)).words() == (
        "seed 1: epoch 2 of at most 10: 1,280/2,560 images, loss 0.250"
    )
    assert JobEvent("seed 1", 0, 2, Event()).words() == ""


def test_an_event_without_words_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress(Event())
    assert capsys.readouterr().err == ""
