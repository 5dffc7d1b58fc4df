"""Check archives and pickles of ``torch.save`` before PyTorch reads them. Nothing is unpickled here.

PyTorch believes what an archive declares: a tensor whose storage is shorter than its pickle says is read beyond its end, and
nested tuples that refer to each other take forever to hash. So the archive's entries are checked first (each once, inside the
archive, stored as it is, none over another), and then the operations of its pickle, one by one, without carrying them out.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from shiftscope.runtime.inputs import check_file

__all__ = ["Archive", "check_checkpoint", "open_archive"]

#: Largest file, bytes; the most entries of an archive; the longest name of one.
LARGEST_FILE, MOST_ENTRIES, LONGEST_NAME = 1 << 40, 100_000, 1000
#: Largest pickle, bytes, and the most operations in it.
LARGEST_PICKLE, MOST_OPERATIONS = 64 << 20, 500_000
#: The most values that a pickle may leave open at a time; PyTorch's keep some 2,000.
MOST_OPEN = 20_000
#: The most values that tuples may stand for when every reference in them is followed.
MOST_VALUES = 1_000_000
#: Bytes of a local header in a zip file, and of the end of its directory without comment.
LOCAL_HEADER, END_OF_DIRECTORY = 30, 22
#: Bytes per element, by the name of the storage's class; 1, the least possible, for all others.
ELEMENT = {
    f"{name}Storage": size
    for size, names in (
        (2, "Half BFloat16 Short"),
        (4, "Float Int"),
        (8, "Double Long ComplexFloat"),
        (16, "ComplexDouble"),
    )
    for name in names.split()
}
#: Pickles in a file of the format before archives: three of its head, the content, and the names of the storages.
LEGACY_PICKLES = 5


@dataclass(frozen=True)
class Archive:
    """The entries of an archive whose directory has been checked.

    Attributes:
        path: of the file.
        sizes: of each entry, by name, bytes.
    """

    path: Path
    sizes: Mapping[str, int]

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the content of an entry.

        Args:
            name: of the entry.
            limit: largest allowed size, bytes.

        Raises:
            ValueError: it is larger, or damaged.
        """
        if self.sizes[name] > limit:
            _refuse(f"its entry {name!r} has {self.sizes[name]:,} bytes, of at most {limit:,}")
        with zipfile.ZipFile(self.path) as archive:
            try:
                return archive.read(name)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
                raise ValueError(f"its entry {name!r} is damaged") from error


def open_archive(path: Path) -> Archive:
    """Check the directory of an archive in which nothing is compressed, as PyTorch writes them.

    Raises:
        OSError: it cannot be read.
        InputError: it is not a regular file.
        ValueError: it is not an archive; an entry occurs twice, points outside it, overlaps another, is compressed, encrypted or
            a link; or it has too many entries.
    """
    size = check_file(path, limit=LARGEST_FILE)
    try:
        with zipfile.ZipFile(path) as archive:
            infos, comment, start = archive.infolist(), archive.comment, archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, UnicodeDecodeError) as error:
        raise ValueError("it is not a complete archive") from error
    if len(infos) > MOST_ENTRIES:
        _refuse(f"it has {len(infos):,} entries, of at most {MOST_ENTRIES:,}")
    if comment or not infos or min(each.header_offset for each in infos) != 0:
        _refuse("it has data before or after its entries")
    known: set[str] = set()
    for each in infos:
        _check_entry(each, known)
    place = 0
    for each in sorted(infos, key=lambda each: each.header_offset):
        if each.header_offset < place:
            _refuse("its entries overlap")
        place = each.header_offset + LOCAL_HEADER + each.file_size
    if place > min(start, size - END_OF_DIRECTORY):
        _refuse("its entries are larger than the file")
    return Archive(path, {each.filename: each.file_size for each in infos})


def _check_entry(entry: zipfile.ZipInfo, known: set[str]) -> None:
    """Refuse an entry that two readers might understand in two ways; note its name."""
    name = entry.filename
    parts = name.replace("\\", "/").split("/")
    if (
        entry.orig_filename != name
        or name.startswith(("/", "\\"))
        or ".." in parts
        or ":" in parts[0]
        or len(name) > LONGEST_NAME
    ):
        _refuse(f"its entry {name!r} points outside the archive")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        _refuse(f"its entry {name!r} has control characters in its name")
    if name.casefold() in known:
        _refuse(f"its entry {name!r} occurs twice")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        _refuse(f"its entry {name!r} is compressed, which PyTorch never does")
    if entry.flag_bits & 0x1 or (entry.external_attr >> 28) == 0xA:
        _refuse(f"its entry {name!r} is encrypted or a link")
    known.add(name.casefold())


def check_checkpoint(path: Path) -> None:
    """Check a file of ``torch.save``, an archive or the format before archives, before PyTorch reads it.

    Raises:
        OSError: it cannot be read.
        InputError: it is not a regular file.
        ValueError: what it declares does not fit its size, or its pickles do what weights do not need.
    """
    size = check_file(path, limit=LARGEST_FILE)
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            _check_legacy(file, size)
            return
    archive = open_archive(path)
    pickles = [name for name in archive.sizes if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        _refuse(f"it has {len(pickles)} entries data.pkl")
    folder = pickles[0].rpartition("/")[0]
    for key, size_of in _storages(archive.read(pickles[0], limit=LARGEST_PICKLE)):
        held = archive.sizes.get(f"{folder}/data/{key}")
        if held is None or held < size_of:
            _refuse(f"it declares {size_of:,} bytes for a tensor and holds {held or 0:,}")


def _check_legacy(file: BinaryIO, size: int) -> None:
    """Check the pickles at the start of a file, and what they declare against its size."""
    declared = 0
    for _ in range(LEGACY_PICKLES):
        start = file.tell()
        if start >= size or size - start > LARGEST_FILE:
            break
        declared += sum(dict(_storages(file)).values())
    if declared > size:
        _refuse(f"it declares {declared:,} bytes of tensors, and has {size:,}")


@dataclass(frozen=True)
class _Value:
    """What is known of a value that a pickle would make: content of a constant or tuple, and how many values it stands for."""

    content: Any = None
    count: int = 1


_MARK = _Value("mark")


def _storages(pickle: bytes | BinaryIO) -> Iterator[tuple[str, int]]:
    """Yield key and bytes of each storage that a pickle asks for; check every operation of it."""
    stack: list[_Value] = []
    memo: dict[int, _Value] = {}
    for number, (operation, argument, place) in enumerate(_operations(pickle)):
        if number > MOST_OPERATIONS or (place or 0) > LARGEST_PICKLE or len(stack) > MOST_OPEN:
            _refuse("its pickle is too long, or nested too deeply")
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name == "BINPERSID":
            found = _storage(stack.pop())
            stack.append(_Value())
            if found is not None:
                yield found
        else:
            _apply(operation, argument, stack)


def _operations(pickle: bytes | BinaryIO) -> Iterator[tuple[Any, Any, int | None]]:
    try:
        yield from pickletools.genops(pickle)
    except (UnicodeDecodeError, ValueError, IndexError, EOFError) as error:
        raise ValueError("its pickle is damaged") from error


def _apply(operation: Any, argument: Any, stack: list[_Value]) -> None:
    """Pop an operation's arguments from the stack, and push what is known of its result."""
    taken: list[_Value] = []
    if pickletools.markobject in operation.stack_before:
        while (top := stack.pop()) is not _MARK:
            taken.append(top)
        below = operation.stack_before.index(pickletools.markobject)
        taken += [stack.pop() for _ in range(below)]
    else:
        taken = [stack.pop() for _ in operation.stack_before]
    if operation.name == "MARK":
        stack.append(_MARK)
        return
    if operation.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
        count = 1 + sum(each.count for each in taken)
        if count > MOST_VALUES:
            _refuse("its pickle nests tuples in tuples that stand for millions of values")
        stack.append(_Value(tuple(each.content for each in reversed(taken)) if len(taken) <= 8 else None, count))
        return
    content = argument if isinstance(argument, str | int) else None
    for _ in operation.stack_after:
        stack.append(_Value(content, max((each.count for each in taken), default=1)))


def _storage(identity: _Value) -> tuple[str, int] | None:
    """Return key and bytes of the storage that a persistent id names; None if it names none."""
    match identity.content:
        case ("storage", kind, key, _, int(count), *_):
            name = kind.rpartition(" ")[2] if isinstance(kind, str) else ""
            return str(key), count * ELEMENT.get(name, 1)
    return None


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)
