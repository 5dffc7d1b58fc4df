"""One run: a network trained, measured and written whole. It knows no study.

A run's folder holds a record only when the run is finished. A record of an older form is measured anew from its kept weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from shiftscope import measures, protocols
from shiftscope.lab import records
from shiftscope.lab.data import Dataset
from shiftscope.lab.networks import Network, Normalise, build
from shiftscope.lab.records import Finished, Outcome, Record
from shiftscope.lab.seeds import stream
from shiftscope.lab.studies import Run
from shiftscope.lab.training import Epoch, Step, Training, evaluate, train
from shiftscope.outputs import counted, shift_outputs, stream_outputs
from shiftscope.shifts import grid, translate
from shiftscope.surveys import survey

__all__ = ["MEASURES", "Loading", "Measure", "Report", "execute"]

#: Images whose canvases are handed to the engine at once.
BLOCK = 512


@dataclass(frozen=True)
class Loading:
    """Data being read or images being measured: what is going on, and how many of how many images are done (0 where unknown)."""

    sentence: str
    done: int
    of: int


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
    counting = counted(blocks, lambda done: report(Loading("measuring every shift", done, len(images))))
    found = survey(counting, labels=data.test.labels)
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
