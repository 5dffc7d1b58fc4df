"""Gather the page of a study: its records, the source's numbers, its networks' predictions and the lesson."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.figures.cells import Row, row_name
from shiftscope.figures.study import x_and_series
from shiftscope.report import Chart, Grid, Lesson, Maps, Missing, Page, Rows, Scatter, ShiftMap
from shiftscope.report.content import Section, Signal
from shiftscope.report.gallery import drag_sections
from shiftscope.runtime.progress import Report, silent
from shiftscope.studies.certified import certified_at
from shiftscope.studies.comparison import compare
from shiftscope.studies.folder import StudyFolder
from shiftscope.studies.sections import VARIANT
from shiftscope.studies.spec import short
from shiftscope.tables import Table, heading
from shiftscope.theory import HOMOGENEOUS, KERNEL, SIGNAL

__all__ = ["study_page"]

#: More lines are spread over several drawings.
LINES = 6
#: The column of the share of images that are right at every shift.
RIGHT = "share_of_images"
#: Kinds of layers that the page lists; layers.csv holds all.
LISTED_LAYERS = ("canvas", "pool", "filter", "polyphase sampling", "output")


def study_page(
    results: StudyFolder, *, data_dir: Path | None = None, device: torch.device | str = "cpu", report: Report = silent
) -> Page:
    """Return the content of a study's page.

    Args:
        results: the study and its records; the study may be unfinished.
        data_dir: local folder with the study's data set. By default ``SHIFTSCOPE_DATA`` or what was decoded before; nothing is
            downloaded.
        device: where to compute the predictions of the networks.
        report: called with each progress event.
    """
    table = results.table()
    drags, without_drag = drag_sections(results, data_dir=data_dir, device=device, report=report)
    comparison, without_comparison = _comparison(results) if results.study.source else ([], [])
    missing = (*results.missing, *without_drag, *without_comparison)
    curves = _curves(results, table)
    sections: list[Section] = [*curves[:1], *drags, *curves[1:], *_grids(results, table), *_maps(results)]
    sections += [*_over_shifts(results), *_certificates(results), _scatter(results, table), *comparison, *_layers(results)]
    sections.append(Rows("All measured numbers", "Each with its 95 % interval. Click a heading to sort.", table))
    sections.append(_lesson())
    if missing:
        sections.append(Missing("What is missing", "", missing))
    return Page(
        title=results.study.title,
        answer=_answer(results, table),
        sections=tuple(sections),
        facts=_facts(results, table),
        warning=_warning(results),
        provenance=table.provenance,
    )


def _answer(results: StudyFolder, table: Table) -> str:
    """Return the result in one sentence."""
    rows = [row for row in table.rows if isinstance(row.get("mcs"), Estimate)]
    if not rows:
        why = "every training diverged" if results.runs_finished else "no run of this study is finished"
        return f"Nothing has been measured yet: {why}."
    reach = results.cells[0].planned[0].measure.max_shift
    least, most = (pick(rows, key=lambda row: _value(row, "mcs")) for pick in (min, max))
    sentence = f"After a shift of up to {reach} pixel{'' if reach == 1 else 's'}, the {heading('mcs')} of the outputs is "
    if len(rows) == 1:
        sentence += str(least["mcs"])
    else:
        of_each = (
            f"{_value(row, 'mcs'):.2f} with {row_name(row, _varied(results)) or 'these settings'}" for row in (least, most)
        )
        sentence += " and ".join(of_each)
    changes = [_value(row, "top1_change") for row in rows if isinstance(row.get("top1_change"), Estimate)]
    if changes:
        low, high = (f"{100 * pick(changes):.0f}" for pick in (min, max))
        sentence += f"; the top class changes for {low if low == high else f'{low} to {high}'} % of the images"
    return f"{sentence}."


def _facts(results: StudyFolder, table: Table) -> tuple[str, ...]:
    counts = [cell.count for row in table.rows for cell in row.values() if isinstance(cell, Estimate)]
    reach = results.cells[0].planned[0].measure.max_shift
    measured = results.runs_finished + sum(len(cell.older) for cell in results.cells)
    facts = [f"{measured} of {results.runs_planned} networks trained and measured"]
    sample = results.cells[0].planned[0].measure.every_shift_images
    if counts:
        facts.append(f"{max(counts):,} test images")
    facts.append(f"{(2 * reach + 1) ** 2} shifts of {'each' if sample is None else f'a sample of {sample:,}'}")
    facts.append(", ".join(dict.fromkeys(cell.planned[0].data.name for cell in results.cells)))
    if results.study.source is not None and results.study.source.paper:
        facts.append(f"after {results.study.source.paper}")
    return tuple(facts)


def _warning(results: StudyFolder) -> str:
    if results.runs_finished == results.runs_planned:
        return ""
    older = sum(len(cell.older) for cell in results.cells)
    older_records = f", and {older} more have records of an older version" if older else ""
    finished = f"{results.runs_finished} of {results.runs_planned} runs are finished{older_records}."
    return f"This study is incomplete: {finished} The last section lists what is missing."


def _curves(results: StudyFolder, table: Table) -> list[Section]:
    """Return the main measures against the setting on the horizontal axis."""
    x, series = x_and_series(results.study)
    if x is None:
        return []
    shown = [row for row in table.rows if row.get("mcs") is not None or row.get("source_mcs") is not None]
    series = tuple(name for name in series if len({str(row.get(name)) for row in shown}) > 1)
    caption = "Points are means with 95 % intervals"
    elsewhere = results.study.source_elsewhere
    where = f", of other images ({elsewhere})" if elsewhere else ""
    caption += f"; hollow squares are the source's numbers{where}." if _has(table, "source_mcs") else "."
    title = _title("mcs", "of the outputs before and after a shift")
    curves: list[Section] = [Chart(title, caption, table, x, "mcs", series, source_data=elsewhere)]
    if _has(table, "mcs_centred"):
        caption = "The mean over classes is subtracted from the outputs first; neither the prediction nor the loss depends on it."
        curves.append(Chart(_title("mcs_centred"), caption, table, x, "mcs_centred", series))
    return curves


def _grids(results: StudyFolder, table: Table) -> list[Section]:
    """Return heat maps of our numbers, the source's and their difference, for a study over two settings."""
    paths = results.study.axes()
    if len(paths) != 2 or VARIANT in paths:
        return []
    x, y = (short(path) for path in paths)
    caption = "Lighter is more; in the difference, orange means that our number is higher. Pale cells are not measured."
    grids: list[Section] = []
    for name in ("mcs", "test_accuracy"):
        rows = tuple({**row, f"difference_{name}": _difference(row, name)} for row in table.rows)
        panels = {"ours": name, "the source": f"source_{name}", "difference": f"difference_{name}"}
        if results.study.source_elsewhere:
            del panels["difference"]
        with_difference = Table(table.title, (*table.columns, f"difference_{name}"), rows)
        grids.append(Grid(_title(name, "over both settings"), caption, with_difference, x, y, panels, diverging=("difference",)))
    return grids


def _maps(results: StudyFolder) -> list[Section]:
    """Return the sensitivity maps of all cells."""
    maps = [ShiftMap(cell.name, values.float(), cell.factor) for cell in results.cells if (values := cell.map("mcs")) is not None]
    caption = (
        f"{_title('mcs', 'at every shift')} (Myburgh, Mouton and Davel 2021). The centre is no shift; to the right of it the "
        "image moves right, below it down. Light is more similar."
    )
    return [Maps("Sensitivity maps", caption, tuple(maps))]


def _over_shifts(results: StudyFolder) -> list[Section]:
    """Return the main measure against the largest shift."""
    table = results.curves()
    if not table.rows:
        return []
    panel, series = _panel_and_series(results)
    return [Chart(_title("mcs", "against the largest shift"), " ".join(table.notes), table, "max_shift", "mcs", series, panel)]


def _panel_and_series(results: StudyFolder) -> tuple[str, tuple[str, ...]]:
    """Return the setting with a drawing for each of its values, empty if one drawing holds all lines, and the lines' settings."""
    panel, *series = _varied(results) if len(results.cells) > LINES else ("",)
    return (panel, tuple(series)) if series else ("", _varied(results))


def _certificates(results: StudyFolder) -> list[Section]:
    """Return the share of images that are right at every shift up to each radius; nothing where no run stores radii."""
    curves = results.certificates()
    if not curves.rows:
        return []
    named = Table(curves.title, curves.columns, tuple({**row, RIGHT: row["right"]} for row in curves.rows))
    panel, series = _panel_and_series(results)
    settings = curves.columns[: curves.columns.index("radius")]
    rows = len({tuple(row[name] for name in settings) for row in curves.rows})
    lacking = sum(bool(cell.records) for cell in results.cells) - rows
    which = "without a row, because their runs store no radii"
    caption = (
        f"Share of {_at_every_shift(results)} that are classified correctly at every shift of up to r pixels, with 95 % "
        "intervals." + (f" {lacking} measured {'cell is' if lacking == 1 else 'cells are'} {which}." if lacking > 0 else "")
    )
    at_a_few = certified_at(curves)
    return [
        Chart("Right at every shift of up to r pixels", caption, named, "radius", RIGHT, series, panel),
        Rows("Certified share of test images", "Up to a few radii, in pixels, with 95 % intervals.", at_a_few),
    ]


def _at_every_shift(results: StudyFolder) -> str:
    """Return which images see every shift."""
    sample = results.cells[0].planned[0].measure.every_shift_images
    return "test images" if sample is None else f"a sample of {sample:,} test images"


def _layers(results: StudyFolder) -> list[Section]:
    """Return the tables of layers and of homogeneity."""
    table, gains = results.layers(), results.gains()
    sections: list[Section] = []
    if table.rows:
        caption = (
            "How similar feature maps stay after a shift, how far they move, and how similar neighbouring positions are before "
            "subsampling. layers.csv lists every layer."
        )
        rows = tuple(row for row in table.rows if row["kind"] in LISTED_LAYERS)
        sections.append(Rows("Layer by layer", caption, Table(table.title, table.columns, rows, table.notes)))
    if gains.rows:
        caption = (
            f"Increase of the {heading('mcs')} over subsampling factor 1, and the local homogeneity of what is subsampled. "
            "Compare rows of one factor: a larger one also subsamples deeper maps, which are less homogeneous, whatever it gains."
        )
        sections.append(Rows("Homogeneity and gain", caption, gains))
    return sections


def _scatter(results: StudyFolder, table: Table) -> Section:
    names = " \u00b7 ".join(map(heading, _varied(results)))
    caption = (
        f"Right is more invariant, up is more accurate. Blue marks the networks that no other beats on both, named by {names}."
    )
    return Scatter("Accuracy against invariance", caption, table, "mcs", "test_accuracy", _varied(results))


def _comparison(results: StudyFolder) -> tuple[list[Section], list[str]]:
    """Return the tables that compare with the source, and a sentence if there are none."""
    try:
        cells, claims, *closeness = compare(results).tables()
    except InputError as error:
        return [], [f"The comparison with the source is left out: {error}"]
    sections: list[Section] = []
    if claims.rows:
        caption = "Each claim as a number with its 95 % interval, and a verdict."
        sections.append(Rows("The source's claims", caption, claims, ("verdict", "verdict_centred")))
    elsewhere = results.study.source_elsewhere
    caption = f"The source's are of other images: {elsewhere}." if elsewhere else "Our numbers, the source's, and the difference."
    sections.append(Rows("Compared with the source", caption, cells))
    caption = "How far each variant's numbers lie from the printed ones, the closest first."
    sections += [Rows("Which variant is closest to the source", caption, table) for table in closeness]
    return sections, []


def _lesson() -> Lesson:
    """Return the source's worked examples as an interactive lesson."""
    signals = {
        "two values": SIGNAL,
        "equal in pairs": HOMOGENEOUS,
        "smooth": torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 3, 2, 1, 0, 0, 0, 0, 0]),
        "spikes": torch.tensor([0, 0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]),
    }
    kernels = {
        "1 0 1": KERNEL,
        "1, none": torch.tensor([1]),
        "1 1": torch.tensor([1, 1]),
        "1 2 1, low-pass": torch.tensor([1, 2, 1]),
        "1 -1, edges": torch.tensor([1, -1]),
    }
    return Lesson(
        "The lesson: why stride and homogeneity decide",
        "A one-dimensional signal passes through a kernel, pooling and a stride. Shift it, and see how the output changes.",
        _signals(signals),
        _signals(kernels),
    )


def _signals(named: Mapping[str, torch.Tensor]) -> tuple[Signal, ...]:
    return tuple(Signal(name, tuple(float(value) for value in values)) for name, values in named.items())


def _title(measure: str, rest: str = "") -> str:
    """Return a measure's words as the start of a title."""
    return f"{heading(measure).capitalize()} {rest}".rstrip()


def _has(table: Table, column: str) -> bool:
    return any(row.get(column) is not None for row in table.rows)


def _difference(row: Row, name: str) -> Estimate | None:
    """Return our number minus the source's."""
    ours, source = row.get(name), row.get(f"source_{name}")
    if not isinstance(ours, Estimate) or not isinstance(source, int | float):
        return None
    return Estimate(ours.value - source, ours.low - source, ours.high - source, ours.count, ours.seeds)


def _varied(results: StudyFolder) -> tuple[str, ...]:
    """Return the settings that differ between cells."""
    return tuple(short(path) for path in results.study.varied())


def _value(row: Row, name: str) -> float:
    cell = row[name]
    return cell.value if isinstance(cell, Estimate) else float("nan")
