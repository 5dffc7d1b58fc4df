"""The application, how a command ends, and what several commands share."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App, CycloptsError

from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.runtime.processes import Executor
    from shiftscope.tables import Table

__all__ = ["app", "device_of", "executor_of", "main", "print_json", "settings", "write_tables"]

app = App(name="shiftscope", help="Measure, explain and fix how a vision model responds to shifted images.")
#: What a process that trains one network of the source's family needs at most.
BYTES_A_WORKER = 3 << 30


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    warnings.showwarning = _show_warning
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        print(f"shiftscope: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has had enough of it, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code if isinstance(code, int) else 0


def settings(changes: tuple[str, ...]) -> dict[str, Any]:
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


def executor_of(kind: str, *, workers: int | None, address: str | None, gpus: float, device: str) -> Executor | None:
    """What carries out the runs; None for this process."""
    if kind == "ray":
        from shiftscope.runtime.ray import Ray

        return Ray(address, workers, gpus)
    if address is not None or gpus:
        raise InputError("`--address` and `--gpus` say how a Ray cluster is used. Add --executor ray.")
    if workers == 1 or (workers is None and device != "cpu"):
        return None
    from shiftscope.runtime.processes import Processes, sensible_workers

    return Processes(sensible_workers(BYTES_A_WORKER) if workers is None else workers)


def device_of(name: str) -> str:
    """The device asked for, or the best there is."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" or (name.partition(":")[0] == "cuda" and torch.cuda.is_available()):
        return name
    raise InputError(f"`device` must be auto, cpu or an available cuda device, got {name!r}.")


def print_json(content: dict[str, Any]) -> None:
    """What a script reads, on standard output."""
    print(json.dumps(content, indent=2))


def write_tables(folder: Path, tables: dict[str, Table], content: dict[str, Any]) -> None:
    """Each table as Markdown and CSV, and all as explanation.json."""
    from shiftscope.runtime.files import write_text

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            write_text(folder / f"{name}.md", table.to_markdown())
            write_text(folder / f"{name}.csv", table.to_csv())
        write_text(folder / "explanation.json", json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}). Choose another folder with --out.") from error


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """A warning of ours as one line; others keep their category's name."""
    print(f"shiftscope: {'' if category is UserWarning else category.__name__ + ': '}{message}", file=sys.stderr)
