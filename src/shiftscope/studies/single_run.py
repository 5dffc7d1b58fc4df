"""Train, measure and write one run, independent of its study.

A run's folder has a record only once the run is finished. A record of an older version is measured again from its weights. A long
training saves checkpoints in the folder and resumes from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch

from shiftscope.datasets.dataset import Dataset
from shiftscope.datasets.sources import Labelled
from shiftscope.measures import MEASURES
from shiftscope.models.family import Network, Normalise, build
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.provenance import joined, provenance
from shiftscope.runtime.seeds import stream
from shiftscope.studies import records
from shiftscope.studies.measuring import OUTPUT_MEASURES, Measurements, measure_network
from shiftscope.studies.records import Finished, Outcome, Record
from shiftscope.studies.spec import Run
from shiftscope.training import pools
from shiftscope.training.checkpoint import Checkpoint
from shiftscope.training.loop import Training, evaluate, train, worth_compiling

__all__ = ["PlannedRun", "execute"]


@dataclass(frozen=True)
class PlannedRun:
    """A run that is not finished yet.

    Attributes:
        spec: its specification.
        id: its content id.
        folder: where its files go.
        resumable: whether to save checkpoints; not worth it in a folder that ends with the process.
    """

    spec: Run
    id: str
    folder: Path
    resumable: bool = True

    def checkpoint(self, made_by: Mapping[str, str] | None = None) -> Checkpoint:
        """Return the run's checkpoint.

        Args:
            made_by: provenance of this session.
        """
        return Checkpoint(self.folder / "checkpoint.safetensors", made_by=made_by)


def execute(planned: PlannedRun, data: Dataset, device: torch.device | str, report: Report = silent) -> Finished:
    """Train and measure a run, or measure the weights of an older record again; write everything.

    Args:
        planned: the run.
        data: its images.
        device: where to compute.
        report: called with each event.

    Returns:
        The run as its folder now holds it.

    Raises:
        OSError: a file cannot be written.
    """
    network = _untrained(planned.spec, data)
    outcome, made_by = _restored(planned, network, device) or _trained(planned, network, data, device, report)
    found = Measurements()
    if outcome.status != "diverged":
        found = measure_network(planned.spec.measure, network, data, device=device, report=report)
    record = Record(
        schema_version=records.RECORD_VERSION,
        id=planned.id,
        spec=planned.spec.model_copy(update={"network": network.spec}),
        training=outcome,
        results={name: MEASURES[name].estimate(found.values[name]) for name in OUTPUT_MEASURES if name in found.values},
        cut=found.cut,
        layers=found.layers,
        provenance=made_by,
    )
    records.write(planned.folder, Finished(record, found.values, found.maps, found.curves, found.responses))
    planned.checkpoint().remove()
    return records.read_finished(planned.folder)


def _untrained(run: Run, data: Dataset) -> Network:
    """Return the run's network with its seed's weights and the training images' normalisation."""
    spec = run.network.model_copy(update={"input_channels": data.train.images.shape[1], "classes": len(data.classes)})
    network = build(spec, generator=stream(run.seed, "weights"))
    if isinstance(network.normalise, Normalise):
        network.normalise.mean.copy_(data.mean)
        network.normalise.deviation.copy_(data.deviation)
    return network


def _restored(planned: PlannedRun, network: Network, device: torch.device | str) -> tuple[Outcome, dict[str, str]] | None:
    """Load the weights of a record of an older version; return its outcome and provenance, or None without such a record."""
    older = records.read_training(planned.folder)
    if older is None:
        return None
    record, weights = older
    network.load_state_dict(weights)
    network.to(device)
    code = f"{version('shiftscope')} at {provenance(device)['commit']}"
    return record.training, {**record.provenance, "measured_with": code}


def _trained(
    planned: PlannedRun, network: Network, data: Dataset, device: torch.device | str, report: Report
) -> tuple[Outcome, dict[str, str]]:
    """Train a network in place and write its weights; return how that ended, and its provenance."""
    started, clock = datetime.now(UTC), perf_counter()
    recipe = planned.spec.training
    compiled = pools.numba_version() if worth_compiling(recipe, len(data.train), device) else None
    session = {**provenance(device), "numba": compiled or "not used"}
    checkpoint = planned.checkpoint(session)
    training = train(
        network,
        (data.train, data.validation),
        recipe,
        place=data.canvas.place,
        seed=planned.spec.seed,
        device=device,
        report=report,
        checkpoint=checkpoint if planned.resumable else None,
    )
    outcome = Outcome(
        status=training.status,
        sentence=training.sentence,
        kept=training.best_epoch,
        epochs=len(training.epochs),
        train_accuracy=_train_accuracy(network, data, training, device, report),
    )
    records.write_training(planned.folder, planned.spec, network, training)
    earlier = training.epochs[: training.resumed_after]
    return outcome, {
        **joined([*checkpoint.sessions, session]),
        "data": data.origin,
        "data_sha256": data.checksum,
        "started": started.isoformat(timespec="seconds"),
        "seconds": f"{perf_counter() - clock + sum(epoch.seconds for epoch in earlier):.1f}",
        # The field keeps its name because tables join the provenance of old and new records.
        **({"taken_up_after_epoch": str(training.resumed_after)} if training.resumed_after else {}),
    }


def _train_accuracy(network: Network, data: Dataset, training: Training, device: torch.device | str, report: Report) -> float:
    """Return the kept network's accuracy on all training images, which a training that reached its target has measured."""
    known = next((epoch.train_accuracy for epoch in training.epochs if epoch.epoch == training.best_epoch), None)
    if known is not None:
        return known
    report(Stage("classifying every training image", 0, len(data.train)))
    images = Labelled(data.train.images.to(device), data.train.labels.to(device))
    return evaluate(network, images, place=data.canvas.place)[0]
