"""Files that are there whole or not at all.

Everything is written beside its place under a temporary name, flushed to the disk and then renamed, so that neither a kill
nor a power cut leaves half a file under the final name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from shiftscope.errors import InputError

__all__ = ["locked", "sweep", "write_bytes", "write_tensors", "write_text", "write_whole"]

LOCK = ".lock"


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
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes whole."""
    write_whole(path, lambda temporary: _fill(temporary, content))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors whole, as safetensors."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, metadata=dict(metadata) if metadata else None))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder for the duration. The system gives a dead process's lock back.

    Raises:
        InputError: another process is at work there; or the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # such a system has no advisory locks
        yield
        return
    while True:
        try:
            handle = (folder / LOCK).open("a+")
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}). Choose another folder with --out.") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):  # such a file system has no locks
                    yield
                    return
                handle.seek(0)
                owner = handle.read().strip() or "it does not say which"
                raise InputError(
                    f"another command is at work in {folder} ({owner}). Wait for it, or choose another folder with --out."
                ) from error
            if not _is_still(handle.fileno(), folder / LOCK):
                continue  # whoever had it has just removed it
            handle.truncate(0)
            handle.write(f"process {os.getpid()}")
            handle.flush()
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)
            return


def _is_still(handle: int, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


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


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _flush_folder(folder: Path) -> None:
    """Make the renaming itself last, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
