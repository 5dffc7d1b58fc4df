"""Commands on studies, and `theory` and `selfcheck`."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from shiftscope.cli.app import STUDIES, THEORY, app, print_json, resumable, say
from shiftscope.cli.options import COMPUTE_GROUP, OUTPUT_GROUP, AsJson, PageOptions, Several, StudyOptions, Wide
from shiftscope.cli.printing import print_summary, print_table, print_worked
from shiftscope.cli.progress import reporting
from shiftscope.cli.values import check_place, read_settings, read_shard
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits import Audit
    from shiftscope.audits.comparison import AuditComparison
    from shiftscope.runtime.progress import Report
    from shiftscope.studies.comparison import Comparison
    from shiftscope.studies.spec import Study
    from shiftscope.tables import Table
    from shiftscope.videos import Flicker
    from shiftscope.videos.comparison import FlickerComparison

__all__ = ["compare", "figures", "list_", "open_report", "report", "selfcheck", "study", "theory"]

DEFAULT_OUT = Path("studies")
#: What a study writes; a figure only if a setting varies.
WRITTEN = (
    "table.md",
    "table.csv",
    "curves.csv",
    "layers.csv",
    "certificates.csv",
    "figure.png",
    "report.html",
    "runs.csv",
    "runs/",
)


@app.command(group=STUDIES, sort_key=1)
def study(
    name: str = "digits",
    *,
    seeds: int | None = None,
    changes: Annotated[tuple[str, ...], Several, Parameter(name="--set")] = (),
    reuse: Path | None = None,
    options: StudyOptions = StudyOptions(),
    workers: Annotated[int | None, Parameter(group=COMPUTE_GROUP)] = None,
    shard: Annotated[str | None, Parameter(group=COMPUTE_GROUP)] = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """Train the networks of a study, measure how they respond to shifts, and write a table, figures and a page.

    A study varies settings such as the subsampling factor over a grid, and trains several networks per setting. Stop it at any
    time: finished runs are kept, and the same command resumes it.

    Parameters
    ----------
    name
        A study of the package (digits, digits-all, mnist, cifar10, learned, antialias, gap, augmentation, pool, homogeneity,
        levels, setting or front), or your own TOML file.
    seeds
        Number of networks to train per setting. By default the study's own.
    changes
        Setting to change, written PATH=VALUE, such as data.train_images=12000. Repeatable.
    reuse
        Folder of another study, or of several, from which to copy finished runs with the same specification instead of training
        them again.
    workers
        Number of runs at once, each in a process with one thread. By default as many as cores and memory allow, on a GPU one.
        With 1, runs go one after the other and use all threads.
    shard
        Run as process I of N that share the folder, written I/N, such as 1/4: start with every fourth run, then do runs that no
        other process does. The last process writes the tables.
    out
        Folder for runs, tables, figure and page. By default studies/NAME, with the changes of --set in its name.
    """
    with reporting("loading PyTorch") as tell:
        from shiftscope.runtime.executors import keep_freed_memory
        from shiftscope.runtime.progress import Stage
        from shiftscope.studies.loading import load_study
        from shiftscope.studies.spec import short
        from shiftscope.studies.wording import study_verdict
        from shiftscope.tables import Summary

        chosen = load_study(name, seeds=seeds, changes=read_settings(changes, "set", "data.train_images=12000"))
        folder = out or DEFAULT_OUT / _folder_name(chosen.name, changes)
        keep_freed_memory()
        tell(Stage("starting the runs", 0, 0))
        with resumable(folder, "runs"):
            table = _table(chosen, folder, options, workers=workers, shard=shard, reuse=reuse, report=tell)
    if table is None:
        say(
            f"Shard {shard} has nothing left to do; others are at work in {folder}, and the last one writes the tables.",
            error=True,
        )
        return
    if as_json:
        print_json(table.to_json())
    else:
        verdict = study_verdict(table, [short(path) for path in chosen.varied()])
        print_summary(Summary(verdict, (table,)), (table,), wide=wide)
    with resumable(folder, "runs"):
        _write_report(folder, options)
    if not as_json:
        say("", f"Saved in {folder}: {', '.join(name for name in WRITTEN if (folder / name).exists())}.")
        say("", "Next:", f"  shiftscope open {quote(str(folder))}")


def _table(
    study: Study, out: Path, options: StudyOptions, *, workers: int | None, shard: str | None, reuse: Path | None, report: Report
) -> Table | None:
    """Do a study, or a shard of it; return None while other shards are at work."""
    from shiftscope.studies.runner import run_study
    from shiftscope.studies.shards import Shard, run_shard

    number = None if shard is None else Shard(*read_shard(shard))
    how: dict[str, Any] = {
        "data_dir": options.data_dir,
        "device": options.job_device(),
        "executor": options.start(workers),
        "reuse": reuse,
    }
    if number is None:
        return run_study(study, out=out, report=report, **how)
    return run_shard(study, number, out=out, report=report, **how)


def _folder_name(name: str, changes: tuple[str, ...]) -> str:
    """Return the name of a study's folder; each set of changes has its own, so that it overwrites no other table."""
    split = (change.partition("=") for change in changes)
    parts = [path.strip().rpartition(".")[2] + equals + value for path, equals, value in split]
    return ",".join([name, *(re.sub(r"[^\w.=-]+", "-", part).strip("-") for part in parts)])[:120]


def _write_report(folder: Path, options: PageOptions, out: Path | None = None) -> Path:
    with reporting("drawing the page") as tell:
        from shiftscope.report.write import write_report

        return write_report(folder, out=out, data_dir=options.data_dir, device=options.torch_device(), report=tell)


@app.command(name="list", group=STUDIES, sort_key=3)
def list_(folder: Path | None = None, *, as_json: AsJson = False, wide: Wide = False) -> None:
    """List the runs of a study by name, or the studies of the package.

    Parameters
    ----------
    folder
        Folder of a study. Its runs have names like factor=8,seed=0, which `audit`, `explain` and `fix` take as --run.
    """
    from shiftscope.studies.folder import read_folder
    from shiftscope.studies.loading import load_study, shipped_studies
    from shiftscope.tables import Table

    if folder is None:
        rows = tuple({"study": name, "title": load_study(name).title} for name in shipped_studies())
        table = Table("Studies of the package", ("study", "title"), rows)
    else:
        table = read_folder(folder).run_list()
    if as_json:
        print_json(table.to_json())
    else:
        print_table(table, wide=wide)


@app.command(group=STUDIES, sort_key=2)
def report(
    folder: Path,
    *,
    options: PageOptions = PageOptions(),
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
) -> None:
    """Write the page of a study, an audit, a certificate or videos: an HTML file that opens from disk, with figures and tables.

    A study may be unfinished: the page lists the missing runs. Its tables and figure are rewritten from the finished runs.
    Nothing is downloaded.

    Parameters
    ----------
    folder
        Folder of a study, of an audit, of a certificate or of `audit --frames --out`.
    out
        File to write; the study's other files stay as they are. By default report.html in the folder.
    """
    from shiftscope.audits.folder import is_audit
    from shiftscope.studies.folder import read_folder
    from shiftscope.videos.reading import is_flicker

    _check_exists(folder)
    _check_written(folder)
    check_place(out, folder=False)
    if out is None and not is_audit(folder) and not is_flicker(folder):
        read_folder(folder).write_tables()
    path = _write_report(folder, options, out)
    say(f"Saved in {path}." + ("" if out else f" `shiftscope open {quote(str(folder))}` shows it."))


def _check_exists(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}.",
            "Give a folder that `shiftscope study`, `shiftscope audit --out` or `shiftscope certify --out` wrote.",
        )


def _check_written(folder: Path) -> None:
    """Refuse a folder that holds no study, audit, certificate or flicker."""
    from shiftscope.audits.folder import is_audit
    from shiftscope.videos.reading import is_flicker

    if not folder.is_dir() or is_audit(folder) or is_flicker(folder) or (folder / "study.json").exists():
        return
    if (folder / "audit.json").is_file():
        raise InputError(
            f"{folder} holds an audit that `save` wrote from Python, without what a page shows.",
            "Make the page in Python: write_page(audit_page(found), path), both of shiftscope.report.write.",
        )
    if (folder / "explanation.json").is_file():
        raise InputError(f"{folder} holds an explanation, whose page is written with it.", "Run `shiftscope explain` again.")
    raise InputError(
        f"{folder} holds no study, audit, certificate or flicker of videos.",
        "Give a folder that `shiftscope study`, `shiftscope audit --out` or `shiftscope certify --out` wrote.",
    )


@app.command(group=STUDIES, sort_key=5)
def figures(
    folder: Path,
    *,
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
    formats: Annotated[tuple[Literal["pdf", "svg", "png"], ...], Parameter(name="--format", negative="", show_default=False)] = (
        "pdf",
        "svg",
        "png",
    ),
) -> None:
    """Write a study's figures for publication, and say which are left out and why.

    Parameters
    ----------
    folder
        Folder of a study, which may be unfinished.
    out
        Folder for the figures. By default figures/ in the study's folder.
    formats
        File format. Repeatable. By default all three.
    """
    target = out or folder / "figures"
    check_place(out, folder=True)
    with reporting("drawing figures"):
        from shiftscope.figures.study import write_figures

        written, left_out = write_figures(folder, out=target, formats=formats)
    for reason in left_out:
        say(f"Left out: {reason}")
    say(f"Saved in {target}: {', '.join(written) or 'nothing'}.")


@app.command(name="open", group=STUDIES, sort_key=3)
def open_report(folder: Path) -> None:
    """Show the page of a study, an audit, a certificate or videos in the browser.

    Parameters
    ----------
    folder
        Folder that holds report.html.
    """
    import webbrowser

    path = folder / "report.html"
    if not path.is_file():
        _check_exists(folder)
        _check_written(folder)
        raise InputError(f"{folder} holds no report.html.", f"Write it with `shiftscope report {quote(str(folder))}`.")
    if not webbrowser.open(path.resolve().as_uri()):
        raise InputError("no browser could be started here.", f"Open {path} in one yourself.")


@app.command(group=STUDIES, sort_key=4)
def compare(folder: Path, other: Path | None = None, *, as_json: AsJson = False, wide: Wide = False) -> None:
    """Compare a study with the paper it repeats, two audits with each other, or two models on the same videos.

    Of a study: its numbers beside the paper's, and whether the paper's claims hold. Of two audits: each measure's change, with an
    interval over pairs of the same image. Of videos: the same over pairs of the same video.

    Parameters
    ----------
    folder
        Folder of a study, such as studies/digits or results/digits; it may be unfinished. Or an audit: its audit.json or folder.
        Or the flicker of videos: flicker.json or the folder that `audit --frames --out` wrote.
    other
        Another audit or flicker, to set beside the first.
    """
    with reporting("reading the records"):
        found = _beside_the_source(folder) if other is None else _beside(folder, other)
    if as_json:
        print_json(found.to_json())
        return
    print_summary(found.summary(), found.tables(), wide=wide)


def _beside_the_source(folder: Path) -> Comparison:
    from shiftscope.audits.folder import is_audit
    from shiftscope.studies.comparison import compare as compare_with_source
    from shiftscope.studies.folder import read_folder
    from shiftscope.videos.reading import is_flicker

    if is_flicker(folder):
        raise InputError(f"{folder} holds the flicker of videos, and no study.", "Give another such folder to compare it with.")
    if is_audit(folder) or folder.is_file():
        what = "an audit, and no study" if is_audit(folder) else "no study"
        raise InputError(f"{folder} holds {what}.", "Give another audit to compare an audit with.")
    return compare_with_source(read_folder(folder))


def _beside(first: Path, second: Path) -> AuditComparison | FlickerComparison:
    from shiftscope.audits import Audit
    from shiftscope.audits.comparison import compare_audits
    from shiftscope.videos.comparison import compare_flickers

    for path in (first, second):
        if (path / "study.json").exists():
            raise InputError(
                f"{path} holds a study, which is compared with the paper it repeats.",
                f"Give it alone: `shiftscope compare {quote(str(path))}`.",
            )
    one, two, names = _measured(first), _measured(second), (str(first), str(second))
    if isinstance(one, Audit) and isinstance(two, Audit):
        return compare_audits(one, two, names=names)
    if isinstance(one, Audit) or isinstance(two, Audit):
        kinds = [
            f"{name} holds {'an audit' if isinstance(each, Audit) else 'the flicker of videos'}"
            for name, each in ((first, one), (second, two))
        ]
        raise InputError(f"{' and '.join(kinds)}: they cannot be compared.", "Give two of one kind.")
    return compare_flickers(one, two, names=names)


def _measured(path: Path) -> Audit | Flicker:
    """Read an audit, or the flicker of videos."""
    from shiftscope.audits.reading import read_audit
    from shiftscope.videos.reading import is_flicker, read_flicker

    if is_flicker(path):
        return read_flicker(path)
    try:
        return read_audit(path)
    except InputError:
        with suppress(InputError):  # a file of another name, such as one that holds what --json printed
            return read_flicker(path)
        raise


@app.command(group=THEORY)
def theory(*, as_json: AsJson = False) -> None:
    """Show on small signals what shifts do to convolution, pooling and subsampling."""
    from shiftscope.theory import worked_tables

    tables = worked_tables()
    if as_json:
        print_json({"tables": [table.to_json() for table in tables]})
        return
    for table in tables:
        print_worked(table)


@app.command(group=THEORY)
def selfcheck(*, as_json: AsJson = False) -> int:
    """Check the measurements against networks with known answers; exit with 1 if one is wrong."""
    with reporting("measuring networks with known answers"):
        from shiftscope.audits.selfcheck import run_checks

        table, passed = run_checks()
    if as_json:
        print_json(table.to_json())
    else:
        print_table(table)
    return 0 if passed else 1
