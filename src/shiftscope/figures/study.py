"""Draw the figures that a study's records allow, and say why others are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from shiftscope import figures
from shiftscope.errors import InputError
from shiftscope.figures.cells import row_name
from shiftscope.runtime.files import write_atomically, writing
from shiftscope.studies.folder import StudyFolder, read_folder
from shiftscope.studies.sections import flatten
from shiftscope.studies.spec import Study, short
from shiftscope.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["main_plot", "write_figures", "write_main_figure", "x_and_series"]

#: The measures that have a figure over the study's settings.
MEASURES = ("mcs", "mcs_centred", "test_accuracy")
#: The measures that have a figure over the largest shift.
MEASURES_OVER_SHIFTS = ("mcs", "top1_change")


def write_figures(folder: Path, *, out: Path, formats: tuple[str, ...] = ("pdf", "svg", "png")) -> tuple[list[str], list[str]]:
    """Write the figures that a study's records allow.

    Args:
        folder: the study's folder; the study may be unfinished.
        out: folder for the files.
        formats: any of ``pdf``, ``svg`` and ``png``.

    Returns:
        the names of the figures written, without suffix; and for each figure left out its name and the reason.

    Raises:
        InputError: the folder holds no study or no finished run, or a file cannot be written.
    """
    results = read_folder(folder)
    if not any("mcs" in row for row in results.table().rows):
        raise InputError(f"{folder} holds no finished run.", f"Run `shiftscope study` with --out {folder} first.")
    written, left_out = [], []
    for name, draw in _Drawings(results).by_name().items():
        try:
            draw()
        except _NoFigureError as reason:
            left_out.append(f"{name}: {reason}")
            continue
        for suffix in formats:
            _write(draw(), out / f"{name}.{suffix}")  # drawn anew, because saving changes a figure's layout
        written.append(name)
    return written, left_out


def write_main_figure(results: StudyFolder) -> None:
    """Write a study's main figure into its folder, as ``figure.png`` and ``figure.svg``.

    A study in which no setting varies, or no run is finished, has none.

    Args:
        results: the study and its records.

    Raises:
        InputError: the files cannot be written.
    """
    x, series = x_and_series(results.study)
    table = results.table()
    if x is not None and any("mcs" in row for row in table.rows):
        figure = main_plot(table, x, series, ("mcs", "mcs_centred"), elsewhere=results.study.source_elsewhere)
        for suffix in ("png", "svg"):
            _write(figure, results.folder / f"figure.{suffix}")


def main_plot(table: Table, x: str, series: tuple[str, ...], measures: tuple[str, ...], *, elsewhere: str = "") -> Figure:
    """Draw the first measure against a setting of numbers; or all measures, row by row, if the setting's values are words.

    Args:
        table: a row for each cell of a study.
        x: the setting.
        series: the settings that distinguish lines.
        measures: columns of estimates.
        elsewhere: the data set of the source's numbers, if it is another one.
    """
    if any(isinstance(row.get(x), str) for row in table.rows):
        return figures.dot_plot(table, names=(*series, x), measures=measures)
    source = f"the source ({elsewhere})" if elsewhere else "the source"
    return figures.line_plot(table, x=x, measure=measures[0], series=series, source=source)


def x_and_series(study: Study) -> tuple[str | None, tuple[str, ...]]:
    """Return which setting is the horizontal axis, the subsampling factor or else the last, and which ones distinguish lines.

    Returns:
        the setting of the horizontal axis, None if nothing varies; and the others.
    """
    varied = [short(path) for path in study.varied()]
    x = "factor" if "factor" in varied else varied[-1] if varied else None
    return x, tuple(name for name in varied if name != x)


class _NoFigureError(Exception):
    """The records do not allow a figure; the message says why."""


@dataclass(frozen=True)
class _Drawings:
    """Draws each figure of a study, or raises ``_NoFigureError``."""

    results: StudyFolder

    def by_name(self) -> dict[str, Callable[[], Figure]]:
        """Return how to draw each figure, by its file's name."""
        drawings: dict[str, Callable[[], Figure]] = {}
        for measure in MEASURES:
            drawings |= {f"{measure}_curve": partial(self.curve, measure), f"{measure}_grid": partial(self.grid, measure)}
        drawings |= {"sensitivity": self.sensitivity, "accuracy_invariance": self.accuracy, "antialias": self.antialias}
        drawings |= {f"{measure}_shift": partial(self.over_shifts, measure) for measure in MEASURES_OVER_SHIFTS}
        return drawings | {"layers": self.layers, "homogeneity": self.homogeneity}

    @cached_property
    def table(self) -> Table:
        return self.results.table()

    @cached_property
    def varied(self) -> tuple[str, ...]:
        return tuple(short(path) for path in self.results.study.varied())

    @cached_property
    def x(self) -> str | None:
        return x_and_series(self.results.study)[0]

    def curve(self, measure: str) -> Figure:
        x, series = x_and_series(self.results.study)
        if x is None:
            raise _NoFigureError("no setting varies in this study.")
        self._require(measure)
        return main_plot(self.table, x, series, (measure,), elsewhere=self.results.study.source_elsewhere)

    def grid(self, measure: str) -> Figure:
        if len(self.varied) != 2:
            raise _NoFigureError(f"it needs two settings that vary, and this study varies {len(self.varied)}.")
        self._require(measure)
        return figures.heat_maps(self.table, x=self.varied[0], y=self.varied[1], measure=measure)

    def sensitivity(self) -> Figure:
        maps = {cell.name: values.float() for cell in self.results.cells if (values := cell.map("mcs")) is not None}
        if not maps:
            raise _NoFigureError("no record holds a map over shifts.")
        return figures.sensitivity_maps(maps)

    def accuracy(self) -> Figure:
        if sum({"mcs", "test_accuracy"} <= set(row) for row in self.table.rows) < 2:
            raise _NoFigureError("it needs two measured rows or more.")
        cells = map(flatten, self.results.study.source.cells if self.results.study.source else ())
        printed = [(cell["mcs"], cell["test_accuracy"]) for cell in cells if {"mcs", "test_accuracy"} <= set(cell)]
        return figures.pareto_plot(self.table, x="mcs", y="test_accuracy", names=self.varied, printed=printed)

    def antialias(self) -> Figure:
        names = tuple(name for name in self.varied if name != "antialias")
        pairs = _with_and_without_filter(self.table, names)
        if not pairs.rows:
            raise _NoFigureError("no setting is measured both with and without a filter.")
        return figures.paired_plot(pairs, names=names, before="plain", after="filtered", measure="mcs")

    def over_shifts(self, measure: str) -> Figure:
        table = _alike(self.results.curves(), self.x)
        if not table.rows:
            raise _NoFigureError("no record holds a curve.")
        return self._titled(figures.line_plot(table, x="max_shift", measure=measure, series=self._series), table)

    def layers(self) -> Figure:
        table = _alike(self.results.layers(), self.x)
        rows = tuple(row for row in table.rows if row.get("pixels"))
        if not rows:
            raise _NoFigureError("no record holds the responses of layers.")
        return self._titled(figures.layer_plot(Table(table.title, table.columns, rows), series=self._series), table)

    def homogeneity(self) -> Figure:
        gains = self.results.gains()
        if len(gains.rows) < 2:
            raise _NoFigureError("it needs two cells or more that subsample, and factor 1 beside them.")
        if len({row.get("factor") for row in gains.rows}) == len(gains.rows):
            raise _NoFigureError("it compares cells of one factor, and there is only one of each.")
        return figures.scatter_plot(gains, x="homogeneity", y="gain", series=self.varied)

    def _titled(self, figure: Figure, table: Table) -> Figure:
        """Say in a figure which cells it shows, where some settings that vary in the study are the same in its rows."""
        same = [name for name in self.varied if name not in (self.x, "max_shift")]
        if same and table.rows:
            figure.axes[0].set_title(row_name(table.rows[0], same), loc="left", fontsize=8)
        return figure

    @property
    def _series(self) -> tuple[str, ...]:
        """The settings that distinguish lines: the study's usual horizontal axis, in figures with another one."""
        return (self.x,) if self.x else ()

    def _require(self, measure: str) -> None:
        if not any(measure in row for row in self.table.rows):
            raise _NoFigureError(f"no record holds {measure}.")


def _alike(table: Table, varying: str | None) -> Table:
    """Return the rows that differ from the first in at most one setting, so that a figure has few lines."""
    settings = table.columns[: table.columns.index("seeds")]
    fixed = [name for name in settings if name not in (varying, "max_shift")]
    rows = tuple(row for row in table.rows if all(row.get(name) == table.rows[0].get(name) for name in fixed))
    return Table(table.title, table.columns, rows)


def _with_and_without_filter(table: Table, names: tuple[str, ...]) -> Table:
    """Return a row for each pair of rows that differ only in whether there is a filter, its estimates side by side."""
    pairs: dict[tuple[Cell, ...], dict[str, Cell]] = {}
    for row in table.rows:
        if row.get("mcs") is not None and isinstance(size := row.get("antialias"), int):
            pair = pairs.setdefault(tuple(row.get(name) for name in names), {name: row.get(name) for name in names})
            pair["plain" if size == 1 else "filtered"] = row["mcs"]
    rows: tuple[Mapping[str, Cell], ...] = tuple(pair for pair in pairs.values() if {"plain", "filtered"} <= set(pair))
    return Table(table.title, (*names, "plain", "filtered"), rows)


def _write(figure: Figure, path: Path) -> None:
    with writing(path, "Make room, or choose another folder with --out."):
        write_atomically(path, lambda temporary: figures.save(figure, temporary))
