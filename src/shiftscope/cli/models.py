"""Commands on any model: measure it, explain it, fix it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from shiftscope.cli.app import MODELS, app, print_first, print_json, resumable, say
from shiftscope.cli.gate import GATE_GROUP, GateOptions, conditions_of, judged
from shiftscope.cli.options import (
    COMPUTE_GROUP,
    IMAGE_GROUP,
    OF_THE_MODEL,
    OUTPUT_GROUP,
    AuditOptions,
    Flag,
    ModelName,
    ModelOptions,
    Several,
)
from shiftscope.cli.printing import print_summary
from shiftscope.cli.progress import reporting
from shiftscope.errors import InputError
from shiftscope.runtime.stopping import keep

if TYPE_CHECKING:
    from shiftscope.audits import Audit
    from shiftscope.audits.folder import AuditSpec
    from shiftscope.audits.subject import Subject
    from shiftscope.runtime.executors import Executor
    from shiftscope.runtime.progress import Report
    from shiftscope.shifts import Mode
    from shiftscope.surgery import Surgery
    from shiftscope.tables import Summary, Table

__all__ = ["audit", "explain", "fix"]

#: Number of images by default: of an audit, and of the commands that measure more than one model.
IMAGES, FEW_IMAGES = 256, 64
#: The file of a fixed model in a recommended command.
FIXED = "fixed.safetensors"
#: Number of parts of an audit on a Ray cluster, unless the user gives another.
PARTS = 8


@app.command(group=MODELS)
def audit(
    model: ModelName | None = None,
    *,
    options: AuditOptions = AuditOptions(),
    protocols: Annotated[tuple[str, ...], Several, Parameter(name="--protocol", group=IMAGE_GROUP)] = (),
    batch_size: Annotated[int | None, Parameter(group=COMPUTE_GROUP)] = None,
    shard: Annotated[str | None, Parameter(group=COMPUTE_GROUP)] = None,
    workers: Annotated[int | None, Parameter(group=COMPUTE_GROUP)] = None,
    quick: Annotated[bool, Flag, Parameter(group=IMAGE_GROUP)] = False,
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
    merge: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
    fail_if: Annotated[tuple[str, ...], Several, Parameter(group=GATE_GROUP)] = (),
    gate: GateOptions = GateOptions(),
) -> int | None:
    """Measure how stable a model is when images shift, with the protocols of published papers.

    A first answer comes from 32 images, with its wide interval, after seconds. Then all protocols are measured in one pass over
    the images. Ctrl-C stops it and prints what is known. The table has one row per protocol and measure, with an interval.

    Parameters
    ----------
    protocols
        Protocol to measure: mouton2020, myburgh2021 (a map over all shifts), every-shift, zhang2019, zhang2019-diagonal,
        chaman2021-circular, chaman2021-zero, rojas2022, michaeli2023, azulay2018, hendrycks2019, gruver2023, tmeasures or
        segmentation. Repeatable. By default those that suit the model's outputs.
    batch_size
        Number of images per forward pass. By default as many as memory allows.
    shard
        Measure only part I of N of the images, written I/N, such as 1/4. Needs --out.
    workers
        Number of parts of the images to measure at once, each in a process with one thread. By default all images in one process
        with all threads; on a Ray cluster eight parts.
    quick
        Stop after the first answer, from 32 images and one random shift of each.
    out
        Folder for audit.json, table.csv, table.md, maps.safetensors, pictures.json, drag.safetensors and report.html. A stopped
        audit resumes from it. By default nothing is written.
    merge
        Folder of an audit whose shards are all measured: put them together, instead of measuring a model.
    fail_if
        Condition at which to exit with 1, such as "top-1 change > 0.10" or "mcs of mouton2020 < 0.9": a measure, by name or in
        words, above or below a number. It counts only if the whole interval lies beyond the number. Repeatable.
    """
    conditions = conditions_of(fail_if, protocols, gate)
    if (model is None) == (merge is None):
        raise InputError("`audit` needs either a model or a folder to merge, not both.", "Give one of MODEL and --merge.")
    if quick and (merge or out or shard or workers):
        raise InputError(
            "`--quick` measures a few images and writes nothing.", "Leave out --out, --shard, --workers and --merge."
        )
    folder = out or merge
    if out is None:
        keep("Nothing is saved without --out, from which a stopped audit resumes.")
    with resumable(out, "blocks"):
        if merge is None:
            spec = _audit_spec(str(model), options, protocols=protocols or None, batch_size=batch_size)
            found = _audited(spec, options, shard=shard, workers=workers, quick=quick, out=out)
        else:
            found = _merged(merge)
            print_first(_described(found), as_json=options.as_json)
        if found is None:
            return None
        if folder is not None:
            _write_page(found, folder)
    command = "audit" if quick else "explain"
    commands = (f"shiftscope {command} {options.arguments(model)}",) if model else ()
    saved = f"Saved in {folder}: audit.json, table.csv, table.md, maps.safetensors, report.html." if folder else ""
    verdict = judged(found, conditions, gate, _described(found))
    summary, content = found.summary(commands=commands), found.to_json()
    if verdict is not None:
        summary, content = (
            replace(summary, verdict=f"{verdict.words()} {summary.verdict}"),
            {**content, "gate": verdict.to_json()},
        )
    _print(content, (found.table(),), options, summary, saved)
    return None if verdict is None else verdict.exit_code


def _audit_spec(model: str, options: AuditOptions, **others: Any) -> AuditSpec:
    from shiftscope.audits.folder import AuditSpec

    with _valid_settings():
        return AuditSpec(**options.subject(model, images=IMAGES), mode=options.mode, **others)


def _audited(
    spec: AuditSpec, options: AuditOptions, *, shard: str | None, workers: int | None, quick: bool, out: Path | None
) -> Audit | None:
    """Run an audit, its first stage or one shard of it; return None while other shards are missing."""
    from shiftscope.audits.job import open_audited
    from shiftscope.audits.staging import AuditStopped
    from shiftscope.runtime.executors import keep_freed_memory

    if shard is not None:
        _shard(shard)
    if shard is not None and out is None:
        raise InputError("`shard` needs a folder for its blocks.", "Give the same --out to all shards.")
    at_once = 1 if workers is None and options.executor == "processes" else workers
    executor = options.start(None if options.address else at_once)
    if executor is not None and shard is not None:
        raise InputError("`--shard` splits an audit over several commands, `--workers` within one.", "Give one of them.")
    keep_freed_memory()
    with reporting("loading the model") as report:
        subject = open_audited(spec, report)
    print_first(subject.line, as_json=options.as_json)
    try:
        with reporting("measuring images") as report:
            return _measured(spec, subject, executor, report, shard=shard, workers=workers, quick=quick, out=out)
    except AuditStopped as stopped:
        if stopped.audit is not None:
            _print(stopped.audit.to_json(), (stopped.audit.table(),), options, stopped.audit.summary())
        raise


def _measured(
    spec: AuditSpec,
    subject: Subject,
    executor: Executor | None,
    report: Report,
    *,
    shard: str | None,
    workers: int | None,
    quick: bool,
    out: Path | None,
) -> Audit | None:
    from shiftscope.audits.folder import is_complete, merge_audit
    from shiftscope.audits.job import AuditJob, run_audit, run_first, run_shard, run_shards

    if quick:
        return run_first(spec, subject=subject, report=report)
    if executor is not None:
        found = run_shards(spec, executor, shards=workers or PARTS, subject=subject, out=out, staged=True, report=report)
        return _pictured(found, subject, out, report)
    if out is None:
        return run_audit(spec, subject=subject, staged=True, report=report)
    number, shards = (1, 1) if shard is None else _shard(shard)
    files = run_shard(AuditJob(spec, number, shards, out), report, subject=subject, staged=True)
    if is_complete(out):
        return _pictured(merge_audit(out), subject, out, report)
    _say_shard(str(shard), out, empty=not files)
    return None


def _pictured(found: Audit, subject: Subject, out: Path | None, report: Report) -> Audit:
    """Write pictures of the images that change most beside an audit, and return the audit."""
    from shiftscope.report.write import add_pictures

    if out is not None:
        add_pictures(out, subject, found, report)
    return found


def _say_shard(shard: str, out: Path, *, empty: bool) -> None:
    """Say that other shards are missing, and whether this one measured anything."""
    done = (
        f"Shard {shard} is empty, because there are fewer blocks of images than shards."
        if empty
        else f"Shard {shard} is in {out}."
    )
    say(f"{done} Run the other shards; the last one puts them together.", error=True)


@contextmanager
def _valid_settings() -> Iterator[None]:
    """Turn the first invalid setting into an error of one sentence."""
    from pydantic import ValidationError

    from shiftscope.runtime.settings import validation_messages

    try:
        yield
    except ValidationError as error:
        raise InputError(validation_messages(error)[0]) from error


def _merged(folder: Path) -> Audit:
    from shiftscope.audits.folder import merge_audit

    return merge_audit(folder)


def _described(found: Audit) -> str:
    from shiftscope.audits.subject import describe

    return describe(found.provenance)


def _shard(text: str) -> tuple[int, int]:
    """Read ``I/N`` as two numbers."""
    number, slash, shards = text.partition("/")
    if not slash or not number.isdecimal() or not shards.isdecimal():
        raise InputError(f"`shard` must be I/N, got {text!r}.", "Write the first of four shards as 1/4.")
    return int(number), int(shards)


def _write_page(found: Audit, folder: Path) -> None:
    from shiftscope.report.write import write_audit_page

    write_audit_page(found, folder)


@app.command(group=MODELS)
def explain(
    model: ModelName,
    *,
    options: ModelOptions = ModelOptions(),
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
) -> None:
    """Find out why a model's outputs change when images shift: which causes, which layers, and which fix to try first.

    Each cause is removed in turn, on the same weights, and the rest is measured again. Layers are followed from the image to
    the output. A model whose layers cannot be read, such as an .onnx file, is only measured.

    Parameters
    ----------
    out
        Folder for report.html, explanation.json and each table as Markdown and CSV. By default nothing is written.
    """
    if options.images is not None and options.images < 2:
        raise InputError(f"`images` must be 2 or more, got {options.images}.", "An interval needs more than one image.")
    subject = _opened(model, options)
    with reporting("reading images") as report:
        from shiftscope.explanations import explain as explain_model

        block, ignored = subject.read()
        found = explain_model(
            subject.model,
            block.images,
            block.labels,
            **_under_shifts(subject, options),
            name=subject.name,
            arguments=options.arguments(model),
            report=report,
        )
        found = replace(found, settings={**found.settings, **subject.facts}, notes=subject.notes(block, ignored))
    if out is not None:
        from shiftscope.report.explanation import explanation_page
        from shiftscope.report.write import REPORT, write_page

        _write_tables(out, dict(zip(("causes", "layers", "fixes"), found.tables(), strict=True)), found.to_json())
        write_page(explanation_page(found), out / REPORT)
    _print(found.to_json(), found.tables(), options, found.summary(), f"Saved in {out}." if out else "")


@app.command(group=MODELS)
def fix(
    model: ModelName,
    *,
    kinds: Annotated[
        tuple[Literal["blur", "aps", "lps", "gap", "circular", "anchor", "canonical", "average"], ...],
        Several,
        Parameter(name="--with"),
    ],
    filter_size: int = 3,
    reach: int = 1,
    plan: Annotated[bool, Flag] = False,
    options: ModelOptions = ModelOptions(),
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
) -> None:
    """Change a copy of a model so that shifts matter less, and measure whether it helped.

    Layers keep their weights; with gap, those of the head are summed over positions. A changed network usually loses accuracy
    until it is trained again.

    Parameters
    ----------
    kinds
        Fix to apply: `blur` (a low-pass filter before each subsampling), `aps` or `lps` (adaptive or learned polyphase sampling,
        with circular padding), `gap` (global average pooling before the head), `circular` (circular padding), `anchor` (patches
        and windows of a transformer that follow shifts), `canonical` (the input is moved to a position that its own content
        decides) or `average` (the mean of probabilities over shifts). The last two need no layers and no training, and follow
        --mode. Repeatable; applied in order.
    filter_size
        Size of the filter of `blur`, 1 to 7 positions.
    reach
        Largest shift that `average` averages over, in pixels: 1 for 9 shifts, 8 for 289.
    plan
        Only list what would change.
    out
        File for the changed model (.safetensors). By default nothing is written.
    """
    if out is not None and out.suffix != ".safetensors":
        raise InputError(f"`out` must be a .safetensors file, got {out}.", f"Write to {out.with_suffix('.safetensors')}.")
    if not 1 <= filter_size <= 7:
        raise InputError(f"`filter_size` must be 1 to 7, got {filter_size}.", "Leave it out to take 3.")
    if reach < 1:
        raise InputError(f"`reach` must be 1 or more pixels, got {reach}.", "Leave it out to average over nine shifts.")
    subject = _opened(model, options)
    with reporting("applying the fix") as report:
        from shiftscope.models import Fix, needs_trust, save_model
        from shiftscope.surgery import Wrapping
        from shiftscope.surgery.compare import apply_fixes, summarise

        loaded, size = subject.loaded, subject.images.size
        wrapped = all(kind in ("canonical", "average") for kind in kinds)
        only_run = loaded.spec.factory is None and loaded.spec.network is None
        _check_applies(subject, kinds, options, saved=out is not None)
        border: Mode = "circular" if options.mode == "circular" else "zero"
        around = {"border": border, "fill": subject.images.fill}
        fixes = tuple(
            Fix(
                kind=kind,
                filter_size=filter_size if kind == "blur" else 1,
                reach=reach if kind == "average" else None,
                **(around if kind in ("canonical", "average") else {}),
            )
            for kind in kinds
        )
        wrapping = Wrapping(border, reach, subject.images.fill)
        shape = (subject.images.shape[0], size, size)
        surgery = apply_fixes(loaded.model, [(each.kind, each.filter_size) for each in fixes], wrapping=wrapping, image=shape)
        compared = None if plan else _compared(subject, surgery, options, report)
        tables = [surgery.table(), *([compared] if compared else [])]
    if out is not None and not plan:
        try:
            save_model(out, surgery.model, subject.fixable.model_copy(update={"fixes": (*loaded.spec.fixes, *fixes)}))
        except OSError as error:
            raise InputError(f"`out` {out} cannot be written ({error.strerror or error}).", "Choose another file.") from error
    saved = None if plan else out
    if only_run:
        command = f"shiftscope certify {options.arguments(model)}"
    elif saved is None:
        chosen = " ".join(f"--with {kind}" for kind in kinds) + (f" --filter-size {filter_size}" if filter_size != 3 else "")
        chosen += f" --reach {reach}" if reach != 1 else ""
        chosen += f" --mode {options.mode}" if wrapped and options.mode else ""
        command = f"shiftscope fix {options.arguments(model)} {chosen} --out {quote(str(out or FIXED))}"
    else:
        arguments = options.arguments(str(saved), without=OF_THE_MODEL, trust=needs_trust(loaded.spec))
        command = f"shiftscope audit {arguments}"
    content = {"tables": [table.to_json() for table in tables], "provenance": subject.facts}
    summary = summarise(surgery, compared, commands=(command,))
    _print(content, tables, options, summary, "" if saved is None else f"Saved in {saved}.")


def _check_applies(subject: Subject, kinds: tuple[str, ...], options: ModelOptions, *, saved: bool) -> None:
    """Raise InputError where fixes need layers that a file does not give, or a copy or an input that there is not."""
    made, model = subject.loaded.spec, subject.spec.model
    wrapped = all(kind in ("canonical", "average") for kind in kinds)
    if made.factory is None and made.network is None and wrapped and saved:
        raise InputError(
            f"{model} can only be run, so that no copy with the fix can be saved.",
            "Leave out --out, or wrap the model where you use it: shiftscope.surgery.Canonical, Average.",
        )
    if made.factory is None and made.network is None and not wrapped:
        raise InputError(
            f"the layers of {model} are in a file that can only be run, so that none can be changed.",
            "Give the model as code that makes it, with its `weights`.",
        )
    if "canonical" in kinds and options.mode != "circular" and subject.images.crop is not None:
        raise InputError(
            "`canonical` needs content on a plain background, or circular images; photos have neither.",
            "Give --mode circular, or choose another fix.",
        )


def _opened(model: str, options: ModelOptions) -> Subject:
    """Open a model and its images, and print what they are."""
    from shiftscope.audits.subject import SubjectSpec, open_subject
    from shiftscope.runtime.executors import keep_freed_memory

    keep_freed_memory()
    with _valid_settings():
        spec = SubjectSpec(**options.subject(model, images=FEW_IMAGES))
    with reporting("loading the model") as report:
        subject = open_subject(spec, report)
    print_first(subject.line, as_json=options.as_json)
    return subject


def _under_shifts(subject: Subject, options: ModelOptions) -> dict[str, Any]:
    """Return the arguments by which a model's images are shifted and its outputs measured."""
    return {
        "size": subject.images.size,
        "max_shift": subject.images.default_shift if options.max_shift is None else options.max_shift,
        "mode": options.mode,
        "fill": subject.fill,
        "embedding": subject.embedding,
        "seed": options.seed,
    }


def _compared(subject: Subject, surgery: Surgery, options: ModelOptions, report: Report) -> Table:
    """Measure a model before and after a fix."""
    from shiftscope.surgery.compare import compare

    block, ignored = subject.read()
    table = compare(
        subject.model,
        replace(surgery, model=subject.measured(surgery.model)),
        block.images,
        block.labels,
        **_under_shifts(subject, options),
        provenance=subject.facts,
        report=report,
    )
    return replace(table, notes=(*subject.notes(block, ignored), *table.notes))


def _print(content: dict[str, Any], tables: Iterable[Table], options: ModelOptions, summary: Summary, saved: str = "") -> None:
    if options.as_json:
        print_json(content)
    else:
        print_summary(summary, tables, saved=saved, wide=options.wide)


def _write_tables(folder: Path, tables: dict[str, Table], content: dict[str, Any]) -> None:
    """Write each table as Markdown and CSV, and everything as explanation.json."""
    from shiftscope.runtime.files import write_text

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            write_text(folder / f"{name}.md", table.to_markdown())
            write_text(folder / f"{name}.csv", table.to_csv())
        write_text(folder / "explanation.json", json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}).", "Choose another folder with --out."
        ) from error
