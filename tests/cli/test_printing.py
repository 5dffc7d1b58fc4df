"""Tables fit the width, keep their numbers whole, and say what they leave out."""

from __future__ import annotations

import pytest

from shiftscope.cli.printing import print_summary, print_table
from shiftscope.estimates import Estimate
from shiftscope.tables import Summary, Table

MEASURES = ("mcs", "top1_change", "worst_case", "mcs_centred", "pair_consistency", "all_agree")
SYMMETRIC, LOPSIDED = Estimate(0.5, 0.25, 0.75, 9), Estimate(0.0, 0.0, 0.25, 9)


def table(measures: tuple[str, ...], estimate: Estimate = SYMMETRIC) -> Table:
    rows = tuple({"factor": each} | dict.fromkeys(measures, estimate) for each in (1, 2))
    return Table("Title", ("factor", *measures), rows, ("A note.",))


@pytest.mark.parametrize("width", [40, 80, 100, 120])
@pytest.mark.parametrize(("estimate", "text"), [(SYMMETRIC, "0.500 ± 0.250"), (LOPSIDED, "[0.000, 0.250]")])
def test_table_fits_and_names_the_columns_it_leaves_out(
    width: int, estimate: Estimate, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(table(MEASURES, estimate))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    kept = shown.count(text) // 2
    assert kept >= 1
    assert ("No room for" in shown) == (kept < len(MEASURES))
    assert ("correct at every shift" in " ".join(shown.partition("No room for")[2].split())) == (kept < 3)
    assert "Title" in shown
    assert "A note." in shown


def test_wide_table_has_every_column_and_complete_intervals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table(table(MEASURES), wide=True)
    shown = capsys.readouterr().out
    assert shown.count("0.500 [0.250, 0.750]") == 2 * len(MEASURES)
    assert "No room" not in shown


def test_piped_table_has_at_most_100_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(table(MEASURES))
    assert 80 < max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_brief_columns_are_all_that_a_narrow_table_shows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table("t", ("factor", "mcs", "why"), ({"factor": 1, "mcs": 0.5, "why": "because"},), brief=("mcs",)))
    assert "factor" not in (shown := capsys.readouterr().out)
    assert "0.500" in shown


def test_summary_prints_verdict_first_and_whole_commands_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    command = "shiftscope fix timm:resnet18 --data 'my photos' --with blur --out fixed.safetensors"
    print_summary(Summary("It changes.", (table(("mcs",)),), ("A sentence.",), (command,)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "It changes."
    assert lines[-1].strip() == command


def test_text_from_outside_prints_without_control_characters_or_markup(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "[bold]a\x1b[2Jb\nc\u202e\udcff"
    print_summary(Summary(evil, (Table(evil, ("name",), ({"name": evil},), (evil,)),), (evil,), (evil,)))
    shown = capsys.readouterr().out
    assert shown.count(r"[bold]a\x1b[2Jb\nc\u202e\udcff") == 6
    assert not set(shown) & set("\x1b\u202e\udcff")
