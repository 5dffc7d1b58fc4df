"""A model of any kind, asked: whatever it returns becomes one vector or one map an image, counted and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from shiftscope.engine.direct import ran_out_of_memory
from shiftscope.engine.outputs import Model
from shiftscope.errors import InputError, ModelFailsError, NotFiniteError

__all__ = ["Asked", "pick"]


def pick(raw: Any, output: str | int | None) -> Tensor:
    """The tensor meant among what a model returned.

    Args:
        raw: a tensor, a mapping, a sequence, or an object with named outputs.
        output: the name or the place of the one meant; needed where there are several.

    Raises:
        InputError: there is no such output, or several and none is named.
    """
    if isinstance(raw, Tensor) and output is None:
        return raw
    known = _named(raw)
    if output is None and len(known) == 1:
        return next(iter(known.values()))
    key = str(output)
    if key not in known:
        told = "none is chosen" if output is None else f"there is no {output!r}"
        names = ", ".join(repr(name) for name in known) or f"no tensor, but {type(raw).__name__}"
        raise InputError(f"the model returns {names}; {told}. Choose one with `output`.")
    return known[key]


def _named(raw: Any) -> dict[str, Tensor]:
    """The tensors among what a model returned, by name or place."""
    if isinstance(raw, Tensor):
        return {}
    if isinstance(raw, Mapping):
        parts = [(str(name), value) for name, value in raw.items()]
    elif isinstance(raw, list | tuple):
        parts = [(str(place), value) for place, value in enumerate(raw)]
        parts += [(name, getattr(raw, name)) for name in getattr(raw, "_fields", ())]
    else:
        parts = list(vars(raw).items()) if hasattr(raw, "__dict__") else []
    return {name: value for name, value in parts if isinstance(value, Tensor)}


class Asked:
    """A model that counts the images it is given.

    Args:
        model: images in [0, 1] -> anything :func:`pick` understands.
        output: which of several outputs.
        device: where to compute.
    """

    def __init__(self, model: Callable[[Tensor], Any], *, output: str | int | None, device: torch.device) -> None:
        self.model, self.output, self.device = model, output, device
        self.passes = 0
        self.plain = False  # whether the last output was nothing but one vector an image

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what goes through a module for the duration, whoever calls it.

        A hook of the module itself would show in its graph, so this is one of all modules.
        """

        def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.passes += len(given[0]) if module is self.model else 0

        handle = register_module_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()

    def __call__(self, images: Tensor) -> Tensor:
        """The output meant, [image, class] or [image, class, height, width], finite, on the CPU, in single precision.

        Raises:
            InputError: the model fails, returns something else, or values that are not finite.
        """
        found = self._vectors(images)
        if found.ndim not in (2, 4) or len(found) != len(images) or found.shape[1] < 2:
            raise InputError(
                f"the model must return at least two values for each of {len(images)} images, [image, class] or [image, class, "
                f"height, width], got shape {tuple(found.shape)}. Choose another `output` or wrap it so that it does."
            )
        bad = int((~found.flatten(1).isfinite().all(dim=1)).sum())
        if bad:
            raise NotFiniteError(
                f"the model returned NaN or infinity for {bad} of {len(images)} images. Check its weights and the range of its "
                "input, which is [0, 1]."
            )
        return found.float().cpu()

    def raw(self, images: Tensor) -> Tensor:
        """The output meant, as it is."""
        images = images.to(self.device)
        if not isinstance(self.model, nn.Module):
            self.passes += len(images)
        try:
            raw = self.model(images)
        except InputError:
            raise
        except Exception as error:  # whatever a model's Python code raises
            if ran_out_of_memory(error):
                raise InputError(
                    f"memory runs out on batches of {len(images)} images of {_size(images)}. Lower `batch_size`."
                ) from error
            raise ModelFailsError(
                f"the model fails on images of {_size(images)}: {_reason(error)}.{self._wants(images)}"
            ) from error
        self.plain = isinstance(raw, Tensor) and raw.ndim == 2
        return pick(raw, self.output)

    def for_engine(self) -> Model:
        """What the engine is given: the model itself where its output is plain, so that its graph can be read."""
        return self.model if self.plain and isinstance(self.model, nn.Module) else self._vectors

    def _vectors(self, images: Tensor) -> Tensor:
        found = self.raw(images)
        return found[:, :, 0, 0] if found.ndim == 4 and found.shape[2:] == (1, 1) else found

    def _wants(self, images: Tensor) -> str:
        """How many channels the first convolution takes, where that is what is wrong."""
        modules = self.model.modules() if isinstance(self.model, nn.Module) else iter(())
        first = next((module for module in modules if isinstance(module, nn.Conv2d)), None)
        if first is None or first.in_channels == images.shape[1]:
            return ""
        return f" It wants {first.in_channels} channels, the images have {images.shape[1]}."


def _size(images: Tensor) -> str:
    return "x".join(str(size) for size in images.shape[1:])


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
