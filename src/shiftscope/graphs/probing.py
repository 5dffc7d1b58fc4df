"""Run a model on random images to compare it with its graph or a copy, and leave it exactly as it was.

Modes, attributes, parameters, buffers and the states of random number generators are restored: a probe consumes no flag of an
initialisation that depends on the first batch, moves no statistics, and draws no number that the user's code would draw.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from shiftscope.errors import InputError, first_line

__all__ = [
    "check_initialised",
    "difference",
    "image_shapes",
    "probe_images",
    "reproducible",
    "restoring",
    "restoring_modes",
    "restoring_random_numbers",
    "set_mode",
]

#: Heights and widths to try if the caller names none.
SIDES = (64, 224, 240, 256, 32)
Shape = tuple[int, int, int]
#: Attributes that every part of a model has.
ATTRIBUTES = frozenset(vars(nn.Module()))


def check_initialised(model: nn.Module) -> None:
    """Raise InputError if a model has lazy layers without weights: any image would choose their shapes."""
    for name, part in model.named_modules():
        if any(is_lazy(each) for each in (*part.parameters(recurse=False), *part.buffers(recurse=False))):
            raise InputError(f"The model's lazy layer `{name}` has no weights yet.", "Run the model once on an image first.")


def image_shapes(model: nn.Module, image: Shape | None) -> list[Shape]:
    """Return shapes (channels, height, width) of images that a model may take: the given one, or common ones."""
    return [image] if image is not None else [(default_image(model)[0], side, side) for side in SIDES]


def default_image(model: nn.Module) -> Shape:
    """Return (channels, height, width) of images on which to try a model whose input is not known."""
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return (first.in_channels if first is not None else 3, SIDES[0], SIDES[0])


def probe_images(model: nn.Module, shape: Shape) -> list[Tensor]:
    """Return two batches of two random images, of small and of large values, of the model's type and on its device."""
    like = next((value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, *shape, generator=generator).to(like), (3 * torch.randn(2, *shape, generator=generator)).to(like)]


def difference(
    model: nn.Module, other: nn.Module, image: Shape | None = None, *, owner: nn.Module | None = None, training: bool = False
) -> str:
    """Return how another module's outputs differ from a model's on random images; empty if they do not.

    In training mode the random numbers are the same for both, and the buffers that they change must be alike too.

    Args:
        model: the reference. Images that it does not take are left out.
        other: a module that shares the model's layers.
        image: (channels, height, width) of the images; common ones by default.
        owner: the module that holds the layers of both, which is restored; by default the model.
        training: compare in training mode, on small values only.
    """
    owner = model if owner is None else owner
    values = _Values(owner)
    for shape in image_shapes(owner, image):
        compared = False
        for images in probe_images(owner, shape)[: 1 if training else 2]:
            try:
                expected = _outputs(model, owner, images, values, training=training)
            except Exception:  # whatever the model raises on images that do not suit it
                break
            try:
                found = _outputs(other, owner, images, values, training=training)
            except Exception as error:  # whatever the other raises where the model does not
                return f"fails ({first_line(error).rstrip('.')})"
            if not _alike(found, expected):
                return f"gives other outputs than the model{' in training mode' if training else ''}"
            compared = True
        if compared:
            return ""
    return ""


def _outputs(called: nn.Module, owner: nn.Module, images: Tensor, values: _Values, *, training: bool) -> list[Tensor]:
    """Return the tensors in a module's outputs, and the buffers afterwards; restore both modules."""
    with values, restoring(owner, values=False), restoring(called, values=False), torch.no_grad(), reproducible(owner):
        set_mode(owner, training)
        set_mode(called, training)
        found = [each.clone() for each in tree_leaves(called(images.clone())) if isinstance(each, Tensor)]
        return found + ([buffer.clone() for buffer in owner.buffers()] if training else [])


class _Values:
    """The values of a model's parameters and buffers, to be restored each time that a ``with`` statement ends."""

    def __init__(self, model: nn.Module) -> None:
        state = (*model.parameters(), *model.buffers())
        self.copies = [(value, value.detach().clone()) for value in state if not _has_no_data(value)]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for value, before in self.copies:
            if not _same(value, before):
                value.data.copy_(before)


def _alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Return whether outputs are equal up to rounding."""
    return len(ours) == len(theirs) and all(
        one.shape == two.shape and torch.allclose(one, two, rtol=1e-3, atol=1e-4 * float(two.abs().max()), equal_nan=True)
        for one, two in zip(ours, theirs, strict=True)
        if two.numel() and two.is_floating_point()
    )


def set_mode(model: nn.Module, training: bool) -> None:
    """Set the mode of every part, without a ``train`` method of the model's own, which might change weights."""
    for part in model.modules():
        if isinstance(part, torch.jit.ScriptModule):
            part.training = training
        else:
            vars(part)["training"] = training  # assigning the attribute takes much longer


@contextmanager
def reproducible(model: nn.Module) -> Iterator[None]:
    """Seed all random number generators that a model may use, and restore them afterwards."""
    devices = sorted({value.device.index for value in (*model.parameters(), *model.buffers()) if value.is_cuda})
    with restoring_random_numbers(), torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed GPUs that are not restored
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the generator that a model's code may use
        yield


@contextmanager
def restoring_random_numbers() -> Iterator[list[bool]]:
    """Restore the random number generators of Python, NumPy and torch on the CPU; add to the list whether any was used."""
    python, torches = random.getstate(), torch.get_rng_state()
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - as above
    used: list[bool] = []
    try:
        yield used
    finally:
        now: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - as above
        alike = (now["state"]["key"] == numpy["state"]["key"]).all() and now["state"]["pos"] == numpy["state"]["pos"]
        used.append(not alike or random.getstate() != python or not torch.equal(torch.get_rng_state(), torches))
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as above
        torch.default_generator.set_state(torches)


@contextmanager
def restoring_modes(model: nn.Module) -> Iterator[None]:
    """Restore every part's mode afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def restoring(model: nn.Module, *, values: bool = True) -> Iterator[None]:
    """Restore every part's modes, attributes, parameters and buffers afterwards, and remove hooks that it got meanwhile.

    While it is traced, a ``forward`` that stores its maps, or caches them in a list or a dictionary, stores proxies, and torch.fx
    stores constants in the model. A first call may add hooks, and note it in an attribute. Hooks that lazy layers remove stay
    removed.

    Args:
        model: the model.
        values: whether to restore the values of parameters and buffers too, which takes a copy of them.
    """
    before = {
        part: [
            *((held, dict(held)) for held in (vars(part), part._parameters, part._buffers)),
            *((held, copy(held)) for held in _caches(part)),
        ]
        for part in model.modules()
        if not isinstance(part, torch.jit.ScriptModule)
    }
    hooks = [(held, set(held)) for part in before for held in _hooks(part)]
    # A norm in training mode changes its statistics, and not all operators count that as a change in place.
    with restoring_modes(model), _Values(model) if values else nullcontext():
        try:
            yield
        finally:
            for holders in before.values():
                for held, content in holders:
                    held.clear()
                    (held.update if isinstance(held, dict | set) else held.extend)(content)
            for held, known in hooks:
                for key in held.keys() - known:
                    del held[key]


def _caches(part: nn.Module) -> Iterator[Any]:
    """Yield the lists, dictionaries, sets and deques that a part holds in attributes of its own, and those in them."""
    waiting = [value for name, value in vars(part).items() if name not in ATTRIBUTES]
    seen = set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list | set | deque) and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting += value.values() if isinstance(value, dict) else value


def _hooks(part: nn.Module) -> Iterator[dict[Any, Any]]:
    """Yield a part's dictionaries of hooks."""
    for name, value in vars(part).items():
        if isinstance(value, dict) and name.endswith("_hooks"):
            yield value


def _has_no_data(value: Tensor) -> bool:
    return bool(value.is_meta or is_lazy(value))


def _same(value: Tensor, copy: Tensor) -> bool:
    """Return whether no value has changed; NaN is no change."""
    return torch.equal(value, copy) or bool(((value == copy) | ((value != value) & (copy != copy))).all())
