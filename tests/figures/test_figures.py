"""Figures show every estimate and printed number of a table, and the same table gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.figures import (
    COLUMN,
    PAGE,
    dot_plot,
    heat_maps,
    layer_plot,
    line_plot,
    paired_plot,
    pareto_plot,
    save,
    scatter_plot,
    sensitivity_maps,
)
from shiftscope.tables import Table

#: Together these take over 20 s.
pytestmark = pytest.mark.slow


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.1, value + 0.2, count=9)


GAPS = Table(
    title="a table with empty cells",
    columns=("factor", "mcs", "source_mcs"),
    rows=(
        {"factor": 1, "mcs": Estimate(0.3, 0.2, 0.5, count=9), "source_mcs": 0.25},
        {"factor": 2, "mcs": Estimate(0.4, 0.3, 0.45, count=9)},
        {"factor": 4},
    ),
)
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
PAIRS = Table("pairs", ("factor", "plain", "filtered"), ({"factor": 4, "plain": estimate(0.4), "filtered": estimate(0.6)},))
WORDS = Table(
    "words",
    ("kind", "mcs", "mcs_centred"),
    (
        {"kind": "plain", "mcs": estimate(0.4), "mcs_centred": estimate(0.1)},
        {"kind": "empty"},
        {"kind": "filtered", "mcs": estimate(0.6)},
    ),
)
DRAWN = {
    "dots": lambda: dot_plot(WORDS, names=("kind",), measures=("mcs", "mcs_centred")),
    "heat": lambda: heat_maps(GRID, x="factor", y="kernel", measure="mcs"),
    "layers": lambda: layer_plot(LAYERS, series=("network",)),
    "lines": lambda: line_plot(GRID, x="factor", measure="mcs", series=("kernel",)),
    "maps": lambda: sensitivity_maps({"a": torch.arange(9.0)}),
    "pairs": lambda: paired_plot(PAIRS, names=("factor",), before="plain", after="filtered", measure="mcs"),
    "pareto": lambda: pareto_plot(GRID, x="mcs", y="accuracy", names=("factor", "kernel")),
    "scatter": lambda: scatter_plot(GRID, x="mcs", y="accuracy", series=("kernel",)),
}


def heights(figure: Figure) -> list[list[float]]:
    """The heights of every line of more than one point."""
    return [list(line.get_ydata()) for line in figure.axes[0].lines if len(line.get_ydata()) > 1]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_line_plot_empty_cells_leave_gaps_and_source_stands_alone() -> None:
    figure = line_plot(GAPS, x="factor", measure="mcs")
    (axes,) = figure.axes
    ours, source = axes.lines[0], axes.lines[1]
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([0, 1], [0.3, 0.4])
    assert (list(source.get_xdata()), list(source.get_ydata())) == ([0], [0.25])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4"]
    assert legend(figure) == ["ours", "the source"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("subsampling factor", "mean cosine similarity")


def test_line_plot_series_are_sorted_and_have_interval_and_source() -> None:
    figure = DRAWN["lines"]()
    assert heights(figure) == [pytest.approx(each) for each in ([0.12, 0.42], [0.3, 0.3], [0.13, 0.43], [0.3, 0.3])]
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(0.02), pytest.approx(0.62))
    assert legend(figure) == ["kernel 2", "kernel 3", "the source"]


def test_line_plot_series_of_source_alone_is_named() -> None:
    rows = ({"kind": "ours", "factor": 1, "mcs": 0.5}, {"kind": "printed", "factor": 1, "source_mcs": 0.4})
    figure = line_plot(Table("T", ("kind", "factor", "mcs"), rows), x="factor", measure="mcs", series=("kind",))
    assert legend(figure) == ["ours", "printed", "the source"]


def test_dot_plot_has_a_row_for_each_setting_with_numbers() -> None:
    figure = dot_plot(WORDS, names=("kind",), measures=("mcs", "mcs_centred", "absent"))
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["plain", "filtered"]
    assert [list(each.lines[0].get_xdata()) for each in axes.containers] == [[0.4, 0.6], [0.1]]
    assert [list(each.lines[0].get_ydata()) for each in axes.containers] == [[0, 1], [0]]
    assert legend(figure) == ["mean cosine similarity", "centred cosine similarity"]


def test_dot_plot_of_one_measure_names_it_on_the_axis() -> None:
    figure = dot_plot(WORDS, names=("kind",), measures=("mcs",))
    assert figure.axes[0].get_xlabel() == "mean cosine similarity"
    assert figure.legends == []


def test_heat_maps_show_ours_source_and_difference() -> None:
    figure = DRAWN["heat"]()
    ours, source, difference = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert ours == pytest.approx(np.array([[0.12, 0.42], [0.13, 0.43]]))
    assert (source == 0.3).all()
    assert difference == pytest.approx(ours - 0.3)
    assert figure.axes[2].images[0].get_clim() == pytest.approx((-0.18, 0.18))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.12", "0.42", "0.13", "0.43"]


def test_heat_maps_without_source_have_one_panel() -> None:
    figure = heat_maps(GRID, x="factor", y="kernel", measure="accuracy")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["ours"]
    assert figure.get_figwidth() == COLUMN


def test_sensitivity_maps_share_a_scale_and_place_shifts() -> None:
    figure = sensitivity_maps({"a": torch.arange(9.0), "b": torch.arange(9.0) + 1})
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert images[0].get_array().tolist() == torch.arange(9.0).reshape(3, 3).tolist()
    assert {image.get_clim() for image in images} == {(0.0, 9.0)}
    assert images[0].get_extent() == [-1.5, 1.5, 1.5, -1.5]


def test_names_of_maps_break_at_commas() -> None:
    names = [f"subsampling factor {factor}, pooling kernel {kernel}" for factor in (1, 2, 4) for kernel in (2, 3)]
    figure = sensitivity_maps({name: torch.arange(9.0) for name in names})
    titles = [axes.get_title(loc="left") for axes in figure.axes[:6]]
    assert titles == [name.replace(", ", ",\n") for name in names]


def test_numbers_of_a_heat_map_have_the_same_digits_and_no_negative_zero() -> None:
    rows = tuple(
        {"factor": factor, "kernel": kernel, "mcs": 0.7 + 0.01 * factor, "source_mcs": 0.7 + 0.2 * factor + 0.0001}
        for factor in (0, 1)
        for kernel in (2, 3)
    )
    figure = heat_maps(Table("grid", ("factor", "kernel", "mcs", "source_mcs"), rows), x="factor", y="kernel", measure="mcs")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {len(text.lstrip("-")) for text in texts} == {5}
    assert "0.000" in texts and "-0.000" not in texts


def test_pareto_plot_names_the_front_only() -> None:
    figure = DRAWN["pareto"]()
    assert legend(figure) == ["subsampling factor 1, kernel 3", "subsampling factor 4, kernel 3"]
    points = {text.get_text(): text.xy for text in figure.axes[0].texts}
    expected = {(row["factor"], row["kernel"]): row["mcs"].value for row in GRID.rows}
    assert {digit: x for digit, (x, _) in points.items()} == {"1": expected[1, 3], "2": expected[4, 3]}


def test_pareto_plot_draws_printed_points_apart_from_the_front() -> None:
    figure = pareto_plot(GRID, x="mcs", y="accuracy", names=("factor", "kernel"), printed=[(0.99, 0.99), (0.2, 0.3)])
    assert figure.axes[0].collections[-1].get_offsets().tolist() == [[0.99, 0.99], [0.2, 0.3]]
    assert legend(figure)[-1] == "printed by the source"
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2"]


def test_scatter_plot_has_a_point_for_each_row_and_a_legend_for_series() -> None:
    figure = DRAWN["scatter"]()
    assert len(figure.axes[0].containers) == 4
    assert legend(figure) == ["kernel 2", "kernel 3"]


def test_layer_plot_keeps_the_tables_order() -> None:
    figure = DRAWN["layers"]()
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["one", "two"]
    assert [list(each.lines[0].get_ydata()) for each in figure.axes[0].containers] == [pytest.approx([0.9, 0.7])] * 2
    assert [list(each.lines[0].get_ydata()) for each in figure.axes[1].containers] == [[4.0, 3.0]] * 2


def test_paired_plot_joins_before_and_after() -> None:
    figure = DRAWN["pairs"]()
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.4, 0.6]
    assert legend(figure) == ["plain", "filtered"]


@pytest.mark.parametrize(
    ("draw", "columns"),
    [
        (lambda: layer_plot(PAIRS), "similarity and movement"),
        (lambda: pareto_plot(PAIRS, x="mcs", y="plain", names=()), "mcs and plain"),
        (lambda: scatter_plot(PAIRS, x="mcs", y="plain"), "mcs and plain"),
        (lambda: paired_plot(PAIRS, names=(), before="mcs", after="plain", measure="mcs"), "mcs and plain"),
        (lambda: dot_plot(PAIRS, names=(), measures=("mcs", "top1_change")), "mcs or top1_change"),
        (lambda: heat_maps(PAIRS, x="factor", y="plain", measure="mcs"), "mcs"),
    ],
)
def test_table_without_the_numbers_is_refused(draw: object, columns: str) -> None:
    with pytest.raises(InputError, match=f"No row of the table 'pairs' holds a number in {columns}"):
        draw()


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_same_table_gives_same_bytes(tmp_path: Path, name: str, suffix: str) -> None:
    for place in ("one", "two"):
        save(DRAWN[name](), tmp_path / f"{place}.{suffix}")
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


@pytest.mark.parametrize(("name", "width"), [("lines", COLUMN), ("dots", COLUMN), ("heat", PAGE), ("maps", PAGE)])
def test_figures_are_as_wide_as_a_column_or_a_page(name: str, width: float) -> None:
    assert DRAWN[name]().get_figwidth() == width


def test_unusable_matplotlib_backend_is_never_loaded(tmp_path: Path) -> None:
    paths = [tmp_path / f"figure.{suffix}" for suffix in ("png", "svg", "pdf")]
    code = (
        "import sys; from pathlib import Path; from shiftscope.figures import line_plot, save;"
        "from shiftscope.tables import Table;"
        "table = Table('T', ('factor', 'mcs'), ({'factor': 1, 'mcs': 0.5}, {'factor': 2, 'mcs': 0.6}));"
        f"[save(line_plot(table, x='factor', measure='mcs'), Path(path)) for path in {list(map(str, paths))!r}];"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    environment = {**os.environ, "MPLBACKEND": "module://nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(path.stat().st_size > 1000 for path in paths)


def test_drawing_functions_import_no_study() -> None:
    code = "import sys, shiftscope.figures; sys.exit(any(name.startswith('shiftscope.studies') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_of_the_user_change_no_figure(tmp_path: Path) -> None:
    user = {"lines.linewidth": 9.0, "font.size": 30.0, "svg.fonttype": "path", "axes.facecolor": "red"}
    for name, settings in (("own", {}), ("user", user)):
        with matplotlib.rc_context(settings):
            save(line_plot(GAPS, x="factor", measure="mcs"), tmp_path / f"{name}.svg")
    assert (tmp_path / "own.svg").read_bytes() == (tmp_path / "user.svg").read_bytes()
