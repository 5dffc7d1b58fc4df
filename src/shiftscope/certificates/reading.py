"""Read a certificate from its file, ``certificate.json``. The classes below are the file's schema, and check what is read."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError, model_validator

from shiftscope.audits.reading import EstimateFile, Radius, Whole
from shiftscope.certificates.certificate import CERTIFICATE_VERSION
from shiftscope.engine.framing import Border
from shiftscope.errors import InputError
from shiftscope.radii import NOTHING, RadiusCounts
from shiftscope.runtime.inputs import read_bytes
from shiftscope.runtime.settings import Spec, validation_messages

__all__ = ["CERTIFICATE", "CertificateFile", "read_certificate"]

CERTIFICATE = "certificate.json"


class PointFile(Spec):
    """The shares of images that keep their answer, and that are answered right, at every shift of up to ``radius`` pixels."""

    radius: Radius
    unchanged: EstimateFile
    right: EstimateFile | None = None


class ImageFile(Spec):
    """An image: its index, name, answer and label where there are some, and its radius, pixels."""

    image: Whole
    name: str = ""
    answer: int | None = None
    label: int | None = None
    radius: int


class CertificateFile(Spec):
    """The file ``certificate.json``, and what ``shiftscope certify --json`` prints.

    Attributes:
        schema_version: version of this schema.
        summary: the result in words.
        radius: the largest radius that was tried, pixels.
        border: what comes in at the border.
        points_a_pixel: points per pixel along an axis that were tried; 1 tries every whole-pixel shift, more is no proof.
        rule: what keeps an answer.
        curve: the shares of images, a point for each radius; none without an image that has something to keep.
        images: the radius of each image: -1 without an answer, -2 with nothing to keep.
        views: views that the model computed one by one.
        images_computed_at_once: images whose shifts were computed all at once.
        notes: what a reader needs to know.
        provenance: how it was made, name -> value.
    """

    schema_version: int = 1
    summary: str
    radius: Radius
    border: Border
    points_a_pixel: Whole
    rule: str = ""
    curve: tuple[PointFile, ...]
    images: tuple[ImageFile, ...]
    views: Whole
    images_computed_at_once: Whole
    notes: tuple[str, ...]
    provenance: dict[str, str]

    @model_validator(mode="after")
    def _fits(self) -> CertificateFile:
        if any(not NOTHING <= each.radius <= self.radius for each in self.images):
            raise ValueError("a radius is beyond those that were tried")
        counts = self.counts()
        radii = range(self.radius + 1) if counts.total > counts.empty else ()
        if [_shares(point) for point in self.curve] != [_counted(counts, radius) for radius in radii]:
            raise ValueError("the curve is not that of the images")
        return self

    def counts(self) -> RadiusCounts:
        """Return how many images have each radius."""
        labelled = any(each.label is not None for each in self.images)
        right = torch.tensor([each.answer == each.label for each in self.images], dtype=torch.bool) if labelled else None
        return RadiusCounts.of(torch.tensor([each.radius for each in self.images], dtype=torch.long), right, self.radius)


def _shares(point: PointFile) -> tuple[float | int | None, ...]:
    """Return what a curve says at a radius: the share that keeps its answer, of how many images, and the share that is right."""
    return point.unchanged.value, point.unchanged.count, None if point.right is None else point.right.value


def _counted(counts: RadiusCounts, radius: int) -> tuple[float | int | None, ...]:
    """Return the same from the radii of images."""
    kept, right = counts.unchanged(radius), counts.certified(radius)
    return kept.value, kept.count, None if right is None else right.value


def read_certificate(path: Path) -> CertificateFile:
    """Read a certificate from its file, or from the folder that ``shiftscope certify --out`` wrote.

    Raises:
        InputError: there is no such file, it holds no certificate, or a later version of shiftscope wrote it.
    """
    file = path / CERTIFICATE if path.is_dir() else path
    try:
        found = CertificateFile.model_validate_json(read_bytes(file))
    except ValidationError as error:
        raise InputError(
            f"{file} holds no certificate ({validation_messages(error)[0].rstrip('.')}).",
            "Give a file that `shiftscope certify --out` or `--json` wrote.",
        ) from error
    if found.schema_version > CERTIFICATE_VERSION:
        raise InputError(f"{file} was written by a later version of shiftscope.", "Install that version.")
    return found
