"""Figures show every estimate and printed number of a table, and the same table gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.figures import (
    COLUMN,
    PAGE,
    bands,
    before_after,
    causes,
    heat_maps,
    listed,
    pareto,
    relation,
    save,
    sensitivity_maps,
    through_layers,
)
from shiftscope.tables import Table

TABLE = Table(
    title="a gap",
    columns=("factor", "mcs", "source_mcs"),
    rows=(
        {"factor": 1, "mcs": Estimate(0.3, 0.2, 0.5, count=9), "source_mcs": 0.25},
        {"factor": 2, "mcs": Estimate(0.4, 0.3, 0.45, count=9)},
        {"factor": 4},
    ),
    notes=("source_...: as printed, slides, MNIST.",),
)


def test_a_row_without_a_number_leaves_its_place_empty_and_a_printed_number_stands_alone() -> None:
    figure = bands(TABLE, across="factor", measure="mcs", label="similarity")
    (axes,) = figure.axes
    ours, printed = axes.lines[0], axes.lines[1]
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([0, 1], [0.3, 0.4])
    assert (list(printed.get_xdata()), list(printed.get_ydata())) == ([0], [0.25])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "the source"]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_table_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        save(bands(TABLE, across="factor", measure="mcs", label="similarity"), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.2, count=9)


GRID = Table(
    "grid",
    ("factor", "kernel", "mcs", "accuracy", "source_mcs"),
    tuple(
        {
            "factor": factor,
            "kernel": kernel,
            "mcs": estimate(0.1 * factor + 0.01 * kernel),
            "accuracy": 0.5 - 0.1 * factor,
            "source_mcs": 0.3,
        }
        for factor in (4, 1)
        for kernel in (2, 3)
    ),
)
LAYERS = Table(
    "layers",
    ("network", "layer", "similarity", "movement"),
    tuple(
        {"network": network, "layer": layer, "similarity": estimate(0.9 - 0.2 * place), "movement": 4.0 - place}
        for network in ("plain", "filtered")
        for place, layer in enumerate(("one", "two"))
    ),
)
CAUSES = Table("causes", ("cause", "share"), ({"cause": "border", "share": estimate(0.3)}, {"cause": "stride", "share": 0.6}))
PAIRS = Table("pairs", ("factor", "plain", "filtered"), ({"factor": 4, "plain": estimate(0.4), "filtered": estimate(0.6)},))


def lines(figure: Figure, place: int = 0) -> list[list[float]]:
    """The heights of every line of more than a point."""
    return [list(line.get_ydata()) for line in figure.axes[place].lines if len(line.get_ydata()) > 1]


def test_bands_hold_every_series_in_order_with_its_interval_and_its_source() -> None:
    figure = bands(GRID, across="factor", measure="mcs", label="similarity", series=("kernel",))
    assert lines(figure) == [pytest.approx(each) for each in ([0.12, 0.42], [0.3, 0.3], [0.13, 0.43], [0.3, 0.3])]
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(0.02), pytest.approx(0.62))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kernel 2", "kernel 3", "the source"]


def test_settings_of_words_are_listed_line_by_line() -> None:
    rows = (
        {"kind": "plain", "mcs": estimate(0.4), "centred": estimate(0.1)},
        {"kind": "empty"},
        {"kind": "filtered", "mcs": estimate(0.6)},
    )
    table = Table("kinds", ("kind", "mcs", "centred"), rows)
    figure = listed(table, name=("kind",), measures={"mcs": "similarity", "centred": "of centred outputs", "other": "not there"})
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["plain", "filtered"]
    assert [list(each.lines[0].get_xdata()) for each in axes.containers] == [[0.4, 0.6], [0.1]]
    assert [list(each.lines[0].get_ydata()) for each in axes.containers] == [[0, 1], [0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["similarity", "of centred outputs"]
    with pytest.raises(InputError, match="no row of 'kinds' holds a number in other"):
        listed(table, name=("kind",), measures={"other": "not there"})


def test_heat_maps_show_ours_theirs_and_the_difference() -> None:
    figure = heat_maps(GRID, across="factor", down="kernel", measure="mcs", label="similarity")
    ours, theirs, difference = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert ours == pytest.approx(np.array([[0.12, 0.42], [0.13, 0.43]]))
    assert (theirs == 0.3).all()
    assert difference == pytest.approx(ours - 0.3)
    assert figure.axes[2].images[0].get_clim() == pytest.approx((-0.18, 0.18))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.12", "0.42", "0.13", "0.43"]


def test_sensitivity_maps_lie_as_their_shifts_do_in_one_scale() -> None:
    figure = sensitivity_maps({"a": torch.arange(9.0), "b": torch.arange(9.0) + 1}, label="similarity")
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert images[0].get_array().tolist() == torch.arange(9.0).reshape(3, 3).tolist()
    assert {image.get_clim() for image in images} == {(0.0, 9.0)}
    assert images[0].get_extent() == [-1.5, 1.5, 1.5, -1.5]


def test_the_front_of_accuracy_and_invariance_is_what_nothing_beats() -> None:
    figure = pareto(GRID, across="mcs", up="accuracy", names=("factor", "kernel"), labels=("x", "y"))
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["factor 1, kernel 3", "factor 4, kernel 3"]


def test_a_relation_has_a_point_a_row_and_a_key_a_series() -> None:
    figure = relation(GRID, across="mcs", up="accuracy", series=("kernel",), labels=("x", "y"))
    assert len(figure.axes[0].containers) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["kernel 2", "kernel 3"]


def test_layers_stand_in_the_tables_order() -> None:
    figure = through_layers(LAYERS, series=("network",))
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["one", "two"]
    assert [list(each.lines[0].get_ydata()) for each in figure.axes[0].containers] == [pytest.approx([0.9, 0.7])] * 2
    assert [list(each.lines[0].get_ydata()) for each in figure.axes[1].containers] == [[4.0, 3.0]] * 2


def test_before_and_after_are_joined() -> None:
    figure = before_after(PAIRS, name=("factor",), before="plain", after="filtered", label="similarity")
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.4, 0.6]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "filtered"]


def test_causes_have_a_bar_each() -> None:
    figure = causes(CAUSES)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.3, 0.6]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["border", "stride"]


def test_a_table_without_the_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="no row of 'causes' holds a number in similarity and movement"):
        through_layers(CAUSES)


DRAWN = {
    "bands": lambda: bands(GRID, across="factor", measure="mcs", label="similarity", series=("kernel",)),
    "heat": lambda: heat_maps(GRID, across="factor", down="kernel", measure="mcs", label="similarity"),
    "maps": lambda: sensitivity_maps({"a": torch.arange(9.0)}, label="similarity"),
    "layers": lambda: through_layers(LAYERS, series=("network",)),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_every_figure_gives_the_same_bytes_again(tmp_path: Path, name: str, suffix: str) -> None:
    for place in ("one", "two"):
        save(DRAWN[name](), tmp_path / f"{place}.{suffix}")
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_the_widths_are_a_columns_and_a_pages() -> None:
    assert DRAWN["bands"]().get_figwidth() == COLUMN
    assert DRAWN["heat"]().get_figwidth() == DRAWN["maps"]().get_figwidth() == PAGE
