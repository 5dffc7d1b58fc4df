"""Run an audit of a model and images that are given by name or file, block by block, in one process or in several shards.

With a folder, every block leaves a file: a second start resumes, and merged shards equal one run bit for bit, because blocks are
the same and are merged in the same order. A staged run gives a first answer before its blocks
(:mod:`shiftscope.audits.staging`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from shiftscope.audits.blocks import count_views
from shiftscope.audits.folder import (
    AuditPlan,
    AuditSpec,
    Claims,
    assemble_planned,
    merge_audit,
    part_file,
    planned,
    prepare_folder,
    read_part,
    tidy,
    write_part,
)
from shiftscope.audits.ground_truth import open_truth, truth_checksum
from shiftscope.audits.model import model_checksum
from shiftscope.audits.parts import Part, merge_parts
from shiftscope.audits.protocols import Protocol, find_protocols
from shiftscope.audits.results import Audit
from shiftscope.audits.session import AuditOptions, Session, block_size
from shiftscope.audits.staging import (
    FIRST_IMAGES,
    AuditStopped,
    FirstAnswer,
    SoFar,
    first_answer,
    forecast,
    so_far,
)
from shiftscope.audits.subject import Subject, open_subject
from shiftscope.datasets.images import Block, ImageBlocks
from shiftscope.errors import InputError, ModelFailsError
from shiftscope.runtime.executors import Executor
from shiftscope.runtime.files import write_bytes
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.provenance import provenance
from shiftscope.tasks import find_task

__all__ = ["AuditJob", "open_audited", "run_audit", "run_first", "run_shard", "run_shards"]

#: The protocol of the first answer; for maps, and with another border, the first of the audit.
FIRST_PROTOCOL = "mouton2020"
#: An audit of fewer times the first answer's views is not staged.
LITTLE = 3


@dataclass(frozen=True)
class AuditJob:
    """A shard of an audit: all that a process needs to measure it, on any machine.

    Attributes:
        spec: what to audit, and how.
        shard: its number, from 1.
        shards: number of shards.
        out: the folder.
        known: blocks that exist already, for a process that cannot see the folder.
        model_sha256: checksum of the plan's model; empty if any will do.
        channels_last: whether the model receives images in that memory format; None for what the folder's plan says, or what is
            quicker here if there is no plan.
        takes_over: whether to go on with blocks of other shards that nobody measures, once its own are measured.
    """

    spec: AuditSpec
    shard: int
    shards: int
    out: Path
    known: frozenset[int] = frozenset()
    model_sha256: str = ""
    channels_last: bool | None = None
    takes_over: bool = False

    def __str__(self) -> str:
        return f"shard {self.shard}/{self.shards}"


def open_audited(spec: AuditSpec, report: Report = silent, *, classes: Sequence[str] = ()) -> Subject:
    """Open the model and the images of an audit, after checking its protocols.

    Args:
        spec: what to audit, and how.
        report: called with progress events.
        classes: names by which to number the images' classes if the model has none.

    Raises:
        InputError: there is no such protocol, task, model or image.
    """
    for each in spec.wanted or ():
        if isinstance(each, str):
            find_protocols(each, max_shift=spec.max_shift)
    if spec.task is not None:
        find_task(spec.task)
    return open_subject(spec, report, classes=classes)


def run_first(spec: AuditSpec, *, subject: Subject | None = None, report: Report = silent) -> Audit:
    """Return the first answer of an audit: a few of its images, measured by one protocol.

    Args:
        spec: what to audit, and how.
        subject: its model and images, if they are open already.
        report: called with progress events.

    Raises:
        InputError: the model or the images cannot be measured.
    """
    run = _Run(spec, report, subject)
    return first_answer(run.fresh(first=True), run.plan, run.subject.images)[0]


def run_audit(
    spec: AuditSpec,
    *,
    subject: Subject | None = None,
    out: Path | None = None,
    staged: bool = False,
    report: Report = silent,
) -> Audit:
    """Run a complete audit in this process.

    Args:
        spec: what to audit, and how.
        subject: its model and images, if they are open already.
        out: folder to resume from and to write to; by default nothing is written.
        staged: whether to measure and report a first answer and a forecast before the rest.
        report: called with each :class:`shiftscope.runtime.progress.Stage`, and with the events of
            :mod:`shiftscope.audits.staging`.

    Raises:
        InputError: the model or the images cannot be measured; the folder holds another audit, or cannot be written.
        AuditStopped: the user stopped it; the exception holds what was measured.
    """
    if out is not None:
        run_shard(AuditJob(spec, 1, 1, out), report, subject=subject, staged=staged)
        return merge_audit(out)
    run = _Run(spec, report, subject)
    parts: list[Part] = []
    with run.stoppable(lambda: parts):
        if staged:
            run.report_first(range(run.plan.blocks), report)
        for _, part in run.measure(range(run.plan.blocks), report):
            parts.append(part)
            report(SoFar(lambda: so_far(run.plan, parts)))
    return assemble_planned(run.plan, merge_parts(parts))


def run_shard(job: AuditJob, report: Report = silent, *, subject: Subject | None = None, staged: bool = False) -> list[Path]:
    """Measure the missing blocks of a shard, and return the files of all its blocks; none for a shard without blocks.

    A block is claimed by a lock while it is measured. Where the file system has no locks, no shard takes over.

    Args:
        job: the shard.
        report: called with each :class:`shiftscope.runtime.progress.Stage`, and with the events of
            :mod:`shiftscope.audits.staging`.
        subject: its model and images, if they are open already.
        staged: whether to measure and report a first answer and a forecast before the missing blocks.

    Raises:
        InputError: there is no such shard; the model or the images cannot be measured, or differ from the plan's; the folder
            holds another audit, or cannot be written.
        AuditStopped: the user stopped it; the exception holds what the folder holds.
    """
    if not 1 <= job.shard <= job.shards:
        raise InputError(f"`shard` must be I/N with I from 1 to N, got {job.shard}/{job.shards}.", "Number shards from 1.")
    known = planned(job.out) if job.channels_last is None else None
    run = _Run(job.spec, report, subject, channels_last=job.channels_last if known is None else known.channels_last)
    blocks = run.plan.blocks
    if job.model_sha256 not in ("", run.plan.model_sha256):
        raise InputError(f"the model {job.spec.model} of {job} differs from the plan's.", "Copy the same files to every machine.")
    run.set_format(prepare_folder(job.out, run.plan).channels_last)
    numbers = range((job.shard - 1) * blocks // job.shards, job.shard * blocks // job.shards)
    others = [*range(numbers.stop, blocks), *range(numbers.start)] if job.takes_over else []
    mine = [number for number in numbers if number not in job.known]
    with run.stoppable(lambda: _existing(job.out, blocks)):
        if staged:
            run.report_first([number for number in mine if not part_file(job.out, number).exists()], report)
        measured = run.measure_free(job.out, mine, others, report)
        while measured and others:  # until nothing is left that no other shard measures
            measured = run.measure_free(job.out, [], [*mine, *others], report)
    if others:
        tidy(job.out)
    return [part_file(job.out, number) for number in numbers]


def _existing(out: Path, blocks: int) -> list[Part]:
    """Return the parts in a folder, in their order."""
    found = (read_part(out, number) for number in range(blocks))
    return [part for part in found if part is not None]


def run_shards(
    spec: AuditSpec,
    executor: Executor,
    *,
    shards: int,
    subject: Subject | None = None,
    out: Path | None = None,
    staged: bool = False,
    report: Report = silent,
) -> Audit:
    """Run a complete audit in shards at once; the result equals that of one process with as many threads.

    Args:
        spec: what to audit, and how.
        executor: processes of this machine, or tasks of a Ray cluster.
        shards: number of shards.
        subject: its model and images, if they are open already.
        out: folder to resume from and to write to; by default nothing is written.
        staged: whether to measure and report a first answer before the rest.
        report: called with each :class:`shiftscope.runtime.progress.Stage`.

    Raises:
        InputError: ``shards`` is below 1, and see :func:`run_shard`.
        AuditStopped: the user stopped it; the exception holds what was measured.
    """
    if shards < 1:
        raise InputError(f"`shards` must be 1 or more, got {shards}.", "Give at least one.")
    if out is None:
        with TemporaryDirectory() as folder:
            return run_shards(spec, executor, shards=shards, subject=subject, out=Path(folder), staged=staged, report=report)
    before = planned(out)
    run = _Run(spec, report, subject, channels_last=None if before is None else before.channels_last)
    plan = prepare_folder(out, run.plan)
    run.set_format(plan.channels_last)
    known = frozenset(number for number in range(plan.blocks) if read_part(out, number) is not None)
    anywhere = spec.with_absolute_paths()
    job = AuditJob(anywhere, 1, shards, out, known, plan.model_sha256, plan.channels_last)
    jobs = [replace(job, shard=number) for number in range(1, shards + 1)]
    with run.stoppable(lambda: _existing(out, plan.blocks)):
        if staged:
            run.report_first(
                [number for number in range(plan.blocks) if number not in known], report, forecasts=not executor.remote
            )
        done = len(known)
        for _, files in executor.run(_run_away if executor.remote else _run_here, jobs, lambda *_: None):
            for name, content in files.items():
                if content is not None:
                    write_bytes(part_file(out, int(Path(name).stem)), content)
            done += len(files)
            report(Stage("measuring images", min(done * plan.block, plan.count), plan.count))
    return merge_audit(out)


def _run_here(job: AuditJob, _: Callable[[object], None]) -> dict[str, bytes | None]:
    """Run a shard on this machine, and return the names of its new files."""
    return {file.name: None for file in run_shard(job) if int(file.stem) not in job.known}


def _run_away(job: AuditJob, _: Callable[[object], None]) -> dict[str, bytes | None]:
    """Run a shard on another machine, and return the contents of its new files."""
    with TemporaryDirectory() as folder:
        return {file.name: file.read_bytes() for file in run_shard(replace(job, out=Path(folder))) if file.exists()}


def _on_cut(images: ImageBlocks, reach: float) -> Iterator[str]:
    """Yield a sentence if shifts of up to ``reach`` pixels push parts of images off their canvas."""
    if images.crop is None and 0 < images.margin < reach:
        yield f"The canvas leaves {images.margin} pixels around these images: larger shifts, of up to {reach:g}, cut content."


class _Run:
    """A loaded model, its images, the audit of both, and its plan."""

    def __init__(
        self, spec: AuditSpec, report: Report, subject: Subject | None = None, *, channels_last: bool | None = None
    ) -> None:
        self.spec, self.subject, self.first = spec, subject or open_audited(spec, report), list[Audit]()
        self.session = _start(spec, self.subject)
        if channels_last is None:
            channels_last = self.session.measurer.choose_format(self.subject.images.example(), self.subject.images.count)
        self.set_format(channels_last)
        protocols, images = self.session.measurer.protocols, self.subject.images
        borders = {each.name: self.session.framing.border(each) for each in protocols}
        reach = max((each.max_shift for each in protocols if borders[each.name] == "zero"), default=0)
        self.plan = AuditPlan(
            spec=spec,
            model_sha256=model_checksum(self.subject.loaded.model, spec.model),
            data=images.origin,
            data_sha256=images.checksum,
            facts=self.subject.facts,
            classes=self.subject.class_names if self.session.takes_labels else (),
            warnings=(*self.session.dependence(images.example()), *self.subject.warnings()),
            count=images.count,
            block=block_size(self.session.framing.size),
            protocols=protocols,
            kind=self.session.kind,
            task=spec.task or self.subject.loaded.spec.task or (self.session.task.name if self.session.task else ""),
            truth_sha256=truth_checksum(spec.truth),
            borders=borders,
            notes=(
                *(images.all_notes if self.session.takes_labels else images.notes),
                *_on_cut(images, reach),
                *self.session.notes,
            ),
            provenance=provenance(spec.device),
            channels_last=channels_last,
        )

    def fresh(self, *, first: bool = False) -> Session:
        """Return another session on the same model and images, of the protocol of the first answer or of all protocols.

        What it measures leaves no trace in this one's costs.
        """
        protocols: Sequence[str | Protocol] | None = None
        if first:
            own = self.session.kind == "maps" or self.spec.mode not in (None, "zero") or self.spec.pan is not None
            protocols = self.plan.protocols[:1] if own else [FIRST_PROTOCOL]
        session = _start(self.spec, self.subject, protocols)
        session.measurer.model.channels_last = self.session.measurer.model.channels_last
        return session

    def report_first(self, missing: Sequence[int], report: Report, *, forecasts: bool = True) -> None:
        """Measure and report a first answer, and how long the missing blocks will take; nothing if that is hardly more work."""
        left = sum(min(self.plan.block, self.plan.count - number * self.plan.block) for number in missing)
        first = self.fresh(first=True)
        if not left or sum(count_views(self.session.measurer, left)) <= LITTLE * sum(
            count_views(first.measurer, min(left, FIRST_IMAGES))
        ):
            return
        report(Stage("measuring a first answer", 0, 0))
        found, speed = first_answer(first, self.plan, self.subject.images)
        self.first.append(found)
        report(FirstAnswer(found))
        if forecasts:
            report(forecast(self.fresh(), self.subject.images, left, speed, block=self.plan.block))

    @contextmanager
    def stoppable(self, parts: Callable[[], list[Part]]) -> Iterator[None]:
        """Turn Ctrl-C into an exception that holds what is known: the blocks measured so far, or else the first answer."""
        try:
            yield
        except KeyboardInterrupt as stop:
            known = parts()
            raise AuditStopped(so_far(self.plan, known) if known else next(iter(self.first), None)) from stop

    def set_format(self, channels_last: bool) -> None:
        """Set in which memory format the model receives images."""
        self.session.measurer.model.channels_last = channels_last

    def measure_free(self, out: Path, mine: Sequence[int], others: Sequence[int], report: Report) -> int:
        """Measure blocks that have no part in a folder and that no other process measures; return their number."""
        measured = 0
        with Claims(out) as claims:
            for number, part in self.measure(claims.take(mine, others), report):
                write_part(out, number, part)
                claims.release(number)
                measured += 1
                report(SoFar(lambda: so_far(self.plan, _existing(out, self.plan.blocks))))
        return measured

    def measure(self, numbers: Iterable[int], report: Report) -> Iterator[tuple[int, Part]]:
        """Measure blocks of images, and yield each block's number and part. A thread reads the next block meanwhile."""
        following = iter(numbers)
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = [(number, reader.submit(self._read, number)) for number in islice(following, 1)]
            while ahead:
                number, reading = ahead.pop()
                block = reading.result()
                ahead += [(each, reader.submit(self._read, each)) for each in islice(following, 1)]
                part = Part()
                if len(block.images):
                    part = self.session.reported_part(
                        block.images,
                        block.labels,
                        indices=block.numbers,
                        done=(number * self.plan.block, min((number + 1) * self.plan.block, self.plan.count)),
                        total=self.plan.count,
                        report=report,
                    )
                yield number, replace(part, damaged=tuple(block.damaged))

    def _read(self, number: int) -> Block:
        return self.subject.images.read(number * self.plan.block, min((number + 1) * self.plan.block, self.plan.count))


def _start(spec: AuditSpec, subject: Subject, protocols: Sequence[str | Protocol] | None = None) -> Session:
    loaded, images = subject.loaded, subject.images
    if spec.pan is not None and (spec.max_shift or 0) > min(images.size) // 2:
        raise InputError(
            f"`--pan` moves images by up to {spec.max_shift:,} pixels, more than half of {min(images.size)}.",
            "Give fewer --steps or a shorter step.",
        )
    options = AuditOptions(
        protocols=protocols or spec.wanted,
        max_shift=spec.max_shift,
        mode=spec.mode,
        size=images.size,
        fill=images.fill,
        mean=images.mean,
        output=subject.output,
        embedding=subject.embedding,
        seed=spec.seed,
        batch_size=spec.batch_size,
        device=spec.device,
        task=spec.task or loaded.spec.task,
        truth=None if spec.truth is None else partial(open_truth, Path(spec.truth), images),
    )
    try:
        return Session.start(
            loaded.model,
            images.example(),
            options,
            labelled=images.classes is not None,
            classes=images.classes,
        )
    except ModelFailsError as error:
        if loaded.image is not None or spec.size is not None:
            raise
        remedy = f"{error.remedy} The model does not say how large its input is: give `size`.".lstrip()
        raise ModelFailsError(error.problem, remedy) from error
