"""A table is shown whole at every width: no number loses its interval."""

from __future__ import annotations

import pytest
from rich.console import Console

from shiftscope.cli import progress as console
from shiftscope.estimates import Estimate
from shiftscope.runtime.progress import Stage
from shiftscope.tables import Table

COLUMNS = ("factor", *(f"measure_{number}" for number in range(6)))
ROWS = tuple({"factor": factor, **{name: Estimate(0.5, 0.25, 0.75, 9) for name in COLUMNS[1:]}} for factor in (1, 2))


@pytest.mark.parametrize(("width", "one_table"), [(80, False), (240, True)])
def test_every_interval_is_shown_at_every_width(
    width: int, one_table: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "Console", lambda **_: Console(width=width))
    console.print_table(Table("Title", COLUMNS, ROWS, ("A note.",)))
    shown = capsys.readouterr().out
    assert shown.count("0.500 [0.250, 0.750]") == 12
    assert ("\u2502" in shown) == one_table
    assert "Title" in shown
    assert "A note." in shown
    assert max(map(len, shown.splitlines())) <= width


def test_what_takes_longer_than_a_moment_tells_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    words = console._Words()
    said = []
    for second, done in ((0, 10), (0.5, 15), (4, 50), (9, 100)):
        now[0] = second
        said.append(words.of(Stage("measuring", done, 100)).removeprefix("measuring: "))
    assert said == ["10 of 100", "15 of 100", "50 of 100  about 5 s left", "100 of 100"]
    assert words.of(Stage("reading", 3, 0)) == "reading: 3"
