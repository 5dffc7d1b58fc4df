"""Record what produced a number: version, commit, machine and device."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["joined", "provenance"]

PACKAGE = Path(__file__).parents[1]


def provenance(device: torch.device | str) -> dict[str, str]:
    """Return the code and the machine at work.

    Args:
        device: the one that computes.

    Returns:
        ``shiftscope``, ``commit``, ``torch``, ``python``, ``system``, ``processor`` (with cores and threads) and ``device``.
    """
    return {
        "shiftscope": version("shiftscope"),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device),
    }


def joined(origins: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Join the provenance of several results, field by field.

    Args:
        origins: of each result, field -> text.

    Returns:
        field -> the distinct texts in order of appearance, separated by "; ", with "-" for a result that lacks the field.

    >>> joined([{"device": "cpu"}, {"device": "cuda"}, {"device": "cpu", "numba": "0.61"}])
    {'device': 'cpu; cuda', 'numba': '-; 0.61'}
    """
    names = dict.fromkeys(name for each in origins for name in each)
    return {name: "; ".join(dict.fromkeys(each.get(name, "-") for each in origins)) for name in names}


def _commit() -> str:
    """Return the checkout's commit, with ``+changes`` where files differ from it, or "installed package"."""
    if not _git("ls-files", "__init__.py"):
        return "installed package"
    changes = "+changes" if _git("status", "--porcelain", ".") else ""
    return (_git("rev-parse", "HEAD") or "none")[:12] + changes


def _git(*arguments: str) -> str:
    """Return what git prints in the package's folder; empty where git fails."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    """Return the processor's name, or its architecture where the system gives no name."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
