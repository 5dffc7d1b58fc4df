"""Checks of a model's input, with errors that say what to do, and the model's mode and device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.graphs.probing import restoring_modes, set_mode

__all__ = [
    "Model",
    "check_classes",
    "check_fill",
    "check_images",
    "check_labels",
    "check_model",
    "check_options",
    "check_shifts",
    "check_size",
    "device_of",
    "evaluating",
    "modules_in",
    "refuse_clips",
    "unwrapped",
]

#: How far modules are looked for in what a function reaches, in how many values of each object, and in how many in all.
DEPTH, MOST, MOST_SEEN = 4, 100, 2000
#: Packages whose classes and modules hold no model of a user.
LIBRARIES = frozenset(("builtins", "numpy", "torch"))
#: Any callable from images [image, channel, height, width] to outputs [image, class].
Model = Callable[[Tensor], Tensor]


def how_to_scale(kind: torch.dtype) -> str:
    """Return how to bring images of a type of whole numbers to [0, 1]."""
    white = "255" if kind == torch.uint8 else "the largest value that they can have"
    return f"Divide by {white} first."


def refuse_clips(images: Tensor) -> None:
    """Raise InputError for clips, which have an axis more than images."""
    if images.ndim == 5:
        raise InputError(
            f"`images` must be [image, channel, height, width], and not clips, got shape {tuple(images.shape)}.",
            "Join frames and channels into channels, and let the model take them apart: images.unflatten(1, (frames, -1)).",
        )


def check_images(images: Tensor, size: tuple[int, ...] | None = None) -> None:
    """Raise InputError unless the images are finite floating point, [image, channel, height, width], of the given size."""
    if not isinstance(images, Tensor):
        raise InputError(f"`images` must be tensors, got {type(images).__name__}.", "Give images without labels.")
    refuse_clips(images)
    if images.ndim != 4 or (size is not None and tuple(images.shape[2:]) != size):
        raise InputError(f"`images` must be [image, channel, height, width], all of one size, got shape {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise InputError(f"`images` must be floating point in [0, 1], got {images.dtype}.", how_to_scale(images.dtype))
    if not images.sum().isfinite() and not images.isfinite().all():  # a finite sum needs no copy of the images
        raise InputError("`images` must be finite, got NaN or infinity.")


def check_labels(labels: Tensor | None) -> None:
    """Raise InputError unless the labels are whole numbers along one axis."""
    if labels is not None and (labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool):
        raise InputError(
            f"`labels` must be whole numbers, one per image, got shape {tuple(labels.shape)} of {labels.dtype}.",
            "Give class indices, as labels.long() of whole numbers, or labels.argmax(1) of one column per class.",
        )


def check_classes(labels: Tensor | None, classes: int) -> None:
    """Raise InputError unless the labels are classes of a model that returns ``classes`` values."""
    check_labels(labels)
    if labels is not None and len(labels) and (labels.min() < 0 or labels.max() >= classes):
        raise InputError(
            f"`labels` must be 0 to {classes - 1}, the model's classes, got {int(labels.min())} to {int(labels.max())}.",
            "Give class indices.",
        )


def check_fill(images: Tensor, fill: Tensor | float) -> None:
    """Raise InputError unless the fill is one value or one per channel."""
    shape = torch.as_tensor(fill).shape
    if len(shape) > 1 or shape.numel() not in (1, images.shape[1]):
        raise InputError(f"`fill` must be one value or one for each of {images.shape[1]} channels, got shape {tuple(shape)}.")


def check_shifts(images: Tensor, shifts: Tensor) -> None:
    """Raise InputError unless the shifts are finite pairs, one list for all images or one for each."""
    if shifts.ndim not in (2, 3) or shifts.shape[-1] != 2 or 0 in shifts.shape:
        raise InputError(f"`shifts` must be [shift, 2] or [image, shift, 2], at least one, got shape {tuple(shifts.shape)}.")
    if shifts.ndim == 3 and len(shifts) != len(images):
        raise InputError(f"`shifts` must hold a list for each of {len(images)} images, got {len(shifts)}.")
    if shifts.is_floating_point() and not shifts.isfinite().all():
        raise InputError("`shifts` must be finite, got NaN or infinity.")


def check_size(outer: tuple[int, int], size: tuple[int, int] | None, mode: str) -> tuple[int, int]:
    """Return the size of the model's input, (height, width); raise InputError unless images of size ``outer`` hold it."""
    if size is None or size == outer:
        return outer
    if mode != "zero" or min(size) < 1 or size[0] > outer[0] or size[1] > outer[1]:
        raise InputError(
            f"`size` must be at most that of the images, {outer[0]}x{outer[1]}, and theirs when `mode` is 'circular', got "
            f"{size[0]}x{size[1]}."
        )
    return size


def check_options(mode: str, method: str, batch_size: int | None) -> None:
    """Raise InputError for a mode, method or batch size that does not exist."""
    if mode not in ("zero", "circular"):
        raise InputError(f"`mode` must be 'zero' or 'circular', got {mode!r}.")
    if method not in ("auto", "direct", "dense"):
        raise InputError(f"`method` must be 'auto', 'direct' or 'dense', got {method!r}.")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"`batch_size` must be 1 or more images, got {batch_size}.")


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Switch a model to evaluation mode, and back to its own modes afterwards: a module, or those that a function reaches."""
    with ExitStack() as modes:
        for module in modules_in(model):
            modes.enter_context(restoring_modes(module))
            set_mode(module, training=False)
        yield


def modules_in(model: object) -> list[nn.Module]:
    """Return the modules that a callable reaches: itself, or those in its closure, globals, arguments, attributes and class.

    >>> network = nn.Linear(2, 2)
    >>> modules_in(lambda images: network(images / 2)) == [network]
    True
    """
    found, seen, waiting = list[nn.Module](), set[int](), deque([(model, 0)])
    while waiting and len(seen) < MOST_SEEN:
        value, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found.append(value)
        elif depth < DEPTH:
            waiting.extend((each, depth + 1) for each in _held(value))
    return found


def _held(value: object) -> Iterable[object]:
    """Return what a function or another object can call or pass on."""
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        names = {name for code in _codes(value.__code__) for name in code.co_names}
        cells = (each.cell_contents for each in value.__closure__ or () if each != CellType())
        defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        known = [*cells, *(value.__globals__[name] for name in names if name in value.__globals__), *defaults]
        return (*known, *(vars(each)[name] for each in known if _is_users(each) for name in names if name in vars(each)))
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return list(value.values() if isinstance(value, Mapping) else value)[:MOST]
    if isinstance(value, type | ModuleType | Tensor):
        return ()
    kinds = [kind for kind in type(value).__mro__ if kind.__module__.partition(".")[0] not in LIBRARIES]
    own = list(getattr(value, "__dict__", {}).values())[:MOST]
    return (*own, *(each for kind in kinds for each in (*_slots(value, kind), *vars(kind).values())))


def _is_users(value: object) -> bool:
    """Return whether a value is a module of Python's that belongs to no library of tensors."""
    return isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in LIBRARIES


def _slots(value: object, kind: type) -> Iterator[object]:
    """Yield what an object keeps in the slots of one of its classes."""
    names = vars(kind).get("__slots__", ())
    for name in [names] if isinstance(names, str) else names:
        with suppress(AttributeError):  # an empty one, or one with a private name
            yield getattr(value, name)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of the functions within it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def unwrapped(model: Any) -> Any:
    """Return the module within what :func:`torch.compile` and the wrappers for several devices return, and others as they are."""
    while isinstance(model, nn.Module):
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(within := getattr(model, "_orig_mod", None), nn.Module):
            model = within
        else:
            break
    return model


def check_model(model: object) -> None:
    """Raise InputError unless a model can be called with images."""
    if isinstance(model, str):
        raise InputError(f"`model` must be a module or a function, got the name {model!r}.", "Load it: load_model(name).model.")
    if not callable(model):
        remedy = "Give its `.model`." if callable(getattr(model, "model", None)) else "Give what returns outputs for images."
        raise InputError(f"`model` must be a module or a function, got {type(model).__name__}.", remedy)


def device_of(model: object, chosen: torch.device | str | None = None) -> torch.device:
    """Return the device to compute on: the chosen one, else that of a module's first parameter; the CPU if there is none.

    Args:
        model: any callable.
        chosen: by the user.

    Raises:
        InputError: PyTorch does not know the chosen device, or it is not available here.
    """
    if chosen is not None:
        try:
            torch.empty(0, device=chosen)
            return torch.device(chosen)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # of a GPU's build that is missing, the second
            raise InputError(
                f"`device` must be one that PyTorch can compute on here, got {str(chosen)!r}.", 'Try "cpu".'
            ) from error
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device
