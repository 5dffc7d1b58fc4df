"""A Ray cluster of this machine that ends with the process that started it: run as a program by ``ray_executor``.

Ray's own agents outlive a killed driver by minutes. This process adopts everything that its cluster leaves behind (Linux), and
kills it when standard input closes, which the system does when the process at the other end dies, however it dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["main"]

OBJECT_STORE_BYTES = 256 * 2**20
#: Names of Linux's sys/prctl.h.
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Start a cluster with as many cores as the first argument says, print its address, and end it when standard input closes."""
    import ray

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    cores = int(sys.argv[1]) if sys.argv[1] else None
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init("local", num_cpus=cores, object_store_memory=OBJECT_STORE_BYTES, **options)
        sys.stdout.write(f"{ray.get_runtime_context().gcs_address}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        if sys.platform == "linux":
            while _kill_children():
                pass
            os._exit(0)
        ray.shutdown()


def _kill_children() -> bool:
    """Kill this process's children and wait for them; return whether there were any. Theirs become this process's."""
    children = [number for number, parent in _parents().items() if parent == os.getpid()]
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)
    return bool(children)


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                found[int(folder.name)] = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return found


if __name__ == "__main__":
    main()
