"""Read the flicker of videos from its file, ``flicker.json``. The classes below are the file's schema, and check what is read."""

from __future__ import annotations

from math import isclose, nan
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from shiftscope.audits.folder import FLICKER_FILE, is_audit
from shiftscope.audits.reading import EstimateFile
from shiftscope.errors import InputError
from shiftscope.estimates import ALIKE
from shiftscope.measures import MEASURES
from shiftscope.runtime.inputs import parse_json, read_bytes
from shiftscope.runtime.settings import Spec, validation_messages
from shiftscope.videos.flicker import FLICKER_VERSION, Flicker, mean_change

__all__ = ["FlickerFile", "SequenceFile", "is_flicker", "read_flicker"]

#: The most bytes of such a file: tens of millions of frames.
LARGEST = 1 << 30


class SequenceFile(Spec):
    """A video: its name, and the change of each step to the next frame; null where the task defines none."""

    name: str
    changes: Annotated[tuple[float | None, ...], Field(min_length=1)]

    def values(self) -> Tensor:
        """Return the changes [step], NaN where there is none."""
        return torch.tensor([nan if each is None else each for each in self.changes], dtype=torch.float64)


class FlickerFile(Spec):
    """The file ``flicker.json`` of ``audit --frames --out``, and what ``--json`` prints.

    Attributes:
        schema_version: version of this schema.
        summary: the main result in words.
        task: the task that the outputs were read as, with its settings; empty for classes.
        measure: whose change it is.
        estimate: mean over videos of each one's mean change; null if no step has a value.
        sequences: the videos.
        notes: what a reader needs to know.
        provenance: how the numbers were made, name -> value.
        gate: the verdict of ``--fail-if``; only in what ``--json`` prints.
    """

    schema_version: int
    summary: str
    task: str
    measure: str
    estimate: EstimateFile | None
    sequences: Annotated[tuple[SequenceFile, ...], Field(min_length=1)]
    notes: tuple[str, ...]
    provenance: dict[str, str]
    gate: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fits(self) -> FlickerFile:
        if self.measure not in MEASURES:
            raise ValueError(f"there is no measure {self.measure!r}")
        if len({each.name for each in self.sequences}) < len(self.sequences):
            raise ValueError("two videos have one name")
        changes = self.changes()
        low, high = MEASURES[self.measure].change_bounds
        known = torch.cat(changes).nan_to_num(nan=low)
        if bool(((known < low - ALIKE) | (known > high + ALIKE)).any()):
            raise ValueError(f"changes lie within {low:g} and {high:g}")
        if not self._is_mean_of(changes):
            raise ValueError("the estimate is not that of the changes")
        return self

    def _is_mean_of(self, changes: tuple[Tensor, ...]) -> bool:
        found, stored = mean_change(self.measure, changes), self.estimate
        if found is None or stored is None:
            return found is None and stored is None
        value, ends = stored.value, stored.estimate()
        same = value is not None and isclose(value, found.value, rel_tol=ALIKE, abs_tol=ALIKE) and stored.count == found.count
        return same and ends.low <= ends.value <= ends.high

    def changes(self) -> tuple[Tensor, ...]:
        """Return the changes of each video."""
        return tuple(each.values() for each in self.sequences)

    def flicker(self) -> Flicker:
        """Return the flicker."""
        return Flicker(
            changes=self.changes(),
            estimate=None if self.estimate is None else self.estimate.estimate(),
            measure=self.measure,
            task=self.task,
            names=tuple(each.name for each in self.sequences),
            notes=self.notes,
            provenance=self.provenance,
        )


def is_flicker(path: Path) -> bool:
    """Return whether a path is that of ``flicker.json``, or of a folder that holds one and no audit."""
    if path.is_dir():
        return (path / FLICKER_FILE).is_file() and not is_audit(path)
    return path.name == FLICKER_FILE


def read_flicker(path: Path) -> Flicker:
    """Read the flicker of videos from its file, or from the folder that ``shiftscope audit --frames --out`` wrote.

    Args:
        path: of ``flicker.json``, of a file that holds the output of ``shiftscope audit --frames --json``, or of the folder.

    Raises:
        InputError: there is no such file, it holds no flicker, or a later version of shiftscope wrote it.
    """
    file = path / FLICKER_FILE if path.is_dir() else path
    try:
        content = read_bytes(file, limit=LARGEST)
        found = FlickerFile.model_validate_json(content)
    except OSError as error:
        problem = f"{file} cannot be read ({error.strerror or error})."
        raise InputError(problem, f"Give a {FLICKER_FILE}, or the folder given with --out.") from error
    except ValidationError as error:
        raise _no_flicker(file, content, error) from error
    if found.schema_version > FLICKER_VERSION:
        raise _newer(file, found.schema_version)
    return found.flicker()


def _no_flicker(file: Path, content: bytes, error: ValidationError) -> InputError:
    """Return why a file holds no flicker: a later version, or the first field that is wrong."""
    try:
        known = parse_json(content)
        version = known.get("schema_version") if isinstance(known, dict) else None
    except ValueError:
        version = None
    if isinstance(version, int) and version > FLICKER_VERSION:
        return _newer(file, version)
    return InputError(
        f"{file} does not hold the flicker of videos ({validation_messages(error)[0].rstrip('.')}).",
        "Measure it again with `shiftscope audit --frames --out`.",
    )


def _newer(file: Path, version: int) -> InputError:
    problem = f"{file} was written by a later version of shiftscope (schema {version}, known up to {FLICKER_VERSION})."
    return InputError(problem, "Install that version.")
