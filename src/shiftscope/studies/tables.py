"""Build a study's tables from its records alone, so that a resumed study has the tables of an uninterrupted one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shiftscope.estimates import Estimate, bootstrap, combine_draws, confidence_interval, variance_component
from shiftscope.measures import MEASURES
from shiftscope.runtime.files import write_text
from shiftscope.runtime.provenance import joined
from shiftscope.studies.certified import certified
from shiftscope.studies.measuring import CURVES, OUTPUT_MEASURES, RESPONSES
from shiftscope.studies.records import Curve, Finished, Record
from shiftscope.studies.spec import Study, run_label, short
from shiftscope.tables import Table, heading

__all__ = ["certificates_of", "curves", "gains", "layers", "run_list", "summarise", "table_of"]

FACTOR = "network.factor"
#: The output measures that use one random shift of each image, and those that use every shift.
ONE_SHIFT, EVERY_SHIFT = ("mcs", "mcs_centred", "top1_change"), ("mcs_all_shifts", "worst_case")
#: Most trainings that missed their target which a table's notes name.
NAMED = 6

#: The finished runs of each cell, in the study's order.
Cells = Sequence[Sequence[Finished]]


def summarise(study: Study, cells: Cells, out: Path) -> Table:
    """Write a study's tables, as CSV and Markdown: ``table``, ``curves`` and ``layers``; and ``runs.csv``, which lists the runs.

    Where runs store radii, ``certificates`` is written, too.

    Args:
        study: the study.
        cells: the finished runs of each cell, in the study's order.
        out: the study's folder.

    Returns:
        the first of them, :func:`table_of`.
    """
    measured = [_measured(runs) for runs in cells]
    table = table_of(study, cells)
    named = (("curves", curves(study, measured)), ("layers", layers(study, measured)))
    certificates = certificates_of(study, measured)
    for name, each in (("table", table), *named, *((("certificates", certificates),) if certificates.rows else ())):
        write_text(out / f"{name}.csv", each.to_csv())
        write_text(out / f"{name}.md", each.to_markdown())
    write_text(out / "runs.csv", run_list(study, cells).to_csv())
    return table


def run_list(study: Study, cells: Cells) -> Table:
    """Return a row for each run: what it is, its folder, and how its training ended.

    Args:
        study: the study.
        cells: the finished runs of each cell, in the study's order.
    """
    records = [run.record for runs in cells for run in runs]
    labels = _labels(study, cells)
    rows = tuple(
        {
            "run": labels[record.id],
            "folder": f"runs/{record.id}",
            **{name: getattr(record.training, name) for name in ("status", "epochs", "train_accuracy")},
        }
        for record in records
    )
    notes = ["status: reached, if the training reached its target accuracy on the training images."] if rows else []
    columns = ("run", "folder", "status", "epochs", "train_accuracy")
    return Table(f"{study.title}: runs", columns, rows, (*notes, *_note_on_missing(study, len(records))))


def _labels(study: Study, cells: Cells) -> dict[str, str]:
    """Return a readable label of each run by its id: ``factor=8,seed=0``."""
    return {
        run.record.id: run_label({path: settings[path] for path in study.varied()}, run.record.spec.seed)
        for settings, runs in zip(study.combinations(), cells, strict=True)
        for run in runs
    }


def _note_on_missing(study: Study, finished: int) -> Iterator[str]:
    """Yield a sentence if runs are missing."""
    planned = len(study.combinations()) * len(study.seeds)
    if planned > finished:
        yield f"Unfinished study: {planned - finished} of {planned} runs are missing."


def table_of(study: Study, cells: Cells) -> Table:
    """Return a table with a row for each cell: settings, estimates, and the source's numbers.

    A cell without runs is empty, and so is a measure that no record has.

    Args:
        study: the study.
        cells: the finished runs of each cell, in the study's order.
    """
    source = [study.source_numbers(settings) for settings in study.combinations()]
    rows = [
        {**_settings(settings), **_numbers(_measured(runs)), **{f"source_{name}": value for name, value in numbers.items()}}
        for settings, runs, numbers in zip(study.combinations(), cells, source, strict=True)
    ]
    printed = sorted({f"source_{name}" for numbers in source for name in numbers})
    columns = (*map(short, study.axes()), "seeds", "train_accuracy", *OUTPUT_MEASURES, *printed)
    records = [run.record for runs in cells for run in runs]
    brief = (*map(short, study.axes()), "seeds", "mcs", *printed[:1], "test_accuracy", "top1_change", "worst_case")
    notes = tuple(_notes(study, records, _labels(study, cells), printed))
    return Table(study.title, columns, tuple(rows), notes, _provenance(records), brief)


def curves(study: Study, cells: Cells) -> Table:
    """Return each cell's measures against the largest shift, over all shifts up to it.

    Args:
        study: the study.
        cells: the measured runs of each cell, in the study's order.
    """
    own = ("max_shift", "seeds", *CURVES)
    names = _setting_names(study, own)
    rows = []
    for settings, runs in zip(study.combinations(), cells, strict=True):
        count = _at_every_shift(runs[0].record) if runs else 0
        for radius in range(len(runs[0].curves["mcs"].means) if runs else 0):
            row = _settings(settings, names) | {"max_shift": radius, "seeds": len(runs)}
            rows.append(row | {name: _at_radius(name, [run.curves[name] for run in runs], radius, count) for name in CURVES})
    counts = {(_at_every_shift(run.record), _tested(run.record)) for runs in cells for run in runs}
    few = sorted({sample for sample, images in counts if sample < images})
    images = f"a sample of {', '.join(map(str, few))} test images" if few else "every test image"
    note = f"Over all shifts up to the largest, and {images}. Intervals: 95 %, over networks and images."
    return Table(f"{study.title}: against the largest shift", (*names.values(), *own), tuple(rows), (note,))


def certificates_of(study: Study, cells: Cells) -> Table:
    """Return the share of images at every shift up to each radius; see :func:`shiftscope.studies.certified.certified`."""
    return certified(study, cells, _setting_names(study, ("radius", "seeds", "unchanged", "right")))


def _at_radius(measure: str, several: Sequence[Curve], radius: int, count: int) -> Estimate:
    """Return the estimate of a measure at one largest shift from the curves of several networks."""
    means = torch.stack([curve.means[radius] for curve in several])[:, None].double()
    deviations = torch.stack([curve.deviations[radius] for curve in several]).double()
    value = float(means.mean())
    if len(several) == 1:
        return _estimate(value, several[0].intervals[radius], count, 1)
    ends = confidence_interval(value, combine_draws(means + deviations), [variance_component(means)])
    return _estimate(value, ends.clip(*MEASURES[measure].bounds), count, len(several))


def layers(study: Study, cells: Cells) -> Table:
    """Return how each layer of each cell's networks responds to shifts.

    Args:
        study: the study.
        cells: the measured runs of each cell, in the study's order.
    """
    own = ("seeds", "layer", "kind", "channels", "size", "stride", "pixels", *RESPONSES)
    rows, names = [], _setting_names(study, own)
    for settings, runs in zip(study.combinations(), cells, strict=True):
        for number, layer in enumerate(runs[0].record.layers if runs else ()):
            row = _settings(settings, names) | {"seeds": len(runs), "layer": layer.name, "kind": layer.kind}
            row |= {"channels": layer.channels, "size": "x".join(map(str, layer.size)) if layer.factor else ""}
            row |= {"stride": layer.stride[0], "pixels": layer.factor[0] if layer.factor else None}
            rows.append(row | {name: _response(name, number, runs) for name in RESPONSES})
    images = max((row[name].count for row in rows for name in RESPONSES if row[name] is not None), default=0)
    notes = (
        f"Over the first {images} test images, each under one random shift. Intervals: 95 %, over networks and "
        "images. The response to an empty canvas is subtracted from each map first.",
        *(f"{heading(name)}: {MEASURES[name].sentence}" for name in RESPONSES),
    )
    return Table(f"{study.title}: layer by layer", (*names.values(), *own), tuple(rows), notes)


def _response(measure: str, layer: int, runs: Sequence[Finished]) -> Estimate | None:
    values = [run.responses[layer][measure] for run in runs if measure in run.responses[layer]]
    return MEASURES[measure].estimate_over_seeds(torch.stack(values)) if values else None


def gains(study: Study, cells: Cells) -> Table:
    """Return what subsampling gains over factor 1 in each cell, and the homogeneity of the maps it subsamples.

    Args:
        study: the study.
        cells: the measured runs of each cell, in the study's order; only cells with runs at their factor and at factor 1 have a
            row.
    """
    combinations = study.combinations()
    at_factor_1 = {
        _without_factor(each): number for number, each in enumerate(combinations) if each.get(FACTOR) == 1 and cells[number]
    }
    rows = []
    for number, (settings, runs) in enumerate(zip(combinations, cells, strict=True)):
        base = at_factor_1.get(_without_factor(settings))
        if base is None or base == number or not runs or not all("homogeneity" in run.values for run in runs):
            continue
        homogeneity = torch.stack([run.values["homogeneity"] for run in runs])
        row = _settings(settings) | {"homogeneity": MEASURES["homogeneity"].estimate_over_seeds(homogeneity)}
        rows.append(row | {"gain": _gain((runs, number + 1), (cells[base], base + 1))})
    note = (
        f"gain: {heading('mcs')} minus that of the same network at factor 1; {heading('homogeneity')}: the mean over the "
        "network's subsampling layers, of the maps that they subsample."
    )
    columns = (*map(short, study.axes()), "homogeneity", "gain")
    return Table(f"{study.title}: homogeneity and gain", columns, tuple(rows), (note,))


def _gain(ours: tuple[Sequence[Finished], int], base: tuple[Sequence[Finished], int]) -> Estimate:
    """Return the difference in mean cosine similarity of two cells, each given by its runs and its number for the bootstrap."""
    (values, group), (others, other_group) = ((torch.stack([run.values["mcs"] for run in runs]), n) for runs, n in (ours, base))
    value = float(values.double().mean() - others.double().mean())
    draws = bootstrap(values, group=group) - bootstrap(others, group=other_group)
    ends = confidence_interval(value, draws, [variance_component(values), variance_component(others)])
    return _estimate(value, ends, values.shape[1], min(len(values), len(others)))


def _estimate(value: float, ends: Any, count: int, seeds: int) -> Estimate:
    return Estimate(value, min(float(ends[0]), value), max(float(ends[1]), value), count=count, seeds=seeds)


def _measured(runs: Sequence[Finished]) -> list[Finished]:
    """Return the runs whose training did not diverge."""
    return [run for run in runs if run.record.training.status != "diverged"]


def _settings(settings: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a cell's settings by column, as text or numbers."""
    return {names[path] if names else short(path): _plain(value) for path, value in settings.items()}


def _setting_names(study: Study, taken: Sequence[str]) -> dict[str, str]:
    """Return the columns of a study's settings by path; a setting whose short name is taken keeps its path."""
    return {path: path if short(path) in taken else short(path) for path in study.axes()}


def _without_factor(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(_plain(value) for path, value in settings.items() if path != FACTOR)


def _plain(value: Any) -> str | int | float:
    return value if isinstance(value, str | int | float) else str(value)


def _numbers(runs: Sequence[Finished]) -> dict[str, Any]:
    """Return the estimates of a cell from its measured runs."""
    if not runs:
        return {"seeds": 0}
    return {
        "seeds": len(runs),
        "train_accuracy": min(run.record.training.train_accuracy for run in runs),
        **(_of_one(runs[0]) if len(runs) == 1 else _over_seeds(runs)),
    }


def _of_one(run: Finished) -> dict[str, Estimate]:
    """Return the record's estimates (from values in full precision) of the measures that have values."""
    return {name: result for name, result in run.record.results.items() if name in run.values}


def _over_seeds(runs: Sequence[Finished]) -> dict[str, Estimate]:
    """Return estimates over several networks of the measures that all of their records have."""
    return {
        name: MEASURES[name].estimate_over_seeds(torch.stack([run.values[name] for run in runs]))
        for name in OUTPUT_MEASURES
        if all(name in run.values for run in runs)
    }


def _notes(study: Study, records: Sequence[Record], labels: Mapping[str, str], printed: Sequence[str]) -> Iterator[str]:
    """Yield the sentences that a reader of a study's main table needs.

    Args:
        study: the study.
        records: of its finished runs.
        labels: of runs, by their ids.
        printed: columns of the source's numbers.
    """
    if not records:
        return
    measured = [record for record in records if record.training.status != "diverged"] or records
    images, shown = max(map(_tested, measured)), min(map(_at_every_shift, measured))
    fewest, most = _networks_per_row(records)
    networks = f"{fewest} to {most}" if fewest < most else str(most)
    over = f"{images} test images, one network in each row"
    if most > 1:
        over = f"{networks} trained networks in each row and {images} test images"
    one_shift, every_shift = (", ".join(f"'{heading(name)}'" for name in names) for names in (ONE_SHIFT, EVERY_SHIFT))
    which = "each image" if shown == images else f"a sample of {shown} images, each"
    yield (
        f"Intervals: 95 %, over {over}. '{heading('train_accuracy')}': of the worst network of the row. {one_shift}: "
        f"each image under one random shift. {every_shift}: {which} under every shift up to the largest."
    )
    if fewest == 1:
        where = "One seed" if most == 1 else "One seed in some rows"
        yield f"{where}: the intervals do not say how much another training would differ."
    if study.source and printed:
        yield f"source: as printed, {study.source.title}."
    if cut := max(record.cut for record in records):
        yield f"The largest shifts exceed the margin of the canvas: they cut content from {cut:.1%} of the test images."
    yield from _notes_on_overrides(study)
    yield from _note_on_missing(study, len(records))
    yield from _notes_on_targets(records, labels)


def _tested(record: Record) -> int:
    """Return the number of test images."""
    return max((each.count for each in record.results.values()), default=0)


def _at_every_shift(record: Record) -> int:
    """Return the number of test images that see every shift."""
    return record.results[EVERY_SHIFT[0]].count if EVERY_SHIFT[0] in record.results else _tested(record)


def _notes_on_overrides(study: Study) -> Iterator[str]:
    """Yield a sentence for each override with the settings of its cells, without those that a later one replaces."""
    for each in study.overrides:
        ours = [study.overridden(settings) for settings in study.combinations() if each.holds(settings)]
        kept = {path: value for path, value in each.settings.items() if all(own[path] == value for own in ours)}
        if ours and kept:
            cells = ", ".join(f"{heading(short(path))} {' or '.join(map(str, values))}" for path, values in each.of.items())
            yield f"At {cells}: {', '.join(f'{heading(short(path))} {value}' for path, value in kept.items())}."


def _notes_on_targets(records: Sequence[Record], labels: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each training that missed its target, or for the worst of many."""
    missed = sorted((record for record in records if record.training.status != "reached"), key=_train_accuracy)
    if more := missed[NAMED:]:
        yield (
            f"{len(missed)} of {len(records)} trainings missed their target. The notes name the {NAMED} worst; the others have "
            f"{_train_accuracy(more[0]):.2%} of the training images correct or more."
        )
    for record in missed[:NAMED]:
        yield f"{labels[record.id]}: {record.training.sentence}"


def _networks_per_row(records: Sequence[Record]) -> tuple[int, int]:
    """Return the smallest and the largest number of measured networks in a row that has any."""
    specs = [record.spec for record in records if record.training.status != "diverged"]
    rows = Counter(spec.model_copy(update={"seed": 0}) for spec in specs)
    return min(rows.values(), default=0), max(rows.values(), default=0)


def _train_accuracy(record: Record) -> float:
    return record.training.train_accuracy


def _provenance(records: Sequence[Record]) -> dict[str, str]:
    """Return the records' provenance: each distinct value, the first start, and the time that all runs took."""
    if not records:
        return {}
    seconds = sum(float(record.provenance["seconds"]) for record in records)
    return {
        **joined([record.provenance for record in records]),
        "started": min(record.provenance["started"] for record in records),
        "seconds": f"{seconds:.1f} over {len(records)} runs",
    }
