"""Read files that come from outside: one function for each kind of content, and one sentence for whatever is wrong with it.

- A file is a regular one, and its size is checked before it is read: a pipe would never end, and a device never fill.
- JSON and the headers of tensors are checked before anything is allocated for what they declare.
- Whatever a library raises becomes an :class:`~shiftscope.errors.InputError` whose cause it is, which `--verbose` prints.
"""

from __future__ import annotations

import json
import math
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from shiftscope.errors import InputError, shortened
from shiftscope.runtime.files import CHECKSUM, checksum

__all__ = [
    "check_file",
    "is_file",
    "is_folder",
    "parse_json",
    "read_bytes",
    "read_checked_tensors",
    "read_json",
    "read_tensors",
    "reading",
    "tensors_in",
]

#: Largest file of text or JSON, largest header of a safetensors file, and largest file of tensors, bytes.
LARGEST_TEXT, LARGEST_HEADER, LARGEST_TENSORS = 64 << 20, 32 << 20, 1 << 40
#: Files of up to so many bytes are read at once, which is quicker than tensor by tensor where these are small.
LARGEST_AT_ONCE = 16 << 20
#: The most tensors in a file, and the most axes of a tensor.
MOST_TENSORS, MOST_AXES = 200_000, 16
#: The most digits of a number in JSON.
MOST_DIGITS = 400
#: Bits of an element, by safetensors' names of types.
BITS = {
    name: bits
    for bits, names in (
        (4, "F4"),
        (6, "F6_E2M3 F6_E3M2"),
        (8, "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ"),
        (16, "I16 U16 F16 BF16"),
        (32, "I32 U32 F32"),
        (64, "C64 F64 I64 U64"),
    )
    for name in names.split()
}


@contextmanager
def reading(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a file into one sentence.

    Args:
        path: of the file.
        what: it should be, with its article: "a parquet file".
        remedy: what to do where it is damaged.

    Raises:
        InputError: the block raised any exception; it is the cause.
    """
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        if error.errno is None:  # of a library, about the content
            raise InputError(f"{path} is damaged, or is not {what}.", remedy) from error
        raise InputError(f"{path} cannot be read ({error.strerror}).", "Check the path and its permissions.") from error
    except MemoryError as error:
        raise InputError(f"{path} needs more memory than there is.", remedy) from error
    except Exception as error:
        raise InputError(f"{path} is damaged, or is not {what}.", remedy) from error


def check_file(path: Path, *, limit: int) -> int:
    """Return the size of a regular file, bytes.

    Args:
        path: of the file.
        limit: the most bytes that it may have.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be looked at.
        InputError: it is a folder, a pipe or a device, or larger than the limit.
    """
    try:
        status = path.stat()
    except ValueError as error:  # a zero byte in the path
        raise FileNotFoundError(str(path)) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file.", "Check the path.")
    if status.st_size > limit:
        raise InputError(
            f"{path} is too large: {status.st_size:,} bytes, of at most {limit:,} that such a file may have.", "Check the path."
        )
    return status.st_size


def read_bytes(path: Path, *, limit: int = LARGEST_TEXT) -> bytes:
    """Return the content of a regular file.

    Args:
        path: of the file.
        limit: the most bytes that it may have.

    Raises:
        OSError: it cannot be read.
        InputError: it is not regular, or too large.
    """
    check_file(path, limit=limit)
    with path.open("rb") as file:
        return file.read(limit)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: it cannot be read.
        InputError: it is not regular or too large.
        ValueError: it is not JSON; see :func:`parse_json`.
    """
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, nested too deeply, has a name twice in one object, or a number of over 400 digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_doubles, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Return the tensors in a safetensors file, by name, and the file's metadata.

    Raises:
        OSError: the file cannot be read.
        InputError: it is not regular, or is larger than a terabyte.
        ValueError: it is not a complete safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    size = check_file(path, limit=LARGEST_TENSORS)
    with path.open("rb") as file:
        _check_header(file.read(8), size, lambda length: file.read(length))
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError("it is not a complete safetensors file") from error


def read_checked_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file that :func:`shiftscope.runtime.files.write_checked_tensors` wrote, by name.

    Raises:
        OSError: the file cannot be read.
        InputError: it is not regular, or is larger than a terabyte.
        ValueError: it is not complete, or holds other tensors than were written.
    """
    small = check_file(path, limit=LARGEST_TENSORS) <= LARGEST_AT_ONCE
    tensors, metadata = _tensors_in(read_bytes(path)) if small else read_tensors(path)
    if metadata.get(CHECKSUM) != checksum(tensors):
        raise ValueError("its tensors do not match their checksum")
    return tensors


def tensors_in(content: bytes) -> dict[str, Tensor]:
    """Return the tensors in the content of a safetensors file, by name.

    Raises:
        ValueError: it is not complete.
    """
    return _tensors_in(content)[0]


def _tensors_in(content: bytes) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Return the tensors in the content of a safetensors file, and its metadata."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    metadata = _check_header(content[:8], len(content), lambda length: content[8 : 8 + length])
    try:
        return load(content), metadata
    except SafetensorError as error:
        raise ValueError("it is not a complete safetensors file") from error


def _check_header(start: bytes, size: int, rest: Any) -> Mapping[str, str]:
    """Check what a safetensors file declares against its size: types, shapes, and places without gaps or overlaps.

    Args:
        start: the first eight bytes.
        size: of the file, bytes.
        rest: number of bytes -> the header.

    Returns:
        the file's metadata.
    """
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if not 2 <= length <= min(size - 8, LARGEST_HEADER):
        _refuse(f"its header has {length:,} bytes, and the file {size:,}")
    text = rest(length)
    if (declared := text.count(b'"data_offsets"')) > MOST_TENSORS:  # seen in no time, where parsing takes seconds
        _refuse(f"it declares {declared:,} tensors, of at most {MOST_TENSORS:,}")
    header = parse_json(text)
    if not isinstance(header, dict):
        _refuse("its header names no tensors")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        _refuse("its metadata is no text")
    if len(header) > MOST_TENSORS:
        _refuse(f"it declares {len(header):,} tensors, of at most {MOST_TENSORS:,}")
    place = 0
    for start_of, end in sorted(_place(name, declared) for name, declared in header.items()):
        if start_of != place:
            _refuse("its tensors overlap or leave gaps")
        place = end
    if place != size - 8 - length:
        _refuse(f"its tensors take {place:,} bytes, and the file holds {size - 8 - length:,}")
    return metadata


def _place(name: str, declared: Any) -> tuple[int, int]:
    """Return where a tensor's bytes begin and end."""
    if not isinstance(declared, dict) or set(declared) != {"dtype", "shape", "data_offsets"}:
        _refuse(f"its tensor {name!r} has no type, shape and place")
    kind, shape, offsets = declared["dtype"], declared["shape"], declared["data_offsets"]
    if not isinstance(kind, str) or kind not in BITS:
        _refuse(f"its tensor {name!r} is of an unknown type")
    if not _whole(shape) or len(shape) > MOST_AXES or not _whole(offsets) or len(offsets) != 2:
        _refuse(f"its tensor {name!r} has no shape or no place")
    if (offsets[1] - offsets[0]) * 8 != math.prod(shape) * BITS[kind]:
        _refuse(f"its tensor {name!r} has another size than its shape says")
    return offsets[0], offsets[1]


def _whole(values: Any) -> bool:
    """Return whether a value is a list of integers that a size can have."""
    return isinstance(values, list) and all(type(each) is int and 0 <= each < 2**48 for each in values)


def _refuse(reason: str) -> NoReturn:
    raise ValueError(shortened(reason, 200))


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def is_file(path: Path) -> bool:
    """Return whether there is a file at a path; not where the path is too long, or no path at all."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether there is a folder at a path; not where the path is too long, or no path at all."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
