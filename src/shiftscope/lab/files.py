"""Files that are there whole or not at all.

Everything is written beside its place under a temporary name, flushed to the disk and then renamed, so that neither a kill
nor a power cut leaves half a file under the final name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

__all__ = ["sweep", "write_tensors", "write_text", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file in the same folder, then give it its name. The folder is made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text whole."""
    write_whole(path, lambda temporary: _write_bytes(temporary, text.encode()))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors whole, as safetensors."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(contiguous, metadata=dict(metadata or {}))
    write_whole(path, lambda temporary: _write_bytes(temporary, content))


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder and below it; a living writer's file stays."""
    for left in folder.rglob(".*.tmp*"):
        process = left.name.split(".tmp")[0].rpartition(".")[2]
        if process.isdecimal() and not _alive(int(process)):
            left.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _flush_folder(folder: Path) -> None:
    """Make the renaming itself last, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
