"""One run: a network trained, measured and written whole. It knows no study.

A run's folder holds a record only when the run is finished. A record of an older form is measured anew from its kept weights.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch

from shiftscope.lab import records
from shiftscope.lab.data import Dataset
from shiftscope.lab.measuring import MEASURES, Loading, Measured, measured
from shiftscope.lab.networks import Network, Normalise, build
from shiftscope.lab.records import Finished, Outcome, Record
from shiftscope.lab.seeds import stream
from shiftscope.lab.studies import Run
from shiftscope.lab.training import Epoch, Step, Training, evaluate, train

__all__ = ["Report", "execute"]

Report = Callable[[Loading | Step | Epoch], None]


def execute(run: Run, name: str, data: Dataset, folder: Path, device: torch.device | str, report: Report) -> Finished:
    """Train, measure and write one run; or measure what a record of an older form has trained.

    Args:
        run: its specification.
        name: its content id.
        data: its images.
        folder: where it is written.
        device: where to compute.
        report: told how it goes.
    """
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
    found = measured(run.measure, network, data, device=device, report=report) if outcome.status != "diverged" else Measured()
    record = Record(
        schema_version=records.RECORD_VERSION,
        id=name,
        spec=run.model_copy(update={"network": network.spec}),
        training=outcome,
        results={name: measure.of_one(found.values[name]) for name, measure in MEASURES.items() if name in found.values},
        cut=found.cut,
        layers=found.layers,
        provenance=origin,
    )
    finished = Finished(record, found.values, found.maps, found.curves, found.responses)
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
