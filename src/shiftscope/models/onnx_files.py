"""Check an ONNX file before onnxruntime reads it: where its weights lie, how deep its graphs are, and what its tensors declare.

Large models keep their weights in other files, which an ONNX file names. Only files beside it are read. The walk knows the few
fields of the format that lead to tensors (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto) and skips all others.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from shiftscope.runtime.inputs import check_file

__all__ = ["check_onnx"]

#: Largest file that the format allows, and largest file of weights beside it, bytes.
LARGEST_FILE, LARGEST_WEIGHTS = 2 << 30, 1 << 40
#: Graphs in graphs, and fields of all messages that are walked through.
DEEPEST, MOST_FIELDS = 40, 1_000_000
#: Field -> kind of message, for each kind that leads to tensors.
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
#: Fields of a tensor: its shape, and where its values lie; 1 of the latter is another file.
SHAPE, LOCATION, EXTERNAL = 1, 14, 1
#: Fields of a tensor that hold values.
VALUES = (4, 5, 6, 7, 9, 10, 11)
#: The most elements of a tensor per byte of its values: four of two bits.
ELEMENTS_PER_BYTE = 4


@dataclass
class _Tensor:
    """What a tensor declares."""

    shape: list[int] = field(default_factory=list)
    held: int = 0
    external: bool = False
    entries: dict[str, str] = field(default_factory=dict)


def check_onnx(path: Path) -> None:
    """Check an ONNX file.

    Raises:
        OSError: it cannot be read.
        InputError: it is not a regular file, or is too large.
        ValueError: it is no ONNX file; its graphs are nested too deeply; a tensor is larger than its values, or lies in a file
            that is not beside the model, is a link, or is too short.
    """
    if not check_file(path, limit=LARGEST_FILE):
        _refuse("it is empty")
    with path.open("rb") as file:
        _Walk(path).walk("model", memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), 0)


class _Walk:
    """Walks through an ONNX file.

    Args:
        path: of the file, beside which its weights may lie.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = MOST_FIELDS

    def walk(self, kind: str, message: memoryview, depth: int) -> None:
        """Check a message and those in it."""
        if depth > DEEPEST:
            _refuse("its graphs are nested too deeply")
        tensor = _Tensor()
        for number, value in self._fields(message):
            if kind == "tensor":
                self._note(tensor, number, value)
            inner = FIELDS[kind].get(number)
            if inner in (None, "entry"):
                continue
            if isinstance(value, int):
                _refuse("it is damaged")
            self.walk(str(inner), value, depth + 1)
        if kind == "tensor":
            self._check(tensor)

    def _fields(self, message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
        """Yield number and value of each field: a part of the message, or an integer."""
        place = 0
        while place < len(message):
            self.left -= 1
            if self.left < 0:
                _refuse("it has too many parts")
            key, place = _integer(message, place)
            if key & 7 == 0:
                value, place = _integer(message, place)
                yield key >> 3, value
                continue
            if key & 7 == 2:
                length, place = _integer(message, place)
            else:
                length = {1: 8, 5: 4}.get(key & 7, -1)
            if length < 0 or place + length > len(message):
                _refuse("it is damaged")
            yield key >> 3, message[place : place + length]
            place += length

    def _note(self, tensor: _Tensor, number: int, value: memoryview | int) -> None:
        """Note a field of a tensor."""
        if number == SHAPE:
            tensor.shape += [value] if isinstance(value, int) else _integers(value)
        elif number == LOCATION:
            tensor.external = value == EXTERNAL
        elif number in VALUES:
            tensor.held += 1 if isinstance(value, int) else max(1, len(value))
        elif number == 13 and not isinstance(value, int):
            texts = {key: bytes(text).decode() for key, text in self._fields(value) if not isinstance(text, int)}
            tensor.entries[texts.get(1, "")] = texts.get(2, "")

    def _check(self, tensor: _Tensor) -> None:
        """Check a tensor's size against its values, and the file in which they lie."""
        count = math.prod(tensor.shape)
        if tensor.external or tensor.entries:
            self._check_file(tensor.entries, count)
        elif count > ELEMENTS_PER_BYTE * tensor.held:
            _refuse(f"a tensor declares {count:,} numbers and holds {tensor.held:,} bytes")

    def _check_file(self, entries: dict[str, str], count: int) -> None:
        """Check the file that holds a tensor's values."""
        name = entries.get("location", "")
        if not name or Path(name).name != name or "\\" in name or "\0" in name or name.startswith("."):
            _refuse(f"it takes weights from {name!r}, which does not lie beside it")
        file = self.path.with_name(name)
        if file.is_symlink() or not file.is_file():
            _refuse(f"it takes weights from {name!r}, which is not a file beside it")
        size = check_file(file, limit=LARGEST_WEIGHTS)
        offset, length = (_number(entries.get(key, "")) for key in ("offset", "length"))
        if offset + max(length, count // ELEMENTS_PER_BYTE) > size:
            _refuse(f"it takes more weights from {name!r} than that file holds")


def _number(text: str) -> int:
    if text and not (text.isascii() and text.isdecimal() and len(text) < 20):
        _refuse("it is damaged")
    return int(text or 0)


def _integers(message: memoryview) -> list[int]:
    """Return packed integers."""
    found, place = list[int](), 0
    while place < len(message):
        value, place = _integer(message, place)
        found.append(value)
    return found


def _integer(message: memoryview, place: int) -> tuple[int, int]:
    """Return an integer of variable length, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            _refuse("it is damaged")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    return _refuse("it is damaged")


def _refuse(reason: str) -> NoReturn:
    raise ValueError(reason)
