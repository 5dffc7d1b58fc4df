"""A model that ``torch.export`` wrote (.pt2).

Such an archive may hold pickles, which its own reader would run, checks of its inputs as Python code, and sizes as expressions,
which the reader evaluates. So it is looked through first: only what is plain (raw weights, text without code) or loads as bare
tensors is handed on, in an archive made anew.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shiftscope.errors import InputError
from shiftscope.models.batches import InBatches

__all__ = ["read_exported"]

#: Raw data and text by the last part of their names.
PLAIN = re.compile(
    r"(weight_\d+|tensor_\d+|.*\.json|archive_format|archive_version|version|byteorder|serialization_id|\.format_version)"
)
#: What an expression of sizes is made of: these functions, their settings, names of sizes, numbers.
SIZES = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Abs|Mod|PythonMod|FloorDiv|ModularIndexing|CleanDiv|"
    r"CeilDiv|CeilToInt|FloorToInt|RoundToInt|TruncToInt|IntTrueDiv|FloatTrueDiv|PowByNatural|ToFloat|Where|"
    r"Identity|floor|ceiling|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|Eq|Ne|Lt|"
    r"Le|Gt|Ge|And|Or|Not|true|false|True|False"
)
SIZE = re.compile(r"[A-Za-z_]+\d+|[-+\d.e]+")
SYNTAX = (ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare)
#: Layers that ask whether they are in training, and the place of the answer among their arguments.
MODES = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "batch_norm": 5}


def read_exported(path: Path) -> tuple[nn.Module, tuple[int, int, int] | None]:
    """The model in an archive, and (channels, height, width) of its input where they are fixed.

    Raises:
        InputError: it is no such archive, holds a pickle or code, takes more than one tensor of images, or was exported in
            training mode.
    """
    content = _vetted(path)
    try:
        program = torch.export.load(content)
    except Exception as error:  # whatever the reader raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} cannot be read by torch.export ({reason}). Export it again with this PyTorch.") from error
    for node in program.graph.nodes:
        asked = MODES.get(getattr(node.target, "__name__", "").partition(".")[0])
        if asked is not None and len(node.args) > asked and node.args[asked] is True:
            raise InputError(f"{path} was exported in training mode (`{node.name}`). Call model.eval() and export it again.")
    names = set(program.graph_signature.user_inputs)
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor) or inputs[0].ndim != 4:
        raise InputError(f"{path} must take one tensor of images [image, channel, height, width], got {len(inputs)} inputs.")
    batch, *rest = (size if isinstance(size, int) else None for size in inputs[0].shape)
    image = None if None in rest else (rest[0], rest[1], rest[2])
    module, place = program.module(), next((value.device for value in program.state_dict.values()), torch.device("cpu"))
    return InBatches(lambda images: module(images.to(place)), batch), image


def _vetted(path: Path) -> io.BytesIO:
    """The archive made anew, without anything that could run."""
    clean = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as given, zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as target:
            for name in given.namelist():
                data = given.read(name)
                target.writestr(name, _checked(path, name.rpartition("/")[2], data))
    except (OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole torch.export archive ({error}). Write it with torch.export.save.") from error
    clean.seek(0)
    return clean


def _checked(path: Path, name: str, data: bytes) -> bytes:
    """A file of the archive, without its checks of inputs in Python."""
    if name.endswith(".json"):
        content = json.loads(data)
        if _pickled(content):
            raise _refused(path, name)
        if odd := next((text for text in _expressions(content) if not _is_size(text)), None):
            raise InputError(f"{path} gives a size as {odd!r}, which is not read, because it can run anything. Export it again.")
        if isinstance(content, dict) and content.pop("guards_code", None):
            data = json.dumps({**content, "guards_code": []}).encode()
    elif name.endswith(".pt") and data:
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except Exception as error:  # whatever the unpickler raises
            raise _refused(path, name) from error
    elif data and not PLAIN.fullmatch(name):
        raise _refused(path, name)
    return data


def _expressions(content: Any) -> Iterator[str]:
    """All that the reader evaluates."""
    parts = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    if isinstance(content, dict) and "expr_str" in content:
        yield str(content["expr_str"])
    for part in parts:
        yield from _expressions(part)


def _is_size(text: str) -> bool:
    """Whether an expression says nothing but how sizes follow from sizes."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except SyntaxError:
        return False
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if isinstance(node, ast.Name):
            known = bool(SIZES.fullmatch(node.id) or (id(node) not in called and SIZE.fullmatch(node.id)))
        elif isinstance(node, ast.Constant):
            known = isinstance(node.value, bool | int | float) or bool(SIZE.fullmatch(str(node.value)))
        else:
            known = isinstance(node, (*SYNTAX, ast.operator, ast.unaryop, ast.cmpop))
        if not known:
            return False
    return True


def _pickled(content: Any) -> bool:
    """Whether a description of weights says that any is a pickle."""
    if isinstance(content, dict):
        return bool(content.get("use_pickle")) or any(_pickled(value) for value in content.values())
    return isinstance(content, list) and any(_pickled(value) for value in content)


def _refused(path: Path, name: str) -> InputError:
    return InputError(
        f"{path} holds a pickle ({name}), which is not read, because it can run anything. Export the model with plain "
        "tensors only."
    )
