"""Runs a study: each run trained, measured and put on disk, finished ones skipped; then the table over all of them.

Killing it at any moment and starting it again loses at most the run in flight: a run's folder holds a record only when the
run is finished, and the table is made from the records alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from shiftscope import figures, measures, protocols
from shiftscope.errors import InputError
from shiftscope.lab import records
from shiftscope.lab.data import Dataset, load
from shiftscope.lab.files import sweep, write_text, write_whole
from shiftscope.lab.networks import Network, Normalise, build
from shiftscope.lab.records import Finished, Outcome, Record
from shiftscope.lab.seeds import stream
from shiftscope.lab.studies import Cell, Run, Study
from shiftscope.lab.training import Epoch, Step, Training, evaluate, train
from shiftscope.outputs import Outputs, shift_outputs, stream_outputs
from shiftscope.shifts import grid, translate
from shiftscope.surveys import survey
from shiftscope.tables import Table

#: Images whose canvases are handed to the engine at once.
BLOCK = 512

__all__ = ["Loading", "RunEnded", "RunStarted", "run_study"]


@dataclass(frozen=True)
class Loading:
    """Data being read or images being measured: what is going on, and how many of how many images are done (0 where unknown)."""

    sentence: str
    done: int
    of: int


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or was found finished.

    Attributes:
        number, of: its place in the study.
        label: the grid's settings and the seed.
        epochs: what runs so far needed on average, None before the first.
    """

    number: int
    of: int
    label: str
    epochs: float | None


@dataclass(frozen=True)
class RunEnded:
    """A run is on disk; ``found`` says that it was there before."""

    record: Record
    found: bool


Event = Loading | RunStarted | RunEnded | Step | Epoch
Report = Callable[[Event], None]


def run_study(
    study: Study,
    *,
    out: Path,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    report: Report = lambda _: None,
) -> Table:
    """Run what is missing of a study and write its table.

    Args:
        study: what to do.
        out: the study's folder: ``study.json``, ``runs/<content id>/``, ``table.csv`` and ``table.md``.
        data_dir: a local folder that holds the data set (see ``data.load``).
        device: where to train and measure.
        report: told how it goes.

    Returns:
        a row a cell, every number an estimate over seeds and test images.

    Raises:
        InputError: impossible data or shifts, told before anything is written; or a folder that cannot be written.
    """
    cells = study.cells()
    # One seed of every cell before the next seed of any, so that a study stopped half-way has a whole table.
    runs = [(cell, cell.runs[place]) for place in range(len(study.seeds)) for cell in cells]
    specs = dict.fromkeys(run.data for _, run in runs)
    data = {spec: load(spec, data_dir=data_dir, progress=lambda *at: report(Loading(*at))) for spec in specs}
    for _, run in runs:
        _check_margin(run, data[run.data])
    _prepare(out, study)
    finished: dict[str, Finished] = {}
    for number, (cell, run) in enumerate(runs, start=1):
        name = run.content_id(data[run.data].checksum)
        report(RunStarted(number, len(runs), _label(cell, run), _mean_epochs(finished)))
        kept = records.read(out / "runs" / name)
        finished[name] = kept or _run(run, name, data[run.data], out / "runs" / name, device, report)
        report(RunEnded(finished[name].record, found=kept is not None))
    table = _table(study, [[finished[run.content_id(data[run.data].checksum)] for run in cell.runs] for cell in cells])
    write_text(out / "table.csv", table.to_csv())
    write_text(out / "table.md", table.to_markdown())
    _draw(study, table, out)
    return table


def _check_margin(run: Run, data: Dataset) -> None:
    margin = data.canvas.margin(data.test.images.shape[2:])
    for name, shift in (("measure.max_shift", run.measure.max_shift), ("training.translate", run.training.translate)):
        if shift > margin and not run.data.allow_cut:
            raise InputError(
                f"`{name}` must be at most {margin}, got {shift}: the canvas of {run.data.canvas} leaves a margin of {margin} "
                f"pixels around the image, and content would be cut. Use a larger `data.canvas`, or set `data.allow_cut`."
            )


def _prepare(out: Path, study: Study) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        sweep(out)
        write_text(out / "study.json", study.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise InputError(f"`out` {out} cannot be written ({error.strerror}). Choose another folder with --out.") from error


def _run(run: Run, name: str, data: Dataset, folder: Path, device: torch.device | str, report: Report) -> Finished:
    """Train, measure and write one run; or measure what a record of an older form has trained."""
    network = _network(run, data)
    known = records.read_training(folder)
    if known is not None:
        older, weights = known
        network.load_state_dict(weights)
        network.to(device)
        outcome = older.training
        origin = {**older.provenance, "measured_with": f"{version('shiftscope')} at {records.provenance(device)['commit']}"}
    else:
        outcome, origin = _trained(run, network, data, folder, device, report)
    values, maps, cut = _measured(run, network, data, device, report) if outcome.status != "diverged" else ({}, {}, 0.0)
    record = Record(
        schema_version=records.RECORD_VERSION,
        id=name,
        spec=run.model_copy(update={"network": network.spec}),
        training=outcome,
        results={measure: MEASURES[measure].of_one(each) for measure, each in values.items()},
        cut=cut,
        provenance=origin,
    )
    finished = Finished(record, values, maps)
    records.write(folder, finished)
    return finished


def _trained(
    run: Run, network: Network, data: Dataset, folder: Path, device: torch.device | str, report: Report
) -> tuple[Outcome, dict[str, str]]:
    """Train a network in place and write its weights; how it ended and what did it."""
    started, clock = datetime.now(UTC), perf_counter()
    training = train(
        network, (data.train, data.validation), run.training, place=data.canvas.place, seed=run.seed, device=device, report=report
    )
    outcome = Outcome(
        status=training.status,
        sentence=training.sentence,
        kept=training.kept,
        epochs=len(training.epochs),
        train_accuracy=_train_accuracy(network, data, training, device),
    )
    records.write_training(folder, training, network.state_dict())
    origin = {
        **records.provenance(device),
        "data": data.origin,
        "data_sha256": data.checksum,
        "started": started.isoformat(timespec="seconds"),
        "seconds": f"{perf_counter() - clock:.1f}",
    }
    return outcome, origin


def _network(run: Run, data: Dataset) -> Network:
    """The run's network with its seed's weights and the training images' normalisation."""
    spec = run.network.model_copy(update={"input_channels": data.train.images.shape[1], "classes": len(data.classes)})
    network = build(spec, generator=stream(run.seed, "weights"))
    if isinstance(network.normalise, Normalise):
        network.normalise.mean.copy_(data.mean)
        network.normalise.deviation.copy_(data.deviation)
    return network


def _train_accuracy(network: Network, data: Dataset, training: Training, device: torch.device | str) -> float:
    """The kept network's, which the training has asked already where it reached its target."""
    known = next((epoch.train_accuracy for epoch in training.epochs if epoch.epoch == training.kept), None)
    if known is not None:
        return known
    return evaluate(
        network, type(data.train)(data.train.images.to(device), data.train.labels.to(device)), place=data.canvas.place
    )[0]


def _measured(
    run: Run, network: Network, data: Dataset, device: torch.device | str, report: Report
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Each measure's value for every test image, its map over shifts, and the share of images of which content was cut.

    Once as the protocol says, each image under its own shift, and once under every shift.
    """
    # One memory format whether the weights come from training or from disk, so that the last bits agree.
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    protocol = protocols.mouton2020(run.measure.max_shift, seed=run.measure.seed)
    shifts = protocol.draw(len(data.test))
    images = data.canvas.place(data.test.images)
    outputs = shift_outputs(network, images, shifts, mode=protocol.mode, fill=data.canvas.colour, device=device)
    every = grid(run.measure.max_shift)
    blocks = stream_outputs(network, images.split(BLOCK), every, mode=protocol.mode, fill=data.canvas.colour, device=device)
    found = survey(_told(blocks, len(images), report), labels=data.test.labels)
    values = {
        "test_accuracy": measures.correct(outputs.reference, data.test.labels),
        "mcs": measures.cosines(outputs),
        "mcs_centred": measures.cosines(measures.centred(outputs)),
        "mcs_all_shifts": found.values["mcs", "all"],
        "top1_change": measures.top1_changes(outputs),
        "worst_case": found.values["worst_case", "all"] > 0,
    }
    content = (images != data.canvas.colour.reshape(-1, 1, 1)).any(dim=1, keepdim=True)
    kept = translate(content, shifts[:, 0]).sum(dim=(1, 2, 3)) == content.sum(dim=(1, 2, 3))
    return values, dict(found.maps), 1 - float(kept.double().mean())


def _told(blocks: Iterator[Outputs], images: int, report: Report) -> Iterator[Outputs]:
    """The blocks, and how far they are."""
    done = 0
    for block in blocks:
        yield block
        done += len(block.reference)
        report(Loading("measuring every shift", done, images))


@dataclass(frozen=True)
class Measure:
    """How the values of test images become an estimate: from one network, and from several."""

    of_one: Callable[[Tensor], measures.Estimate]
    of_several: Callable[[Tensor], measures.Estimate]


def _mean(low: float, high: float) -> Measure:
    bounds = (low, high)
    return Measure(
        lambda values: measures.mean(values, bounds=bounds), lambda values: measures.mean_over_seeds(values, bounds=bounds)
    )


SHARE = Measure(measures.proportion, measures.proportion_over_seeds)
MEASURES = {
    "test_accuracy": SHARE,
    "mcs": _mean(-1.0, 1.0),
    "mcs_centred": _mean(-1.0, 1.0),
    "mcs_all_shifts": _mean(-1.0, 1.0),
    "top1_change": _mean(0.0, 1.0),
    "worst_case": SHARE,
}


def _table(study: Study, cells: list[list[Finished]]) -> Table:
    settings = study.combinations()
    printed = [study.printed(combination) for combination in settings]
    extra = sorted({f"source_{name}" for row in printed for name in row})
    rows = [
        {
            **{_short(path): _cell(value) for path, value in combination.items()},
            **_numbers(runs),
            **{f"source_{name}": value for name, value in numbers.items()},
        }
        for combination, runs, numbers in zip(settings, cells, printed, strict=True)
    ]
    columns = (*(_short(path) for path in study.axes()), "seeds", "train_accuracy", *MEASURES, *extra)
    every = [run.record for runs in cells for run in runs]
    return Table(study.title, columns, tuple(rows), _notes(study, every), _origin(every))


def _draw(study: Study, table: Table, out: Path) -> None:
    """MCS against the setting a study varies; a study of several settings has more than one axis shows, and gets none."""
    if len(study.axes()) == 1 and any("mcs" in row for row in table.rows):
        figure = figures.estimates(table, across=_short(next(iter(study.axes()))), measure="mcs", label="mean cosine similarity")
        for suffix in ("png", "svg"):
            write_whole(out / f"figure.{suffix}", lambda path: figures.save(figure, path))


def _numbers(runs: list[Finished]) -> dict[str, Any]:
    """A cell's estimates, over the runs that did not diverge."""
    sound = [run for run in runs if run.record.training.status != "diverged"]
    numbers: dict[str, Any] = {"seeds": len(sound)}
    if sound:
        numbers["train_accuracy"] = min(run.record.training.train_accuracy for run in sound)
        for name, measure in MEASURES.items():
            numbers[name] = measure.of_several(torch.stack([run.values[name] for run in sound]))
    return numbers


def _notes(study: Study, every: list[Record]) -> tuple[str, ...]:
    seeds, images = len(study.seeds), max((each.count for record in every for each in record.results.values()), default=0)
    over = (
        f"{seeds} trained networks a row and {images} test images"
        if seeds > 1
        else f"{images} test images, one trained network a row"
    )
    notes = [
        f"In brackets: 95 % intervals over {over}. train_accuracy: of the worst network of the row. mcs and top1_change: each "
        "image under one random shift; mcs_centred: the same of outputs less their mean over classes; mcs_all_shifts: under "
        "every shift up to the largest; worst_case: right at every one."
    ]
    if seeds == 1:
        notes.append("One seed: the intervals say nothing about how much another training would differ.")
    if study.source:
        notes.append(f"source_...: as printed, {study.source.title}.")
    if cut := max(record.cut for record in every):
        notes.append(
            f"The largest shifts exceed the margin of the canvas: they cut some content of {cut:.1%} of the test images."
        )
    short = [record for record in every if record.training.status != "reached"]
    notes += [f"Run {record.id} (seed {record.spec.seed}): {record.training.sentence}" for record in short]
    return tuple(notes)


def _origin(every: list[Record]) -> dict[str, str]:
    """What made the table, from the records: each distinct value, and the time all runs took together."""
    names = [name for record in every for name in record.provenance if name not in ("seconds", "started")]
    origin = {
        name: "; ".join(dict.fromkeys(record.provenance.get(name, "-") for record in every)) for name in dict.fromkeys(names)
    }
    origin["started"] = min(record.provenance["started"] for record in every)
    origin["seconds"] = f"{sum(float(record.provenance['seconds']) for record in every):.1f} over {len(every)} runs"
    return origin


def _label(cell: Cell, run: Run) -> str:
    return ", ".join([*(f"{_short(path)} {value}" for path, value in cell.settings.items()), f"seed {run.seed}"])


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _cell(value: Any) -> str | int | float:
    return value if isinstance(value, str | int | float) else str(value)


def _mean_epochs(finished: dict[str, Finished]) -> float | None:
    epochs = [run.record.training.epochs for run in finished.values()]
    return sum(epochs) / len(epochs) if epochs else None
