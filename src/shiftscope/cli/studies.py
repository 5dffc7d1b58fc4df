"""Commands on studies: run one, show it, set it beside its source."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from shiftscope.cli.app import app, device_of, executor_of, print_json, settings
from shiftscope.errors import InputError

__all__ = ["compare", "figures", "open_report", "report", "study"]

DEFAULT_OUT = Path("studies")
#: What a study leaves; a figure where a setting varies.
MADE = ("table.md", "table.csv", "curves.csv", "layers.csv", "figure.png", "report.html", "runs/")


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
    reuse: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Train and measure the networks of a study; finished runs are kept, and running it again goes on where it stopped.

    Parameters
    ----------
    name:
        A study that comes with the package (digits, digits-all, mnist, cifar10, learned, antialias, gap, augmentation, pool,
        homogeneity, levels), or a TOML file of your own.
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
    reuse:
        Folder of a study, or of several, as studies: finished runs there that are the same are taken over, not trained again.
    as_json:
        Print the table as JSON instead.
    """
    from shiftscope.cli.progress import print_table, reporting
    from shiftscope.report.write import write_report
    from shiftscope.runtime.processes import keep_freed_memory
    from shiftscope.runtime.progress import Stage
    from shiftscope.studies.loading import load_study
    from shiftscope.studies.runner import run_study

    chosen = load_study(name, seeds=seeds, changes=settings(changes))
    folder = out or DEFAULT_OUT / chosen.name
    where = "cuda" if gpus else device_of(device)
    how = executor_of(executor, workers=workers, address=address, gpus=gpus, device=where)
    keep_freed_memory()
    with _going_on(folder), reporting() as report:
        table = run_study(
            chosen,
            out=folder,
            data_dir=data_dir,
            device=where,
            executor=how,
            together=together,
            reuse=reuse,
            report=report,
        )
    if as_json:
        print_json(table.to_json())
    else:
        print_table(table)
    with _going_on(folder), reporting() as report:
        write_report(folder, data_dir=data_dir, device=device_of(device), progress=lambda *at: report(Stage(*at)))
    if not as_json:
        made = [name for name in MADE if (folder / name).exists()]
        print(f"Saved in {folder}: {', '.join(made)}.")


@contextmanager
def _going_on(folder: Path) -> Iterator[None]:
    """Say of a study that is stopped, or that cannot write, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"Stopped. Finished runs are in {folder}; the same command goes on from there.", file=sys.stderr)
        raise
    except OSError as error:
        raise InputError(
            f"the study in {folder} stopped ({error.strerror or error}). Finished runs are kept; make room or choose another "
            "folder with --out, and the same command goes on from there."
        ) from error


@app.command
def report(
    folder: Path,
    *,
    out: Path | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
) -> None:
    """Write the page of a study or an audit: one HTML file that opens from disk, with figures, tables, and images to drag.

    Parameters
    ----------
    folder:
        Of a study, which may be half done: the page says what is missing, and table, curves, layers and figure are written of
        what there is. Or of an audit.
    out:
        File to write, and nothing else; report.html in the folder by default.
    data_dir:
        Local folder that holds the data set; else SHIFTSCOPE_DATA, else what was decoded before. Nothing is fetched.
    device:
        Where to compute what networks answer to a drag: cpu, cuda, or auto.
    """
    from shiftscope.audits.folder import is_audit
    from shiftscope.cli.progress import reporting
    from shiftscope.report.write import write_report
    from shiftscope.runtime.progress import Stage
    from shiftscope.studies.folder import read_folder

    if out is None and not is_audit(folder):
        read_folder(folder).write_tables()
    with reporting() as tell:
        path = write_report(folder, out=out, data_dir=data_dir, device=device_of(device), progress=lambda *at: tell(Stage(*at)))
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
    from shiftscope.figures.study import write_figures

    target = out or folder / "figures"
    written, left_out = write_figures(folder, out=target, formats=formats)
    for reason in left_out:
        print(f"Left out: {reason}")
    print(f"Saved in {target}: {', '.join(written) or 'nothing'}.")


@app.command(name="open")
def open_report(folder: Path) -> None:
    """Show the page of a study or an audit in the browser.

    Parameters
    ----------
    folder:
        That holds a report.html.
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
    from shiftscope.cli.progress import print_table
    from shiftscope.studies.claims import compare as beside

    tables = beside(folder)
    if as_json:
        print_json({"tables": [table.to_json() for table in tables]})
        return
    for table in tables:
        print_table(table)
