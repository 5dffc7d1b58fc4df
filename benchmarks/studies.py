"""What running a study costs beside its trainings and measurements, and what two processes gain.

    python benchmarks/studies.py [--rounds 3] [--seeds 1]

On the digits: wall time of the study less what its runs took, as a share; and one process with one thread against two processes
with one each, on fresh folders, interleaved, medians with their spread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

from shiftscope.runtime.executors import keep_freed_memory
from shiftscope.studies import runner
from shiftscope.studies.loading import load_study


def overhead(seeds: int) -> float:
    """Share of a study's wall time that is not spent in its runs."""
    spent = 0.0
    execute: Callable[..., Any] = vars(runner)["execute"]

    def timed(*arguments: Any) -> Any:
        nonlocal spent
        started = perf_counter()
        made = execute(*arguments)
        spent += perf_counter() - started
        return made

    with tempfile.TemporaryDirectory() as folder, patch.object(runner, "execute", timed):
        started = perf_counter()
        runner.run_study(load_study("digits", seeds=seeds), out=Path(folder))
        whole = perf_counter() - started
    return whole / spent - 1


def wall(workers: int, seeds: int) -> float:
    """Seconds of the command on a fresh folder, each process with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "shiftscope", "study", "digits", "--seeds", str(seeds)]
        started = perf_counter()
        subprocess.run(
            [*command, "--workers", str(workers), "--out", folder],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    keep_freed_memory()
    shares = [overhead(options.seeds) for _ in range(options.rounds)]
    print(f"overhead {statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})", flush=True)
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for workers, found in times.items():
            found.append(wall(workers, options.seeds))
    gains = [one / two for one, two in zip(times[1], times[2], strict=True)]
    for workers, found in times.items():
        name = "one process" if workers == 1 else "two processes"
        print(f"{name}: {statistics.median(found):.1f} s ({min(found):.1f} to {max(found):.1f})")
    print(f"two are {statistics.median(gains):.2f} times faster ({min(gains):.2f} to {max(gains):.2f})")


if __name__ == "__main__":
    main()
