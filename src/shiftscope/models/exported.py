"""A model that ``torch.export`` wrote (.pt2).

Such an archive may hold pickles, which its own reader would run. So it is looked through first: only what is plain (raw weights,
text) or loads as bare tensors is handed on, in an archive made anew.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
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


def read_exported(path: Path) -> tuple[nn.Module, tuple[int, int, int] | None]:
    """The model in an archive, and (channels, height, width) of its input where they are fixed.

    Raises:
        InputError: it is no such archive, holds a pickle, or takes more than one tensor of images.
    """
    content = _vetted(path)
    try:
        program = torch.export.load(content)
    except Exception as error:  # whatever the reader raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path} cannot be read by torch.export ({reason}). Export it again with this PyTorch.") from error
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
                _check(path, name.rpartition("/")[2], data)
                target.writestr(name, data)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a whole torch.export archive ({error}). Write it with torch.export.save.") from error
    clean.seek(0)
    return clean


def _check(path: Path, name: str, data: bytes) -> None:
    if name.endswith(".json"):
        if _pickled(json.loads(data)):
            raise _refused(path, name)
    elif name.endswith(".pt") and data:
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except Exception as error:  # whatever the unpickler raises
            raise _refused(path, name) from error
    elif data and not PLAIN.fullmatch(name):
        raise _refused(path, name)


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
