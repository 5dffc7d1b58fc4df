"""The folder of an audit: its plan, one file per block of images, and the merged result.

A folder holds ``plan.json`` (what to measure, of which model and images), ``parts/NUMBER.safetensors`` (one per block, written
atomically) and, once all parts are there, ``audit.json``, ``table.csv``, ``table.md``, ``maps.safetensors``,
``frames.csv`` and ``certificates.csv``, those of the last three that have content.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path

from pydantic import Field, field_validator

from shiftscope.audits.measuring import OutputKind
from shiftscope.audits.parts import Part, merge_parts
from shiftscope.audits.protocols import Protocol, pan
from shiftscope.audits.results import MOST_VALUES, Audit, assemble
from shiftscope.audits.stored import from_tensors, to_tensors
from shiftscope.audits.subject import DESCRIBED, SubjectSpec, absolute_paths
from shiftscope.engine.framing import Border
from shiftscope.errors import InputError
from shiftscope.runtime.files import (
    claimed,
    remove_temporary_files,
    write_checked_tensors,
    write_tensors,
    write_text,
    writing,
)
from shiftscope.runtime.inputs import read_checked_tensors
from shiftscope.runtime.plans import PLAN, read_plan, write_plan
from shiftscope.runtime.settings import Count, Spec, Text
from shiftscope.runtime.text import json_text
from shiftscope.tasks import find_task

__all__ = [
    "FLICKER_FILE",
    "AuditPlan",
    "AuditSpec",
    "Claims",
    "assemble_planned",
    "is_audit",
    "is_complete",
    "merge_audit",
    "part_file",
    "planned",
    "prepare_folder",
    "read_part",
    "tidy",
    "write_part",
    "writing_parts",
]

PARTS = "parts"
#: What :mod:`shiftscope.videos` writes; a folder with it takes no audit.
FLICKER_FILE = "flicker.json"


class AuditSpec(SubjectSpec):
    """What to audit, and how.

    Attributes:
        protocols: names; None for those that suit the output.
        mode: what comes in at the border: only protocols that say so; None for all.
        batch_size: images per forward pass.
        task: what the outputs are, as :func:`shiftscope.tasks.find_task` takes it; None to detect it from them.
        truth: file or folder of ground truth.
        pan: (dy, dx) from frame to frame of a slow pan, pixels, to measure instead of protocols.
        steps: of the pan.
    """

    protocols: tuple[str, ...] | None = None
    mode: Border | None = None
    batch_size: int | None = Field(None, le=10**6)
    task: Text | None = None
    truth: Text | None = None
    pan: tuple[float, float] | None = None
    steps: int = Field(32, ge=1, le=1000)

    @property
    def wanted(self) -> Sequence[str | Protocol] | None:
        """The protocols to measure, by name, or the pan; None for those that suit the output.

        Raises:
            InputError: there is no such pan.
        """
        return self.protocols if self.pan is None else [pan(self.pan, self.steps, mode=self.mode or "crop")]

    def with_absolute_paths(self) -> AuditSpec:
        """Return the same for a process in another working directory."""
        truth = {"truth": str(Path(self.truth).resolve())} if self.truth is not None else {}
        return self.model_copy(update=absolute_paths(self) | truth)


class AuditPlan(Spec):
    """What the parts in a folder were measured for, and what is needed to merge them.

    Attributes:
        spec: what to audit, and how.
        model_sha256: checksum of the model.
        data: where the images come from.
        data_sha256: checksum of the images.
        facts: what is measured, name -> value.
        classes: names of the images' classes, by number; empty without labels or names.
        warnings: reasons why the numbers may say little about the model.
        count: number of images.
        block: images per part.
        protocols: that are measured.
        kind: of the model's outputs.
        task: that reads the outputs, as :func:`shiftscope.tasks.find_task` takes it; empty without one.
        truth_sha256: checksum of the ground truth; empty without one.
        borders: protocol -> what fills its border.
        notes: what a reader needs to know.
        channels_last: whether the model receives images in that memory format, which was quicker where the audit began.
        provenance: code and machine; shards may differ in it and in nothing else.
    """

    spec: AuditSpec
    model_sha256: str
    data: str
    data_sha256: str
    facts: dict[str, str]
    classes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    count: Count
    block: Count
    protocols: tuple[Protocol, ...]
    kind: OutputKind
    task: str = ""
    truth_sha256: str = ""
    borders: dict[str, str]
    notes: tuple[str, ...]
    provenance: dict[str, str]
    channels_last: bool = False

    @field_validator("facts")
    @classmethod
    def _complete(cls, facts: dict[str, str]) -> dict[str, str]:
        missing = DESCRIBED - set(facts)
        if missing:
            raise ValueError(f"`facts` must say what is measured, but lack {', '.join(sorted(missing))}.")
        return facts

    @property
    def blocks(self) -> int:
        """Number of parts."""
        return -(-self.count // self.block)

    def matches(self, other: AuditPlan) -> bool:
        """Return whether parts of both can be merged, however the paths are written."""
        return self._comparable() == other._comparable()

    def difference(self, other: AuditPlan) -> str:
        """Return in which respect another plan that does not match differs, where that can be told by a word."""
        one, two = self._comparable(), other._comparable()
        differing = [name for name in type(self).model_fields if getattr(one, name) != getattr(two, name)]
        words = {"model_sha256": "other weights or code", "data_sha256": "other images", "truth_sha256": "other ground truth"}
        return words.get(differing[0], "other settings") if len(differing) == 1 else "other settings"

    def _comparable(self) -> AuditPlan:
        """Return the plan without what parts that are merged may differ in."""
        may_differ = {"provenance": {}, "facts": {}, "warnings": (), "channels_last": False}
        return self.model_copy(update={**may_differ, "spec": self.spec.with_absolute_paths()})


def is_audit(folder: Path) -> bool:
    """Return whether a folder holds an audit."""
    return (folder / PLAN).is_file()


def is_complete(out: Path) -> bool:
    """Return whether a folder holds all parts of its audit."""
    plan = planned(out)
    return plan is not None and not _missing(out, plan)


def merge_audit(out: Path) -> Audit:
    """Merge all parts in a folder, and write the audit, its table and its maps there.

    Args:
        out: the folder.

    Raises:
        InputError: it holds no audit, parts are missing or damaged, or it cannot be written.
    """
    plan = planned(out)
    if plan is None:
        raise InputError(f"{out} holds no audit: {PLAN} is missing.", "Choose the folder given with --out.")
    missing = _missing(out, plan)
    if missing:
        raise InputError(
            f"{out} is not complete: {len(missing)} of {plan.blocks} blocks of images are missing.",
            "Run the other shards, or the same command without --shard.",
        )
    found = assemble_planned(plan, merge_parts(_parts(out, plan), keep=None if plan.kind == "task" else MOST_VALUES))
    table = found.table()
    with writing_parts(out):
        write_text(out / "audit.json", json_text(found.to_json()))
        write_text(out / "table.csv", table.to_csv())
        write_text(out / "table.md", table.to_markdown())
        if found.frames:
            write_text(out / "frames.csv", found.frame_table().to_csv())
        if found.certificates:
            write_text(out / "certificates.csv", found.certificate_table().to_csv())
        maps = found.maps() | {f"units/{name}": values for name, values in found.units.items()}
        if maps:
            write_tensors(out / "maps.safetensors", maps)
    return found


def assemble_planned(plan: AuditPlan, merged: Part) -> Audit:
    """Return the audit of a plan from all its parts, merged."""
    provenance = {
        **plan.facts,
        "model_sha256": plan.model_sha256,
        "seed": str(plan.spec.seed),
        **plan.provenance,
    }
    found = assemble(
        merged,
        plan.protocols,
        kind=plan.kind,
        borders=plan.borders,
        notes=plan.notes,
        provenance=provenance,
        warnings=plan.warnings,
        settings=plan.spec.model_dump(mode="json", exclude_defaults=True),
        task=find_task(plan.task) if plan.task else None,
    )
    return replace(found, task=plan.task, classes=plan.classes)  # the task with its settings


def prepare_folder(out: Path, plan: AuditPlan) -> AuditPlan:
    """Create a folder for a plan, or check that it holds this very plan; return the plan that it holds.

    Of several shards that create it at once, the first one's plan stays.

    Raises:
        InputError: it holds another audit or the flicker of videos, or cannot be written.
    """
    if (out / FLICKER_FILE).exists():
        raise InputError(f"{out} holds the flicker of videos.", "Choose another folder with --out.")
    known = planned(out)
    if known is not None and not known.matches(plan):
        what = f"{known.spec.model} on {known.data}, {known.difference(plan)}"
        raise InputError(f"{out} holds another audit ({what}).", "Choose another folder with --out.")
    with writing_parts(out):
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        remove_temporary_files(out)
        if known is None:
            write_plan(out, plan)
    return known or planned(out) or plan


def part_file(out: Path, number: int) -> Path:
    """Return the file of a block's part, which may not exist yet."""
    return out / PARTS / f"{number:06d}.safetensors"


def write_part(out: Path, number: int, part: Part) -> None:
    """Write a block's part.

    Raises:
        InputError: the folder cannot be written.
    """
    with writing_parts(out):
        write_checked_tensors(part_file(out, number), to_tensors(part))


class Claims(ExitStack):
    """Claims on blocks of a folder that several processes measure, by locks, which the system frees when a process dies.

    Args:
        out: the folder.
    """

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out, self.held = out, dict[int, ExitStack]()
        self.callback(self._release_all)

    def take(self, mine: Iterable[int], others: Iterable[int]) -> Iterator[int]:
        """Yield blocks that have no part and that nobody else measures, claimed until they are released.

        Args:
            mine: blocks of the own share, which are measured where the file system has no locks, too.
            others: blocks that another process may have left.
        """
        for number, own in [*((number, True) for number in mine), *((number, False) for number in others)]:
            if part_file(self.out, number).exists() and (not own or read_part(self.out, number) is not None):
                continue
            claim = ExitStack()
            with writing_parts(self.out):
                held = claim.enter_context(claimed(self.out / PARTS, _lock(number)))
            if held is False or (held is None and not own) or (not own and part_file(self.out, number).exists()):
                claim.close()
                continue
            self.held[number] = claim
            yield number

    def release(self, number: int) -> None:
        """Release a block."""
        self.held.pop(number).close()

    def _release_all(self) -> None:
        for number in list(self.held):
            self.release(number)


def tidy(out: Path) -> None:
    """Remove the locks of killed processes."""
    for file in (out / PARTS).glob(".*.lock"):
        with claimed(out / PARTS, file.name):
            pass  # it is removed when the claim ends, unless a living process holds it


def _lock(number: int) -> str:
    """Return the name of the file of a block's lock."""
    return f".{number:06d}.lock"


def read_part(out: Path, number: int) -> Part | None:
    """Return a block's part, without maps; None if there is none, or, with a warning, if it is damaged."""
    file = part_file(out, number)
    if not file.exists():
        return None
    try:
        return from_tensors(read_checked_tensors(file), maps=False)
    except Exception:  # whatever names, shapes and values of tensors raise that are not a part's
        warnings.warn(f"{file} is damaged; its images are measured again.", stacklevel=2)
        return None


def _parts(out: Path, plan: AuditPlan) -> Iterator[Part]:
    for number in range(plan.blocks):
        part = read_part(out, number)
        if part is None:
            raise InputError(f"{part_file(out, number)} is damaged.", "Run the audit again with the same --out.")
        yield part


def planned(out: Path) -> AuditPlan | None:
    """Return the plan of a folder; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return read_plan(out, AuditPlan, "Choose another folder with --out.")
    except InputError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise


def _missing(out: Path, plan: AuditPlan) -> list[int]:
    return [number for number in range(plan.blocks) if not part_file(out, number).exists()]


def writing_parts(out: Path) -> AbstractContextManager[None]:
    """Turn the error of a folder of parts that cannot be written into one sentence."""
    return writing(f"`out` {out}", "Make room or choose another folder.", "; finished blocks stay there")
