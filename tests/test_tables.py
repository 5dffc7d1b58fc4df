"""One table, three forms, the same numbers in each."""

from __future__ import annotations

import csv
import io
import json

from shiftscope.estimates import Estimate
from shiftscope.tables import Table

TABLE = Table(
    title="A | B",
    columns=("factor", "mcs", "source_mcs"),
    rows=({"factor": 1, "mcs": Estimate(1 / 3, 0.25, 0.5, count=9, seeds=2), "source_mcs": 0.25}, {"factor": 2, "mcs": None}),
    notes=("Small.",),
    provenance={"commit": "abc"},
)


def test_csv_holds_the_full_precision_and_an_estimates_interval_in_columns_of_its_own() -> None:
    rows = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert rows[0] == {"factor": "1", "mcs": str(1 / 3), "mcs_low": "0.25", "mcs_high": "0.5", "source_mcs": "0.25"}
    assert rows[1] == {"factor": "2", "mcs": "", "mcs_low": "", "mcs_high": "", "source_mcs": ""}


def test_markdown_shows_title_cells_notes_and_provenance() -> None:
    page = TABLE.to_markdown()
    assert page.startswith("# A | B\n\n| factor | mcs | source_mcs |\n|")
    assert "| 1 | 0.333 [0.250, 0.500] | 0.250 |" in page
    assert "| 2 |  |  |" in page
    assert "\nSmall.\n" in page
    assert page.endswith("| commit | abc |\n")


def test_json_keeps_estimates_as_objects_and_survives_a_round_trip() -> None:
    plain = json.loads(json.dumps(TABLE.to_json()))
    assert plain["rows"][0]["mcs"] == {"value": 1 / 3, "low": 0.25, "high": 0.5, "count": 9, "seeds": 2}
    assert plain["rows"][1]["mcs"] is None


def test_text_from_outside_cannot_break_the_markdown_table() -> None:
    page = Table("t", ("name",), ({"name": "a|b\nc"},)).to_markdown()
    assert "| a\\|b c |" in page
