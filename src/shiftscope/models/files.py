"""Models from files that hold a graph: ONNX, and ``.pt2`` archives of ``torch.export``.

A graph may take batches of one fixed size only; :class:`FixedBatches` lets it take any number of images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from shiftscope.errors import InputError
from shiftscope.models.archives import open_archive
from shiftscope.models.onnx_files import check_onnx
from shiftscope.runtime.inputs import is_file, reading

__all__ = ["FixedBatches", "read_exported", "read_onnx"]

#: (channels, height, width).
Shape = tuple[int | None, int | None, int | None]

#: ONNX input types and the NumPy types of their arrays.
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
EXPORT_AGAIN = "Export the model again with this PyTorch and torch.export.save."
#: Operators that behave differently in training, and the position of the argument that says so.
TRAINING_ARGUMENT = {"dropout": 2, "feature_dropout": 2, "alpha_dropout": 2, "batch_norm": 5}


class FixedBatches(nn.Module):
    """Run a callable in batches of one size; pad the last batch with copies of its last image and drop their outputs.

    Args:
        run: images -> a tensor, a tuple of tensors or tensors by name, each with one entry per image.
        batch: images per batch; None if ``run`` takes any number.
    """

    def __init__(self, run: Callable[[Tensor], Any], batch: int | None) -> None:
        super().__init__()
        # In a tuple, so that it does not register as a submodule: an exported graph refuses train() and eval().
        self._run = (run,)
        self.batch = batch

    def forward(self, images: Tensor | fx.Proxy) -> Any:
        """Return the outputs of all images."""
        if isinstance(images, fx.Proxy):
            raise TypeError("its layers are in a file that can only be run")
        if self.batch is None:
            return self._run[0](images)
        pieces = [self._padded(part, self.batch) for part in images.split(self.batch)]
        if isinstance(pieces[0], dict):
            return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        if isinstance(pieces[0], list | tuple):
            return tuple(torch.cat(list(each)) for each in zip(*pieces, strict=True))
        return torch.cat(pieces)

    def _padded(self, images: Tensor, batch: int) -> Any:
        count = len(images)
        if count < batch:
            images = torch.cat([images, images[-1:].expand(batch - count, -1, -1, -1)])
        raw = self._run[0](images)
        if isinstance(raw, dict):
            return {name: value[:count] for name, value in raw.items()}
        return tuple(value[:count] for value in raw) if isinstance(raw, list | tuple) else raw[:count]


def read_exported(path: Path, *, trust: bool) -> tuple[nn.Module, Shape]:
    """Return the model in a ``.pt2`` archive that ``torch.export.save`` wrote, and the shape of its images.

    Args:
        path: the archive.
        trust: whether to read it. An archive may hold pickles and Python expressions, which ``torch.export.load`` runs.

    Returns:
        The model, and (channels, height, width) of its images, each None if it is not fixed.

    Raises:
        InputError: the archive is not trusted, does not exist, is damaged, takes anything but one tensor of images, or was
            exported in training mode.
    """
    _check_exists(path)
    if not trust:
        raise InputError(
            f"{path} is not trusted, and reading a .pt2 archive can run code that it holds.",
            "Give the model as ONNX, or as `module:factory` with safetensors as its `weights`. If you trust whoever wrote the "
            "archive, pass --trust (`trust=True`).",
        )
    with reading(path, "an archive that this PyTorch's torch.export.load reads", EXPORT_AGAIN):
        return _exported(path)


def _exported(path: Path) -> tuple[nn.Module, Shape]:
    """Return the model in an archive that the user trusts, and the shape of its images."""
    open_archive(path)
    with _without_logging():
        program = torch.export.load(path)
    for node in program.graph.nodes:
        argument = TRAINING_ARGUMENT.get(getattr(node.target, "__name__", "").partition(".")[0])
        if argument is not None and len(node.args) > argument and node.args[argument] is True:
            raise InputError(f"{path} was exported in training mode (`{node.name}`).", "Call model.eval() and export it again.")
    names = set(program.graph_signature.user_inputs)
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4:
        raise _wrong_inputs(path, f"{len(inputs)} inputs")
    batch, image = _fixed(path, inputs[0].shape)
    module, device = program.module(), next((value.device for value in program.state_dict.values()), torch.device("cpu"))
    return FixedBatches(lambda images: module(images.to(device)), batch), image


@contextmanager
def _without_logging() -> Iterator[None]:
    """Let no library log while the ``with`` statement runs: `torch.export.load` logs the traceback of what it then raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def read_onnx(path: Path) -> tuple[nn.Module, Shape]:
    """Return the model in an ONNX file, run by onnxruntime on the CPU (extra ``onnx``), and the shape of its images.

    Args:
        path: the file.

    Returns:
        The model, which returns a tensor if the file has one output, else tensors by the outputs' names; and (channels, height,
        width) of its images, each None if it is not fixed.

    Raises:
        InputError: onnxruntime is not installed or cannot read the file, or the model takes anything but one tensor of images.
    """
    with reading(path, "a model that the installed onnxruntime reads", "Copy it again, or export it with an older opset."):
        session = _onnx_session(path)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in DTYPES:
        raise _wrong_inputs(path, ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs))
    batch, image = _fixed(path, inputs[0].shape)
    names, dtype = [each.name for each in session.get_outputs()], DTYPES[inputs[0].type]

    def run(images: Tensor) -> Any:
        arrays = _outputs(session, names, {inputs[0].name: images.detach().cpu().numpy().astype(dtype)})
        tensors = [torch.from_numpy(np.array(each)) for each in arrays]
        return tensors[0] if len(tensors) == 1 else dict(zip(names, tensors, strict=True))

    return FixedBatches(run, batch), image


def _onnx_session(path: Path) -> Any:
    _check_exists(path)
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"{path} needs onnxruntime.", "Install it with: pip install 'shiftscope[onnx]'.") from error
    check_onnx(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, no need to print them too
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _outputs(session: Any, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return a session's outputs, computed in a thread of their own: Ctrl-C then stops between two nodes, also within a loop."""
    from onnxruntime import RunOptions

    options = RunOptions()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(session.run, names, inputs, options)
        try:
            arrays: list[np.ndarray] = running.result()
        except BaseException:
            options.terminate = True
            raise
    return arrays


def _check_exists(path: Path) -> None:
    if not is_file(path):
        raise InputError(f"{path} does not exist.", "Check the path.")


def _fixed(path: Path, shape: Any) -> tuple[int | None, Shape]:
    """Return the batch size, and the images' (channels, height, width), each None if it is symbolic.

    Raises:
        InputError: the channels come last.
    """
    batch, *image = (size if isinstance(size, int) and size > 0 else None for size in shape)
    channels, height, width = image
    if width in (1, 3) and channels not in (1, 3):
        raise InputError(
            f"{path} takes images [image, height, width, channel], with {width} channels last.",
            "Export it for [image, channel, height, width].",
        )
    return batch, (channels, height, width)


def _wrong_inputs(path: Path, inputs: str) -> InputError:
    return InputError(
        f"{path} must take one tensor of images [image, channel, height, width], got {inputs}.", "Export a model that does."
    )
