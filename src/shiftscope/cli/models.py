"""Commands on any model: measure it, explain it, fix it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from shiftscope.cli.app import MODELS, app, print_json, resumable
from shiftscope.cli.options import (
    COMPUTE_GROUP,
    IMAGE_GROUP,
    OUTPUT_GROUP,
    AuditOptions,
    CanvasOptions,
    ExecutorOptions,
    ExplainOptions,
    Flag,
    ModelName,
    Several,
)
from shiftscope.cli.progress import print_table, reporting
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits import Audit
    from shiftscope.audits.folder import AuditSpec
    from shiftscope.datasets.dataset import Dataset
    from shiftscope.models import LoadedModel
    from shiftscope.runtime.progress import Report
    from shiftscope.surgery import Surgery
    from shiftscope.tables import Table

__all__ = ["audit", "explain", "fix"]

#: Number of parts of an audit on a Ray cluster, unless the user gives another.
PARTS = 8


@app.command(group=MODELS)
def audit(
    model: ModelName | None = None,
    *,
    options: AuditOptions = AuditOptions(),
    protocols: Annotated[tuple[str, ...], Several, Parameter(name="--protocol", group=IMAGE_GROUP)] = (),
    seed: Annotated[int, Parameter(group=IMAGE_GROUP)] = 0,
    batch_size: Annotated[int | None, Parameter(group=COMPUTE_GROUP)] = None,
    shard: Annotated[str | None, Parameter(group=COMPUTE_GROUP)] = None,
    workers: Annotated[int | None, Parameter(group=COMPUTE_GROUP)] = None,
    computing: ExecutorOptions = ExecutorOptions(),
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
    merge: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
) -> None:
    """Measure how stable a model is when images shift, with the protocols of published papers.

    All protocols are measured in one pass over the images. The table has one row per protocol and measure, with an interval.

    Parameters
    ----------
    protocols
        Protocol to measure: mouton2020, myburgh2021 (a map over all shifts), every-shift, zhang2019, zhang2019-diagonal,
        chaman2021-circular, chaman2021-zero, rojas2022, michaeli2023, azulay2018, hendrycks2019, gruver2023, tmeasures or
        segmentation. Repeatable. By default those that suit the model's outputs.
    seed
        Seed of the shifts that protocols draw at random.
    batch_size
        Number of images per forward pass. By default as many as memory allows.
    shard
        Measure only part I of N of the images, written I/N, such as 1/4. Needs --out.
    workers
        Number of parts of the images to measure at once, each in a process with one thread. By default all images in one process
        with all threads; on a Ray cluster eight parts.
    out
        Folder for audit.json, table.csv, table.md, maps.safetensors and report.html. A stopped audit resumes from it. By default
        nothing is written.
    merge
        Folder of an audit whose shards are all measured: put them together, instead of measuring a model.
    """
    if (model is None) == (merge is None):
        raise InputError("`audit` needs either a model or a folder to merge, not both.", "Give one of MODEL and --merge.")
    folder = out or merge
    with resumable(out, "blocks"), reporting("loading the model") as report:
        if merge is None:
            spec = _audit_spec(
                model, options, protocols=protocols, seed=seed, batch_size=batch_size, device=computing.job_device()
            )
            found = _audited(spec, computing, shard=shard, workers=workers, out=out, report=report)
        else:
            found = _merged(merge)
        if found is not None and folder is not None:
            _write_page(found, folder)
    if found is None:
        print(f"Shard {shard} is in {out}. Run the other shards; the last one puts them together.", file=sys.stderr)
        return
    _print(found.to_json(), (found.table(),), as_json=options.as_json)
    if folder is not None and not options.as_json:
        print(f"Saved in {folder}: audit.json, table.csv, table.md, maps.safetensors, report.html.")


def _audit_spec(model: str | None, options: AuditOptions, **others: Any) -> AuditSpec:
    from pydantic import ValidationError

    from shiftscope.audits.folder import AuditSpec
    from shiftscope.runtime.settings import validation_messages

    shared = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    del shared["as_json"]
    try:
        return AuditSpec(model=str(model), **shared, **{**others, "protocols": others["protocols"] or None})
    except ValidationError as error:
        raise InputError(validation_messages(error)[0]) from error


def _audited(
    spec: AuditSpec, computing: ExecutorOptions, *, shard: str | None, workers: int | None, out: Path | None, report: Report
) -> Audit | None:
    """Run an audit or one shard of it; return None while other shards are missing."""
    from shiftscope.audits.folder import is_complete, merge_audit
    from shiftscope.audits.job import AuditJob, run_audit, run_shard, run_shards

    number, shards = (1, 1) if shard is None else _shard(shard)
    if shard is not None and out is None:
        raise InputError("`shard` needs a folder for its blocks.", "Give the same --out to all shards.")
    at_once = 1 if workers is None and computing.executor == "processes" else workers
    executor = computing.start(None if computing.address else at_once)
    if executor is not None:
        if shard is not None:
            raise InputError("`--shard` splits an audit over several commands, `--workers` within one.", "Give one of them.")
        return run_shards(spec, executor, shards=workers or PARTS, out=out, report=report)
    if out is None:
        return run_audit(spec, report=report)
    run_shard(AuditJob(spec, number, shards, out), report)
    return merge_audit(out) if is_complete(out) else None


def _merged(folder: Path) -> Audit:
    from shiftscope.audits.folder import merge_audit

    return merge_audit(folder)


def _shard(text: str) -> tuple[int, int]:
    """Read ``I/N`` as two numbers."""
    number, slash, shards = text.partition("/")
    if not slash or not number.isdecimal() or not shards.isdecimal():
        raise InputError(f"`shard` must be I/N, got {text!r}.", "Write the first of four shards as 1/4.")
    return int(number), int(shards)


def _write_page(found: Audit, folder: Path) -> None:
    from shiftscope.report.write import REPORT, audit_page, write_page

    write_page(audit_page(found), folder / REPORT)


@app.command(group=MODELS)
def explain(
    model: ModelName,
    *,
    options: ExplainOptions = ExplainOptions(),
    mode: Annotated[Literal["zero", "circular"], Parameter(group=IMAGE_GROUP)] = "zero",
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
) -> None:
    """Find out why a model's outputs change when images shift: which causes, which layers, and which fix to try first.

    Each cause is removed in turn, on the same weights, and the rest is measured again. Layers are followed from the image to
    the output. A model whose layers cannot be read, such as an .onnx file, is only measured.

    Parameters
    ----------
    mode
        What fills the border that a shift uncovers: the background (`zero`), or the content that left on the other side
        (`circular`).
    out
        Folder for explanation.json and for each table as Markdown and CSV. By default nothing is written.
    """
    if options.images < 2:
        raise InputError(f"`images` must be 2 or more, got {options.images}.", "An interval needs more than one image.")
    with reporting("loading the model") as report:
        from shiftscope.datasets.images import largest_shift
        from shiftscope.explanations import explain as explain_model

        loaded = options.load(model)
        dataset = _dataset(loaded, options, report)
        found = explain_model(
            loaded.model,
            dataset.canvas.place(dataset.test.images[: options.images]),
            dataset.test.labels[: options.images],
            max_shift=largest_shift(dataset, None) if options.max_shift is None else options.max_shift,
            mode=mode,
            fill=dataset.canvas.colour,
            name=model,
            report=report,
        )
        found = replace(found, settings={**found.settings, "data": dataset.origin, "data_sha256": dataset.checksum})
    if out is not None:
        _write_tables(out, dict(zip(("causes", "layers", "fixes"), found.tables(), strict=True)), found.to_json())
    _print(found.to_json(), found.tables(), as_json=options.as_json)
    if out is not None and not options.as_json:
        print(f"Saved in {out}.")


@app.command(group=MODELS)
def fix(
    model: ModelName,
    *,
    kinds: Annotated[tuple[Literal["blur", "aps", "lps", "gap", "circular"], ...], Several, Parameter(name="--with")],
    filter_size: int = 3,
    plan: Annotated[bool, Flag] = False,
    options: CanvasOptions = CanvasOptions(),
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
) -> None:
    """Change a copy of a model so that shifts matter less, and measure whether it helped.

    Layers keep their weights; with gap, those of the head are summed over positions. A changed network usually loses accuracy
    until it is trained again.

    Parameters
    ----------
    kinds
        Fix to apply: `blur` (a low-pass filter before each subsampling), `aps` or `lps` (adaptive or learned polyphase sampling,
        with circular padding), `gap` (global average pooling before the head) or `circular` (circular padding). Repeatable;
        applied in order.
    filter_size
        Size of the filter of `blur`, 1 to 7 positions.
    plan
        Only list what would change.
    out
        File for the changed model (.safetensors). By default nothing is written.
    """
    if out is not None and out.suffix != ".safetensors":
        raise InputError(f"`out` must be a .safetensors file, got {out}.", f"Write to {out.with_suffix('.safetensors')}.")
    if not 1 <= filter_size <= 7:
        raise InputError(f"`filter_size` must be 1 to 7, got {filter_size}.", "Leave it out to take 3.")
    if options.images < 1:
        raise InputError(f"`images` must be 1 or more, got {options.images}.", "Leave it out to take 256.")
    with reporting("loading the model") as report:
        from shiftscope.models import Fix, save_model
        from shiftscope.surgery.compare import fix as fix_model

        loaded = options.load(model)
        fixes = tuple(Fix(kind=kind, filter_size=filter_size if kind == "blur" else 1) for kind in kinds)
        dataset = _dataset(loaded, options, report)
        shape = (dataset.test.images.shape[1], dataset.canvas.size, dataset.canvas.size)
        surgery = fix_model(loaded.model, [(each.kind, each.filter_size) for each in fixes], image=shape)
        tables = [surgery.table()]
        if not plan:
            tables.append(_compared(loaded, surgery, dataset, options, report))
    if out is not None and not plan:
        try:
            save_model(out, surgery.model, loaded.spec.model_copy(update={"fixes": (*loaded.spec.fixes, *fixes)}))
        except OSError as error:
            raise InputError(f"`out` {out} cannot be written ({error.strerror or error}).", "Choose another file.") from error
    _print({"tables": [table.to_json() for table in tables]}, tables, as_json=options.as_json)
    if out is not None and not plan and not options.as_json:
        print(f"Saved in {out}.")


def _dataset(loaded: LoadedModel, options: CanvasOptions, report: Report) -> Dataset:
    from shiftscope.datasets.images import dataset_for

    return dataset_for(
        loaded.image, loaded.spec.data, name=options.data, canvas=options.canvas, data_dir=options.data_dir, report=report
    )


def _compared(loaded: LoadedModel, surgery: Surgery, dataset: Dataset, options: CanvasOptions, report: Report) -> Table:
    """Measure a model before and after a fix."""
    from shiftscope.datasets.images import largest_shift
    from shiftscope.surgery.compare import compare

    return compare(
        loaded.model,
        surgery,
        dataset.canvas.place(dataset.test.images[: options.images]),
        dataset.test.labels[: options.images],
        max_shift=largest_shift(dataset, options.max_shift),
        fill=dataset.canvas.colour,
        provenance={"data": dataset.origin, "data_sha256": dataset.checksum},
        report=report,
    )


def _print(content: dict[str, Any], tables: Iterable[Table], *, as_json: bool) -> None:
    if as_json:
        print_json(content)
        return
    for table in tables:
        print_table(table)


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
