"""The command that finds out why a model's outputs change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shiftscope.cli.app import MODELS, app
from shiftscope.cli.measuring import opened, print_found, task_images, task_of_subject, task_words, under_shifts
from shiftscope.cli.options import IMAGE_GROUP, MODEL_GROUP, OUTPUT_GROUP, ModelName, ModelOptions
from shiftscope.cli.progress import reporting
from shiftscope.cli.values import check_place
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits.subject import Subject
    from shiftscope.explanations import Explanation, TaskExplanation
    from shiftscope.tables import Table
    from shiftscope.tasks import Task

__all__ = ["explain"]


@app.command(group=MODELS)
def explain(
    model: ModelName,
    *,
    options: ModelOptions = ModelOptions(),
    task: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None,
    truth: Annotated[Path | None, Parameter(group=IMAGE_GROUP)] = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
) -> None:
    """Find out why a model's outputs change when images shift: which causes, which layers, and which fix to try first.

    Each cause is removed in turn, on the same weights, and the rest is measured again. Layers are followed from the image to
    the output. A model whose layers cannot be read, such as an .onnx file, is only measured.

    Parameters
    ----------
    task
        What the outputs are: boxes, keypoints, segmentation, depth, flow, embedding, binary, multilabel, regression or
        answers, with settings after a colon, as in `boxes:threshold=0.3`. By default detected from the outputs. Of a task,
        its own measure is explained, also by how much answers change on and off the lattice of the stride.
    truth
        Ground truth for --task, as for `shiftscope audit`: what each fix costs or gains without a shift.
    out
        Folder for report.html, explanation.json and each table as Markdown and CSV. By default nothing is written.
    """
    if options.images is not None and options.images < 2:
        raise InputError(f"`images` must be 2 or more, got {options.images}.", "An interval needs more than one image.")
    check_place(out, folder=True)
    subject = opened(model, options)
    chosen = task_of_subject(subject, task, truth)
    if chosen is not None:
        _explain_task(subject, options, model, chosen, task=task, truth=truth, out=out)
        return
    with reporting("reading images") as report:
        from shiftscope.explanations import Explanation as OfClasses
        from shiftscope.explanations import explain as explain_model

        block, ignored = subject.read()
        found = explain_model(
            subject.model,
            block.images,
            block.labels,
            **vars(under_shifts(subject, options)),
            embedding=subject.embedding,
            name=subject.name,
            arguments=options.arguments(model),
            savable=subject.loaded.spec.is_code,
            report=report,
        )
        assert isinstance(found, OfClasses)  # the output shows no task
        found = replace(found, settings={**found.settings, **subject.facts}, notes=subject.notes(block, ignored))
    _finish(found, options, out)


def _explain_task(
    subject: Subject, options: ModelOptions, model: str, chosen: Task, *, task: str | None, truth: Path | None, out: Path | None
) -> None:
    """Explain why a task's answers change."""
    of_task = f"--task {quote(task_words(subject, task, chosen))}"
    of_task += f" --truth {quote(str(truth))}" if truth is not None else ""
    with reporting("reading images") as report:
        from shiftscope.explanations.task_explanation import explain_task

        block, known, notes = task_images(subject, chosen, truth)
        found = explain_task(
            subject.loaded.model,
            chosen,
            block.images,
            under_shifts(subject, options),
            truth=known,
            output=subject.output,
            name=subject.name,
            arguments=f"{options.arguments(model)} {of_task}",
            savable=subject.loaded.spec.is_code,
            report=report,
        )
        found = replace(found, settings={**found.settings, **subject.facts}, notes=(*notes, *found.notes))
    _finish(found, options, out)


def _finish(found: Explanation | TaskExplanation, options: ModelOptions, out: Path | None) -> None:
    """Write page and tables into the folder, where there is one, and print the result."""
    if out is not None:
        from shiftscope.report.explanation import explanation_page
        from shiftscope.report.write import REPORT, write_page

        _write_tables(out, dict(zip(found.table_files, found.tables(), strict=True)), found.to_json())
        write_page(explanation_page(found), out / REPORT)
    print_found(found.to_json(), found.tables(), options, found.summary(), f"Saved in {out}." if out else "")


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
