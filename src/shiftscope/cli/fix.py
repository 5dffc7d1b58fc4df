"""The command that changes a copy of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shiftscope.cli.app import MODELS, app
from shiftscope.cli.fix_options import Fixing, FixKind
from shiftscope.cli.measuring import opened, print_found, task_images, task_of_subject, task_words, under_shifts
from shiftscope.cli.options import (
    COMPUTE_GROUP,
    IMAGE_GROUP,
    MODEL_GROUP,
    OF_THE_MODEL,
    OUTPUT_GROUP,
    FixOptions,
    Flag,
    ModelName,
    ModelOptions,
    Several,
)
from shiftscope.cli.progress import reporting
from shiftscope.cli.tuning import TrainOptions, check_training, forget, train_after, training_folder
from shiftscope.cli.values import check_place
from shiftscope.errors import InputError
from shiftscope.runtime.stopping import keep

if TYPE_CHECKING:
    from shiftscope.audits.subject import Subject
    from shiftscope.models import ModelSpec
    from shiftscope.runtime.progress import Report
    from shiftscope.surgery import Surgery
    from shiftscope.tables import Table
    from shiftscope.tasks import Task

__all__ = ["fix"]

#: The file of a fixed model in a recommended command.
FIXED = "fixed.safetensors"


@app.command(group=MODELS)
def fix(
    model: ModelName,
    *,
    kinds: Annotated[tuple[FixKind, ...], Several, Parameter(name="--with")],
    filter_size: int = 3,
    reach: int | None = None,
    task: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None,
    truth: Annotated[Path | None, Parameter(group=IMAGE_GROUP)] = None,
    plan: Annotated[bool, Flag] = False,
    options: FixOptions = FixOptions(),
    training: TrainOptions = TrainOptions(),
    workers: Annotated[int | None, Parameter(group=COMPUTE_GROUP)] = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
) -> None:
    """Change a copy of a model so that shifts matter less, and measure whether it helped.

    Layers keep their weights; with gap, those of the head are summed over positions. A changed network usually loses accuracy
    until it is trained again: --train does so, and trains the model without the fix, too, to show what the fix itself gains.

    Parameters
    ----------
    kinds
        Fix to apply: `blur` (a low-pass filter before each subsampling), `aps` or `lps` (adaptive or learned polyphase sampling,
        with circular padding), `gap` (global average pooling before the head), `circular` (circular padding), `anchor` (patches
        and windows of a transformer that follow shifts), `canonical` (the input is moved to a position that its own content
        decides; of photos, to a crop) or `average` (the mean of probabilities over shifts). The last two need no layers and no
        training, and follow --mode. Repeatable; applied in order.
    filter_size
        Size of the filter of `blur`, 1 to 7 positions.
    task
        What the outputs are: boxes, keypoints, segmentation, depth, flow, embedding, binary, multilabel, regression or
        answers, with settings after a colon, as in `boxes:threshold=0.3`. By default detected from the outputs. Of a task,
        its own measures are compared, and `canonical` and `average` move maps and boxes back.
    truth
        Ground truth for --task, as for `shiftscope audit`: what a fix costs or gains without a shift, and under shifts.
    reach
        Largest shift that `average` averages over, in pixels: 1 for 9 shifts, 8 for 289. Of photos also how far the crop of
        `canonical` may lie from the middle. By default 1 for `average`, and 1/14 of the input for `canonical`.
    plan
        Only list what would change.
    workers
        Number of trainings at once, each in a process with one thread. By default they follow each other and use all threads; on
        a cluster all run at once.
    out
        File for the changed model (.safetensors). A stopped training resumes from the folder beside it. By default nothing is
        written.
    """
    _check_options(out, kinds, filter_size, reach)
    subject = opened(model, options)
    found = task_of_subject(subject, task, truth)
    if found is not None and training.train is not None:
        raise InputError(
            f"`--train` trains classifiers only, and the outputs are of task {found.name!r}.",
            "Write the changed copy with --out, train it in a loop of your own, and measure both with `audit`.",
        )
    check_training(subject, training, options, workers=workers, out=None if plan else out)
    if training.train is not None and not plan:
        keep(_where_trainings_are(out))
    with reporting("applying the fix") as report:
        from shiftscope.surgery.compare import summarise
        from shiftscope.surgery.task_compare import summarise_tasks

        _check_applies(subject, kinds, saved=out is not None)
        named = task_words(subject, task, found)
        fixing = Fixing(kinds, filter_size, reach, options.mode, named)
        surgery = fixing.apply(subject)
        if not plan:
            surgery.check_changed(kinds, model)
        trained = None
        if training.train is not None and not plan:
            trained = train_after(subject, surgery, fixing, options, training, workers=workers, out=out, report=report)
            surgery = trained.surgery
        if plan or trained is not None:
            compared = trained.table if trained is not None else None
        elif found is None:
            compared = _compared(subject, surgery, options, report)
        else:
            compared = _compared_tasks(subject, surgery, options, report, task=found, truth=truth)
        tables = [surgery.table(), *([compared] if compared else [])]
    saved = None if plan else out
    if saved is not None:
        made = subject.loaded.spec
        fixes = (*made.fixes, *fixing.fixes(subject)[0])
        tuned = (*made.tuned, *([trained.tuned] if trained else []))
        _save(saved, surgery, subject.fixable.model_copy(update={"fixes": fixes, "tuned": tuned, "task": task or made.task}))
        forget(out if trained else None)
    chosen = [*_arguments(kinds, filter_size, reach), *training.arguments()]
    of_task = f"--task {quote(named)}" if found is not None else ""
    of_task += f" --truth {quote(str(truth))}" if truth is not None else ""
    command = _next_command(model, subject, options, chosen=" ".join(chosen), of_task=of_task, saved=saved, out=out)
    commands = (command,) if surgery.changed else ()
    content = {"tables": [table.to_json() for table in tables], "provenance": subject.facts}
    if found is not None:
        summary = summarise_tasks(surgery, compared, found, commands=commands)
    else:
        summary = trained.summary(command) if trained else summarise(surgery, compared, commands=commands)
    print_found(content, tables, options, summary, "" if saved is None else f"Saved in {saved}.")


def _where_trainings_are(out: Path | None) -> str:
    """Return what a stopped command says about its trainings."""
    if out is None:
        return "Trainings are kept with --out only."
    return f"Trainings are in {training_folder(out)}; run the same command again to resume."


def _arguments(kinds: tuple[FixKind, ...], filter_size: int, reach: int | None) -> list[str]:
    """Return the options that choose the fixes, without those left at their defaults."""
    chosen = [f"--with {kind}" for kind in kinds] + [f"--filter-size {filter_size}"] * (filter_size != 3)
    return chosen + [f"--reach {reach}"] * (reach is not None)


def _save(file: Path, surgery: Surgery, spec: ModelSpec) -> None:
    """Write the fixed model, or raise InputError."""
    from shiftscope.models import save_model
    from shiftscope.runtime.files import writing

    with writing(f"`out` {file}", "Choose another file."):
        save_model(file, surgery.model, spec)


def _check_options(out: Path | None, kinds: tuple[FixKind, ...], filter_size: int, reach: int | None) -> None:
    """Raise InputError unless the options of `fix` are within their bounds."""
    if out is not None and out.suffix != ".safetensors":
        raise InputError(f"`out` must be a .safetensors file, got {out}.", f"Write to {out.with_suffix('.safetensors')}.")
    check_place(out, folder=False)
    if not 1 <= filter_size <= 7:
        raise InputError(f"`filter_size` must be 1 to 7, got {filter_size}.", "Leave it out to take 3.")
    if reach is not None and reach < 1:
        raise InputError(f"`reach` must be 1 or more pixels, got {reach}.", "Leave it out to take the default.")
    if filter_size != 3 and "blur" not in kinds:
        raise InputError("`filter_size` is of the filters that `--with blur` adds.", "Leave it out.")
    if reach is not None and not {"average", "canonical"} & set(kinds):
        raise InputError("`reach` is of `--with average` and `--with canonical`.", "Leave it out.")


def _next_command(
    model: str, subject: Subject, options: ModelOptions, *, chosen: str, of_task: str, saved: Path | None, out: Path | None
) -> str:
    """Return what to run next: certify what can only be run, save what is not saved yet, or audit the saved copy."""
    from shiftscope.models import needs_trust

    if not subject.loaded.spec.is_code:
        return f"shiftscope {'audit' if of_task else 'certify'} {options.arguments(model)} {of_task}".rstrip()
    if saved is None:
        return f"shiftscope fix {options.arguments(model)} {chosen} {of_task} --out {quote(str(out or FIXED))}".replace("  ", " ")
    audited = options.arguments(str(saved), without=OF_THE_MODEL, trust=needs_trust(subject.loaded.spec))
    return f"shiftscope audit {audited} {of_task}".rstrip()


def _check_applies(subject: Subject, kinds: tuple[FixKind, ...], *, saved: bool) -> None:
    """Raise InputError where fixes need layers, or a copy, that a file does not give."""
    made, model = subject.loaded.spec, subject.spec.model
    wrapped = all(kind in ("canonical", "average") for kind in kinds)
    if not made.is_code and wrapped and saved:
        raise InputError(
            f"{model} can only be run, so a fixed copy cannot be saved.",
            "Leave out --out, or wrap the model where you use it: shiftscope.surgery.Canonical, Average.",
        )
    if not made.is_code and not wrapped:
        raise InputError(
            f"the layers of {model} are in a file that can only be run, so they cannot be changed.",
            "Give the model as code that makes it, with its `weights`.",
        )


def _compared(subject: Subject, surgery: Surgery, options: ModelOptions, report: Report) -> Table:
    """Measure a model before and after a fix."""
    from shiftscope.surgery.compare import compare

    block, ignored = subject.read()
    table = compare(
        subject.model,
        replace(surgery, model=subject.measured(surgery.model)),
        block.images,
        block.labels,
        under_shifts(subject, options),
        embedding=subject.embedding,
        provenance=subject.facts,
        report=report,
    )
    return replace(table, notes=(*subject.notes(block, ignored), *table.notes))


def _compared_tasks(
    subject: Subject, surgery: Surgery, options: ModelOptions, report: Report, *, task: Task, truth: Path | None
) -> Table:
    """Measure a task's answers before and after a fix."""
    from shiftscope.surgery.task_compare import compare_tasks

    block, known, notes = task_images(subject, task, truth)
    table = compare_tasks(
        subject.loaded.model,
        surgery,
        task,
        block.images,
        under_shifts(subject, options),
        truth=known,
        output=subject.output,
        provenance=subject.facts,
        report=report,
    )
    return replace(table, notes=(*notes, *table.notes))
