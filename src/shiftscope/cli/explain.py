"""The command that finds out why a model's outputs change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shiftscope.cli.app import MODELS, app
from shiftscope.cli.measuring import opened, print_found, under_shifts
from shiftscope.cli.options import OUTPUT_GROUP, ModelName, ModelOptions
from shiftscope.cli.progress import reporting
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.tables import Table

__all__ = ["explain"]


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
    subject = opened(model, options)
    with reporting("reading images") as report:
        from shiftscope.explanations import explain as explain_model

        block, ignored = subject.read()
        found = explain_model(
            subject.model,
            block.images,
            block.labels,
            **under_shifts(subject, options),
            name=subject.name,
            arguments=options.arguments(model),
            savable=subject.loaded.spec.is_code,
            report=report,
        )
        found = replace(found, settings={**found.settings, **subject.facts}, notes=subject.notes(block, ignored))
    if out is not None:
        from shiftscope.report.explanation import explanation_page
        from shiftscope.report.write import REPORT, write_page

        _write_tables(out, dict(zip(("causes", "layers", "fixes"), found.tables(), strict=True)), found.to_json())
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
