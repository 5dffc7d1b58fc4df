"""Hostile inputs for the command line, by seed: study files, files of a study, model files, command lines, images and parquet.

Each campaign is a function of a random generator, of :class:`Bases` (valid inputs, made once) and of an empty folder. It writes
its inputs there and returns a command line. Half of the inputs are damaged in their bytes, the others in their meaning: numbers
of thousands of digits, tables in place of values, sizes that are not those of the content, names with control characters.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["CAMPAIGNS", "STUDY", "Bases", "damaged_bytes", "make_bases"]

#: A study of one small network, trained in half a second.
STUDY = """
title = "Tiny"
seeds = 1
[data]
image_size = 10
canvas = 20
validation_images = 60
train_images = 120
test_images = 40
[network]
channels = [2, 3]
padding = "same"
[training]
max_epochs = 1
[grid]
network.factor = [4]
[measure]
max_shift = 5
[source]
title = "a table"
[[source.cells]]
network.factor = 4
mcs = 0.5
[[source.claims]]
text = "factors differ"
kind = "range"
of = { "network.factor" = [4] }
[variants.one]
network.antialias = 1
"""
#: Values that no setting expects; each is also TOML and JSON, except dates.
NASTY: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63),
    2**64,
    10**30,
    int("9" * 4000),
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    0.5,
    1e-320,
    "",
    "x",
    "\x1b[31mred\x1b[0m",
    "a" * 5000,
    "\u202eabc",
    "../../etc",
    "/dev/zero",
    "a\x00b",
    "é" * 300,
    "{}",
    "%s%n",
    "none",
    True,
    False,
    [],
    [[]],
    [[[[1]]]],
    {},
    {"a": {"b": {"c": 1}}},
    [1, "a", 2.0],
    [{}],
    {"": ""},
    [None],
    list(range(2000)),
    [10**30],
    {"x": [1, {"y": 2}]},
    "network.factor",
    ["network.factor"],
    {"network.factor": [1]},
    "a/" * 3000,
)
IMAGE_FORMATS = ("png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm")
FILE_NAMES = (
    "a.png",
    "b\x1b[2J.png",
    "c\udcff.png",
    "\u202e.png",
    "x" * 200 + ".png",
    "-rf.png",
    "n\nl.png",
    "ü.png",
    "ß'\".png",
)


@dataclass(frozen=True)
class Bases:
    """Valid inputs to damage.

    Attributes:
        study: folder of a finished study.
        audit: folder of an audit.
        tasks: folder of an audit by task.
        certificate: folder of a certificate.
        models: files of models and weights, among them .onnx, .pt2, .safetensors and .pt, and a folder of transformers.
    """

    study: Path
    audit: Path
    tasks: Path
    certificate: Path
    models: tuple[Path, ...]


Campaign = Callable[[random.Random, Bases, Path], list[str]]


def make_bases(place: Path) -> Bases:
    """Write the valid inputs; run in a process of its own, because it computes.

    Args:
        place: an empty folder.
    """
    from shiftscope.cli import main

    (place / "tiny.toml").write_text(STUDY)
    study, audit, models = place / "study", place / "audit", place / "models"
    tasks, certificate = place / "tasks", place / "certificate"
    models.mkdir()
    assert main(["study", str(place / "tiny.toml"), "--out", str(study), "--workers", "1"]) == 0
    run = next((study / "runs").iterdir())
    options = ["--images", "8", "--protocol", "mouton2020", "--protocol", "every-shift", "--max-shift", "1"]
    assert main(["audit", str(run), *options, "--out", str(audit)]) == 0
    assert main(["audit", str(run), "--task", "multilabel", "--images", "8", "--max-shift", "1", "--out", str(tasks)]) == 0
    assert main(["certify", str(run), "--images", "8", "--radius", "2", "--out", str(certificate)]) == 0
    shutil.copy(run / "model.safetensors", models / "run.safetensors")
    _write_models(models)
    return known_bases(place)


def known_bases(place: Path) -> Bases:
    """Return the inputs that :func:`make_bases` wrote."""
    models = tuple(sorted((place / "models").iterdir()))
    return Bases(place / "study", place / "audit", place / "tasks", place / "certificate", models)


def _write_models(models: Path) -> None:
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 18 * 18, 3)).eval()
    (models / "factory.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 18 * 18, 3))\n"
    )
    torch.save(net.state_dict(), models / "state.pt")
    torch.save({"state_dict": net.state_dict(), "epoch": 3, "args": ["a"]}, models / "checkpoint.pth")
    torch.save(net.state_dict(), models / "legacy.pth", _use_new_zipfile_serialization=False)
    from safetensors.torch import save_file

    save_file(net.state_dict(), models / "weights.safetensors")
    names = dict.fromkeys(net.state_dict(), "weights.safetensors")
    (models / "weights.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    torch.export.save(torch.export.export(net, (torch.zeros(2, 1, 20, 20),)), models / "exported.pt2")
    with suppress(ImportError):
        (models / "small.onnx").write_bytes(_onnx())


def _onnx() -> bytes:
    """Return a convolution and a fully connected layer as ONNX."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(2, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"], axis=1),
    ]
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 20, 20])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "g", [takes], [gives], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return a file's content with some bytes changed, cut out, repeated or put in."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(data) + 1) if rng.random() < 0.6 else rng.randrange(min(len(data), 300) + 1)
        match rng.randrange(7):
            case 0:
                data[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[place : place + rng.choice((1, 4, 100))]
            case 2:
                data[place:place] = data[place : place + rng.choice((1, 8, 200))]
            case 3:
                data[place:place] = rng.choice((b"\x00", b"\xff" * 9, b"9" * 5000, b"[" * 20000, b"\x1b[31m", b"{}", b'"', b"\n"))
            case 4:
                data[place : place + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)))
            case 5:
                del data[place:]
            case _:
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _mutated(rng: random.Random, value: Any) -> Any:
    """Return a document with one value or name replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.93:
        name = rng.choice(list(value))
        match rng.randrange(10):
            case 0:
                return {key: each for key, each in value.items() if key != name}
            case 1:
                return {**value, rng.choice(("x", "\x1b[1m", "a" * 400, "", "network.factor", name + "s")): rng.choice(NASTY)}
            case _:
                return {**value, name: _mutated(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.15:
            return [*value, rng.choice(NASTY)]
        return [_mutated(rng, each) if number == place else each for number, each in enumerate(value)]
    return rng.choice(NASTY)


def _toml(value: Any) -> str:
    """Return a value as TOML."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return ("-" if value < 0 else "") + _digits(abs(value))
        case float():
            return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), str(value))
        case dict():
            return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case None:
            return "1979-05-27T07:32:00Z"
    return json.dumps(value)


def _digits(value: int) -> str:
    """Return a number of any length in decimal digits."""
    return str(value) if value < 10**4000 else "9" * 6000


def study_files(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    """Damage a study's TOML file, and run it."""
    import tomllib

    del bases

    file = place / "in" / "study.toml"
    if rng.random() < 0.2:
        file.write_bytes(damaged_bytes(rng, STUDY.encode()))
    elif rng.random() < 0.08:
        deep = rng.choice(("[" * 9000 + "]" * 9000, "{a=" * 3000 + "1" + "}" * 3000, "9" * 9000, "0x" + "f" * 9000, "1e999999"))
        file.write_text(STUDY.replace("image_size = 10", f"image_size = {deep}"))
    else:
        document = tomllib.loads(STUDY)
        for _round in range(rng.choice((1, 1, 1, 2, 4))):
            mutated = _mutated(rng, document)
            document = mutated if isinstance(mutated, dict) else document
        file.write_bytes("".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in document.items()).encode())
    extra = rng.choice(([], [], [], ["--seeds", str(rng.choice((1, 0, -1, 10**30)))], ["--set", "training.max_epochs=1"]))
    return ["study", str(file), "--out", str(place / "out"), "--workers", "1", *extra]


def study_folders(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    """Damage one file of a finished study or audit, and read the folder."""
    of_audit = rng.random() < 0.25
    folder = place / "out" / "folder"
    shutil.copytree(bases.audit if of_audit else bases.study, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors", ".xz"))
    file = rng.choice(files)
    _damage(rng, file)
    run = next(iter(sorted((folder / "runs").glob("*"))), folder)
    if of_audit:
        again = ["audit", str(next((bases.study / "runs").iterdir())), "--images", "8", "--protocol", "mouton2020"]
        again += ["--protocol", "every-shift", "--max-shift", "1", "--out", str(folder)]
        return rng.choice((["audit", "--merge", str(folder)], ["report", str(folder)], again))
    tiny = bases.study.parent / "tiny.toml"
    return rng.choice(
        (
            ["compare", str(folder)],
            ["report", str(folder)],
            ["list", str(folder)],
            ["figures", str(folder), "--format", "svg"],
            ["study", str(tiny), "--out", str(folder), "--workers", "1"],
            ["study", str(tiny), "--out", str(place / "out" / "new"), "--reuse", str(folder), "--workers", "1"],
            ["audit", str(run), "--quick", "--images", "4", "--protocol", "mouton2020"],
        )
    )


def _damage(rng: random.Random, file: Path) -> None:
    """Damage a file: its place in the folder, its bytes or its meaning."""
    content = file.read_bytes()
    match rng.randrange(10):
        case 0:
            _replace(rng, file)
        case 1 | 2 | 3:
            file.write_bytes(damaged_bytes(rng, content))
        case _ if file.suffix == ".json":
            file.write_bytes(_damaged_json(rng, json.loads(content)))
        case _ if file.suffix == ".xz":
            inner = damaged_tensors(rng, lzma.decompress(content))
            file.write_bytes(lzma.compress(inner) + (b"" if rng.random() < 0.9 else b"\x00" * 7))
        case _:
            file.write_bytes(damaged_tensors(rng, content))


def _replace(rng: random.Random, file: Path) -> None:
    """Put something else in a file's place."""
    file.unlink()
    match rng.randrange(6):
        case 0:
            file.mkdir()
        case 1:
            file.symlink_to("/dev/zero")
        case 2:
            os.mkfifo(file)
        case 3:
            with file.open("wb") as sparse:
                sparse.truncate(20 << 30)
        case 4:
            file.symlink_to(file)
        case _:
            pass


def _damaged_json(rng: random.Random, document: Any) -> bytes:
    if rng.random() < 0.08:
        return rng.choice((b"[" * 200_000, b'{"a":' * 100_000, b"9" * 100_000, b"null", b"[]", b'"\\ud800"', b'{"a":1,"a":2}'))
    for _ in range(rng.choice((1, 1, 2))):
        document = _mutated(rng, document)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5, default=str).encode(errors="surrogatepass")


def damaged_tensors(rng: random.Random, content: bytes) -> bytes:
    """Return a safetensors file with another header or other tensors."""
    from safetensors.torch import load, save

    if rng.random() < 0.4:
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        changed = json.dumps(_mutated(rng, header)).encode()
        return struct.pack("<Q", rng.choice((len(changed),) * 6 + (0, 2**40, 2**63, 7))) + changed + content[8 + length :]
    tensors = load(content)
    name = rng.choice(sorted(tensors) or ["x"])
    old = tensors.get(name, torch.zeros(3))
    new: dict[int, Callable[[], torch.Tensor]] = {
        0: lambda: old.flatten()[: rng.randrange(old.numel() + 1)].clone(),
        1: lambda: torch.full_like(old, float("nan")) if old.is_floating_point() else torch.full_like(old, -1),
        2: lambda: old.to(torch.bfloat16),
        3: lambda: torch.zeros(rng.choice(((), (0,), (0, 5), (1, 1, 1, 1), (3, 0)))),
        4: lambda: old.double() * 1e300,
        5: lambda: old.bool(),
        6: lambda: torch.cat([old.flatten(), old.flatten()]),
        7: lambda: old.to(torch.complex64),
    }
    tensors[rng.choice((name, name, name, name + ".x", "layer.99.s", "layer.x", "map.", "curve.mcs.draws", "\x1b[1m"))] = new[
        rng.randrange(8)
    ]()
    if rng.random() < 0.3:
        tensors.pop(name, None)
    with io.BytesIO(content) as file:
        length = struct.unpack("<Q", file.read(8))[0]
        metadata = json.loads(file.read(length)).get("__metadata__")
    return bytes(save({key: value.contiguous().clone() for key, value in tensors.items()}, metadata=metadata))


def model_files(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    """Damage a model's file, and audit it."""
    models = place / "in"
    for path in bases.models:
        shutil.copy(path, models / path.name)
    file = models / rng.choice([path.name for path in bases.models if path.suffix != ".py"])
    _damage_model(rng, file)
    common = ["--quick", "--images", "4", "--protocol", "mouton2020"]
    if file.suffix in (".onnx", ".pt2") or file.name == "run.safetensors":
        trust = ["--trust"] if file.suffix == ".pt2" and rng.random() < 0.5 else []
        return ["audit", str(file), *common, *trust]
    return ["audit", f"{models / 'factory.py'}:make", "--weights", str(file), "--size", "20", *common]


def _damage_model(rng: random.Random, file: Path) -> None:
    content = file.read_bytes()
    kind = rng.randrange(8)
    if kind == 0:
        _replace(rng, file)
    elif file.suffix == ".safetensors" and kind < 6:
        file.write_bytes(damaged_tensors(rng, content))
    elif file.suffix == ".json" and kind < 6:
        file.write_bytes(_damaged_json(rng, json.loads(content)))
    elif file.suffix in (".pt", ".pth", ".pt2") and file.name != "legacy.pth" and kind < 6:
        file.write_bytes(_damaged_archive(rng, content))
    else:
        file.write_bytes(damaged_bytes(rng, content))


def _damaged_archive(rng: random.Random, content: bytes) -> bytes:
    """Return an archive in which one entry is damaged, doubled, missing, renamed or compressed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place = rng.randrange(len(entries))
    name, data = entries[place]
    kind = rng.randrange(8)
    if kind < 4:
        if name.endswith(".json") and rng.random() < 0.7:
            entries[place] = (name, _damaged_json(rng, json.loads(data)))
        else:
            entries[place] = (name, damaged_bytes(rng, data))
    elif kind == 4:
        entries.append((name, damaged_bytes(rng, data)))
    elif kind == 5:
        del entries[place]
    elif kind == 6:
        entries[place] = (rng.choice(("../x", "/tmp/x", "a" * 3000, "\x1b[1m", "x")), data)  # noqa: S108 - a hostile name
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if kind == 7 else zipfile.ZIP_STORED) as archive:
        for each, data in entries:
            archive.writestr(each, data)
    return out.getvalue()


def command_lines(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    """Return a command with options and values that may not belong to it."""
    run = str(next((bases.study / "runs").iterdir()))
    shutil.copytree(bases.study, place / "out" / "study")
    folder = str(place / "out" / "study")
    start = rng.choice(
        (
            ["audit", run, "--quick"],
            ["explain", run, "--images", "4"],
            ["fix", run, "--with", "blur", "--plan", "--images", "4"],
            ["list", folder],
            ["compare", folder],
            ["theory"],
            ["study", str(bases.study.parent / "tiny.toml")],
            ["report", folder],
            ["figures", folder],
            ["open", folder],
            ["nothing"],
            [],
        )
    )
    options = (
        "--size",
        "--mean",
        "--std",
        "--output",
        "--images",
        "--max-shift",
        "--seed",
        "--mode",
        "--data",
        "--data-dir",
        "--run",
        "--weights",
        "--protocol",
        "--batch-size",
        "--shard",
        "--out",
        "--merge",
        "--set",
        "--seeds",
        "--reuse",
        "--device",
        "--filter-size",
        "--with",
        "--format",
        "--json",
        "--wide",
        "--trust",
        "--embedding",
        "--help",
        "--x",
        "--gpus",
        "--address",
        "--workers",
    )
    values = (
        "0",
        "1",
        "-1",
        "3",
        "9" * 30,
        "9" * 5000,
        "1e400",
        "nan",
        "inf",
        "0.5",
        "",
        " ",
        "x",
        "\x1b[31m",
        "a=b",
        "1/2",
        "1/0",
        "data.canvas=9e99",
        "training.max_epochs=1",
        "grid=[]",
        "seeds=" + "9" * 5000,
        "network.factor=[1,[2]]",
        "data.name={}",
        "a" * 5000,
        "../" * 2000,
        "\udcff",
        "cuda:99",
        "cpu:1",
        "meta",
        "mouton2020",
        "blur",
        "factor=4,seed=0",
        "\u202e",
        "network.channels=[100000000]",
        "data.canvas=100000",
        "timm:nothing",
        "hf:x/y",
        "os:getcwd",
        "/dev/zero",
        "/dev/stdin",
        "training.batch_size=99999999999999999999",
        str(place / "out" / "o"),
        folder,
    )
    words = list(start)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        option = rng.choice(options)
        words += [option] if rng.random() < 0.1 else [option, rng.choice(values)]
    if rng.random() < 0.1:
        words.insert(rng.randrange(len(words) + 1), rng.choice(values))
    if words[:1] == ["study"] and "--workers" not in words:
        words += ["--workers", "1"]
    return words


def image_files(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    """Damage a folder of images or parquet files, and measure or train on it."""
    folder = place / "in" / rng.choice(("photos", "ph\x1b[7motos", "p\udcfe"))
    folder.mkdir()
    (_write_parquet if rng.random() < 0.5 else _write_images)(rng, folder)
    if rng.random() < 0.4:
        file = place / "in" / "study.toml"
        text = STUDY.replace("[data]", f"[data]\nname = {json.dumps('photos')}").split("[source]")[0]
        file.write_text(text)
        if folder.name != "photos":
            folder.rename(folder.with_name("photos"))
        return ["study", str(file), "--out", str(place / "out"), "--workers", "1", "--data-dir", str(place / "in")]
    factory = next(path for path in bases.models if path.suffix == ".py")
    return ["audit", f"{factory}:make", "--size", "20", "--quick", "--images", "6", "--data", str(folder)]


def _image(rng: random.Random, kind: str) -> bytes:
    from PIL import Image

    size = rng.choice(((24, 24), (30, 26), (1, 1), (3, 200)))
    mode = rng.choice(("L", "RGB", "P", "1", "RGBA", "LA", "CMYK", "I;16", "F", "I")) if rng.random() < 0.5 else "L"
    image = Image.fromarray(np.frombuffer(rng.randbytes(size[0] * size[1]), np.uint8).reshape(size[1], size[0])).convert(
        mode if mode not in ("I;16",) else "I"
    )
    out = io.BytesIO()
    try:
        image.save(out, kind)
    except (OSError, ValueError, KeyError):
        image.convert("L").save(out, kind)
    return damaged_bytes(rng, out.getvalue()) if rng.random() < 0.5 else out.getvalue()


def _write_images(rng: random.Random, folder: Path) -> None:
    names = [f"{number}.png" for number in range(12)] + rng.sample(FILE_NAMES, 3)
    classes = rng.choice((("a", "b"), ("a",), ("train", "test"), ("\x1b[1m", "b"), ("",), ("train/a", "train/b", "test/a")))
    for number, name in enumerate(names):
        kind = rng.choice(IMAGE_FORMATS) if rng.random() < 0.5 else "png"
        content = _image(rng, kind) if rng.random() < 0.9 else rng.choice((b"", b"\x89PNG\r\n\x1a\n", rng.randbytes(200)))
        file = folder / classes[number % len(classes)] / name
        file.parent.mkdir(exist_ok=True, parents=True)
        with suppress(OSError):
            file.write_bytes(content)
    if rng.random() < 0.1:
        victim = next(path for path in sorted(folder.rglob("*")) if path.is_file())
        _replace(rng, victim)


def _write_parquet(rng: random.Random, folder: Path) -> None:
    import pyarrow as pa

    count = rng.choice((200, 200, 12, 1, 0))
    images: list[Any] = [
        {"bytes": _image(rng, "png") if rng.random() < 0.05 else _plain(number), "path": None} for number in range(count)
    ]
    labels: list[Any] = [number % 3 for number in range(count)]
    for _ in range(rng.choice((0, 0, 1, 3)) if count else 0):
        labels[rng.randrange(count)] = rng.choice((-1, 99, 2**62, None, 3))
        images[rng.randrange(count)] = rng.choice(({"bytes": b"", "path": None}, {"bytes": None, "path": "x"}, None))
    kind = rng.choice(("int", "int", "int", "str", "float", "list"))
    column: list[Any] = (
        labels if kind == "int" else [[each] if kind == "list" else str(each) if kind == "str" else 0.5 for each in labels]
    )
    names = rng.choice((["a", "b", "c"], ["a"], [], ["\x1b[1m", "b", "c"], "abc", None, [1, 2, 3]))
    features = {
        "image": {"_type": "Image"},
        "label": rng.choice(({"_type": "ClassLabel", "names": names}, {"_type": "Value"}, 3, None)),
    }
    described = (
        json.dumps({"info": {"features": features}}) if rng.random() < 0.9 else rng.choice(("[", "[]", '{"info":3}', "[" * 90000))
    )
    schema = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, schema), "label": pa.array(column)})
    table = table.replace_schema_metadata({"huggingface": described})
    for name in rng.choice((["train"], ["train", "test"], ["test"])):
        file = folder / f"{name}.parquet"
        _write_table(table, file)
        if rng.random() < 0.3:
            file.write_bytes(damaged_bytes(rng, file.read_bytes()))


def _write_table(table: Any, file: Path) -> None:
    """Write a parquet file, whatever its path is."""
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(table, out)
    file.write_bytes(out.getvalue())


def _plain(number: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((10, 10), number % 256, np.uint8)).save(out, "png")
    return out.getvalue()


def seeds(start: int, count: int) -> Iterator[int]:
    """Return the seeds of a campaign's cases."""
    return iter(range(start, start + count))


CAMPAIGNS: dict[str, Campaign] = {
    "study files": study_files,
    "files of a study": study_folders,
    "model files": model_files,
    "command lines": command_lines,
    "images and parquet": image_files,
}
