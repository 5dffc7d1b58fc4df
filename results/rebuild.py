"""Rebuild the tables and figures of every committed study from its records.

    python results/rebuild.py [--check]

Measures and histories of an older form are first written in today's form. With ``--check`` nothing is written: the tables are
built in a temporary folder, and the script fails if one differs from the committed one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from shiftscope.figures.study import write_main_figure
from shiftscope.runtime.files import write_text
from shiftscope.studies import records
from shiftscope.studies.folder import read_folder

RESULTS = Path(__file__).parent
#: Of studies whose runs store radii.
CERTIFICATES = ("certificates.csv", "certificates.md")
TABLES = ("table.csv", "curves.csv", "layers.csv", "runs.csv", "table.md", "curves.md", "layers.md")


def rebuild(study: Path, folder: Path) -> None:
    """Write a study's tables into a folder, and its figure if the folder is the study's own.

    Args:
        study: the study's folder, with its records.
        folder: where to write; the study's own, or an empty one.
    """
    if folder != study:
        (folder / "study.json").write_bytes((study / "study.json").read_bytes())
        (folder / "runs").symlink_to((study / "runs").resolve())
    results = read_folder(folder)
    if not results.write_tables():
        raise SystemExit(f"{study} has no finished runs, or records of an older version.")
    if folder == study:
        write_main_figure(results)


def modernise(run: Path) -> None:
    """Write a run's measures and history in today's form, unless they have it."""
    if (run / records.OLDER_MEASURES_FILE).exists():
        finished = records.load(run)
        if finished is not None:
            records.write_measures(run, finished)
    epochs = json.loads((run / records.HISTORY).read_bytes())
    if isinstance(epochs, list):
        names = dict.fromkeys(name for epoch in epochs for name in epoch)
        write_text(run / records.HISTORY, json.dumps({name: [epoch.get(name) for epoch in epochs] for name in names}) + "\n")


def differing(study: Path) -> list[str]:
    """Return the tables that differ from those that the study's records give."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / study.name
        folder.mkdir()
        rebuild(study, folder)
        names = (*TABLES, *(name for name in CERTIFICATES if (folder / name).exists() or (study / name).exists()))
        return [f"{study.name}/{name}" for name in names if _content(folder / name) != _content(study / name)]


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def main() -> None:
    """Rebuild or check every study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed table differs")
    check = parser.parse_args().check
    different = []
    for study in sorted(path.parent for path in RESULTS.glob("*/study.json")):
        print(study.name, flush=True)  # noqa: T201
        if check:
            different += differing(study)
            continue
        for run in sorted((study / "runs").iterdir()):
            modernise(run)
        rebuild(study, study)
    if different:
        sys.exit(f"These tables differ from their records: {', '.join(different)}.")


if __name__ == "__main__":
    main()
