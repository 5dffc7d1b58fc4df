"""A finished run on disk: one folder named by its content id.

``record.json`` is written last, whole or not at all, and is the sign that the run is finished; ``model.safetensors`` (the kept
weights), ``history.json`` (every epoch) and ``measures.safetensors`` (the value of every test image, and maps over shifts) lie
beside it. A record of an older form still tells how the training ended, so that its weights can be measured anew.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from errno import EIO
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor

from shiftscope.estimates import Estimate
from shiftscope.runtime.files import write_bytes, write_tensors, write_text
from shiftscope.runtime.settings import Spec
from shiftscope.studies.measuring import Curve, LayerRecord
from shiftscope.studies.spec import Run
from shiftscope.training.loop import Training

__all__ = [
    "DamagedRecordError",
    "Finished",
    "Outcome",
    "Record",
    "head",
    "heads",
    "kept_files",
    "load",
    "put_files",
    "read",
    "read_training",
    "receive",
    "write",
    "write_training",
]

#: The form of a record and what is measured for it.
RECORD_VERSION = 5
RECORD, MODEL, HISTORY, MEASURES = "record.json", "model.safetensors", "history.json", "measures.safetensors"
#: What the names of tensors begin with in the file: a map over shifts, a curve and its draws, a response of layer 3 as
#: ``layer.3.similarity``; a tensor without such a name has a value of each image.
MAP, CURVE, DEVIATIONS, LAYER = "map.", "curve.", ".draws", "layer."


class Outcome(Spec):
    """How the training ended (see ``training.Training``), and the kept network's accuracy on all training images."""

    status: Literal["reached", "not reached", "diverged"]
    sentence: str
    kept: int
    epochs: int
    train_accuracy: float


class Record(Spec):
    """What is known of a finished run.

    Attributes:
        schema_version: of this form.
        id: the run's content id.
        spec: all it depends on, the data's content apart.
        training: how that ended.
        results: by measure, each with its interval over images; empty where the training diverged.
        cut: share of the test images of which the shifts cut content.
        layers: those whose responses are kept.
        provenance: code, machine, data, time of the training, and the code that measured where that is another.
    """

    schema_version: int
    id: str
    spec: Run
    training: Outcome
    results: dict[str, Estimate]
    cut: float
    layers: tuple[LayerRecord, ...] = ()
    provenance: dict[str, str]


@dataclass(frozen=True)
class Finished:
    """A record and what its estimates come from.

    Attributes:
        record: the record.
        values, maps, curves, responses: as in :class:`shiftscope.studies.measuring.Measured`.
    """

    record: Record
    values: Mapping[str, Tensor]
    maps: Mapping[str, Tensor]
    curves: Mapping[str, Curve]
    responses: tuple[Mapping[str, Tensor], ...]


def write_training(folder: Path, training: Training, weights: Mapping[str, Tensor]) -> None:
    """Put the kept weights and every epoch into a run's folder."""
    write_tensors(folder / MODEL, weights)
    write_text(folder / HISTORY, json.dumps([asdict(epoch) for epoch in training.epochs], indent=1) + "\n")


def write(folder: Path, finished: Finished) -> None:
    """Put measures and, last, the record into a run's folder."""
    write_tensors(folder / MEASURES, _named(finished))
    write_text(folder / RECORD, finished.record.model_dump_json(indent=2) + "\n")


class DamagedRecordError(Exception):
    """A run's record cannot be read; the message names it and says why."""


def load(folder: Path) -> Finished | None:
    """Return the finished run in a folder; None if there is no record, or one of an older version.

    Raises:
        DamagedRecordError: the record, or the tensors beside it, cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / RECORD).exists():
        return None
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
        if record.id != folder.name:
            raise ValueError("it belongs to another run")
        if record.schema_version != RECORD_VERSION:
            return None
        return Finished(record, **_parts(load_file(folder / MEASURES) if record.results else {}, len(record.layers)))
    except (ValidationError, ValueError, OSError, SafetensorError) as error:
        reason = "not a whole record" if isinstance(error, ValidationError) else str(error)
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
        return Record.model_validate_json((folder / RECORD).read_bytes())
    except (ValidationError, OSError):
        return None


def heads(runs: Path) -> Iterator[Record]:
    """Every record in a folder of runs, of whatever form; damaged ones are left out.

    Args:
        runs: that holds a folder a run.
    """
    for path in sorted(runs.glob(f"*/{RECORD}")):
        if (record := head(path.parent)) is not None:
            yield record


def _named(finished: Finished) -> dict[str, Tensor]:
    """Return a run's tensors by their names in the file."""
    tensors = {**finished.values, **{f"{MAP}{name}": values for name, values in finished.maps.items()}}
    for name, curve in finished.curves.items():
        tensors |= {f"{CURVE}{name}": curve.means, f"{CURVE}{name}{DEVIATIONS}": curve.deviations}
    for number, responses in enumerate(finished.responses):
        tensors |= {f"{LAYER}{number}.{name}": values for name, values in responses.items()}
    return tensors


def _parts(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Any]:
    """Return the fields of a finished run from the tensors of its file; the inverse of :func:`_named`."""
    values, maps, curves = {}, {}, {}
    responses: tuple[dict[str, Tensor], ...] = tuple({} for _ in range(layers))
    for name, tensor in tensors.items():
        if name.startswith(MAP):
            maps[name.removeprefix(MAP)] = tensor
        elif name.startswith(LAYER):
            number, _, response = name.removeprefix(LAYER).partition(".")
            responses[int(number)][response] = tensor
        elif not name.startswith(CURVE):
            values[name] = tensor
        elif not name.endswith(DEVIATIONS):
            curves[name.removeprefix(CURVE)] = Curve(tensor, tensors[f"{name}{DEVIATIONS}"])
    return {"values": values, "maps": maps, "curves": curves, "responses": responses}


def read_training(folder: Path) -> tuple[Record, dict[str, Tensor]] | None:
    """The record of an older form and the kept weights, where both are whole; to be measured anew, not trained again."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
        weights = load_file(folder / MODEL)
    except (ValueError, OSError, SafetensorError):
        return None
    return (record, weights) if record.id == folder.name and record.schema_version < RECORD_VERSION else None


def kept_files(folder: Path) -> dict[str, bytes]:
    """The files of a run that is to be measured anew, by name; none where it is to be trained."""
    return {} if read_training(folder) is None else {name: (folder / name).read_bytes() for name in (MODEL, HISTORY, RECORD)}


def put_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a run's files as they came from elsewhere; the record last, like always."""
    for name in sorted(files, key=lambda name: name == RECORD):
        write_bytes(folder / name, files[name])


def receive(folder: Path, files: Mapping[str, bytes]) -> Finished:
    """Write what another machine finished, and read it.

    Raises:
        OSError: it cannot be written, or not be read again.
    """
    put_files(folder, files)
    finished = read(folder)
    if finished is None:
        raise OSError(EIO, f"{folder} holds no whole record after it was written")
    return finished
