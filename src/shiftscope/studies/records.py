"""A finished run on disk: one folder, named by the run's content id.

- ``record.json``: specification, result and provenance. It is written last, by renaming, and shows that the run is finished.
- ``model.safetensors``: the weights of the best epoch, with the network's specification in the metadata.
- ``history.json``: every epoch of the training, one list per column.
- ``measures.safetensors.xz``: the values of every test image, in fewer bits (:mod:`shiftscope.studies.storage`). Older runs have
  ``measures.safetensors``, which is read as well.

A record of an older version still says how the training ended, so its weights are measured again without training.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from errno import EIO
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from shiftscope.errors import first_line, shortened
from shiftscope.estimates import Estimate, confidence_interval
from shiftscope.measures import MEASURES
from shiftscope.models.family import Network
from shiftscope.models.spec import ModelSpec, save_model
from shiftscope.runtime.files import write_bytes, write_text
from shiftscope.runtime.inputs import read_bytes, read_tensors
from shiftscope.runtime.settings import Count, Spec, Text
from shiftscope.studies.spec import Run
from shiftscope.studies.storage import CURVE, DEVIATIONS, LAYER, pack, unpack
from shiftscope.training.loop import Epoch, Training

__all__ = [
    "Curve",
    "DamagedRecordError",
    "Finished",
    "LayerRecord",
    "Outcome",
    "Record",
    "head",
    "heads",
    "history",
    "load",
    "read",
    "read_finished",
    "read_training",
    "trained_files",
    "write",
    "write_files",
    "write_measures",
    "write_training",
]

#: The version of a record and of what is measured for it.
RECORD_VERSION = 5
RECORD, MODEL, HISTORY, MEASURES_FILE = "record.json", "model.safetensors", "history.json", "measures.safetensors.xz"
#: The measures of runs written before they were packed.
OLDER_MEASURES_FILE = "measures.safetensors"
#: The most layers of a network in a record, the longest name of a measure, and how much of one a message shows.
MOST_LAYERS, LONGEST_NAME = 1000, 60
#: How far a mean in single precision may lie beyond a measure's bounds.
ROUNDING = 1e-5
Name = Annotated[str, Field(max_length=100)]
#: The prefix of the name of a map over shifts in the file, and the end of the name of a curve's intervals. A tensor without a
#: prefix has one value per image.
MAP, INTERVALS = "map.", ".interval"


class Outcome(Spec):
    """How a training ended.

    Attributes:
        status: whether it reached its target accuracy on the training images.
        sentence: the same in words.
        kept: number of the best epoch, whose weights are kept.
        epochs: number of epochs trained.
        train_accuracy: of the kept weights, share of all training images.
    """

    status: Literal["reached", "not reached", "diverged"]
    sentence: Text
    kept: int = Field(ge=0, lt=2**31)
    epochs: int = Field(ge=0, lt=2**31)
    train_accuracy: float


class LayerRecord(Spec):
    """A layer whose responses are kept.

    Attributes:
        name: the layer's name in the model, ``canvas`` or ``output``.
        kind: the kind of layer.
        size: height and width of its map, positions.
        channels: number of channels of its map.
        factor: pixels between neighbouring positions, along height and width; None for a layer without positions.
        stride: of the layer itself, along height and width.
    """

    name: Text
    kind: Text
    size: tuple[Count, Count]
    channels: Count
    factor: tuple[Count, Count] | None
    stride: tuple[Count, Count]


class Record(Spec):
    """A finished run, without its values per image.

    Attributes:
        schema_version: version of the record.
        id: the run's content id.
        spec: everything the run depends on, except the content of its images.
        training: how the training ended.
        results: estimates by measure, with intervals over images; empty if the training diverged.
        cut: share of test images from which the shifts cut content.
        layers: the layers whose responses are kept.
        provenance: code, machine, data and time of the training, and the code that measured if it is another.
    """

    schema_version: int
    id: Text
    spec: Run
    training: Outcome
    results: dict[Name, Estimate]
    cut: float
    layers: tuple[LayerRecord, ...] = Field((), max_length=MOST_LAYERS)
    provenance: dict[Name, Text]

    @field_validator("provenance")
    @classmethod
    def _says_when(cls, provenance: dict[str, str]) -> dict[str, str]:
        """Require what tables add up over runs."""
        if "started" not in provenance or not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", provenance.get("seconds", "")):
            raise ValueError("`provenance` must say when the training started, and its seconds as a number")
        return provenance


@dataclass(frozen=True)
class Curve:
    """A measure's mean over all test images and all shifts, for each largest shift from 0 pixels on.

    Attributes:
        means: for each largest shift.
        deviations: of bootstrap draws from these means, to combine several networks.
        intervals: 95 % interval of each mean over images, low and high.
    """

    means: Float[Tensor, " radius"]
    deviations: Float[Tensor, "radius draw"]
    intervals: Float[Tensor, "radius 2"]

    @classmethod
    def from_draws(cls, measure: str, means: Float[Tensor, " radius"], deviations: Float[Tensor, "radius draw"]) -> Curve:
        """Return the curve of a measure, with the intervals that its draws give.

        Args:
            measure: short name.
            means: for each largest shift.
            deviations: of bootstrap draws from these means.
        """
        rows = zip(means.double(), deviations.double(), strict=True)
        ends = [confidence_interval(float(mean), (mean + row).numpy(), [(0.0, 1)]) for mean, row in rows]
        return cls(means, deviations, torch.from_numpy(np.clip(ends, *MEASURES[measure].bounds)))


@dataclass(frozen=True)
class Finished:
    """A finished run with its values per image.

    Attributes:
        record: the record.
        values: by measure, one value per test image; those of layers for the first images only.
        maps: by measure, the mean of each shift over all images.
        curves: by measure, how its mean changes with the largest shift.
        responses: for each layer of the record, by response, one value for each of the first images.
    """

    record: Record
    values: Mapping[str, Tensor]
    maps: Mapping[str, Tensor]
    curves: Mapping[str, Curve]
    responses: tuple[Mapping[str, Tensor], ...]


def write_training(folder: Path, run: Run, network: Network, training: Training) -> None:
    """Write a trained network and every epoch into a run's folder.

    Args:
        folder: of the run.
        run: its specification.
        network: with the weights of the best epoch.
        training: its history.
    """
    save_model(folder / MODEL, network, ModelSpec(network=network.spec, data=run.data))
    write_text(folder / HISTORY, history(training.epochs))


def history(epochs: Sequence[Epoch]) -> str:
    """Return epochs as JSON, one list per column."""
    rows = [asdict(epoch) for epoch in epochs]
    return json.dumps({name: [row[name] for row in rows] for name in (rows[0] if rows else {})}) + "\n"


def write(folder: Path, finished: Finished) -> None:
    """Write a run's measures and, last, its record into its folder."""
    write_measures(folder, finished)
    write_text(folder / RECORD, finished.record.model_dump_json(indent=2) + "\n")


def write_measures(folder: Path, finished: Finished) -> None:
    """Write a run's values per image into its folder, and remove an older file of them.

    Args:
        folder: of the run.
        finished: the run.
    """
    write_bytes(folder / MEASURES_FILE, pack(_named(finished)))
    (folder / OLDER_MEASURES_FILE).unlink(missing_ok=True)


class DamagedRecordError(Exception):
    """A run's record cannot be read; the message names it and says why."""


def load(folder: Path) -> Finished | None:
    """Return the finished run in a folder; None if there is no record, or one of an older version.

    Raises:
        DamagedRecordError: the record, or the tensors beside it, cannot be read.
    """
    if not (folder / RECORD).exists():
        return None
    try:
        record = _record(folder)
        if record.id != folder.name:
            raise ValueError("it belongs to another run")
        if record.schema_version != RECORD_VERSION:
            return None
        return Finished(record, **_parts(_tensors(folder) if record.results else {}, record))
    except Exception as error:  # whatever the libraries raise that read it
        known = isinstance(error, ValueError | OSError) and not isinstance(error, ValidationError)
        reason = first_line(error) if known else "not a complete record"
        raise DamagedRecordError(f"{folder / RECORD} is damaged ({reason})") from error


def read(folder: Path) -> Finished | None:
    """Return the finished run in a folder as :func:`load` does; None, with a warning, if its record is damaged."""
    try:
        return load(folder)
    except DamagedRecordError as error:
        warnings.warn(f"{error}; the run is computed again.", stacklevel=2)
        return None


def head(folder: Path) -> Record | None:
    """Return the record in a folder, of whatever version, without its tensors; None if there is none, or it is damaged."""
    try:
        return _record(folder)
    except (ValueError, OSError):
        return None


def _record(folder: Path) -> Record:
    """Return the record in a run's folder.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a record.
    """
    return Record.model_validate_json(read_bytes(folder / RECORD))


def heads(runs: Path) -> Iterator[Record]:
    """Return every record in a folder of runs, of whatever version, without the damaged ones.

    Args:
        runs: the folder that holds one folder per run.
    """
    for path in sorted(runs.glob(f"*/{RECORD}")):
        if (record := head(path.parent)) is not None:
            yield record


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a run by their names in the file.

    Raises:
        OSError: there is no file of measures.
        ValueError: it is damaged.
    """
    if (folder / MEASURES_FILE).exists() or not (folder / OLDER_MEASURES_FILE).exists():
        return unpack(read_bytes(folder / MEASURES_FILE))
    return read_tensors(folder / OLDER_MEASURES_FILE)[0]


def _named(finished: Finished) -> dict[str, Tensor]:
    """Return a run's tensors by their names in the file."""
    tensors = {**finished.values, **{f"{MAP}{name}": values for name, values in finished.maps.items()}}
    for name, curve in finished.curves.items():
        parts = {"": curve.means, DEVIATIONS: curve.deviations, INTERVALS: curve.intervals}
        tensors |= {f"{CURVE}{name}{part}": values for part, values in parts.items()}
    for number, responses in enumerate(finished.responses):
        tensors |= {f"{LAYER}{number}.{name}": values for name, values in responses.items()}
    return tensors


def _parts(tensors: Mapping[str, Tensor], record: Record) -> dict[str, Any]:
    """Return the fields of a finished run from the tensors of its file; the inverse of :func:`_named`.

    Raises:
        ValueError: a tensor is of another shape or type than such a field, or its name is of no measure or layer.
    """
    values, maps, curves = {}, {}, {}
    responses: tuple[dict[str, Tensor], ...] = tuple({} for _ in record.layers)
    for name, tensor in tensors.items():
        if name.startswith(MAP):
            maps[_measure(name, MAP)] = _numbers(name, tensor)
        elif name.startswith(LAYER):
            number, _, response = name.removeprefix(LAYER).partition(".")
            if not number.isdecimal() or int(number[:9]) >= len(responses):
                raise ValueError(f"its responses {shortened(name, LONGEST_NAME)!r} belong to no layer")
            responses[int(number)][response] = _numbers(name, tensor)
        elif not name.startswith(CURVE):
            values[_measure(name)] = _numbers(name, tensor)
        elif not name.endswith((DEVIATIONS, INTERVALS)):
            measure = _measure(name, CURVE)
            curves[measure] = _curve(measure, tensor, tensors.get(f"{name}{DEVIATIONS}"), tensors.get(f"{name}{INTERVALS}"))
    for name, estimate in record.results.items():
        if name not in values or len(values[name]) != estimate.count:
            raise ValueError(f"its {shortened(name, LONGEST_NAME)!r} are not {estimate.count} values")
        low, high = MEASURES[name].bounds
        lowest, highest = min(estimate.low, estimate.value), max(estimate.high, estimate.value)
        if not low - ROUNDING <= lowest <= highest <= high + ROUNDING:
            raise ValueError(f"its {shortened(name, LONGEST_NAME)!r} lies beyond {low:g} to {high:g}")
    return {"values": values, "maps": maps, "curves": curves, "responses": responses}


def _measure(name: str, prefix: str = "") -> str:
    """Return the measure of a tensor by its name."""
    measure = name.removeprefix(prefix)
    if measure not in MEASURES:
        raise ValueError(f"{shortened(measure, LONGEST_NAME)!r} is not a known measure")
    return measure


def _numbers(name: str, tensor: Tensor, *shape: int) -> Tensor:
    """Return the tensor, if it is a non-empty vector of numbers, or has the given shape."""
    fits = tuple(tensor.shape) == shape if shape else tensor.ndim == 1 and len(tensor) > 0
    if not fits or tensor.is_complex() or bool(tensor.isinf().any()):
        raise ValueError(f"its {shortened(name, LONGEST_NAME)!r} are not the numbers that belong there")
    return tensor


def _curve(measure: str, means: Tensor, deviations: Tensor | None, intervals: Tensor | None) -> Curve:
    """Return a curve; older files have no intervals."""
    name = f"{CURVE}{measure}"
    _numbers(name, means)
    if deviations is None or deviations.ndim != 2:
        raise ValueError(f"its {name!r} have no deviations")
    _numbers(f"{name}{DEVIATIONS}", deviations, len(means), deviations.shape[1])
    if intervals is not None:
        _numbers(f"{name}{INTERVALS}", intervals, len(means), 2)
    return Curve.from_draws(measure, means, deviations) if intervals is None else Curve(means, deviations, intervals)


def read_training(folder: Path) -> tuple[Record, dict[str, Tensor]] | None:
    """Return a record of an older version and the weights beside it, to be measured again; None if either is unusable."""
    try:
        record, (weights, _) = _record(folder), read_tensors(folder / MODEL)
    except (ValueError, OSError):
        return None
    return (record, weights) if record.id == folder.name and record.schema_version < RECORD_VERSION else None


def trained_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a run to be measured again, name -> content; empty if it has to be trained."""
    return {} if read_training(folder) is None else {name: (folder / name).read_bytes() for name in (MODEL, HISTORY, RECORD)}


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a run's files, the record last.

    Args:
        folder: of the run.
        files: name -> content.
    """
    for name in sorted(files, key=lambda name: name == RECORD):
        write_bytes(folder / name, files[name])


def read_finished(folder: Path) -> Finished:
    """Return the finished run in a folder that was just written.

    Raises:
        OSError: it cannot be read.
    """
    finished = read(folder)
    if finished is None:
        raise OSError(EIO, f"{folder} holds no complete record after it was written")
    return finished
