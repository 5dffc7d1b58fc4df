"""A study's figures for publication: those that its records allow, and for the others the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shiftscope import figures
from shiftscope.errors import InputError
from shiftscope.runtime.files import write_atomically
from shiftscope.studies.folder import StudyFolder, read_folder
from shiftscope.studies.spec import short
from shiftscope.studies.tables import across_and_series, curve
from shiftscope.tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_figures"]

LABELS = {
    "top1_change": "share of changed answers",
    "mcs": "mean cosine similarity",
    "mcs_centred": "centred similarity",
    "test_accuracy": "test accuracy",
}


def write_figures(folder: Path, *, out: Path, formats: tuple[str, ...] = ("pdf", "svg", "png")) -> tuple[list[str], list[str]]:
    """Write the figures that a study's records allow.

    Args:
        folder: of the study; it may be half done.
        out: folder for the files.
        formats: ``pdf``, ``svg``, ``png``.

    Returns:
        the names of the figures written, without suffix; and a sentence for each that was left out.

    Raises:
        InputError: the folder holds no study or no finished run, or the files cannot be written.
    """
    held = read_folder(folder)
    table = held.table()
    if not any("mcs" in row for row in table.rows):
        raise InputError(f"{folder} holds no finished run. Run `shiftscope study` with --out {folder} first.")
    written, left_out = [], []
    for name, drawn in _candidates(held, table):
        if isinstance(drawn, str):
            left_out.append(f"{name}: {drawn}")
            continue
        for suffix in formats:
            _write(drawn(), out / f"{name}.{suffix}")
        written.append(name)
    return written, left_out


def _write(figure: Figure, path: Path) -> None:
    try:
        write_atomically(path, lambda temporary: figures.save(figure, temporary))
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}). Make room, or choose another place with --out."
        ) from error


def _candidates(held: StudyFolder, table: Table) -> Iterator[tuple[str, Callable[[], Figure] | str]]:
    """Each figure's name, and how to draw it or why it cannot be drawn."""
    varied = [short(path) for path in held.study.varied()]
    across, series = across_and_series(held.study)
    for measure in ("mcs", "mcs_centred", "test_accuracy"):
        yield _curve(table, across, series, measure)
        yield _grid(table, varied, measure)
    maps = {cell.name: values.float() for cell in held.cells if (values := cell.map("mcs")) is not None}
    yield (
        "sensitivity",
        (lambda: figures.sensitivity_maps(maps, label=LABELS["mcs"])) if maps else "no record holds a map over shifts.",
    )
    names, labels = tuple(varied), (LABELS["mcs"], LABELS["test_accuracy"])
    whole = [row for row in table.rows if {"mcs", "test_accuracy"} <= set(row)]
    if len(whole) < 2:
        yield "accuracy_invariance", "it needs two measured rows or more."
    else:
        yield "accuracy_invariance", lambda: figures.pareto(table, across="mcs", up="test_accuracy", names=names, labels=labels)
    paired = _paired(table, tuple(name for name in varied if name != "antialias"))
    if paired is None:
        yield "antialias", "no setting is measured both with and without a filter."
    else:
        rest = tuple(name for name in varied if name != "antialias")
        yield "antialias", lambda: figures.before_after(paired, name=rest, before="plain", after="filtered", label=LABELS["mcs"])
    yield from _of_shifts(held, across)
    yield _of_layers(held, across)
    gained, series = held.gains(), tuple(name for name in varied if name != "factor")
    axes = ("local homogeneity of what is subsampled", "gain in similarity over factor 1")
    yield (
        "homogeneity",
        (lambda: figures.relation(gained, across="homogeneity", up="gain", series=series, labels=axes))
        if len(gained.rows) > 1
        else "it needs two cells or more that subsample, and factor 1 beside them.",
    )
    yield "causes", "it needs a breakdown by cause, which `shiftscope explain` makes of one model."


def _of_shifts(held: StudyFolder, across: str | None) -> Iterator[tuple[str, Callable[[], Figure] | str]]:
    """Measures against the largest shift, a line for each value of the main setting."""
    table, series = _alike(held.curves(), across), (across,) if across else ()
    for measure in ("mcs", "top1_change"):
        yield (
            f"{measure}_shift",
            partial(figures.bands, table, across="max_shift", measure=measure, label=LABELS[measure], series=series)
            if table.rows
            else "no record holds a curve.",
        )


def _of_layers(held: StudyFolder, across: str | None) -> tuple[str, Callable[[], Figure] | str]:
    table = _alike(held.layers(), across)
    maps = Table(table.title, table.columns, tuple(row for row in table.rows if row.get("pixels")))
    if not maps.rows:
        return "layers", "no record holds the responses of layers."
    return "layers", lambda: figures.through_layers(maps, unit="positions of the map", series=(across,) if across else ())


def _alike(table: Table, across: str | None) -> Table:
    """The rows that differ from the first in one setting at most: as many lines as a figure carries."""
    settings = table.columns[: table.columns.index("seeds")]
    fixed = [name for name in settings if name not in (across, "max_shift")]
    rows = tuple(row for row in table.rows if all(row.get(name) == table.rows[0].get(name) for name in fixed))
    return Table(table.title, table.columns, rows)


def _curve(table: Table, across: str | None, series: tuple[str, ...], measure: str) -> tuple[str, Callable[[], Figure] | str]:
    name = f"{measure}_curve"
    if across is None:
        return name, "no setting varies in this study."
    if not any(measure in row for row in table.rows):
        return name, f"no record holds {measure}."
    return name, lambda: curve(table, across, series, {measure: LABELS[measure]})


def _grid(table: Table, varied: list[str], measure: str) -> tuple[str, Callable[[], Figure] | str]:
    name = f"{measure}_grid"
    if len(varied) != 2:
        return name, f"it needs two settings that vary, and this study varies {len(varied)}."
    if not any(measure in row for row in table.rows):
        return name, f"no record holds {measure}."
    return name, lambda: figures.heat_maps(table, across=varied[0], down=varied[1], measure=measure, label=LABELS[measure])


def _paired(table: Table, names: tuple[str, ...]) -> Table | None:
    """Rows that differ in the filter only, side by side; None where there is no pair."""
    pairs: dict[tuple[Cell, ...], dict[str, Cell]] = {}
    for row in table.rows:
        if row.get("mcs") is not None and isinstance(size := row.get("antialias"), int):
            held = pairs.setdefault(tuple(row.get(name) for name in names), {name: row.get(name) for name in names})
            held["plain" if size == 1 else "filtered"] = row["mcs"]
    rows: tuple[Mapping[str, Cell], ...] = tuple(row for row in pairs.values() if {"plain", "filtered"} <= set(row))
    return Table(table.title, (*names, "plain", "filtered"), rows) if rows else None
