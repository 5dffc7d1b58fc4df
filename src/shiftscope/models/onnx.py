"""A model from an ONNX file, run by onnxruntime on the processor (extra ``onnx``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.models.batches import InBatches

__all__ = ["read_onnx"]

KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def read_onnx(path: Path) -> tuple[nn.Module, tuple[int, int, int] | None]:
    """The model in a file, and (channels, height, width) of its input where they are fixed.

    A file with one output gives a tensor, with several a tensor by each name.

    Raises:
        InputError: onnxruntime is not installed or cannot read the file, or it does not take one tensor of images.
    """
    session = _session(path)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in KINDS:
        told = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise InputError(f"{path} must take one tensor of images [image, channel, height, width], got {told}.")
    batch, *rest = (size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape)
    names, kind = [each.name for each in session.get_outputs()], KINDS[inputs[0].type]

    def run(images: Tensor) -> Any:
        answers = session.run(names, {inputs[0].name: images.detach().cpu().numpy().astype(kind)})
        tensors = [torch.from_numpy(np.array(each)) for each in answers]
        return tensors[0] if len(tensors) == 1 else dict(zip(names, tensors, strict=True))

    image = None if None in rest else (rest[0], rest[1], rest[2])
    return InBatches(run, batch), image  # type: ignore[return-value]  # none of them is None


def _session(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist. Check the path.")
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path} needs onnxruntime: pip install 'shiftscope[onnx]'.") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's exceptions have no class of their own
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be run by onnxruntime {onnxruntime.__version__} ({reason}). Export it again, with an opset that this "
            "version knows."
        ) from error
