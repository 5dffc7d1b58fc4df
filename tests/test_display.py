"""Results show themselves: a short line, small and escaped HTML, rows for data frames, axes, files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import helpers
import shiftscope as ss
from shiftscope import Estimate, InputError, Table
from shiftscope.audits.comparison import compare_audits
from shiftscope.audits.gate import judge_comparison
from shiftscope.audits.reading import read_audit
from shiftscope.display import Shown


@pytest.fixture(scope="module")
def results() -> dict[str, Shown]:
    images = torch.rand(6, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    model = helpers.network().eval()
    audit = ss.audit(model, images, protocols=["mouton2020", "every-shift"], max_shift=1)
    compared = compare_audits(audit, audit)
    return {
        "audit": audit,
        "survey": audit.surveys["zero 1"],
        "explanation": ss.explain(model, images, max_shift=1),
        "fixed": ss.fix(model, images, kinds=["blur"], max_shift=1),
        "comparison": compared,
        "verdict": judge_comparison(compared),
    }


FILES = {
    "audit": {"audit", "table"},
    "survey": {"result", "table"},
    "explanation": {"explanation", "causes", "layers", "fixes"},
    "fixed": {"fixed", "before_and_after", "changes"},
    "comparison": {"result", "table"},
    "verdict": {"result", "table"},
}
KINDS = ("audit", "survey", "explanation", "fixed", "comparison", "verdict")


@pytest.mark.parametrize("kind", KINDS)
def test_result_is_a_short_line_and_a_small_page(kind: str, results: dict[str, Shown]) -> None:
    line, page = repr(results[kind]), results[kind]._repr_html_()
    assert len(line) < 200
    assert "\n" not in line
    assert type(results[kind]).__name__ in line
    assert page.count("<tr>") == min(len(results[kind].tables()[0].rows), 30) + 1
    assert len(page) < 20_000
    assert "<script" not in page
    assert "src=" not in page


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_table_with_the_ends_of_intervals(kind: str, results: dict[str, Shown]) -> None:
    rows, table = results[kind].to_dicts(), results[kind].tables()[0]
    assert len(rows) == len(table.rows)
    for row, cells in zip(rows, table.rows, strict=True):
        for name, cell in cells.items():
            if isinstance(cell, Estimate):
                assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == (cell.value, cell.low, cell.high)


def test_data_frame_holds_the_same_rows(results: dict[str, Shown]) -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    frame = results["audit"].to_pandas()
    assert list(frame["measure"]) == [row["measure"] for row in results["audit"].to_dicts()]
    assert frame["estimate_low"].notna().all()


@pytest.mark.parametrize("kind", ["audit", "explanation", "comparison"])
def test_plot_draws_value_and_interval_of_each_row(kind: str, results: dict[str, Shown]) -> None:
    axes = results[kind].plot()
    (drawn,) = axes.containers
    values = drawn.lines[0].get_xdata()
    rows = [[cell for cell in row.values() if isinstance(cell, Estimate)] for row in results[kind].tables()[0].rows]
    expected = [cells[0] for cells in rows if cells and math.isfinite(cells[0].low) and math.isfinite(cells[0].high)]
    assert list(values) == [each.value for each in expected]
    segments = drawn.lines[2][0].get_segments()
    assert [tuple(ends[:, 0]) for ends in segments] == [pytest.approx((each.low, each.high)) for each in expected]
    assert results[kind].plot(axes) is axes


@pytest.mark.parametrize("kind", KINDS)
def test_saved_folder_holds_json_and_tables(kind: str, results: dict[str, Shown], tmp_path: Path) -> None:
    folder = results[kind].save(tmp_path / "new")
    names = {path.name for path in folder.iterdir()}
    assert {name.partition(".")[0] for name in names} == FILES[kind]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".csv", ".md"}
    if kind == "audit":
        assert read_audit(folder).rows == results[kind].rows
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        results[kind].save(tmp_path / "file")


def test_html_escapes_what_comes_from_outside() -> None:
    class Foreign(Shown):
        def words(self) -> str:
            return "<b>\x1b[31m"

        def tables(self) -> tuple[Table, ...]:
            return (Table("<i>", ("name",), ({"name": "<img src=x onerror=alert(1)>"},)),)

    page = Foreign()._repr_html_()
    assert "<img" not in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "\x1b" not in page + repr(Foreign())
    with pytest.raises(InputError, match="no number with an interval"):
        Foreign().plot()


def test_outputs_and_tables_are_short_lines() -> None:
    outputs = ss.shift_outputs(helpers.network().eval(), torch.rand(3, 1, 20, 20), ss.grid(2))
    assert len(repr(outputs)) < 200
    assert len(repr(Table("t", ("a",), tuple({"a": number} for number in range(500))))) < 200
