"""The command that measures how stable a model is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shiftscope.cli.app import MODELS, app, print_first, resumable, say
from shiftscope.cli.frames import FramesOptions, audit_frames, pan_of
from shiftscope.cli.gate import GATE_GROUP, GateOptions, conditions_of, conditions_of_videos, judged
from shiftscope.cli.measuring import IMAGES, print_found, valid_settings
from shiftscope.cli.options import COMPUTE_GROUP, IMAGE_GROUP, MODEL_GROUP, OUTPUT_GROUP, AuditOptions, Flag, ModelName, Several
from shiftscope.cli.progress import reporting
from shiftscope.cli.values import read_shard
from shiftscope.errors import InputError
from shiftscope.runtime.stopping import keep

if TYPE_CHECKING:
    from shiftscope.audits import Audit
    from shiftscope.audits.folder import AuditSpec
    from shiftscope.audits.subject import Subject
    from shiftscope.runtime.executors import Executor
    from shiftscope.runtime.progress import Report

__all__ = ["audit"]

#: Number of parts of an audit on a cluster, unless the user gives another.
PARTS = 8
#: The files that are named at the end.
SAVED = ("audit.json", "table.csv", "table.md", "maps.safetensors", "frames.csv", "certificates.csv", "report.html")


@app.command(group=MODELS)
def audit(
    model: ModelName | None = None,
    *,
    options: AuditOptions = AuditOptions(),
    protocols: Annotated[tuple[str, ...], Several, Parameter(name="--protocol", group=IMAGE_GROUP)] = (),
    task: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None,
    truth: Annotated[Path | None, Parameter(group=IMAGE_GROUP)] = None,
    frames: Annotated[Path | None, Parameter(group=IMAGE_GROUP)] = None,
    pan: Annotated[str | None, Parameter(group=IMAGE_GROUP)] = None,
    steps: Annotated[int | None, Parameter(group=IMAGE_GROUP)] = None,
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
    task
        What the outputs are: boxes, keypoints, segmentation, depth, flow, embedding, binary, multilabel, regression or
        answers, with settings after a colon, as in `boxes:threshold=0.3`. By default detected from the outputs.
    truth
        Ground truth for --task: a JSON file of COCO or the folder above `images` and `labels` of YOLO (boxes), a folder with a
        map for each image, named like it (segmentation, depth), or a JSON file that maps names of images to values.
    frames
        Folder of a video's frames, image files in natural order, or with a subfolder of frames for each of several videos.
        Measure by how much answers change from one frame to the next, compared as they are, instead of shifts.
    pan
        Pan images slowly, by this step from frame to frame, written DOWN,RIGHT in pixels, such as 0.25,0 or 0,-0.5, and measure
        by how much answers change from one frame to the next, moved back, instead of protocols. Fractions of pixels are
        interpolated bilinearly.
    steps
        Number of steps of --pan. By default 32.
    batch_size
        Number of images per forward pass. By default as many as memory allows.
    shard
        Run as process I of N that share the folder --out, written I/N, such as 1/4: measure that part of the images first, then
        those that no other process measures. The last process merges all parts.
    workers
        Number of parts of the images to measure at once, each in a process with one thread. By default all images in one process
        with all threads, or a process for each of several GPUs; on a cluster eight parts.
    quick
        Stop after the first answer, from 32 images and one random shift of each.
    out
        Folder for audit.json, the tables as .csv and .md, maps, pictures and the page report.html. A stopped audit resumes from
        it. By default nothing is written.
    merge
        Folder of an audit whose shards are all measured: merge them, instead of measuring a model.
    fail_if
        Condition at which to exit with 1, such as "top-1 change > 0.10" or "mcs of mouton2020 < 0.9": a measure, by name or in
        words, above or below a number. It counts only if the whole interval lies beyond the number. Repeatable.
    """
    if frames is not None:
        others = {
            "--protocol": protocols,
            "--truth": truth,
            "--pan": pan,
            "--steps": steps,
            "--shard": shard,
            "--workers": workers,
        }
        others |= {"--quick": quick, "--merge": merge}
        conditions = conditions_of_videos(fail_if, gate)
        how = FramesOptions(task=task, batch_size=batch_size, out=out, conditions=conditions, gate=gate)
        return audit_frames(model, frames, options, how, others)
    panned = pan_of(pan, steps, protocols=protocols, max_shift=options.max_shift)
    conditions = conditions_of(fail_if, protocols, gate)
    if (model is None) == (merge is None):
        given = "either a model or a folder to merge, not both" if model else "a model, or a folder to merge"
        raise InputError(f"`audit` needs {given}.", "Give one of MODEL and --merge.")
    if quick and (merge or out or shard or workers):
        raise InputError(
            "`--quick` measures a few images and writes nothing.", "Leave out --out, --shard, --workers and --merge."
        )
    folder = out or merge
    if out is None:
        keep("Nothing is saved without --out, from which a stopped audit resumes.")
    with resumable(out, "blocks"):
        if merge is None:
            spec = _audit_spec(
                str(model), options, protocols=protocols or None, batch_size=batch_size, task=task, truth=_text(truth), **panned
            )
            found = _audited(spec, options, shard=shard, workers=workers, quick=quick, out=out)
        else:
            found = _merged(merge)
            print_first(_described(found), as_json=options.as_json)
        if found is None:
            return None
        if folder is not None:
            _write_page(found, folder)
    commands = _next(found, options, model, quick=quick, out=out) if model else ()
    saved = f"Saved in {folder}: {', '.join(name for name in SAVED if (folder / name).exists())}." if folder else ""
    verdict = judged(found, conditions, gate, _described(found))
    summary, content = found.summary(commands=commands), found.to_json()
    if verdict is not None:
        summary, content = (
            replace(summary, verdict=f"{verdict.words()} {summary.verdict}"),
            {**content, "gate": verdict.to_json()},
        )
    print_found(content, (found.table(),), options, summary, saved)
    return None if verdict is None else verdict.exit_code


def _next(found: Audit, options: AuditOptions, model: str, *, quick: bool, out: Path | None) -> tuple[str, ...]:
    """Return the command to run next: the whole audit, a page of it, or the causes where outputs are vectors."""
    command = "audit" if quick or found.task else "explain"
    task = f" --task {quote(found.task)}" if found.task else ""
    task += f" --truth {quote(str(found.settings['truth']))}" if found.settings.get("truth") else ""
    same = ""
    if command == "audit":
        same = "".join(f" --protocol {quote(name)}" for name in found.settings.get("protocols") or ())
        if pan := found.settings.get("pan"):
            same += f" --pan {','.join(f'{each:g}' for each in pan)} --steps {found.settings['steps']}"
        same += f" --batch-size {found.settings['batch_size']}" if found.settings.get("batch_size") else ""
    page = " --out audit" if found.task and not quick else ""
    return () if page and out is not None else (f"shiftscope {command} {options.arguments(model)}{task}{same}{page}",)


def _audit_spec(model: str, options: AuditOptions, **others: Any) -> AuditSpec:
    from shiftscope.audits.folder import AuditSpec

    with valid_settings():
        return AuditSpec(**options.subject(model, images=IMAGES) | {"mode": options.mode} | others)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _audited(
    spec: AuditSpec, options: AuditOptions, *, shard: str | None, workers: int | None, quick: bool, out: Path | None
) -> Audit | None:
    """Run an audit, its first stage or one shard of it; return None while other shards are missing."""
    from shiftscope.audits.job import open_audited
    from shiftscope.audits.staging import AuditStopped
    from shiftscope.runtime.executors import keep_freed_memory

    if shard is not None:
        read_shard(shard)
    if shard is not None and out is None:
        raise InputError("`shard` needs a folder for its blocks.", "Give the same --out to all shards.")
    at_once = 1 if workers is None and options.executor == "processes" and options.job_device() == "cpu" else workers
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
            print_found(stopped.audit.to_json(), (stopped.audit.table(),), options, stopped.audit.summary())
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
    from shiftscope.runtime.executors import Processes

    if quick:
        return run_first(spec, subject=subject, report=report)
    if executor is not None:
        shards = workers or (executor.workers if isinstance(executor, Processes) else PARTS)
        found = run_shards(spec, executor, shards=shards, subject=subject, out=out, staged=True, report=report)
        return _pictured(found, subject, out, report)
    if out is None:
        return run_audit(spec, subject=subject, staged=True, report=report)
    number, shards = (1, 1) if shard is None else read_shard(shard)
    run_shard(AuditJob(spec, number, shards, out, takes_over=shard is not None), report, subject=subject, staged=True)
    if is_complete(out):
        return _pictured(merge_audit(out), subject, out, report)
    say(
        f"Shard {shard} has nothing left to do; others are at work in {out}, and the last one to finish merges the parts.",
        error=True,
    )
    return None


def _pictured(found: Audit, subject: Subject, out: Path | None, report: Report) -> Audit:
    """Write pictures of the images that change most beside an audit, and return the audit."""
    from shiftscope.report.write import add_pictures

    if out is not None:
        add_pictures(out, subject, found, report)
    return found


def _merged(folder: Path) -> Audit:
    from shiftscope.audits.folder import merge_audit

    return merge_audit(folder)


def _described(found: Audit) -> str:
    from shiftscope.audits.subject import describe

    return describe(found.provenance)


def _write_page(found: Audit, folder: Path) -> None:
    from shiftscope.report.write import write_audit_page

    write_audit_page(found, folder)
