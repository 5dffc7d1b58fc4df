"""Commands on models: measure any, say where invariance is lost, fix it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from shiftscope.cli.app import app, device_of, executor_of, print_json, write_tables
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits import Audit
    from shiftscope.audits.folder import AuditSpec
    from shiftscope.runtime.processes import Executor

__all__ = ["audit", "explain", "fix"]

#: Of an audit on a Ray cluster, unless told otherwise.
PARTS = 8


@app.command
def audit(
    model: str | None = None,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    protocols: Annotated[tuple[str, ...], Parameter(name="--protocol", negative="")] = (),
    max_shift: int | None = None,
    images: int = 256,
    weights: Path | None = None,
    size: int | None = None,
    mean: Annotated[tuple[float, ...] | None, Parameter(negative="")] = None,
    std: Annotated[tuple[float, ...] | None, Parameter(negative="")] = None,
    output: str | None = None,
    embedding: Annotated[bool, Parameter(negative="")] = False,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
    shard: str | None = None,
    workers: int | None = None,
    executor: Literal["processes", "ray"] = "processes",
    address: str | None = None,
    gpus: float = 0.0,
    out: Path | None = None,
    merge: Path | None = None,
    trust: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measure how stable a model is under shifts, by the literature's protocols, in one pass over the images.

    Parameters
    ----------
    model:
        module:factory, timm:NAME or torchvision:NAME, the folder of a study's run, a file of `shiftscope fix`, a .pt2 or an
        .onnx file.
    data:
        Images to measure on: digits, mnist, cifar10, a Hugging Face id or an image folder (a subfolder for each class); those a
        run was trained on, else the digits, by default.
    data_dir:
        Local folder that holds the data set; else SHIFTSCOPE_DATA.
    protocols:
        mouton2020, myburgh2021 (the map over all shifts), every-shift, zhang2019, zhang2019-diagonal, chaman2021-circular,
        chaman2021-zero, rojas2022, michaeli2023, azulay2018, hendrycks2019, gruver2023, tmeasures, segmentation; may be given
        again. By default some that suit the model.
    max_shift:
        Largest shift of every protocol, pixels; each one's own, as far as it fits the image, by default.
    images:
        How many images.
    weights:
        Of a model made by name: safetensors, a state dict, or `pretrained` to fetch the library's own.
    size:
        Height and width of the model's input, pixels, where it does not tell.
    mean:
        Taken from the images before the model, a value a channel; as the model tells by default.
    std:
        What they are divided by after that.
    output:
        Name or place of the output to measure, where a model returns several.
    embedding:
        The outputs are embeddings, not classes.
    seed:
        Of the draws.
    batch_size:
        Images a forward pass.
    device:
        Where to compute: cpu, cuda, or auto.
    shard:
        I/N: measure the I-th of N parts of the images only.
    workers:
        Parts of the images to measure at once, each in a process with one thread; here with all threads by default, and in eight
        parts on a Ray cluster.
    executor:
        Processes of this machine, or tasks of a Ray cluster.
    address:
        Of a running Ray cluster; one is started on this machine otherwise.
    gpus:
        Share of a GPU for each part on a Ray cluster, as 0.25.
    out:
        Folder for audit.json, table.csv, table.md, maps.safetensors, report.html and, while it works, parts to go on from.
    merge:
        Folder whose parts are all there: put them together.
    trust:
        Let a file of `shiftscope fix` name the function of your own that made its model, to be called.
    as_json:
        Print JSON instead.
    """
    from pydantic import ValidationError

    from shiftscope.audits.folder import AuditSpec, merge_audit
    from shiftscope.cli.progress import print_table
    from shiftscope.report.write import REPORT, audit_page, write_page
    from shiftscope.runtime.settings import mistakes

    if (model is None) == (merge is None):
        raise InputError("`audit` needs a model, or a folder to --merge.")
    found: Audit | None
    if merge is not None:
        found = merge_audit(merge)
    else:
        try:
            spec = AuditSpec(
                model=str(model),
                weights=None if weights is None else str(weights),
                size=size,
                mean=mean,
                std=std,
                output=output,
                embedding=embedding,
                data=data,
                data_dir=None if data_dir is None else str(data_dir),
                images=images,
                protocols=protocols or None,
                max_shift=max_shift,
                seed=seed,
                batch_size=batch_size,
                device="cuda" if gpus else device_of(device),
                trust=trust,
            )
        except ValidationError as error:
            raise InputError(mistakes(error)[0]) from error
        at_once = 1 if workers is None and executor == "processes" else workers
        how = executor_of(executor, workers=None if address else at_once, address=address, gpus=gpus, device=spec.device)
        found = _audited(spec, shard, out) if how is None else _in_shards(spec, how, shard, workers or PARTS, out)
        if found is None:
            print(f"Shard {shard} is in {out}. Run the others; the last one puts them together.", file=sys.stderr)
            return
    if (folder := out or merge) is not None:
        write_page(audit_page(found), folder / REPORT)
    if as_json:
        print_json(found.to_json())
        return
    print_table(found.table())
    if out or merge:
        print(f"Saved in {out or merge}: audit.json, table.csv, table.md, maps.safetensors, report.html.")


def _audited(spec: AuditSpec, shard: str | None, out: Path | None) -> Audit | None:
    """The audit; None where other shards are missing."""
    from shiftscope.audits.folder import is_complete, merge_audit
    from shiftscope.audits.job import AuditJob, run_audit, run_shard
    from shiftscope.cli.progress import reporting

    number, shards = _shard(shard)
    if shard is not None and out is None:
        raise InputError("`shard` needs a folder for its parts. Give the same --out to all shards.")
    try:
        with reporting() as report:
            if out is None:
                return run_audit(spec, report=report)
            run_shard(AuditJob(spec, number, shards, out), report)
    except KeyboardInterrupt:
        if out is not None:
            print(f"Stopped. Finished blocks are in {out}; the same command goes on from there.", file=sys.stderr)
        raise
    return merge_audit(out) if is_complete(out) else None


def _in_shards(spec: AuditSpec, how: Executor, shard: str | None, shards: int, out: Path | None) -> Audit:
    """The whole audit, so many parts at once."""
    from shiftscope.audits.job import run_shards
    from shiftscope.cli.progress import reporting

    if shard is not None:
        raise InputError("`--shard` is one part of several commands, `--workers` are the parts of one. Give one of them.")
    try:
        with reporting() as report:
            return run_shards(spec, how, shards=shards, out=out, report=report)
    except KeyboardInterrupt:
        if out is not None:
            print(f"Stopped. Finished blocks are in {out}; the same command goes on from there.", file=sys.stderr)
        raise


def _shard(text: str | None) -> tuple[int, int]:
    """``I/N`` as two numbers; the whole where there is none."""
    if text is None:
        return 1, 1
    number, slash, shards = text.partition("/")
    if not slash or not number.isdecimal() or not shards.isdecimal():
        raise InputError(f"`shard` must be I/N, like 1/4, got {text!r}.")
    return int(number), int(shards)


@app.command
def explain(
    model: str,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    canvas: int | None = None,
    images: int = 64,
    max_shift: int | None = None,
    mode: Literal["zero", "circular"] = "zero",
    weights: Path | None = None,
    size: int | None = None,
    mean: Annotated[tuple[float, ...] | None, Parameter(negative="")] = None,
    std: Annotated[tuple[float, ...] | None, Parameter(negative="")] = None,
    out: Path | None = None,
    trust: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say where a model's invariance to shifts is lost, by cause and by layer, and which fix to try first.

    Parameters
    ----------
    model:
        module:factory, timm:NAME or torchvision:NAME, the folder of a study's run, a file of `shiftscope fix`, a .pt2 or an
        .onnx file; what only runs (.onnx) is measured, but not looked into.
    data:
        Images to measure on: digits, mnist, cifar10, a Hugging Face id or an image folder; those a run was trained on by default.
    data_dir:
        Local folder that holds the data set; else SHIFTSCOPE_DATA.
    canvas:
        Height and width of the canvas, pixels; the model's input, where that is known, by default.
    images:
        How many test images.
    max_shift:
        Largest shift, pixels; 8 or, where it is less, the canvas's margin by default.
    mode:
        What comes in at the border: the canvas's colour (zero), or what left on the other side (circular).
    weights:
        Of a model made by name: safetensors, a state dict, or `pretrained` to fetch the library's own.
    size:
        Height and width of the model's input, pixels, where it does not tell.
    mean:
        Taken from the images before the model, a value a channel; as the model tells by default.
    std:
        What they are divided by after that.
    out:
        Folder for explanation.json, and for each table as Markdown and CSV; without it nothing is written.
    trust:
        Let a file of `shiftscope fix` name the function of your own that made its model, to be called.
    as_json:
        Print JSON instead.
    """
    from dataclasses import replace

    from shiftscope.cli.progress import print_table, reporting
    from shiftscope.datasets.images import dataset_for, largest_shift
    from shiftscope.explanations import explain as explain_model
    from shiftscope.models import load_model
    from shiftscope.runtime.progress import Stage

    if images < 2:
        raise InputError(f"`images` must be 2 or more, so that intervals can be computed, got {images}.")
    loaded = load_model(model, weights=weights, size=size, mean=mean, std=std, trust=trust)
    with reporting() as report:
        dataset = dataset_for(
            loaded.image,
            loaded.spec.data,
            name=data,
            canvas=canvas,
            data_dir=data_dir,
            report=report,
        )
        found = explain_model(
            loaded.model,
            dataset.canvas.place(dataset.test.images[:images]),
            dataset.test.labels[:images],
            max_shift=largest_shift(dataset, None) if max_shift is None else max_shift,
            mode=mode,
            fill=dataset.canvas.colour,
            name=model,
            progress=lambda what, done, of: report(Stage(what, done, of if done else 0)),
        )
        found = replace(found, settings={**found.settings, "data": dataset.origin, "data_sha256": dataset.checksum})
    if out is not None:
        write_tables(out, dict(zip(("causes", "layers", "fixes"), found.tables(), strict=True)), found.to_json())
    if as_json:
        print_json(found.to_json())
        return
    for table in found.tables():
        print_table(table)
    if out is not None:
        print(f"Saved in {out}.")


@app.command
def fix(
    model: str,
    *,
    kinds: Annotated[tuple[Literal["blur", "aps", "lps", "gap", "circular"], ...], Parameter(name="--with", negative="")],
    out: Path | None = None,
    filter_size: int = 3,
    plan: Annotated[bool, Parameter(negative="")] = False,
    data: str | None = None,
    data_dir: Path | None = None,
    canvas: int | None = None,
    images: int = 256,
    max_shift: int | None = None,
    trust: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Put a fix into a copy of a model, and measure whether it worked.

    Parameters
    ----------
    model:
        The folder of a study's run, a file of this command, or module:factory.
    kinds:
        blur (a filter before each subsampling), aps or lps (polyphase sampling on circular maps), gap (a head that sees the
        mean over positions), circular (circular padding); several are applied in order, as in --with gap --with aps.
    out:
        File for the changed model (.safetensors); without it nothing is written.
    filter_size:
        Of blur's filter, 1 to 7.
    plan:
        Only say what would be changed.
    data:
        Images to measure on: digits, mnist, cifar10, a Hugging Face id or an image folder; those a run was trained on by default.
    data_dir:
        Local folder that holds the data set; else SHIFTSCOPE_DATA.
    canvas:
        Height and width of the canvas, pixels; the model's input, where that is known, by default.
    images:
        How many test images.
    max_shift:
        Largest shift, pixels; 8 or, where it is less, the canvas's margin by default.
    trust:
        Let a file of `shiftscope fix` name the function of your own that made its model, to be called.
    as_json:
        Print JSON instead.
    """
    from shiftscope.cli.progress import print_table, reporting
    from shiftscope.datasets.images import dataset_for, largest_shift
    from shiftscope.models import Fix, load_model, save_model
    from shiftscope.surgery import compare

    if out is not None and out.suffix != ".safetensors":
        raise InputError(f"`out` must be a .safetensors file, got {out}.")
    if not 1 <= filter_size <= 7:
        raise InputError(f"`filter_size` must be 1 to 7, got {filter_size}.")
    if images < 1:
        raise InputError(f"`images` must be 1 or more, got {images}.")
    loaded = load_model(model, trust=trust)
    fixes = tuple(Fix(kind=kind, filter_size=filter_size if kind == "blur" else 1) for kind in kinds)
    with reporting() as report:
        dataset = dataset_for(
            loaded.image,
            loaded.spec.data,
            name=data,
            canvas=canvas,
            data_dir=data_dir,
            report=report,
        )
        shape = (dataset.test.images.shape[1], dataset.canvas.size, dataset.canvas.size)
        surgery = compare.fix(loaded.model, [(each.kind, each.filter_size) for each in fixes], image=shape)
        tables = [surgery.table()]
        if not plan:
            tables.append(
                compare.compare(
                    loaded.model,
                    surgery,
                    dataset.canvas.place(dataset.test.images[:images]),
                    dataset.test.labels[:images],
                    max_shift=largest_shift(dataset, max_shift),
                    fill=dataset.canvas.colour,
                    provenance={"data": dataset.origin, "data_sha256": dataset.checksum},
                    report=report,
                )
            )
    if out is not None and not plan:
        try:
            save_model(out, surgery.model, loaded.spec.model_copy(update={"fixes": (*loaded.spec.fixes, *fixes)}))
        except OSError as error:
            raise InputError(f"`out` {out} cannot be written ({error.strerror or error}). Choose another file.") from error
    if as_json:
        print_json({"tables": [table.to_json() for table in tables]})
        return
    for table in tables:
        print_table(table)
    if out is not None and not plan:
        print(f"Saved in {out}.")
