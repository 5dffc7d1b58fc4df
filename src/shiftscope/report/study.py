"""A study's folder as a page: its records, the source's numbers, the kept networks' answers and the lesson, as a ``report``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.report import Chart, Grid, Lesson, Maps, Missing, Page, Rows, Scatter, ShiftMap
from shiftscope.report.content import Section, Signal
from shiftscope.report.gallery import Progress, galleries
from shiftscope.report.words import WORDS, bare
from shiftscope.studies.comparison import compare
from shiftscope.studies.folder import StudyFolder, read_folder
from shiftscope.studies.spec import short
from shiftscope.studies.tables import across_and_series
from shiftscope.tables import Cell, Table
from shiftscope.theory import HOMOGENEOUS, KERNEL, SIGNAL

__all__ = ["study_page"]

#: Kinds of layers that a page lists.
AFTER = ("canvas", "pool", "filter", "polyphase sampling", "output")


def study_page(
    folder: Path, *, data_dir: Path | None = None, device: torch.device | str = "cpu", progress: Progress = lambda *_: None
) -> Page:
    """A study's page, not rendered yet; arguments and errors as in :func:`shiftscope.report.write.write_report`."""
    held = read_folder(folder)
    table = held.table()
    drags, lacking = galleries(held, data_dir=data_dir, device=device, progress=progress)
    beside, told = _compared(held) if held.study.source else ([], [])
    missing = (*held.missing, *lacking, *told)
    curves = _curves(held, table)
    sections: list[Section] = [*curves[:1], *drags, *curves[1:], *_grids(held, table), *_maps(held), *_shifts(held)]
    sections += [*_scatter(held, table), *beside, *_layers(held)]
    sections.append(Rows("All measured numbers", "Each with its 95 % interval; press a heading to sort.", bare(table)))
    sections.append(_lesson())
    if missing:
        sections.append(Missing("What is missing", tuple(missing)))
    return Page(
        title=held.study.title,
        answer=_answer(held, table),
        sections=tuple(sections),
        facts=_facts(held, table),
        warning=_warning(held),
        words=WORDS,
        provenance=table.provenance,
    )


def _answer(held: StudyFolder, table: Table) -> str:
    """The result in one sentence."""
    rows = [row for row in table.rows if isinstance(row.get("mcs"), Estimate)]
    if not rows:
        why = "every training diverged" if held.runs_finished else "no run of this study is finished"
        return f"Nothing has been measured yet: {why}."
    reach = held.cells[0].planned[0].measure.max_shift
    least, most = (chosen(rows, key=lambda row: _value(row, "mcs")) for chosen in (min, max))
    shift = f"a shift of up to {reach} pixel{'' if reach == 1 else 's'}"
    if len(rows) == 1:
        sentence = f"After {shift} the outputs keep a mean cosine similarity of {most['mcs']}"
    else:
        sentence = (
            f"After {shift} the outputs keep a mean cosine similarity of {_rounded(least, 'mcs')} at {_setting(held, least)} and "
            f"of {_rounded(most, 'mcs')} at {_setting(held, most)}"
        )
    changes = [_value(row, "top1_change") for row in rows if isinstance(row.get("top1_change"), Estimate)]
    if changes:
        low, high = f"{min(changes):.0%}", f"{max(changes):.0%}"
        share = low if low == high else f"{low[:-1]} to {high}"
        sentence += f"; {share.replace('%', ' %')} of the images get another answer"
    return f"{sentence}."


def _facts(held: StudyFolder, table: Table) -> tuple[str, ...]:
    counts = [cell.count for row in table.rows for cell in row.values() if isinstance(cell, Estimate)]
    run = held.cells[0].planned[0]
    known = held.runs_finished + sum(len(cell.older) for cell in held.cells)
    facts = [f"{known} of {held.runs_planned} networks trained and measured"]
    if counts:
        facts.append(f"{max(counts):,} test images")
    facts.append(f"{(2 * run.measure.max_shift + 1) ** 2} shifts of each")
    facts.append(", ".join(dict.fromkeys(cell.planned[0].data.name for cell in held.cells)))
    return tuple(facts)


def _warning(held: StudyFolder) -> str:
    if held.runs_finished == held.runs_planned:
        return ""
    older = sum(len(cell.older) for cell in held.cells)
    text = f"Not whole: {held.runs_finished} of {held.runs_planned} runs are finished"
    text += f", {older} more are known from records of an older form." if older else "."
    return f"{text} The last section says what is missing."


def _curves(held: StudyFolder, table: Table) -> list[Section]:
    """The main measures against the setting of most interest."""
    across, series = across_and_series(held.study)
    if across is None:
        return []
    series = tuple(name for name in series if len({str(row.get(name)) for row in _shown(table)}) > 1)
    note = "Points are means with 95 % intervals" + (
        "; hollow squares are the source's numbers." if _has(table, "source_mcs") else "."
    )
    curves: list[Section] = [Chart("Similarity of outputs before and after a shift", note, table, across, "mcs", series)]
    if _has(table, "mcs_centred"):
        caption = (
            "The same of outputs less their mean over classes: only this part decides the answer, and the optimiser does not "
            "move the rest of it."
        )
        curves.append(Chart("What of it decides the answer", caption, table, across, "mcs_centred", series))
    return curves


def _grids(held: StudyFolder, table: Table) -> list[Section]:
    """Ours, the source's and their difference over the two settings of a grid."""
    axes = [short(path) for path in held.study.axes()]
    if len(axes) != 2 or "variant" in axes:
        return []
    grids: list[Section] = []
    for name in ("mcs", "test_accuracy"):
        rows = tuple({**row, f"difference_{name}": _difference(row, name)} for row in table.rows)
        panels = {"ours": name, "the source": f"source_{name}", "difference": f"difference_{name}"}
        whole = Table(table.title, (*table.columns, f"difference_{name}"), rows)
        title = f"{WORDS[name].capitalize()} over both settings"
        caption = "Lighter is more; orange in the difference means that ours is higher. Pale cells are not measured."
        grids.append(Grid(title, caption, whole, axes[0], axes[1], panels, diverging=("difference",)))
    return grids


def _maps(held: StudyFolder) -> list[Section]:
    """Sensitivity maps: the mean cosine at every shift."""
    maps = [(cell, values) for cell in held.cells if (values := cell.map("mcs")) is not None]
    if not maps:
        return []
    caption = (
        "The mean cosine similarity at every shift (Myburgh, Mouton and Davel 2021). The middle is no shift, right is right and "
        "down is down; light is more alike."
    )
    return [Maps("Sensitivity maps", caption, tuple(ShiftMap(cell.name, values.float(), cell.factor) for cell, values in maps))]


def _shifts(held: StudyFolder) -> list[Section]:
    """The main measure against the largest shift."""
    table, series = held.curves(), tuple(_varied(held))
    if not table.rows:
        return []
    caption = "Over all shifts up to the largest, of every test image; bars are 95 % intervals."
    return [Chart("How similarity falls with the largest shift", caption, table, "max_shift", "mcs", series)]


def _layers(held: StudyFolder) -> list[Section]:
    """What shifts do to every layer, and what homogeneity has to do with it."""
    table, gained = held.layers(), held.gains()
    sections: list[Section] = []
    if table.rows:
        caption = (
            "What a shift leaves of the maps after each pool, how far they move, how alike neighbours are before subsampling; "
            "layers.csv holds every layer."
        )
        rows = tuple(row for row in table.rows if row["kind"] in AFTER)
        sections.append(Rows("Layer by layer", caption, bare(Table(table.title, table.columns, rows, table.notes))))
    if gained.rows:
        caption = "What subsampling gains over factor 1, beside the local homogeneity of what it subsamples."
        sections.append(Rows("Homogeneity and gain", caption, bare(gained)))
    return sections


def _scatter(held: StudyFolder, table: Table) -> list[Section]:
    names = tuple(_varied(held))
    caption = "Right is more invariant, up is more accurate. Blue are the networks that no other beats on both."
    return [Scatter("Accuracy against invariance", caption, table, "mcs", "test_accuracy", names)]


def _compared(held: StudyFolder) -> tuple[list[Section], list[str]]:
    """The tables beside the source, or why there are none."""
    try:
        cells, claims = compare(held).tables()
    except InputError as error:
        return [], [f"Nothing stands beside the source: {error}"]
    sections: list[Section] = []
    if claims.rows:
        caption = "Each claim as a number with its interval, and a verdict."
        badges = ("verdict", "verdict_centred")
        sections.append(Rows("What the source claims", caption, bare(claims), badges))
    sections.append(Rows("Beside the source", "Ours, the printed numbers, and the difference.", bare(cells)))
    return sections, []


def _lesson() -> Lesson:
    """The worked examples of the source, and what to play with."""
    ramp = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4, 3, 2, 1, 0, 0, 0, 0, 0])
    impulse = torch.tensor([0, 0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])
    signals = {
        "two values": SIGNAL,
        "alike in pairs": HOMOGENEOUS,
        "smooth": ramp,
        "spikes": impulse,
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
        "A signal on one axis goes through a kernel, pooling and stride. Move it, and see what a shift does to the output.",
        _signals(signals),
        _signals(kernels),
    )


def _signals(named: Mapping[str, torch.Tensor]) -> tuple[Signal, ...]:
    return tuple(Signal(name, tuple(float(value) for value in values)) for name, values in named.items())


def _shown(table: Table) -> list[Mapping[str, Cell]]:
    """The rows with a number of ours or of the source's."""
    return [row for row in table.rows if row.get("mcs") is not None or row.get("source_mcs") is not None]


def _has(table: Table, column: str) -> bool:
    return any(row.get(column) is not None for row in table.rows)


def _difference(row: Mapping[str, Cell], name: str) -> Estimate | None:
    ours, theirs = row.get(name), row.get(f"source_{name}")
    if not isinstance(ours, Estimate) or not isinstance(theirs, int | float):
        return None
    return Estimate(ours.value - theirs, ours.low - theirs, ours.high - theirs, ours.count, ours.seeds)


def _setting(held: StudyFolder, row: Mapping[str, Any]) -> str:
    """A row's settings in words."""
    names = _varied(held)
    return ", ".join(f"{WORDS.get(name, name.replace('_', ' '))} {row[name]}" for name in names) or "its settings"


def _varied(held: StudyFolder) -> list[str]:
    """The settings that differ between cells."""
    return [short(path) for path in held.study.varied()]


def _rounded(row: Mapping[str, Any], name: str) -> str:
    return f"{_value(row, name):.2f}"


def _value(row: Mapping[str, Any], name: str) -> float:
    cell = row[name]
    return cell.value if isinstance(cell, Estimate) else float("nan")
