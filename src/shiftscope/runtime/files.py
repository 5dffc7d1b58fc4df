"""Write files atomically, and lock folders.

A file is written under a temporary name beside its place, flushed to the disk and renamed, so that neither a kill nor a power cut
leaves half a file under the final name.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from shiftscope.errors import InputError

__all__ = [
    "CHECKSUM",
    "LOCK",
    "checksum",
    "claimed",
    "locked",
    "remove_temporary_files",
    "write_atomically",
    "write_bytes",
    "write_checked_tensors",
    "write_first",
    "write_tensors",
    "write_text",
    "writing",
]

LOCK = ".lock"
#: Where a file of tensors holds their checksum.
CHECKSUM = "sha256"
#: Long enough for a lock file that its owner removes at this moment.
SECONDS_TO_LOCK = 0.2
#: Error numbers of a file system without locks.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
#: A temporary file of another machine that nobody has touched for so long has a dead writer.
SECONDS_OF_A_WRITER = 24 * 3600.0


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file completely or not at all.

    Args:
        path: of the file; its folder is created if it is missing.
        write: fills a temporary file in the same folder.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{_writer()}.tmp{path.suffix}")
    try:
        write(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text atomically, as UTF-8 with the line ends that it has."""
    write_bytes(path, text.encode())


def write_first(path: Path, text: str) -> None:
    """Write text atomically, unless the file exists, also where several processes write it at once."""
    draft = path.with_name(f".{path.stem}.{_writer()}.tmp.draft{path.suffix}")
    try:
        write_text(draft, text)
        with suppress(FileExistsError):
            os.link(draft, path)
    except OSError:  # a file system without hard links
        if not path.exists():
            write_text(path, text)
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors atomically, as safetensors.

    Args:
        path: of the file.
        tensors: by name, on any device.
        metadata: texts by name, for the file's header.
    """
    from safetensors.torch import save

    apart, seen = dict[str, Tensor](), set[int]()
    for name, tensor in tensors.items():
        found = tensor.detach().cpu().contiguous()
        place = found.untyped_storage().data_ptr()
        apart[name] = found.clone() if place in seen else found  # tied weights, which safetensors refuses
        seen.add(place)
    write_bytes(path, save(apart, metadata=dict(metadata) if metadata else None))


def write_checked_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors atomically, as safetensors with their checksum, by which a reader knows whether they are damaged.

    Args:
        path: of the file.
        tensors: by name, on any device.
    """
    write_tensors(path, tensors, metadata={CHECKSUM: checksum(tensors)})


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors, with their names, types and shapes."""
    found = sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@contextmanager
def writing(what: object, remedy: str, kept: str = "") -> Iterator[None]:
    """Turn the error of a file or folder that cannot be written into one sentence.

    Args:
        what: the file or folder, after the parameter that names it if there is one.
        remedy: what to do.
        kept: what stays, with its punctuation before it.

    Raises:
        InputError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} cannot be written ({error.strerror or error}){kept}.", remedy) from error


@contextmanager
def locked(folder: Path, *, seconds: float = SECONDS_TO_LOCK) -> Iterator[None]:
    """Keep other processes out of a folder for the duration. The system frees the lock of a process that dies.

    Args:
        folder: an existing one.
        seconds: how long to wait for another process.

    Raises:
        InputError: another process is at work there, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise InputError(
            f"another command is at work in {folder} ({_owner(folder)}).", "Wait for it, or choose another folder with --out."
        ) from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            reason = error.strerror or error
            raise InputError(f"{folder} cannot be written ({reason}).", "Choose another folder with --out.") from error
    with _held(lock, folder / LOCK):
        yield


@contextmanager
def claimed(folder: Path, name: str = LOCK) -> Iterator[bool | None]:
    """Claim a folder for the duration, unless another process holds it. A claim ends with its process, however that ends.

    Args:
        folder: created if it is missing.
        name: of the lock's file, where there are several things to claim in the folder.

    Yields:
        whether this process holds the claim; None where the file system has no locks, so that nobody knows.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        held = None
    else:
        held = True
    with _held(lock, folder / name):
        yield held


@contextmanager
def _held(lock: FileLock, file: Path) -> Iterator[None]:
    """Write who holds a lock into its file, and release it afterwards."""
    try:
        with suppress(OSError):  # Windows does not share a locked file
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):  # while the lock is held: afterwards the file may be another process's
            file.unlink()
        lock.release()


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files of writers that died, in a folder and below it; a living writer's stay.

    Whether a process of another machine lives is unknown here: its files are removed a day after they were last written.
    """
    for path in folder.rglob(".*.tmp*"):
        with suppress(FileNotFoundError):  # its writer has just renamed it
            if _is_left(path):
                path.unlink(missing_ok=True)


def _is_left(path: Path) -> bool:
    """Return whether a temporary file's writer is dead."""
    machine, _, process = path.name.split(".tmp")[0].rpartition(".")[2].rpartition("-")
    if not process.isdecimal():
        return False
    if machine in ("", _machine()):
        return not _is_alive(int(process))
    return time.time() - path.stat().st_mtime > SECONDS_OF_A_WRITER


def _writer() -> str:
    """Return a name for this process that no other process on any machine has."""
    return f"{_machine()}-{os.getpid()}"


def _machine() -> str:
    return re.sub(r"\W", "", socket.gethostname())[:32]


def _owner(folder: Path) -> str:
    """Return which process holds a folder's lock."""
    with suppress(OSError):
        return (folder / LOCK).read_text().strip() or "process unknown"
    return "process unknown"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """Make a renaming durable, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
