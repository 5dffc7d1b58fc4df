"""Certify a model and images that are given by name or file, block by block; with a folder, a stopped run resumes.

A folder holds ``plan.json`` (what was certified), ``parts/NUMBER.safetensors`` (one per block of images, written atomically) and,
once all are there, ``certificate.json``, ``certificate.md``, ``certificate.csv`` (the curve) and ``images.csv`` (every radius).
"""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from shiftscope.audits.folder import part_file, writing_parts
from shiftscope.audits.model import model_checksum
from shiftscope.audits.session import block_size
from shiftscope.audits.subject import Subject, SubjectSpec, absolute_paths
from shiftscope.certificates.certificate import Certificate, Part, merge
from shiftscope.certificates.certifying import Certifier
from shiftscope.datasets.photos import Photos
from shiftscope.engine.framing import Border
from shiftscope.radii.search import NOTHING
from shiftscope.runtime.files import locked, write_checked_tensors, write_text
from shiftscope.runtime.inputs import read_checked_tensors
from shiftscope.runtime.plans import hold_plan
from shiftscope.runtime.progress import Report, silent
from shiftscope.runtime.settings import Spec, Text

__all__ = ["CertificateSpec", "CertificateStopped", "run_certificate"]

#: What begins the names of a part's sums in its file.
SUMS = "sums/"


class CertificateSpec(SubjectSpec):
    """What to certify, and how. ``max_shift`` is the largest radius.

    Attributes:
        mode: what comes in at the border; None for ``crop`` where images are larger than the input, else ``zero``.
        parts: points per pixel along an axis.
        batch_size: images per forward pass.
        task: what the outputs are, as :func:`shiftscope.tasks.find_task` takes it; None to detect it from them.
    """

    mode: Border | None = None
    parts: int = 1
    batch_size: int | None = None
    task: Text | None = None


class CertificatePlan(Spec):
    """What the parts in a folder were computed for.

    Attributes:
        spec: what to certify, with absolute paths.
        model_sha256: checksum of the model.
        data_sha256: checksum of the images.
        count: number of images.
    """

    spec: CertificateSpec
    model_sha256: str
    data_sha256: str
    count: int

    def described(self) -> str:
        """Return the plan in words."""
        return f"certificate ({self.spec.model}, {self.count} images)"


class CertificateStopped(KeyboardInterrupt):
    """The user stopped a certification.

    Attributes:
        certificate: of the images so far; None if there are none.
    """

    def __init__(self, certificate: Certificate | None) -> None:
        super().__init__()
        self.certificate = certificate


def run_certificate(spec: CertificateSpec, subject: Subject, *, out: Path | None = None, report: Report = silent) -> Certificate:
    """Certify a subject.

    Args:
        spec: what to certify, and how.
        subject: its model and images.
        out: folder to resume from and to write to; by default nothing is written.
        report: called with progress events.

    Raises:
        InputError: the model or the images cannot be certified; the folder holds something else, or cannot be written.
        CertificateStopped: the user stopped it; the exception holds what is known.
    """
    run = _Run(spec, subject)
    if out is None:
        return run.certificate(run.parts(None, report))
    with writing_parts(out):
        hold_plan(out, run.plan, "Choose another folder with --out.", CertificatePlan.described)
        with locked(out):
            found = run.certificate(run.parts(out, report))
            _write(out, found)
    return found


class _Run:
    """A subject, what certifies it, and the plan."""

    def __init__(self, spec: CertificateSpec, subject: Subject) -> None:
        self.subject, images = subject, subject.images
        task = spec.task or subject.loaded.spec.task
        self.certifier = Certifier(
            subject.model if task is None else subject.loaded.model,
            images.example(),
            radius=images.default_shift if spec.max_shift is None else spec.max_shift,
            mode=spec.mode,
            parts=spec.parts,
            size=images.size,
            fill=images.fill,
            batch_size=spec.batch_size,
            device=spec.device,
            output=None if task is None else subject.output,
            task=task,
            embedding=subject.embedding,
        )
        self.plan = CertificatePlan(
            spec=spec.model_copy(update=absolute_paths(spec)),
            model_sha256=model_checksum(subject.loaded.model, spec.model),
            data_sha256=images.checksum,
            count=images.count,
        )
        unfit = "" if images.classes is None else self._unfit(images.example())
        self.labelled = images.classes is not None and not unfit
        self.notes = (*images.all_notes, *filter(None, [unfit]))

    def _unfit(self, example: Tensor) -> str:
        """Return why labels are left out; empty if they are not."""
        if self.certifier.task is None:
            return self.subject.label_mismatch(example)
        return f"Labels are left out: task {self.certifier.task.name!r} compares each answer with that without a shift."

    def parts(self, out: Path | None, report: Report) -> list[Part]:
        """Return the parts of all blocks, those that the folder holds and new ones.

        Raises:
            CertificateStopped: the user stopped it.
        """
        found: list[Part] = []
        try:
            for number, start in enumerate(self._starts()):
                known = None if out is None else self._known(out, number, start)
                part = self._part(start, report) if known is None else known
                if out is not None and known is None:
                    write_checked_tensors(part_file(out, number), _to_tensors(part))
                found.append(part)
        except KeyboardInterrupt as stop:
            raise CertificateStopped(self.certificate(found) if any(len(part.radii) for part in found) else None) from stop
        return found

    def certificate(self, parts: list[Part]) -> Certificate:
        """Return the certificate of some parts."""
        images = self.subject.images
        merged = merge(parts)
        names = {number: images.name(number) for number in merged.numbers.tolist()} if isinstance(images.source, Photos) else {}
        facts = {
            **self.subject.facts,
            "model_sha256": self.plan.model_sha256,
            "images": f"{len(merged.radii)} of {images.count}",
            "date": datetime.now(UTC).date().isoformat(),
        }
        warnings = self.subject.warnings()
        return self.certifier.certificate(merged, names=names, notes=self.notes, warnings=warnings, provenance=facts)

    def _starts(self) -> range:
        return range(0, self.plan.count, block_size(self.certifier.size))

    def _stop(self, start: int) -> int:
        return min(start + block_size(self.certifier.size), self.plan.count)

    def _known(self, out: Path, number: int, start: int) -> Part | None:
        """Return a block's part; None if there is none, or, with a warning, if it is damaged."""
        file = part_file(out, number)
        if not file.exists():
            return None
        try:
            return _from_tensors(read_checked_tensors(file), range(start, self._stop(start)), self.certifier.shifts.reach)
        except Exception:  # whatever names, shapes and values of tensors raise that are not a part's
            warnings.warn(f"{file} is damaged; its images are certified again.", stacklevel=2)
            return None

    def _part(self, start: int, report: Report) -> Part:
        block = self.subject.images.read(start, self._stop(start))
        damaged = tuple(block.damaged)
        labels = block.labels if self.labelled else None
        if not len(block.images):
            empty = torch.zeros(0, dtype=torch.long)
            return Part(empty, empty, empty, empty if self.labelled else None, damaged=damaged)
        part = self.certifier.part(block.images, labels, numbers=block.numbers, report=report, total=self.plan.count)
        return Part(**{**vars(part), "damaged": damaged})


def _write(out: Path, found: Certificate) -> None:
    table, images = found.table(), found.image_table()
    write_text(out / "certificate.json", json.dumps(found.to_json(), indent=1) + "\n")
    write_text(out / "certificate.md", table.to_markdown())
    write_text(out / "certificate.csv", table.to_csv())
    write_text(out / "images.csv", images.to_csv())


def _to_tensors(part: Part) -> dict[str, Tensor]:
    tensors = {name: getattr(part, name) for name in ("numbers", "radii", "tops")}
    if part.labels is not None:
        tensors["labels"] = part.labels
    tensors |= {f"{SUMS}{name}": total for name, total in part.sums.items()}
    names = "".join(f"{name}\n" for name in part.damaged).encode()
    return tensors | {"cost": torch.tensor([part.views, part.dense]), "damaged": torch.tensor(list(names), dtype=torch.uint8)}


def _from_tensors(tensors: dict[str, Tensor], numbers: range, reach: int) -> Part:
    """Return the part that :func:`_to_tensors` stored; raise if it is none, since a wrong radius would certify what is false.

    Args:
        tensors: by name.
        numbers: of the block's images, some of which may be damaged.
        reach: the largest radius that is tried.
    """
    each = {name: tensors[name] for name in ("numbers", "radii", "tops", "labels") if name in tensors}
    if any(values.dtype != torch.int64 or values.shape != each["radii"].shape or values.ndim != 1 for values in each.values()):
        raise ValueError("a part holds an integer for each image")
    if not set(each["numbers"].tolist()) <= set(numbers):
        raise ValueError("a part holds the images of its block")
    if len(each["radii"]) and not NOTHING <= int(each["radii"].min()) <= int(each["radii"].max()) <= reach:
        raise ValueError("a radius is beyond those that are tried")
    sums = {name.removeprefix(SUMS): total for name, total in tensors.items() if name.startswith(SUMS)}
    if sums and not {"pairs", "apart"} <= set(sums):
        raise ValueError("a part holds all sums or none")
    views, dense = tensors["cost"].tolist()
    damaged = tuple(bytes(tensors["damaged"].tolist()).decode().splitlines())
    return Part(each["numbers"], each["radii"], each["tops"], each.get("labels"), int(views), int(dense), damaged, sums)
