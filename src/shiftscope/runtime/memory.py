"""How the process asks the system for memory."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

# Names of the GNU C library's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for the rest of its life; whether the system's allocator can be told so.

    A training step on the CPU frees tensors of tens of megabytes and asks for them again at once. By default the GNU C
    library gives such blocks back to the system, which clears every page of the next one: a third of the time of a step of a
    factor 1 network (``benchmarks/training.py``). It is a setting of the whole process, so a program chooses it, not a library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, TOP_PAD_BYTES)])
