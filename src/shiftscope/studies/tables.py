"""Build a study's tables from its records alone, so that a resumed study gives those of an uninterrupted one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from shiftscope.estimates import Estimate, bootstrap, combine_draws, confidence_interval, variance_component
from shiftscope.measures import MEASURES
from shiftscope.runtime.files import write_text
from shiftscope.runtime.provenance import joined
from shiftscope.studies.measuring import CURVES, RESPONSES
from shiftscope.studies.measuring import MEASURES as OF_OUTPUTS
from shiftscope.studies.records import Finished, Record
from shiftscope.studies.spec import Study, short
from shiftscope.tables import Table

FACTOR = "network.factor"
#: So many trainings that missed their target are named below a table.
NAMED = 6
__all__ = ["curves", "gains", "layers", "summarise", "table_of"]


def summarise(study: Study, cells: list[list[Finished]], out: Path) -> Table:
    """Write a study's tables: ``table``, ``curves`` over the largest shift, and every layer's responses in ``layers``.

    Args:
        study: whose cells these are, in its order.
        cells: the finished runs of each.
        out: the study's folder.

    Returns:
        the first of them.
    """
    sound = [[run for run in runs if run.record.training.status != "diverged"] for runs in cells]
    table = table_of(study, cells)
    for name, each in (("table", table), ("curves", curves(study, sound)), ("layers", layers(study, sound))):
        write_text(out / f"{name}.csv", each.to_csv())
        write_text(out / f"{name}.md", each.to_markdown())
    return table


def table_of(study: Study, cells: list[list[Finished]]) -> Table:
    """A row a cell, whatever of it is there: a cell without runs has empty places, and so has a measure that no record holds.

    Args:
        study: whose cells these are, in its order.
        cells: the finished runs of each.
    """
    settings = study.combinations()
    printed = [study.source_numbers(combination) for combination in settings]
    extra = sorted({f"source_{name}" for row in printed for name in row})
    rows = [
        {
            **{short(path): _cell(value) for path, value in combination.items()},
            **_numbers(runs),
            **{f"source_{name}": value for name, value in numbers.items()},
        }
        for combination, runs, numbers in zip(settings, cells, printed, strict=True)
    ]
    columns = (*(short(path) for path in study.axes()), "seeds", "train_accuracy", *OF_OUTPUTS, *extra)
    every = [run.record for runs in cells for run in runs]
    return Table(study.title, columns, tuple(rows), _notes(study, every), _origin(every))


def curves(study: Study, cells: list[list[Finished]]) -> Table:
    """MCS and top-1 change of each cell against the largest shift, from the shifts that were all measured.

    Args:
        study: whose cells these are, in its order.
        cells: the finished runs of each, without those that diverged.
    """
    own = ("max_shift", "seeds", *CURVES)
    rows, names = [], _names(study, own)
    for settings, runs in zip(study.combinations(), cells, strict=True):
        found = {name: torch.stack([run.curves[name].means for run in runs]) for name in CURVES} if runs else {}
        draws = {name: torch.stack([run.curves[name].deviations for run in runs]) for name in found}
        for radius in range(len(found["mcs"][0]) if found else 0):
            row: dict[str, Any] = {names[path]: _cell(value) for path, value in settings.items()}
            row |= {"max_shift": radius, "seeds": len(runs)}
            for name in CURVES:
                means = found[name][:, radius, None]
                value, drawn = float(means.double().mean()), means.double() + draws[name][:, radius].double()
                low, high = confidence_interval(value, combine_draws(drawn), [variance_component(means)]).clip(
                    *MEASURES[name].bounds
                )
                count = next(iter(runs[0].record.results.values())).count
                row[name] = _estimate(value, (low, high), count, len(runs))
            rows.append(row)
    note = "Over all shifts up to the largest, of every test image. In brackets: 95 % intervals over networks and images."
    return Table(f"{study.title}: against the largest shift", (*names.values(), *own), tuple(rows), (note,))


def _names(study: Study, own: tuple[str, ...]) -> dict[str, str]:
    """What the settings that cells have are called in a table with columns of its own, by path."""
    return {path: path if short(path) in own else short(path) for path in study.axes()}


def _estimate(value: float, ends: tuple[float, float], count: int, seeds: int) -> Estimate:
    return Estimate(value, min(float(ends[0]), value), max(float(ends[1]), value), count=count, seeds=seeds)


def layers(study: Study, cells: list[list[Finished]]) -> Table:
    """What shifts did to each layer's maps, of each cell.

    Args:
        study: whose cells these are, in its order.
        cells: the finished runs of each, without those that diverged.
    """
    own = ("seeds", "layer", "kind", "channels", "size", "stride", "pixels", *RESPONSES)
    rows, images, names = [], 0, _names(study, own)
    for settings, runs in zip(study.combinations(), cells, strict=True):
        for number, layer in enumerate(runs[0].record.layers if runs else ()):
            row: dict[str, Any] = {names[path]: _cell(value) for path, value in settings.items()}
            row |= {"seeds": len(runs), "layer": layer.name, "kind": layer.kind, "channels": layer.channels}
            row |= {"size": "x".join(map(str, layer.size)) if layer.factor else "", "stride": layer.stride[0]}
            row["pixels"] = layer.factor[0] if layer.factor else None
            for name in RESPONSES:
                values = [run.responses[number][name] for run in runs if name in run.responses[number]]
                row[name] = MEASURES[name].estimate_over_seeds(torch.stack(values)) if values else None
                images = max(images, len(values[0]) if values else 0)
            rows.append(row)
    notes = (
        f"Of the first {images} test images, each under its own shift. In brackets: 95 % intervals over networks and images.",
        "similarity: the largest cosine over all displacements of the map, less what an empty canvas gives; movement: where it "
        "is reached, in the map's positions and in pixels; in_place: the cosine without displacement; homogeneity: of the map in "
        "front of a subsampling, at its stride; homogeneity_pooled: of what its window makes of that map.",
    )
    return Table(f"{study.title}: layer by layer", (*names.values(), *own), tuple(rows), notes)


def gains(study: Study, cells: list[list[Finished]]) -> Table:
    """What subsampling gains over factor 1, beside the homogeneity of what it subsamples, of each cell that has both.

    Args:
        study: whose cells these are, in its order.
        cells: the finished runs of each, without those that diverged.
    """
    settings = study.combinations()
    dense = {_others(each): number for number, each in enumerate(settings) if each.get(FACTOR) == 1 and cells[number]}
    rows = []
    for number, (each, runs) in enumerate(zip(settings, cells, strict=True)):
        base = dense.get(_others(each))
        if base is None or base == number or not runs or not all("homogeneity" in run.values for run in runs):
            continue
        ours, theirs = (torch.stack([run.values["mcs"] for run in several]) for several in (runs, cells[base]))
        value = float(ours.double().mean() - theirs.double().mean())
        draws = bootstrap(ours, group=number + 1) - bootstrap(theirs, group=base + 1)
        low, high = confidence_interval(value, draws, [variance_component(ours), variance_component(theirs)])
        row: dict[str, Any] = {short(path): _cell(value) for path, value in each.items()}
        row["homogeneity"] = MEASURES["homogeneity"].estimate_over_seeds(torch.stack([run.values["homogeneity"] for run in runs]))
        row["gain"] = _estimate(value, (low, high), ours.shape[1], len(runs))
        rows.append(row)
    note = (
        "gain: MCS less that of the same network at factor 1; homogeneity: the mean over its subsampling layers, of what they "
        "subsample."
    )
    columns = (*(short(path) for path in study.axes()), "homogeneity", "gain")
    return Table(f"{study.title}: homogeneity and gain", columns, tuple(rows), (note,))


def _others(settings: dict[str, Any]) -> tuple[Any, ...]:
    """All settings of a cell but its factor."""
    return tuple(_cell(value) for path, value in settings.items() if path != FACTOR)


def _numbers(runs: list[Finished]) -> dict[str, Any]:
    """A cell's estimates, over the runs that did not diverge."""
    sound = [run for run in runs if run.record.training.status != "diverged"]
    numbers: dict[str, Any] = {"seeds": len(sound)}
    if sound:
        numbers["train_accuracy"] = min(run.record.training.train_accuracy for run in sound)
        held = set.intersection(*(set(run.values) for run in sound))
        for name in OF_OUTPUTS:
            if name in held:
                numbers[name] = MEASURES[name].estimate_over_seeds(torch.stack([run.values[name] for run in sound]))
    return numbers


def _notes(study: Study, every: list[Record]) -> tuple[str, ...]:
    if not every:
        return ()
    images = max((each.count for record in every for each in record.results.values()), default=0)
    fewest, most = _networks_a_row(every)
    seeds = f"{fewest} to {most}" if fewest < most else str(most)
    over = f"{seeds} trained networks a row and {images} test images" if most > 1 else f"{images} test images, one network a row"
    notes = [
        f"In brackets: 95 % intervals over {over}. train_accuracy: of the worst network of the row. mcs and top1_change: each "
        "image under one random shift; mcs_centred: the same of outputs less their mean over classes; mcs_all_shifts: under "
        "every shift up to the largest; worst_case: right at every one."
    ]
    if fewest == 1:
        where = "One seed" if most == 1 else "One seed in some rows"
        notes.append(f"{where}: the intervals say nothing about how much another training would differ.")
    if study.source and study.source.cells:
        notes.append(f"source_...: as printed, {study.source.title}.")
    if cut := max(record.cut for record in every):
        notes.append(
            f"The largest shifts exceed the margin of the canvas: they cut some content of {cut:.1%} of the test images."
        )
    if lacking := len(study.combinations()) * len(study.seeds) - len(every):
        notes.append(f"Half done: {lacking} of {lacking + len(every)} runs are not finished.")
    missed = sorted((record for record in every if record.training.status != "reached"), key=_train_accuracy)
    if more := missed[NAMED:]:
        notes.append(
            f"{len(missed)} of {len(every)} trainings missed their target. The worst are named here; the other {len(more)} came "
            f"to {_train_accuracy(more[0]):.2%} of the training images and more, as their records tell."
        )
    notes += [f"Run {record.id} (seed {record.spec.seed}): {record.training.sentence}" for record in missed[:NAMED]]
    return tuple(notes)


def _networks_a_row(every: list[Record]) -> tuple[int, int]:
    """The least and the greatest number of networks that a row with any is known from."""
    sound = [record.spec for record in every if record.training.status != "diverged"]
    rows = Counter(spec.model_copy(update={"seed": 0}).model_dump_json() for spec in sound)
    return min(rows.values(), default=0), max(rows.values(), default=0)


def _train_accuracy(record: Record) -> float:
    return record.training.train_accuracy


def _origin(every: list[Record]) -> dict[str, str]:
    """What made the table, from the records: each distinct value, and the time all runs took together."""
    if not every:
        return {}
    origin = joined([record.provenance for record in every])
    origin["started"] = min(record.provenance["started"] for record in every)
    origin["seconds"] = f"{sum(float(record.provenance['seconds']) for record in every):.1f} over {len(every)} runs"
    return origin


def _cell(value: Any) -> str | int | float:
    return value if isinstance(value, str | int | float) else str(value)
