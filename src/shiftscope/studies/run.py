"""Runs: networks trained, measured and written whole. It knows no study.

A run's folder holds a record only when the run is finished. A record of an older form is measured anew from its kept weights. A
long training is put down there on its way, and goes on from there when it was interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch

from shiftscope.datasets.dataset import Dataset
from shiftscope.datasets.sources import Labelled
from shiftscope.models.family import Network, Normalise, build
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.provenance import joined, provenance
from shiftscope.runtime.seeds import stream
from shiftscope.studies import records
from shiftscope.studies.measuring import MEASURES, Measured, measured
from shiftscope.studies.records import Finished, Outcome, Record
from shiftscope.studies.spec import Run
from shiftscope.training import pools
from shiftscope.training.checkpoint import Checkpoint
from shiftscope.training.loop import Training, evaluate, train, worth_compiling
from shiftscope.training.stacking import train_together

__all__ = ["Piece", "execute"]


@dataclass(frozen=True)
class Piece:
    """A run to be done.

    Attributes:
        run: its specification.
        name: its content id.
        folder: that is or becomes its own.
        lasting: whether the folder outlives the process, so that a training on its way is worth keeping there.
    """

    run: Run
    name: str
    folder: Path
    lasting: bool = True

    def checkpoint(self, made_by: Mapping[str, str] | None = None) -> Checkpoint:
        """Keeps its training on its way; ``made_by`` says what is at work."""
        return Checkpoint(self.folder / "checkpoint.safetensors", made_by=made_by)


def execute(pieces: Sequence[Piece], data: Dataset, device: torch.device | str, report: Report = silent) -> list[Finished]:
    """Train, measure and write runs; or measure what records of an older form have trained.

    Args:
        pieces: one run, or several that differ in their seeds only, which are then trained together.
        data: their images.
        device: where to compute.
        report: called with each event.
    """
    networks = [_network(piece.run, data) for piece in pieces]
    known = [_known(piece, network, device) for piece, network in zip(pieces, networks, strict=True)]
    fresh = [number for number, found in enumerate(known) if found is None]
    trained = _trained([pieces[number] for number in fresh], [networks[number] for number in fresh], data, device, report)
    for number, made in zip(fresh, trained, strict=True):
        known[number] = made
    return [
        _finished(piece, network, found, data, device, report)
        for piece, network, found in zip(pieces, networks, known, strict=True)
        if found is not None
    ]


#: How a network was trained, and what did it.
Origin = tuple[Outcome, dict[str, str]]


def _known(piece: Piece, network: Network, device: torch.device | str) -> Origin | None:
    """Put what an older record has trained into the network; None where there is none."""
    kept = records.read_training(piece.folder)
    if kept is None:
        return None
    older, weights = kept
    network.load_state_dict(weights)
    network.to(device)
    code = f"{version('shiftscope')} at {provenance(device)['commit']}"
    return older.training, {**older.provenance, "measured_with": code}


def _trained(
    pieces: Sequence[Piece], networks: Sequence[Network], data: Dataset, device: torch.device | str, report: Report
) -> list[Origin]:
    """Train networks in place and write their weights."""
    if not pieces:
        return []
    started, clock = datetime.now(UTC), perf_counter()
    recipe, seeds, parts = pieces[0].run.training, [piece.run.seed for piece in pieces], (data.train, data.validation)
    compiled = len(pieces) == 1 and worth_compiling(recipe, len(data.train), device)
    made_by = {**provenance(device), "numba": (pools.numba_version() if compiled else None) or "not used"}
    checkpoint = pieces[0].checkpoint(made_by)
    if len(pieces) == 1:
        saved = checkpoint if pieces[0].lasting else None
        place = data.canvas.place
        trainings = [
            train(networks[0], parts, recipe, place=place, seed=seeds[0], device=device, report=report, checkpoint=saved)
        ]
    else:
        trainings = train_together(networks, parts, recipe, place=data.canvas.place, seeds=seeds, device=device, report=report)
    outcomes = [
        Outcome(
            status=training.status,
            sentence=training.sentence,
            kept=training.best_epoch,
            epochs=len(training.epochs),
            train_accuracy=_train_accuracy(network, data, training, device, report),
        )
        for network, training in zip(networks, trainings, strict=True)
    ]
    for piece, network, training in zip(pieces, networks, trainings, strict=True):
        records.write_training(piece.folder, training, network.state_dict())
    seconds = perf_counter() - clock + sum(epoch.seconds for each in trainings for epoch in each.epochs[: each.resumed_after])
    origin = {
        **joined([*checkpoint.sessions, made_by]),
        "data": data.origin,
        "data_sha256": data.checksum,
        "started": started.isoformat(timespec="seconds"),
        "seconds": f"{seconds / len(pieces):.1f}",
        **({"trained_together": str(len(pieces))} if len(pieces) > 1 else {}),
        **({"taken_up_after_epoch": str(trainings[0].resumed_after)} if trainings[0].resumed_after else {}),
    }
    return [(outcome, origin) for outcome in outcomes]


def _finished(
    piece: Piece, network: Network, found: Origin, data: Dataset, device: torch.device | str, report: Report
) -> Finished:
    """Measure a trained network and write its record."""
    outcome, origin = found
    seen = Measured()
    if outcome.status != "diverged":
        seen = measured(piece.run.measure, network, data, device=device, report=report)
    record = Record(
        schema_version=records.RECORD_VERSION,
        id=piece.name,
        spec=piece.run.model_copy(update={"network": network.spec}),
        training=outcome,
        results={name: measure.of_one(seen.values[name]) for name, measure in MEASURES.items() if name in seen.values},
        cut=seen.cut,
        layers=seen.layers,
        provenance=origin,
    )
    finished = Finished(record, seen.values, seen.maps, seen.curves, seen.responses)
    records.write(piece.folder, finished)
    piece.checkpoint().remove()
    return finished


def _network(run: Run, data: Dataset) -> Network:
    """The run's network with its seed's weights and the training images' normalisation."""
    spec = run.network.model_copy(update={"input_channels": data.train.images.shape[1], "classes": len(data.classes)})
    network = build(spec, generator=stream(run.seed, "weights"))
    if isinstance(network.normalise, Normalise):
        network.normalise.mean.copy_(data.mean)
        network.normalise.deviation.copy_(data.deviation)
    return network


def _train_accuracy(network: Network, data: Dataset, training: Training, device: torch.device | str, report: Report) -> float:
    """The kept network's, which the training has asked already where it reached its target."""
    known = next((epoch.train_accuracy for epoch in training.epochs if epoch.epoch == training.best_epoch), None)
    if known is not None:
        return known
    report(Stage("asking for every training image", 0, len(data.train)))
    images = Labelled(data.train.images.to(device), data.train.labels.to(device))
    return evaluate(network, images, place=data.canvas.place)[0]
