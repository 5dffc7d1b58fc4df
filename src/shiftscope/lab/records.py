"""A finished run on disk: one folder named by its content id.

``record.json`` is written last, whole or not at all, and is the sign that the run is finished; ``model.safetensors`` (the kept
weights), ``history.json`` (every epoch) and ``measures.safetensors`` (the value of every test image) lie beside it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

import shiftscope
from shiftscope.lab.files import write_tensors, write_text
from shiftscope.lab.specs import Spec
from shiftscope.lab.studies import SCHEMA, Run
from shiftscope.lab.training import Training
from shiftscope.measures import Estimate

__all__ = ["Finished", "Record", "provenance", "read", "write"]

RECORD, MODEL, HISTORY, MEASURES = "record.json", "model.safetensors", "history.json", "measures.safetensors"


class Outcome(Spec):
    """How the training ended (see ``training.Training``), and the kept network's accuracy on all training images."""

    status: Literal["reached", "not reached", "diverged"]
    sentence: str
    kept: int
    epochs: int
    train_accuracy: float


class Record(Spec):
    """What is known of a finished run.

    Attributes:
        schema_version: of this form.
        id: the run's content id.
        spec: all it depends on, the data's content apart.
        training: how that ended.
        results: by measure, each with its interval over images; empty where the training diverged.
        cut: share of the test images of which the shifts cut content.
        provenance: code, machine, data, time.
    """

    schema_version: int
    id: str
    spec: Run
    training: Outcome
    results: dict[str, Estimate]
    cut: float
    provenance: dict[str, str]


@dataclass(frozen=True)
class Finished:
    """A record and the values per test image its estimates come from, by measure."""

    record: Record
    values: Mapping[str, Tensor]


def write(folder: Path, finished: Finished, training: Training, weights: Mapping[str, Tensor]) -> None:
    """Put a finished run into its folder, the record last."""
    write_tensors(folder / MODEL, weights)
    write_text(folder / HISTORY, json.dumps([asdict(epoch) for epoch in training.epochs], indent=1) + "\n")
    write_tensors(folder / MEASURES, finished.values)
    write_text(folder / RECORD, finished.record.model_dump_json(indent=2) + "\n")


def read(folder: Path) -> Finished | None:
    """The finished run in a folder; None where there is none, or, said as a warning, where its files are damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / RECORD).exists():
        return None
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
        if record.schema_version != SCHEMA or record.id != folder.name:
            raise ValueError("it belongs to another version or another run")
        return Finished(record, load_file(folder / MEASURES))
    except (ValidationError, ValueError, OSError, SafetensorError) as error:
        reason = "not a whole record" if isinstance(error, ValidationError) else str(error)
        warnings.warn(f"{folder / RECORD} is damaged ({reason}); the run is computed again.", stacklevel=2)
        return None


def provenance(device: torch.device | str) -> dict[str, str]:
    """What made the numbers: code and machine."""
    return {
        "shiftscope": version("shiftscope"),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device),
    }


def _commit() -> str:
    """The checkout's commit, with ``+changes`` where files differ from it; for an installed package, that it is one."""
    source = Path(shiftscope.__file__)
    if not _git(source.parent, "ls-files", source.name):
        return "installed package"
    return (_git(source.parent, "rev-parse", "HEAD") or "none")[:12] + (
        "+changes" if _git(source.parent, "status", "--porcelain", ".") else ""
    )


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    """The processor's name, where the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
