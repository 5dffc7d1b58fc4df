"""The command line. Each command is thin; what is heavy is imported inside it, so that ``--help`` is quick.

Exit codes: 0 done, 1 a failure of ours, 2 bad input (one clear sentence, no traceback), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.auditing import AuditSpec
    from shiftscope.audits import Audit
    from shiftscope.lab.executors import Executor
    from shiftscope.tables import Table

app = App(name="shiftscope", help="Measure, explain and fix how a vision model responds to shifted images.")
DEFAULT_OUT = Path("studies")
#: What a process that trains one network of the source's family needs at most.
BYTES_A_WORKER = 3 << 30


@app.command
def theory(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Print the worked examples of equivariance, shiftability and local homogeneity, computed.

    Parameters
    ----------
    as_json:
        Print {"tables": [{"name", "columns", "rows", ...}]} instead.
    """
    from shiftscope.theory import worked_tables

    tables = worked_tables()
    if as_json:
        _print_json({"tables": [table.to_json() for table in tables]})
        return
    from shiftscope.console import print_worked

    for table in tables:
        print_worked(table)


@app.command
def selfcheck(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Measure networks whose answer is known, and fail if any measure is wrong.

    Parameters
    ----------
    as_json:
        Print the table as JSON instead.
    """
    from shiftscope.console import print_table
    from shiftscope.lab.selfcheck import run_checks

    table, passed = run_checks()
    if as_json:
        _print_json(table.to_json())
    else:
        print_table(table)
    return 0 if passed else 1


@app.command
def study(
    name: str = "digits",
    *,
    data_dir: Path | None = None,
    seeds: int | None = None,
    changes: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    out: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    executor: Literal["processes", "ray"] = "processes",
    address: str | None = None,
    gpus: float = 0.0,
    together: int = 1,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Train and measure the networks of a study; finished runs are kept, and running it again goes on where it stopped.

    Parameters
    ----------
    name:
        A study that comes with the package (digits, digits-all, mnist, cifar10, learned, antialias, gap, augmentation, pool,
        homogeneity), or a TOML file of your own.
    data_dir:
        Local folder that holds the data set, instead of the Hugging Face hub; else SHIFTSCOPE_DATA.
    seeds:
        Networks to train for each row, instead of the study's own number.
    changes:
        A setting to take instead of the study's, as in --set data.train_images=12000; may be given again.
    out:
        Folder for runs and table; studies/NAME by default.
    device:
        Where to compute: cpu, cuda, or auto.
    workers:
        Runs at once, each in a process with one thread; as many as cores and memory carry by default, on a GPU one. 1 does them
        one after the other with all threads.
    executor:
        Processes of this machine, or tasks of a Ray cluster.
    address:
        Of a running Ray cluster; one is started on this machine otherwise.
    gpus:
        Share of a GPU for each run on a Ray cluster, as 0.25.
    together:
        Seeds of a row to train at once, their weights stacked; quicker where a GPU is idle with one.
    as_json:
        Print the table as JSON instead.
    """
    from shiftscope.console import print_table, reporting
    from shiftscope.lab.memory import keep_freed_memory
    from shiftscope.lab.runner import Loading, run_study
    from shiftscope.lab.studies import load_study
    from shiftscope.reports import write_report

    chosen = load_study(name, seeds=seeds, changes=_settings(changes))
    folder = out or DEFAULT_OUT / chosen.name
    where = "cuda" if gpus else _device(device)
    how = _executor(executor, workers=workers, address=address, gpus=gpus, device=where)
    keep_freed_memory()
    try:
        with reporting() as report:
            table = run_study(
                chosen,
                out=folder,
                data_dir=data_dir,
                device=where,
                executor=how,
                together=together,
                report=report,
            )
            write_report(folder, data_dir=data_dir, device=_device(device), progress=lambda *at: report(Loading(*at)))
    except KeyboardInterrupt:
        print(f"Stopped. Finished runs are in {folder}; the same command goes on from there.", file=sys.stderr)
        raise
    except OSError as error:
        raise InputError(
            f"the study in {folder} stopped ({error.strerror or error}). Finished runs are kept; make room or choose another "
            "folder with --out, and the same command goes on from there."
        ) from error
    if as_json:
        _print_json(table.to_json())
    else:
        print_table(table)
        print(f"Saved in {folder}: table.md, table.csv, figure.png, report.html, runs/.")


@app.command
def report(
    folder: Path,
    *,
    out: Path | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
) -> None:
    """Write a study's page: one HTML file that opens from disk, with figures, tables, and images to drag.

    Parameters
    ----------
    folder:
        Of a study; it may be half done, and the page then says what is missing.
    out:
        File to write; report.html in the folder by default.
    data_dir:
        Local folder that holds the data set; else SHIFTSCOPE_DATA, else what was decoded before. Nothing is fetched.
    device:
        Where to compute what networks answer to a drag: cpu, cuda, or auto.
    """
    from shiftscope.console import reporting
    from shiftscope.lab.runner import Loading
    from shiftscope.reports import write_report

    with reporting() as tell:
        path = write_report(folder, out=out, data_dir=data_dir, device=_device(device), progress=lambda *at: tell(Loading(*at)))
    print(f"Saved in {path}." + ("" if out else f" `shiftscope open {folder}` shows it."))


@app.command
def figures(
    folder: Path,
    *,
    out: Path | None = None,
    formats: Annotated[tuple[Literal["pdf", "svg", "png"], ...], Parameter(name="--format", negative="")] = ("pdf", "svg", "png"),
) -> None:
    """Write a study's figures for publication, and say which are left out and why.

    Parameters
    ----------
    folder:
        Of a study; it may be half done.
    out:
        Folder for the files; figures/ in the study's folder by default.
    formats:
        pdf, svg or png; may be given again. All three by default.
    """
    from shiftscope.illustrations import write_figures

    target = out or folder / "figures"
    written, left_out = write_figures(folder, out=target, formats=formats)
    for reason in left_out:
        print(f"Left out: {reason}")
    print(f"Saved in {target}: {', '.join(written) or 'nothing'}.")


@app.command(name="open")
def open_report(folder: Path) -> None:
    """Show a study's page in the browser.

    Parameters
    ----------
    folder:
        Of a study with its report.html.
    """
    import webbrowser

    path = folder / "report.html"
    if not path.is_file():
        raise InputError(f"{folder} holds no report.html. Write it with `shiftscope report {folder}`.")
    if not webbrowser.open(path.resolve().as_uri()):
        raise InputError(f"no browser could be started here. Open {path} in one yourself.")


@app.command
def compare(folder: Path, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Show a study's numbers beside the source's, and test what the source claims.

    Parameters
    ----------
    folder:
        Of a study, as it is in studies/ or results/; it may be half done.
    as_json:
        Print JSON instead.
    """
    from shiftscope.console import print_table
    from shiftscope.lab.comparison import compare as beside

    tables = beside(folder)
    if as_json:
        _print_json({"tables": [table.to_json() for table in tables]})
        return
    for table in tables:
        print_table(table)


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
    out: Path | None = None,
    merge: Path | None = None,
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
    out:
        Folder for audit.json, table.csv, table.md, maps.safetensors and, while it works, parts to go on from.
    merge:
        Folder whose parts are all there: put them together.
    as_json:
        Print JSON instead.
    """
    from shiftscope.auditing import AuditSpec, merged
    from shiftscope.console import print_table

    if (model is None) == (merge is None):
        raise InputError("`audit` needs a model, or a folder to --merge.")
    found: Audit | None
    if merge is not None:
        found = merged(merge)
    else:
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
            device=_device(device),
        )
        found = _audited(spec, shard, out)
        if found is None:
            print(f"Shard {shard} is in {out}. Run the others; the last one puts them together.", file=sys.stderr)
            return
    if as_json:
        _print_json(found.to_json())
        return
    print_table(found.table())
    if out or merge:
        print(f"Saved in {out or merge}: audit.json, table.csv, table.md, maps.safetensors.")


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
    as_json:
        Print JSON instead.
    """
    from shiftscope.console import print_table, reporting
    from shiftscope.fixes import compared, fixed, test_images
    from shiftscope.lab.runner import Loading
    from shiftscope.models import Fix, load_model, save_model

    if out is not None and out.suffix != ".safetensors":
        raise InputError(f"`out` must be a .safetensors file, got {out}.")
    if not 1 <= filter_size <= 7:
        raise InputError(f"`filter_size` must be 1 to 7, got {filter_size}.")
    loaded = load_model(model)
    fixes = tuple(Fix(kind=kind, filter_size=filter_size if kind == "blur" else 1) for kind in kinds)
    with reporting() as report:
        dataset = test_images(loaded, name=data, canvas=canvas, data_dir=data_dir, progress=lambda *at: report(Loading(*at)))
        surgery = fixed(loaded, fixes, image=(dataset.test.images.shape[1], dataset.canvas.size, dataset.canvas.size))
        tables = [surgery.table()]
        if not plan:
            tables.append(
                compared(
                    loaded.model,
                    surgery,
                    dataset,
                    images=images,
                    max_shift=max_shift,
                    progress=lambda *at: report(Loading(*at)),
                )
            )
    if out is not None and not plan:
        save_model(out, surgery.model, loaded.origin.model_copy(update={"fixes": (*loaded.origin.fixes, *fixes)}))
    if as_json:
        _print_json({"tables": [table.to_json() for table in tables]})
        return
    for table in tables:
        print_table(table)
    if out is not None and not plan:
        print(f"Saved in {out}.")


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
    out: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Say where a model's invariance to shifts is lost, by cause and by layer, and which fix to try first.

    Parameters
    ----------
    model:
        The folder of a study's run, a file of shiftscope fix, or module:factory.
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
    out:
        Folder for explanation.json, and for each table as Markdown and CSV; without it nothing is written.
    as_json:
        Print JSON instead.
    """
    from shiftscope.console import print_table, reporting
    from shiftscope.fixes import explained, test_images
    from shiftscope.lab.runner import Loading
    from shiftscope.models import load_model

    loaded = load_model(model)
    with reporting() as report:
        dataset = test_images(loaded, name=data, canvas=canvas, data_dir=data_dir, progress=lambda *at: report(Loading(*at)))
        found = explained(
            loaded,
            dataset,
            name=model,
            images=images,
            max_shift=max_shift,
            mode=mode,
            progress=lambda what, done, of: report(Loading(what, done, of if done else 0)),
        )
    if out is not None:
        _write_tables(out, dict(zip(("causes", "layers", "fixes"), found.tables(), strict=True)), found.to_json())
    if as_json:
        _print_json(found.to_json())
        return
    for table in found.tables():
        print_table(table)
    if out is not None:
        print(f"Saved in {out}.")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    warnings.showwarning = _show_warning
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (InputError, CycloptsError) as error:
        print(f"shiftscope: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code if isinstance(code, int) else 0


def _write_tables(folder: Path, tables: dict[str, Table], content: dict[str, Any]) -> None:
    """Each table as Markdown and CSV, and all as explanation.json."""
    from shiftscope.lab.files import write_text

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            write_text(folder / f"{name}.md", table.to_markdown())
            write_text(folder / f"{name}.csv", table.to_csv())
        write_text(folder / "explanation.json", json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}). Choose another folder with --out.") from error


def _settings(changes: tuple[str, ...]) -> dict[str, Any]:
    """``path=value`` as a setting; the value as TOML would read it, text without its quotes too."""
    import tomllib

    settings: dict[str, Any] = {}
    for change in changes:
        path, found, value = change.partition("=")
        if not found or not value:
            raise InputError(f"`--set` must be PATH=VALUE, like data.train_images=12000, got {change!r}.")
        try:
            settings[path.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[path.strip()] = value
    return settings


def _executor(kind: str, *, workers: int | None, address: str | None, gpus: float, device: str) -> Executor | None:
    """What carries out the runs; None for this process."""
    if kind == "ray":
        from shiftscope.lab.cluster import Ray

        return Ray(address, workers, gpus)
    if address is not None or gpus:
        raise InputError("`--address` and `--gpus` say how a Ray cluster is used. Add --executor ray.")
    if workers == 1 or (workers is None and device != "cpu"):
        return None
    from shiftscope.lab.executors import Processes, sensible_workers

    return Processes(sensible_workers(BYTES_A_WORKER) if workers is None else workers)


def _audited(spec: AuditSpec, shard: str | None, out: Path | None) -> Audit | None:
    """The audit; None where other shards are missing."""
    from shiftscope.auditing import AuditJob, complete, merged, run_audit, run_shard
    from shiftscope.console import reporting
    from shiftscope.lab.runner import Loading

    number, shards = _shard(shard)
    if shard is not None and out is None:
        raise InputError("`shard` needs a folder for its parts. Give the same --out to all shards.")
    try:
        with reporting() as report:
            if out is None:
                return run_audit(spec, tell=lambda at: report(Loading(*at)))
            run_shard(AuditJob(spec, number, shards, out), lambda at: report(Loading(*at)))
    except KeyboardInterrupt:
        if out is not None:
            print(f"Stopped. Finished blocks are in {out}; the same command goes on from there.", file=sys.stderr)
        raise
    return merged(out) if complete(out) else None


def _shard(text: str | None) -> tuple[int, int]:
    """``I/N`` as two numbers; the whole where there is none."""
    if text is None:
        return 1, 1
    number, slash, shards = text.partition("/")
    if not slash or not number.isdecimal() or not shards.isdecimal():
        raise InputError(f"`shard` must be I/N, like 1/4, got {text!r}.")
    return int(number), int(shards)


def _device(name: str) -> str:
    """The device asked for, or the best there is."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or (name.partition(":")[0] == "cuda" and torch.cuda.is_available()):
        return name
    raise InputError(f"`device` must be auto, cpu or an available cuda device, got {name!r}.")


def _print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2))


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """A warning of ours as one line; others keep their category's name."""
    print(f"shiftscope: {'' if category is UserWarning else category.__name__ + ': '}{message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
