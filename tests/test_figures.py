"""Figures show every estimate and printed number of a table, and the same table gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from shiftscope.figures import estimates, save
from shiftscope.measures import Estimate
from shiftscope.tables import Table

TABLE = Table(
    title="A title that is rather long, so that it has to be broken into two lines to stay inside",
    columns=("factor", "mcs", "source_mcs"),
    rows=(
        {"factor": 1, "mcs": Estimate(0.3, 0.2, 0.5, count=9), "source_mcs": 0.25},
        {"factor": 2, "mcs": Estimate(0.4, 0.3, 0.45, count=9)},
        {"factor": 4},
    ),
    notes=("source_...: as printed, slides, MNIST.",),
)


def test_points_intervals_and_printed_numbers_lie_where_the_table_says() -> None:
    (axes,) = estimates(TABLE, across="factor", measure="mcs", label="similarity").axes
    ours, printed = axes.containers[0], axes.lines[-1]
    assert ours.lines[0].get_ydata().tolist() == [0.3, 0.4]
    bars = [segment[:, 1].tolist() for segment in ours.lines[2][0].get_segments()]
    assert bars == [pytest.approx([0.2, 0.5]), pytest.approx([0.3, 0.45])]
    assert printed.get_ydata() == pytest.approx([0.25])
    assert printed.get_label() == "slides, MNIST"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2"]
    assert "\n" in axes.get_title(loc="left")


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_table_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        save(estimates(TABLE, across="factor", measure="mcs", label="similarity"), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
