"""Read an audit from its file, ``audit.json``, of this version or an older one.

The classes below are the file's schema: they check what is read, and `docs/schemas/audit.json` is made from them.
"""

from __future__ import annotations

from math import inf, nan
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError, model_validator

from shiftscope.audits.parts import Changed, Cost
from shiftscope.audits.results import AUDIT_VERSION, Audit, Row
from shiftscope.audits.sequences import Against, Frame
from shiftscope.engine.framing import Border
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.radii import NOTHING, RadiusCounts, RadiusCurve
from shiftscope.runtime.inputs import parse_json, read_bytes
from shiftscope.runtime.settings import Spec, validation_messages

__all__ = ["AuditFile", "read_audit"]

AUDIT = "audit.json"
#: The most bytes of such a file: values of a quarter of a million images by many protocols.
LARGEST = 1 << 30
#: A number of images, views, pixels or seconds, within 64 bits.
Whole = Annotated[int, Field(ge=0, lt=2**53)]
Radius = Annotated[int, Field(ge=0, le=2**14)]


class EstimateFile(Spec):
    """A number with its 95 % interval; null for infinity, and for a value that is not a number."""

    value: float | None
    low: float | None
    high: float | None
    count: Whole
    seeds: Whole = 1

    def estimate(self) -> Estimate:
        """Return the estimate."""
        value, low, high = _or(self.value, nan), _or(self.low, -inf), _or(self.high, inf)
        return Estimate(value, low, high, self.count, self.seeds)


class RowFile(Spec):
    """A measure of a protocol."""

    protocol: str
    measure: str
    border: str
    max_shift: int | float
    views: Whole
    estimate: EstimateFile
    given_right: EstimateFile | None = None

    def row(self) -> Row:
        """Return the row."""
        given = None if self.given_right is None else self.given_right.estimate()
        return Row(self.protocol, self.measure, self.border, self.max_shift, self.views, self.estimate.estimate(), given)


class ChangedFile(Spec):
    """An image whose outputs change much: its index, and the shift (dy, dx) in pixels that changes it most."""

    image: Whole
    shift: tuple[float, float]
    border: str
    similarity: float | None
    before: int | None
    after: int | None
    measure: str = ""

    def changed(self) -> Changed:
        """Return the image."""
        return Changed(self.image, self.shift, self.border, _or(self.similarity, nan), self.before, self.after, self.measure)


class FrameFile(Spec):
    """How much outputs change at a frame of a path: its number, from 1, its shift (dy, dx) in pixels, and a mean over images."""

    protocol: str
    measure: str
    against: Against
    number: Whole
    shift: tuple[float, float]
    estimate: EstimateFile

    def frame(self) -> Frame:
        """Return the frame."""
        return Frame(self.protocol, self.measure, self.against, self.number, self.shift, self.estimate.estimate())


class CurvePointFile(Spec):
    """The shares of images that keep their answer, and that are answered right, at every shift of up to ``radius`` pixels."""

    border: Border
    radius: Radius
    unchanged: EstimateFile
    right: EstimateFile | None = None


class CertificateFile(Spec):
    """How far every shift of a grid keeps the answers.

    Attributes:
        border: what comes in at the border.
        radius: the largest that was tried, pixels.
        rule: what keeps an answer.
        images: number of images of radius -2 (nothing to keep), -1 (no answer), 0, 1, ..., ``radius``.
        right: the same of images that are answered right without a shift; null without labels.
        curve: the shares of images, with their intervals.
        radii: of each image; null for very many images.
    """

    border: Border
    radius: Radius
    rule: str
    images: tuple[Whole, ...]
    right: tuple[Whole, ...] | None
    curve: tuple[CurvePointFile, ...]
    radii: tuple[int, ...] | None

    @model_validator(mode="after")
    def _complete(self) -> CertificateFile:
        counts, right, radii = torch.tensor(self.images), self.right, self.radii
        fits = len(self.images) == self.radius + 1 - NOTHING and len(self.curve) == self.radius + 1
        if not fits or (right is not None and (len(right) != len(counts) or bool((torch.tensor(right) > counts).any()))):
            raise ValueError("images are counted for each radius")
        if radii is not None and (any(not NOTHING <= each <= self.radius for each in radii) or not self._agree(radii)):
            raise ValueError("the radii are not those that are counted")
        return self

    def _agree(self, radii: tuple[int, ...]) -> bool:
        found = RadiusCounts.of(torch.tensor(radii, dtype=torch.long), None, self.radius)
        return tuple(found.images.tolist()) == self.images

    def curve_of(self) -> RadiusCurve:
        """Return the curve."""
        counts = RadiusCounts(torch.tensor(self.images), None if self.right is None else torch.tensor(self.right))
        return RadiusCurve(
            counts, self.border, None if self.radii is None else torch.tensor(self.radii, dtype=torch.int16), self.rule
        )


class CostFile(Spec):
    """What the audit computed: numbers of images and views, and seconds."""

    images: Whole
    asked: Whole
    distinct: Whole
    forward: Whole
    checks: Whole
    dense: Whole
    fallen_back: Whole
    seconds: float
    images_per_second: float | None


class AuditFile(Spec):
    """The file ``audit.json``, and what ``shiftscope audit --json`` prints.

    Attributes:
        schema_version: version of this schema; a file without one was written before version 2.
        summary: the main result in words.
        settings: what was asked for; empty in files before version 2 and for audits of Python objects.
        task: what the outputs were read as; empty for classes, embeddings and maps, and in files before version 3.
        classes: names of the images' classes, by number; empty without labels or names, and in files before version 3.
        rows: one per protocol and measure.
        changed: the images that change most.
        cost: what it took.
        maps: by grid and measure, the mean at each shift [dy, dx].
        units: by protocol, a value for each unit of the output.
        frames: by protocol, measure and what a frame is compared with; empty in files before version 3.
        certificates: by grid, how far every shift keeps the answers; empty in files before version 3.
        values: by ``protocol/measure``, a value for each image; empty in files before version 2.
        warnings: reasons why the numbers say little about the model.
        damaged: names of the files that could not be read.
        notes: what a reader needs to know.
        provenance: how it was made, name -> value.
        gate: the verdict of ``--fail-if``; only in what ``--json`` prints.
    """

    schema_version: int = 1
    summary: str
    settings: dict[str, Any] = {}
    task: str = ""
    classes: tuple[str, ...] = ()
    rows: tuple[RowFile, ...]
    changed: tuple[ChangedFile, ...] = ()
    cost: CostFile
    maps: dict[str, list[list[float | None]]] = {}
    units: dict[str, list[float | None]] = {}
    frames: tuple[FrameFile, ...] = ()
    certificates: dict[str, CertificateFile] = {}
    values: dict[str, list[float | None]] = {}
    warnings: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: dict[str, str] = {}
    gate: dict[str, Any] | None = None

    def audit(self) -> Audit:
        """Return the audit, without its surveys, of which the file holds the maps only."""
        cost = self.cost.model_dump(exclude={"images_per_second"})
        values = {name: torch.tensor([_or(each, nan) for each in listed]) for name, listed in self.values.items()}
        return Audit(
            rows=tuple(each.row() for each in self.rows),
            changed=tuple(each.changed() for each in self.changed),
            cost=Cost(**cost),
            units={name: torch.tensor([_or(each, inf) for each in listed]) for name, listed in self.units.items()},
            damaged=self.damaged,
            notes=self.notes,
            provenance=self.provenance,
            warnings=self.warnings,
            values={_key(name): each for name, each in values.items()},
            settings=self.settings,
            task=self.task,
            classes=self.classes,
            frames=tuple(each.frame() for each in self.frames),
            certificates={name: each.curve_of() for name, each in self.certificates.items()},
        )


def read_audit(path: Path) -> Audit:
    """Read an audit from its file, or from the folder that ``shiftscope audit --out`` wrote.

    Args:
        path: of ``audit.json``, of a file that holds the output of ``shiftscope audit --json``, or of the folder.

    Returns:
        the audit; its sensitivity maps stay in the file.

    Raises:
        InputError: there is no such file, it holds no audit, or a later version of shiftscope wrote it.
    """
    file = path / AUDIT if path.is_dir() else path
    try:
        found = AuditFile.model_validate_json(read_bytes(file, limit=LARGEST))
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror or error}).",
            "Give the audit.json of a finished audit, or the folder given with --out.",
        ) from error
    except ValidationError as error:
        raise _no_audit(file, error) from error
    if found.schema_version > AUDIT_VERSION:
        raise InputError(_newer(file, found.schema_version), "Install that version.")
    return found.audit()


def _no_audit(file: Path, error: ValidationError) -> InputError:
    """Return why a file is no audit: a later version, or the first field that is wrong."""
    try:
        content = parse_json(read_bytes(file, limit=LARGEST))
        version = content.get("schema_version", 1) if isinstance(content, dict) else 1
    except ValueError:
        version = 1
    if isinstance(version, int) and version > AUDIT_VERSION:
        return InputError(_newer(file, version), "Install that version.")
    return InputError(
        f"{file} holds no audit ({validation_messages(error)[0].rstrip('.')}).",
        "Give a file that `shiftscope audit --out` or `--json` wrote.",
    )


def _newer(file: Path, version: int) -> str:
    return f"{file} was written by a later version of shiftscope (schema {version}, known up to {AUDIT_VERSION})."


def _key(name: str) -> tuple[str, str]:
    protocol, _, measure = name.partition("/")
    return protocol, measure


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
