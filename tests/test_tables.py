"""One table, several forms, the same numbers in each."""

from __future__ import annotations

import csv
import io
import json

import pytest

from shiftscope.estimates import Estimate
from shiftscope.measures import MEASURES
from shiftscope.tables import Table, heading

TABLE = Table(
    title="A | B",
    columns=("factor", "mcs", "source_mcs"),
    rows=({"factor": 1, "mcs": Estimate(1 / 3, 0.25, 0.5, count=9, seeds=2), "source_mcs": 0.25}, {"factor": 2, "mcs": None}),
    notes=("Small.",),
    provenance={"commit": "abc"},
)


def test_csv_has_full_precision_and_columns_for_interval() -> None:
    rows = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert rows[0] == {"factor": "1", "mcs": str(1 / 3), "mcs_low": "0.25", "mcs_high": "0.5", "source_mcs": "0.25"}
    assert rows[1] == {"factor": "2", "mcs": "", "mcs_low": "", "mcs_high": "", "source_mcs": ""}


def test_markdown_shows_title_headings_cells_notes_and_provenance() -> None:
    page = TABLE.to_markdown()
    assert page.startswith("# A | B\n\n| subsampling factor | mean cosine similarity | source: mean cosine similarity |\n|")
    assert "| 1 | 0.333 [0.250, 0.500] | 0.250 |" in page
    assert "| 2 |  |  |" in page
    assert "\nSmall.\n" in page
    assert page.endswith("| commit | abc |\n")


def test_json_has_short_names_and_estimates_as_objects() -> None:
    plain = json.loads(json.dumps(TABLE.to_json()))
    assert plain["columns"] == ["factor", "mcs", "source_mcs"]
    assert plain["rows"][0]["mcs"] == {"value": 1 / 3, "low": 0.25, "high": 0.5, "count": 9, "seeds": 2}
    assert plain["rows"][1]["mcs"] is None


def test_texts_names_measures_in_words_and_csv_by_short_name() -> None:
    table = Table("t", ("measure",), ({"measure": "worst_case, radius 3"}, {"measure": "mcs"}))
    assert table.texts() == [["correct at every shift, radius 3"], ["mean cosine similarity"]]
    assert table.to_csv() == 'measure\n"worst_case, radius 3"\nmcs\n'


def test_markdown_escapes_cells() -> None:
    page = Table("t", ("name",), ({"name": "a|b\nc"},)).to_markdown()
    assert r"| a\|b\nc |" in page


@pytest.mark.parametrize("name", MEASURES)
def test_heading_of_measure_is_its_label(name: str) -> None:
    label = MEASURES[name].label
    assert (heading(name), heading(f"source_{name}"), heading(f"difference_{name}")) == (
        label,
        f"source: {label}",
        f"difference: {label}",
    )


def test_cells_of_csv_are_no_formulas_and_move_no_cursor() -> None:
    rows = tuple({"name": name, "value": -1.5} for name in ("=1+1", "@SUM(A1)", "-2+3", "+1", "a\x1b[31m", "cat"))
    assert Table("names", ("name", "value"), rows).to_csv().splitlines()[1:] == [
        "'=1+1,-1.5",
        "'@SUM(A1),-1.5",
        "'-2+3,-1.5",
        "'+1,-1.5",
        "a\\x1b[31m,-1.5",
        "cat,-1.5",
    ]


def test_markdown_shows_html_links_and_pipes_as_they_are_written() -> None:
    hostile = "<script>alert(1)</script> ![x](http://a.b/c.png) [x][y] a\\|b"
    found = Table(hostile, ("name",), ({"name": hostile},), (hostile,), {"where": hostile}).to_markdown()
    assert "<" not in found
    assert "](" not in found
    assert "][" not in found
    markdown = pytest.importorskip("markdown_it", reason="needs markdown-it-py")
    page = markdown.MarkdownIt("gfm-like", {"linkify": False}).render(found)
    assert "<script" not in page
    assert "<img" not in page
    assert "<a " not in page
    assert "a\\|b</td>" in page
