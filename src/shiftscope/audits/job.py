"""An audit on disk: blocks of images measured one by one, each leaving a file, in one process or in shards of several.

A folder holds ``plan.json`` (what is asked, of which model and images), ``parts/NUMBER.safetensors`` (a block each, written whole
or not at all) and, when all parts are there, ``audit.json``, ``table.csv``, ``table.md`` and ``maps.safetensors``. A second start
goes on; shards put together equal one run exactly, because blocks are the same and are folded in the same order.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import ValidationError
from torch import nn

from shiftscope.audits import Audit, Part, Session, block_size, folded
from shiftscope.audits.protocols import Protocol, find_protocols
from shiftscope.audits.results import assembled
from shiftscope.datasets.images import ImageBlocks, open_images
from shiftscope.datasets.sources import is_folder
from shiftscope.errors import InputError, ModelFailsError
from shiftscope.models import LoadedModel, load_model
from shiftscope.runtime.files import sweep, write_bytes, write_tensors, write_text
from shiftscope.runtime.processes import Executor
from shiftscope.runtime.progress import Stage
from shiftscope.runtime.provenance import provenance
from shiftscope.runtime.settings import Spec

__all__ = ["AuditJob", "AuditPlan", "AuditSpec", "complete", "is_audit", "merged", "run_audit", "run_shard", "run_shards"]

#: So many damaged files are told by name.
TOLD = 10
PLAN, PARTS = "plan.json", "parts"
#: Called with what is going on, and how many of how many images are done.
Tell = Callable[[tuple[str, int, int]], None]


class AuditSpec(Spec):
    """What is asked; see ``shiftscope audit --help``.

    Attributes:
        model: name or file.
        weights: file of a model made by name.
        size, mean, std: of the model's input.
        output: which of several outputs.
        embedding: outputs are not classes.
        data: name or folder; None for what suits the model.
        data_dir: a local folder that holds the data set.
        images: how many.
        protocols: names; None for what suits the output.
        max_shift: of all protocols.
        seed: of the draws.
        batch_size: images a forward pass.
        device: where to compute.
        trust: a file of ``shiftscope fix`` may name a function to be called.
    """

    model: str
    weights: str | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    output: str | None = None
    embedding: bool = False
    data: str | None = None
    data_dir: str | None = None
    images: int = 256
    protocols: tuple[str, ...] | None = None
    max_shift: int | None = None
    seed: int = 0
    batch_size: int | None = None
    device: str = "cpu"
    trust: bool = False


class AuditPlan(Spec):
    """What a folder's parts belong to, and what is needed to put them together.

    Attributes:
        spec: what is asked.
        model_sha256: of the weights or of the model's file.
        data: origin of the images.
        data_sha256: of the images.
        count: of the images.
        block: images a part.
        protocols: that are measured.
        kind: of the outputs.
        borders: by protocol, what came in there.
        notes: for the reader.
        provenance: code and machine; the only thing that may differ between shards.
    """

    spec: AuditSpec
    model_sha256: str
    data: str
    data_sha256: str
    count: int
    block: int
    protocols: tuple[Protocol, ...]
    kind: str
    borders: dict[str, str]
    notes: tuple[str, ...]
    provenance: dict[str, str]

    @property
    def blocks(self) -> int:
        """How many parts there are."""
        return -(-self.count // self.block)

    def same(self, other: AuditPlan) -> bool:
        """Whether parts of both may be put together; it does not matter from which folder their files were named."""
        one, two = (each.model_copy(update={"provenance": {}, "spec": _anchored(each.spec)}) for each in (self, other))
        return one == two


@dataclass(frozen=True)
class AuditJob:
    """A shard: all that a process needs to measure it, wherever it is.

    Attributes:
        spec: what is asked.
        shard: its number, from 1.
        shards: how many there are.
        out: the folder.
        known: blocks that are there already, where the folder itself cannot be seen.
        model_sha256: the plan's; a process that finds another model under the name does nothing.
    """

    spec: AuditSpec
    shard: int
    shards: int
    out: Path
    known: frozenset[int] = frozenset()
    model_sha256: str = ""

    def __str__(self) -> str:
        return f"shard {self.shard}/{self.shards}"


def run_audit(spec: AuditSpec, *, out: Path | None = None, tell: Tell = lambda _: None) -> Audit:
    """A whole audit, here; with a folder it goes on where it stopped and leaves its files there.

    Raises:
        InputError: what :func:`run_shard` and :func:`merged` say.
    """
    if out is not None:
        run_shard(AuditJob(spec, 1, 1, out), tell)
        return merged(out)
    session, pictures, plan = _begun(spec, tell)
    whole = folded(_measured(session, pictures, plan, number, tell) for number in range(plan.blocks))
    return _result(plan, whole)


def run_shard(job: AuditJob, tell: Tell) -> list[Path]:
    """Measure what is missing of a shard; the files of all its blocks.

    Args:
        job: which shard of what.
        tell: told how it goes.

    Raises:
        InputError: no such shard; a model or images that cannot be measured; a folder that holds another audit, or that cannot be
            written.
    """
    if not 1 <= job.shard <= job.shards:
        raise InputError(f"`shard` must be I/N with I from 1 to N, got {job.shard}/{job.shards}.")
    session, pictures, plan = _begun(job.spec, tell)
    if job.model_sha256 not in ("", plan.model_sha256):
        raise InputError(f"the model {job.spec.model} is another where {job} is done. Bring the same files to every machine.")
    _prepare(job.out, plan)
    numbers = range((job.shard - 1) * plan.blocks // job.shards, job.shard * plan.blocks // job.shards)
    files = [_file(job.out, number) for number in numbers]
    for number, file in zip(numbers, files, strict=True):
        if number not in job.known and _read(file) is None:
            part = _measured(session, pictures, plan, number, tell)
            try:
                write_tensors(file, part)
            except OSError as error:
                raise _unwritable(job.out, error) from error
    return files


def run_shards(
    spec: AuditSpec, executor: Executor, *, shards: int, out: Path | None = None, tell: Tell = lambda _: None
) -> Audit:
    """A whole audit, its shards carried out at once; they add up to what one process with as many threads would find.

    Args:
        spec: what is asked.
        executor: processes of this machine, or tasks of a Ray cluster.
        shards: into how many.
        out: folder to go on in; nothing is kept by default.
        tell: told how it goes.

    Raises:
        InputError: fewer than one shard, and what :func:`run_shard` and :func:`merged` say.
    """
    if shards < 1:
        raise InputError(f"`shards` must be 1 or more, got {shards}.")
    if out is None:
        with TemporaryDirectory() as place:
            return run_shards(spec, executor, shards=shards, out=Path(place), tell=tell)
    _, _, plan = _begun(spec, tell)
    _prepare(out, plan)
    known = frozenset(number for number in range(plan.blocks) if _read(_file(out, number)) is not None)
    done = len(known)
    anchored = _anchored(spec)
    jobs = [AuditJob(anchored, number, shards, out, known, plan.model_sha256) for number in range(1, shards + 1)]
    for _, made in executor.run(_away if executor.away else _here, jobs, lambda *_: None):
        for name, content in made.items():
            if content is not None:
                write_bytes(out / PARTS / name, content)
        done += len(made)
        tell(("measuring images", min(done * plan.block, plan.count), plan.count))
    return merged(out)


def _anchored(spec: AuditSpec) -> AuditSpec:
    """With whole paths, for a process that may run in another folder; data sets' own names stay."""
    paths = {name: value for name in ("model", "weights", "data_dir") if (value := getattr(spec, name)) and Path(value).exists()}
    if spec.data is not None and is_folder(spec.data):
        paths["data"] = spec.data
    return spec.model_copy(update={name: str(Path(value).resolve()) for name, value in paths.items()})


def _here(job: AuditJob, _: Callable[[object], None]) -> dict[str, bytes | None]:
    """A shard on this machine: its new files lie where they belong."""
    files = run_shard(job, lambda _: None)
    return {file.name: None for file in files if int(file.stem) not in job.known}


def _away(job: AuditJob, _: Callable[[object], None]) -> dict[str, bytes | None]:
    """A shard elsewhere: its new files as bytes."""
    with TemporaryDirectory() as place:
        files = run_shard(replace(job, out=Path(place)), lambda _: None)
        return {file.name: file.read_bytes() for file in files if file.exists()}


def is_audit(folder: Path) -> bool:
    """Whether a folder is an audit's."""
    return (folder / PLAN).is_file()


def complete(out: Path) -> bool:
    """Whether all parts of a folder's audit are there."""
    plan = _read_plan(out)
    return plan is not None and not _missing(out, plan)


def merged(out: Path) -> Audit:
    """The audit of all parts in a folder, which then holds its table, maps and audit.json as well.

    Raises:
        InputError: it holds no audit, or parts are missing or damaged.
    """
    plan = _read_plan(out)
    if plan is None:
        raise InputError(f"{out} holds no audit: {PLAN} is missing. Choose the folder given with --out.")
    missing = _missing(out, plan)
    if missing:
        raise InputError(
            f"{out} is not complete: {len(missing)} of {plan.blocks} blocks of images are missing. Run the other shards, or the "
            "same command without --shard."
        )
    found = _result(plan, folded(_parts(out, plan)))
    table = found.table()
    try:
        write_text(out / "audit.json", json.dumps(found.to_json(), indent=1) + "\n")
        write_text(out / "table.csv", table.to_csv())
        write_text(out / "table.md", table.to_markdown())
        maps = found.maps() | {f"units/{name}": values for name, values in found.units.items()}
        if maps:
            write_tensors(out / "maps.safetensors", maps)
    except OSError as error:
        raise _unwritable(out, error) from error
    return found


def _begun(spec: AuditSpec, tell: Tell) -> tuple[Session, ImageBlocks, AuditPlan]:
    """The model, its images, and what is to be measured."""
    for name in spec.protocols or ():
        find_protocols(name, max_shift=spec.max_shift)  # tells what is wrong before anything is read
    loaded = load_model(
        spec.model,
        weights=None if spec.weights is None else Path(spec.weights),
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
        trust=spec.trust,
    )
    pictures = open_images(
        spec.data,
        count=spec.images,
        image=loaded.image,
        mean=loaded.mean,
        trained_on=loaded.spec.data,
        size=spec.size,
        max_shift=spec.max_shift,
        data_dir=None if spec.data_dir is None else Path(spec.data_dir),
        report=lambda event: tell((event.sentence, event.done, event.of)) if isinstance(event, Stage) else None,
    )
    session = _session(spec, loaded, pictures)
    protocols = session.measurer.protocols
    plan = AuditPlan(
        spec=spec,
        model_sha256=_fingerprint(spec.model, loaded.model),
        data=pictures.origin,
        data_sha256=pictures.checksum,
        count=pictures.count,
        block=block_size(session.scene.size),
        protocols=protocols,
        kind=session.kind,
        borders={each.name: session.scene.border(each) for each in protocols},
        notes=(*pictures.notes, *session.notes),
        provenance=provenance(spec.device),
    )
    return session, pictures, plan


def _session(spec: AuditSpec, loaded: LoadedModel, pictures: ImageBlocks) -> Session:
    try:
        return Session.begun(
            loaded.model.to(spec.device),
            pictures.example(),
            labelled=pictures.classes is not None,
            protocols=spec.protocols,
            max_shift=spec.max_shift,
            size=pictures.size,
            fill=pictures.fill,
            mean=pictures.mean,
            output=spec.output,
            embedding=spec.embedding or loaded.embedding,
            classes=pictures.classes,
            seed=spec.seed,
            batch_size=spec.batch_size,
            device=spec.device,
        )
    except ModelFailsError as error:
        if loaded.image is None:
            remedy = f"{error.remedy} The model does not tell the size of its input: give `size`.".lstrip()
            raise ModelFailsError(error.problem, remedy) from error
        raise


def _measured(session: Session, pictures: ImageBlocks, plan: AuditPlan, number: int, tell: Tell) -> Part:
    """One block of images."""
    start, stop = number * plan.block, min((number + 1) * plan.block, plan.count)
    block = pictures.read(start, stop)
    part: Part = {}
    if len(block.images):
        part = session.part(block.images, block.labels, numbers=block.numbers)
    names = "".join(f"{name}\n" for name in block.damaged).encode(errors="replace")
    part["each/damaged"] = torch.tensor(list(names), dtype=torch.uint8)
    tell(("measuring images", stop, plan.count))
    return part


def _result(plan: AuditPlan, whole: Part) -> Audit:
    damaged = bytes(whole.pop("each/damaged").tolist()).decode().splitlines()
    notes = list(plan.notes)
    if damaged:
        listed = ", ".join(damaged[:TOLD]) + (f" and {len(damaged) - TOLD} more" if len(damaged) > TOLD else "")
        notes.append(f"{len(damaged)} images cannot be read and are left out: {listed}.")
    origin = {
        "model": plan.spec.model,
        "model_sha256": plan.model_sha256,
        "data": plan.data,
        "data_sha256": plan.data_sha256,
        "seed": str(plan.spec.seed),
        **plan.provenance,
    }
    found = assembled(whole, plan.protocols, kind=plan.kind, borders=plan.borders, notes=notes, provenance=origin)
    return replace(found, damaged=tuple(damaged))


def _fingerprint(name: str, model: nn.Module) -> str:
    """SHA-256 over the model's files, its layers and its weights."""
    path = Path(name)
    digest = sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(model)).encode())  # where a function lies differs from process to process
    for file in (path, path.with_name(f"{path.name}.data")):  # where ONNX keeps large weights
        digest.update(file.read_bytes() if file.is_file() else b"")
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _prepare(out: Path, plan: AuditPlan) -> None:
    """Make the folder this audit's own."""
    known = _read_plan(out)
    if known is not None and not known.same(plan):
        raise InputError(f"{out} holds another audit ({known.spec.model} on {known.data}). Choose another folder with --out.")
    try:
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        sweep(out)
        if known is None:
            write_text(out / PLAN, plan.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise _unwritable(out, error) from error


def _read_plan(out: Path) -> AuditPlan | None:
    try:
        return AuditPlan.model_validate_json((out / PLAN).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = "it is not a whole plan" if isinstance(error, ValidationError) else error.strerror
        raise InputError(f"{out / PLAN} cannot be read ({reason}). Choose another folder with --out.") from error


def _missing(out: Path, plan: AuditPlan) -> list[int]:
    return [number for number in range(plan.blocks) if not _file(out, number).exists()]


def _file(out: Path, number: int) -> Path:
    return out / PARTS / f"{number:06d}.safetensors"


def _read(file: Path) -> Part | None:
    """A part; None where there is none, or, said as a warning, where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.exists():
        return None
    try:
        part: Part = load_file(file)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{file} is damaged ({error}); its images are measured again.", stacklevel=2)
        return None
    return part


def _parts(out: Path, plan: AuditPlan) -> Iterator[Part]:
    for number in range(plan.blocks):
        part = _read(_file(out, number))
        if part is None:
            raise InputError(f"{_file(out, number)} is damaged. Run the audit again with the same --out.")
        yield part


def _unwritable(out: Path, error: OSError) -> InputError:
    return InputError(
        f"`out` {out} cannot be written ({error.strerror or error}). Finished blocks are kept; make room or choose another "
        "folder."
    )
