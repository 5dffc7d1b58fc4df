"""Archives and files of models that try to run code, to write files, to read others, or to take all time and memory.

Each kind is a function of a folder: it writes its file there, with what lies beside it, and returns the file. What runs writes
``ran`` into the folder above, and what is taken from outside is ``secret`` there.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

KINDS: dict[str, Callable[[Path], Path]] = {}
MIB = 1 << 20


def kind(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    KINDS[write.__name__] = write
    return write


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.mark = str(folder.parent / "ran")

    def __reduce__(self):
        return exec, (f"open({self.mark!r}, 'w').write('x')",)


def zipped(path: Path, entries: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"0.weight": torch.randn(2, 1, 3, 3), "0.bias": torch.randn(2)}


def saved(folder: Path, value: object, name: str = "weights.pt", **options: object) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


def entries_of(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(each.filename, archive.read(each)) for each in archive.infolist()]


def changed(folder: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], compression: int = 0) -> Path:
    path = saved(folder, state())
    return zipped(path, change(entries_of(path)), compression)


def pickled(folder: Path, content: bytes) -> Path:
    """Return a checkpoint with this pickle."""
    return changed(folder, lambda every: [(name, content if name.endswith("data.pkl") else data) for name, data in every])


# -- Checkpoints of torch.save --------------------------------------------------------------------------------------------------


@kind
def checkpoint_that_runs_code(folder):
    return saved(folder, {"state_dict": state(), "hook": Runs(folder)})


@kind
def checkpoint_of_the_old_format_that_runs_code(folder):
    return saved(folder, {"x": Runs(folder)}, _use_new_zipfile_serialization=False)


@kind
def plain_pickle_that_runs_code(folder):
    (folder / "weights.pt").write_bytes(pickle.dumps(Runs(folder)))
    return folder / "weights.pt"


@kind
def pickle_named_safetensors(folder):
    (folder / "weights.safetensors").write_bytes(pickle.dumps(Runs(folder)))
    return folder / "weights.safetensors"


@kind
def checkpoint_named_safetensors(folder):
    return saved(folder, {"x": Runs(folder)}, "weights.safetensors")


@kind
def numpy_archive_that_runs_code(folder):
    import numpy as np

    np.savez(folder / "weights.npz", x=np.array([Runs(folder)], dtype=object))
    return (folder / "weights.npz").rename(folder / "weights.pt")


@kind
def numpy_array_that_runs_code(folder):
    import numpy as np

    np.save(folder / "weights.npy", np.array([Runs(folder)], dtype=object))
    return folder / "weights.npy"


@kind
def tar_archive(folder):
    import tarfile

    with tarfile.open(folder / "weights.pt", "w") as archive:
        info = tarfile.TarInfo("../ran")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    return folder / "weights.pt"


@kind
def torchscript(folder):
    return changed(
        folder, lambda every: [*every, ("weights/constants.pkl", pickle.dumps(Runs(folder))), ("weights/code/m.py", b"")]
    )


@kind
def entry_that_stands_twice(folder):
    return changed(folder, lambda every: [*every, ("weights/data.pkl", pickle.dumps(Runs(folder)))])


@kind
def entry_that_stands_twice_in_other_letters(folder):
    return changed(folder, lambda every: [*every, ("weights/DATA.pkl", pickle.dumps(Runs(folder)))])


@kind
def two_pickles_in_two_folders(folder):
    return changed(folder, lambda every: [*every, ("other/data.pkl", pickle.dumps(Runs(folder)))])


@kind
def entry_above_the_archive(folder):
    return changed(folder, lambda every: [*every, ("../../ran", b"x")])


@kind
def entry_with_backslashes(folder):
    return changed(folder, lambda every: [*every, ("..\\..\\ran", b"x")])


@kind
def entry_with_an_absolute_path(folder):
    return changed(folder, lambda every: [*every, (str(folder.parent / "ran"), b"x")])


@kind
def entry_with_control_characters(folder):
    return changed(folder, lambda every: [*every, ("weights/\x1b[2Jx", b"x")])


@kind
def bomb_of_zeros(folder):
    return changed(folder, lambda every: [*every, ("weights/data/9", bytes(64 * MIB))], zipfile.ZIP_DEFLATED)


@kind
def bomb_in_a_bomb(folder):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}", bytes(5 * MIB))
    return changed(folder, lambda every: [*every, ("weights/data/9", inner.getvalue() * 10)], zipfile.ZIP_DEFLATED)


@kind
def archive_of_many_entries(folder):
    return zipped(folder / "weights.pt", [(f"weights/{number}", b"") for number in range(100_001)])


@kind
def entries_over_each_other(folder):
    path = changed(folder, lambda every: [*every, ("weights/data/8", b"\0" * 1000), ("weights/data/9", b"\0" * 1000)])
    content = bytearray(path.read_bytes())
    directory = content.rindex(b"PK\x01\x02")
    offsets = [place for place in range(len(content) - 4) if content[place : place + 4] == b"PK\x01\x02"]
    before = content[offsets[-2] + 42 : offsets[-2] + 46]
    content[directory + 42 : directory + 46] = before
    path.write_bytes(content)
    return path


@kind
def entry_larger_than_the_file(folder):
    path = changed(folder, lambda every: every)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 20 : directory + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    path.write_bytes(content)
    return path


@kind
def archive_after_something_else(folder):
    path = changed(folder, lambda every: every)
    path.write_bytes(b"PK\x05\x06" + bytes(18) + path.read_bytes())
    return path


@kind
def tensor_beyond_its_storage(folder):
    return changed(folder, lambda every: [(name, data[:2] if "/data/" in name else data) for name, data in every])


@kind
def tensor_without_storage(folder):
    return changed(folder, lambda every: [each for each in every if not each[0].endswith("/data/0")])


@kind
def tuples_that_take_for_ever_to_hash(folder):
    tower = b"".join(b"2\x86" for _ in range(64))  # DUP, TUPLE2
    return pickled(folder, b"\x80\x02}(K\x00" + tower + b"K\x01u.")


@kind
def tuples_through_the_memo(folder):
    tower = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(64))
    return pickled(folder, b"\x80\x02}(K\x00" + tower + b"K\x01u.")


@kind
def text_that_declares_gigabytes(folder):
    return pickled(folder, b"\x80\x02\x8d" + struct.pack("<Q", 1 << 40) + b"x.")


@kind
def number_of_a_million_bytes(folder):
    return pickled(folder, b"\x80\x02}(X\x01\x00\x00\x00a\x8b" + struct.pack("<i", MIB) + b"\x7f" * MIB + b"u.")


@kind
def lists_in_lists(folder):
    return pickled(folder, b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b".")


@kind
def bytes_asked_of_a_function(folder):
    return pickled(folder, b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R.")


@kind
def operating_system_called(folder):
    command = f"touch {folder.parent / 'ran'}".encode()
    return pickled(folder, b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(command)) + command + b"\x85R.")


@kind
def old_format_that_declares_gigabytes(folder):
    path = saved(folder, {"w": torch.zeros(7)}, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = content.index(b"K\x07", content.index(b"storage"))
    path.write_bytes(content[:place] + b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + content[place + 2 :])
    return path


# -- safetensors ----------------------------------------------------------------------------------------------------------------


def tensors(folder: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    (folder / "weights.safetensors").write_bytes(content)
    return folder / "weights.safetensors"


def declared(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@kind
def header_longer_than_the_file(folder):
    return tensors(folder, {}, length=2**63)


@kind
def header_of_a_gigabyte(folder):
    path = tensors(folder, {}, length=1 << 30)
    with path.open("r+b") as file:
        file.truncate((1 << 30) + 8)
    return path


@kind
def header_nested_deeply(folder):
    return tensors(folder, b'{"a":' * 300_000 + b"1" + b"}" * 300_000)


@kind
def header_with_a_long_number(folder):
    return tensors(folder, b'{"a":{"dtype":"F32","shape":[' + b"9" * 1_000_000 + b'],"data_offsets":[0,4]}}', bytes(4))


@kind
def header_with_a_name_twice(folder):
    one = json.dumps(declared([1], 0, 4)).encode()
    return tensors(folder, b'{"a":' + one + b',"a":' + one + b"}", bytes(4))


@kind
def tensors_over_each_other(folder):
    return tensors(folder, {"a": declared([2], 0, 8), "b": declared([2], 4, 12)}, bytes(12))


@kind
def tensors_with_a_gap(folder):
    return tensors(folder, {"a": declared([1], 0, 4), "b": declared([1], 8, 12)}, bytes(12))


@kind
def tensor_larger_than_the_file(folder):
    return tensors(folder, {"a": declared([1 << 40], 0, 1 << 42)}, bytes(8))


@kind
def tensor_whose_size_overflows(folder):
    return tensors(folder, {"a": declared([2**40, 2**40], 0, 0)})


@kind
def tensor_of_negative_size(folder):
    return tensors(folder, {"a": declared([-1], 0, 4)}, bytes(4))


@kind
def many_tensors(folder):
    return tensors(folder, {f"t{number}": declared([0], 0, 0) for number in range(200_001)})


@kind
def index_that_leads_outside(folder):
    tensors(folder.parent, {"a": declared([1], 0, 4)}, bytes(4)).rename(folder.parent / "secret")
    file = folder / "weights.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {"a": "../secret"}}))
    return file


@kind
def model_that_names_a_factory(folder):
    (folder / "evil.py").write_text(f"def make():\n    open({str(folder.parent / 'ran')!r}, 'w').write('x')\n")
    spec = json.dumps({"factory": f"{folder / 'evil.py'}:make"})
    path = tensors(folder, {"__metadata__": {"shiftscope": spec}, "a": declared([1], 0, 4)}, bytes(4))
    return path.rename(folder / "model.safetensors")


# -- torch.export and ONNX ------------------------------------------------------------------------------------------------------


@kind
def exported_archive(folder):
    return zipped(folder / "model.pt2", [("model/data.pkl", pickle.dumps(Runs(folder)))])


@kind
def exported_bomb(folder):
    return zipped(folder / "model.pt2", [("model/weights/w", bytes(64 * MIB))], zipfile.ZIP_DEFLATED)


def onnx_file(folder: Path, tensor: bytes, name: str = "model.onnx") -> Path:
    """Return a model with this tensor as its weights, and one convolution of the images."""
    graph = message(5, tensor)
    (folder / name).write_bytes(b"\x08\x08" + message(7, graph))
    return folder / name


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def external(location: str, **others: str) -> bytes:
    entries = {"location": location, **others}
    listed = b"".join(message(13, message(1, key.encode()) + message(2, text.encode())) for key, text in entries.items())
    return b"\x08\x02" + b"\x10\x01" + message(8, b"w") + b"\x70\x01" + listed


@kind
def onnx_that_reads_above_its_folder(folder):
    (folder.parent / "secret").write_bytes(bytes(8))
    return onnx_file(folder, external("../secret"))


@kind
def onnx_that_reads_an_absolute_path(folder):
    (folder.parent / "secret").write_bytes(bytes(8))
    return onnx_file(folder, external(str(folder.parent / "secret")))


@kind
def onnx_that_reads_through_a_link(folder):
    (folder.parent / "secret").write_bytes(bytes(8))
    (folder / "data").symlink_to(folder.parent / "secret")
    return onnx_file(folder, external("data"))


@kind
def onnx_that_reads_a_device(folder):
    (folder / "data").symlink_to("/dev/zero")
    return onnx_file(folder, external("data", length="8"))


@kind
def onnx_that_reads_beyond_its_data(folder):
    (folder / "data").write_bytes(bytes(8))
    return onnx_file(folder, external("data", offset="4", length="1000000000000"))


@kind
def onnx_tensor_of_a_trillion_numbers(folder):
    return onnx_file(folder, b"\x08" + varint(1 << 40) + b"\x10\x01" + message(8, b"w") + message(9, bytes(8)))


@kind
def onnx_graphs_in_graphs(folder):
    graph = b""
    for _ in range(2000):
        graph = message(1, message(5, message(6, graph)))
    (folder / "model.onnx").write_bytes(b"\x08\x08" + message(7, graph))
    return folder / "model.onnx"


@kind
def onnx_that_is_a_pickle(folder):
    (folder / "model.onnx").write_bytes(pickle.dumps(Runs(folder)))
    return folder / "model.onnx"


@kind
def onnx_that_is_empty(folder):
    (folder / "model.onnx").write_bytes(b"")
    return folder / "model.onnx"


@kind
def pipe_in_place_of_weights(folder):
    import os

    os.mkfifo(folder / "weights.pt")
    return folder / "weights.pt"


@kind
def device_in_place_of_weights(folder):
    (folder / "weights.safetensors").symlink_to("/dev/zero")
    return folder / "weights.safetensors"


@kind
def link_to_itself(folder):
    (folder / "weights.pt").symlink_to(folder / "weights.pt")
    return folder / "weights.pt"
