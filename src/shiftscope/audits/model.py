"""Call a model of any kind: turn what it returns into one vector or one map per image, check it, and count the images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from shiftscope.engine.checks import unwrapped
from shiftscope.engine.direct import ran_out_of_memory
from shiftscope.engine.formats import as_channels_last
from shiftscope.engine.outputs import Model
from shiftscope.errors import InputError, ModelFailsError, first_line
from shiftscope.models.family import Normalise
from shiftscope.tasks import Task, find_task, task_of
from shiftscope.tasks.reading import finite_rows, select_output

__all__ = ["CountedModel", "OneOutput", "chosen_task", "model_checksum"]


class OneOutput(nn.Module):
    """A model with one of its several outputs.

    Args:
        model: images -> several tensors.
        output: the tensor's name or position.
    """

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output
        self.training = model.training

    def forward(self, images: Tensor | fx.Proxy) -> Any:
        """Return the chosen output; while the model is traced, what stands for it."""
        raw: Any = self.model(images)
        traced = raw.get(self.output) if isinstance(raw, Mapping) else None
        if isinstance(raw, list | tuple) and self.output.isdecimal() and int(self.output) < len(raw):
            traced = raw[int(self.output)]
        return traced if isinstance(traced, fx.Proxy) else select_output(raw, self.output)


class CountedModel:
    """A model that counts the images it receives.

    Args:
        model: images in [0, 1] -> anything that :func:`select_output` understands.
        output: which of several outputs, by name or position.
        device: where to compute.

    Attributes:
        channels_last: whether the model receives images in that memory format.
        images_seen: how many images went through the model; those of a module only within :meth:`counting`.
        seen: called with the number of images that are about to go through the model, where they are counted.
    """

    def __init__(self, model: Callable[[Tensor], Any], *, output: str | int | None, device: torch.device) -> None:
        self.model, self.output, self.device = unwrapped(model), output, device
        self.images_seen, self.channels_last = 0, False
        self.seen: Callable[[int], None] | None = None
        self._returns_vectors = False  # whether the last output was one plain tensor [image, class]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the images that go through a module, whoever calls it.

        A hook on the module itself would show in its traced graph, so this is a global one.
        """

        def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if module is self.model:
                self._count(len(inputs[0]))

        handle = register_module_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()

    def __call__(self, images: Tensor) -> Tensor:
        """Return the chosen output, [image, class] or [image, class, height, width], finite, in single precision on the CPU.

        Raises:
            InputError: the model fails, returns anything else, or values that are not finite.
        """
        return self.checked(self.raw(images), len(images))

    def checked(self, raw: Any, count: int) -> Tensor:
        """Return the chosen output among what the model returned for ``count`` images; arguments and errors as of a call."""
        found = _as_vectors(select_output(raw, self.output))
        if found.ndim not in (2, 4) or len(found) != count or found.shape[1] < 2:
            raise InputError(
                f"the model must return at least two values for each of {count} images, [image, class] or [image, class, "
                f"height, width], got shape {tuple(found.shape)}.",
                "Choose another `output`, name its task (`audit --task NAME`), or wrap the model.",
            )
        return finite_rows(found)

    def read(self, images: Tensor, task: Task, size: tuple[int, int]) -> list[Any]:
        """Return a task's answer to each image.

        Args:
            images: [image, channel, height, width].
            task: what the output is.
            size: (height, width) of the images, pixels.

        Raises:
            InputError: the model fails, or returns what is not this task's.
        """
        return self.answers(self.raw(images), task, len(images), size)

    def answers(self, raw: Any, task: Task, count: int, size: tuple[int, int]) -> list[Any]:
        """Return a task's answers from what the model returned for ``count`` images."""
        chosen = raw if self.output is None else select_output(raw, self.output)
        return task.read(chosen, count, size)

    def for_engine(self) -> Model:
        """Return the module itself if it returns one plain tensor, so that the engine can trace it; else a callable."""
        return self.model if self._returns_vectors and isinstance(self.model, nn.Module) else self._vectors

    def _vectors(self, images: Tensor) -> Tensor:
        return _as_vectors(select_output(self.raw(images), self.output))

    def raw(self, images: Tensor) -> Any:
        """Return what the model returns for images, as it is. It receives a copy, because its code may change them in place.

        Raises:
            InputError: the model fails.
        """
        if not isinstance(self.model, nn.Module):
            self._count(len(images))
        copy = images.to(self.device, copy=True)
        try:
            raw = self.model(as_channels_last(copy) if self.channels_last else copy)
        except InputError:
            raise
        except Exception as error:  # a model's Python code raises anything
            raise self._failure(images, error) from error
        self._returns_vectors = isinstance(raw, Tensor) and raw.ndim == 2
        return raw

    def _count(self, images: int) -> None:
        self.images_seen += images
        if self.seen is not None:
            self.seen(images)

    def _failure(self, images: Tensor, error: Exception) -> InputError:
        shape = "x".join(str(size) for size in images.shape[1:])
        if ran_out_of_memory(error):
            return InputError(f"out of memory on batches of {len(images)} images of {shape}.", "Lower `batch_size`.")
        reason = first_line(error).rstrip(".")
        kind = type(error).__name__
        named = reason if reason == kind else f"{kind}: {reason}"
        return ModelFailsError(f"the model fails on images of {shape} ({named}).", self._remedy(images))

    def _remedy(self, images: Tensor) -> str:
        """Return what may help: the precision of its weights, or the channels that its first convolution takes."""
        weights = self.model.parameters() if isinstance(self.model, nn.Module) else ()
        half = next((each.dtype for each in weights if each.dtype in (torch.float16, torch.bfloat16)), None)
        if half is not None:
            name = str(half).removeprefix("torch.")
            return f"Its weights are {name}, and images float32: convert it with `.float()`, or cast images inside it."
        modules = list(self.model.modules()) if isinstance(self.model, nn.Module) else []
        first = next((module for module in modules if isinstance(module, nn.Conv2d)), None)
        if first is None or first.in_channels == images.shape[1]:
            return ""
        own = next((module for module in modules if isinstance(module, Normalise)), None)
        as_mean = ", as `mean` has values" if own is not None and len(own.mean) == images.shape[1] else ""
        return f"It takes {first.in_channels} channels, the images have {images.shape[1]}{as_mean}."


def _as_vectors(found: Tensor) -> Tensor:
    return found[:, :, 0, 0] if found.ndim == 4 and found.shape[2:] == (1, 1) else found


def chosen_task(
    model: CountedModel, raw: Any, chosen: str | Task | None, size: tuple[int, int], *, recognise: bool
) -> Task | None:
    """Return the task that the user chooses, else the one detected from an output; None for classes, vectors and maps.

    Args:
        model: the model.
        raw: what it returned for one image.
        chosen: by the user.
        size: (height, width) of the model's input, pixels.
        recognise: whether to look at the output, unless it is one of several.

    Raises:
        InputError: there is no such task, or the output is not the task's.
    """
    task = find_task(chosen) if isinstance(chosen, str) else chosen
    if task is None and model.output is None and recognise:
        task = task_of(raw, 1, size, model=model.model)
    if task is not None:
        task = task.knowing(model.model)
        model.answers(raw, task, 1, size)
    return task


def model_checksum(model: object, name: str | None = None) -> str:
    """Return the SHA-256 of a model's layers and weights, and of its files if it has any; empty for a callable without them.

    Args:
        model: the model.
        name: its reference, which may be a file.
    """
    path = Path(name or "")
    files = [file for file in (path, path.with_name(f"{path.name}.data")) if file.is_file()] if name else []
    if not isinstance(model, nn.Module) and not files:
        return ""
    digest = sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(model)).encode())  # a function's address differs between processes
    for file in files:  # beside an ONNX file lie its large weights
        digest.update(file.read_bytes())
    for key, value in sorted(model.state_dict().items() if isinstance(model, nn.Module) else ()):
        digest.update(key.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
