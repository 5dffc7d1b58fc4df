"""Put layers before and after another layer, in place: the layer keeps its weights, their names, its hooks and its mode.

A container around a layer would rename its weights, hide its attributes and change its class. Here the layer gets a subclass of
its own class, as in :mod:`torch.nn.utils.parametrize`, and only *calling* the layer changes. Hooks on the layer still see its own
inputs and outputs; the layers before and after it are submodules with hooks of their own.

>>> import torch
>>> layer = nn.Conv2d(1, 2, 3)
>>> surround(layer, after=nn.MaxPool2d(2))
>>> layer(torch.zeros(1, 1, 8, 8)).shape, sorted(layer.state_dict()), isinstance(layer, nn.Conv2d)
(torch.Size([1, 2, 3, 3]), ['bias', 'weight'], True)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["INSERTED", "INSERTED_AFTER", "INSERTED_BEFORE", "become", "core", "reduced_as", "surround", "view"]

#: Names of the submodules that hold the layers before and after.
INSERTED = INSERTED_BEFORE, INSERTED_AFTER = "inserted_before", "inserted_after"
#: The attribute of a surrounded layer's class that names the class below.
SURROUNDS = "_surrounds"
CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def surround(layer: nn.Module, *, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
    """Insert layers before and after a layer, in place.

    Args:
        layer: changed in place. Layers already around it stay outside the new ones.
        before: called on the layer's first input.
        after: called on the layer's output.
    """
    if before is None and after is None:
        return
    inner = vars(layer)["_modules"]
    outer_before, outer_after = inner.get(INSERTED_BEFORE), inner.get(INSERTED_AFTER)
    if not _is_surrounded(type(layer)):
        layer.__class__ = _surrounded_class(type(layer))
    if before is not None:
        layer.add_module(INSERTED_BEFORE, nn.Sequential(outer_before, before) if outer_before is not None else before)
    if after is not None:
        layer.add_module(INSERTED_AFTER, nn.Sequential(after, outer_after) if outer_after is not None else after)


def core(layer: nn.Module) -> nn.Module:
    """Return a :func:`view` of a layer without those before and after it; the layer itself if there are none."""
    return view(layer) if _is_surrounded(type(layer)) else layer


def view(layer: nn.Module) -> nn.Module:
    """Return a second object of a layer's own class, with the same parameters, buffers and hooks.

    It lacks the layers before and after. Attributes set on it later are not set on the layer, except parameters and buffers.
    """
    kind = type(layer)
    seen: nn.Module = object.__new__(vars(kind)[SURROUNDS] if _is_surrounded(kind) else kind)
    object.__setattr__(seen, "__dict__", _attributes(layer))
    return seen


def become(layer: nn.Module, other: nn.Module) -> None:
    """Turn a layer into another one wherever the model refers to it; its hooks, its mode and the layers around it stay.

    Args:
        layer: changed in place; afterwards it shares parameters and buffers with ``other``.
        other: what it becomes.
    """
    before, after = (layer._modules.get(name) for name in INSERTED)
    for name, value in vars(layer).items():
        if "_hooks" in name or name == "training":
            vars(other)[name] = value
    layer.__class__ = type(other)
    object.__setattr__(layer, "__dict__", _attributes(other))
    surround(layer, before=before, after=after)


def _attributes(layer: nn.Module) -> dict[str, Any]:
    """Return a layer's attributes in dictionaries of their own, so that another object can have other layers inside."""
    return {**vars(layer), "_modules": dict(layer._modules)}


def _is_surrounded(kind: type[nn.Module]) -> bool:
    return SURROUNDS in vars(kind)


def _surrounded_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a class whose instances call the layers before and after themselves, always the same one."""
    if kind not in CLASSES:
        CLASSES[kind] = _new_class(kind)
    return CLASSES[kind]


def _new_class(kind: Any) -> type[nn.Module]:

    def call(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        before, after = self._modules.get(INSERTED_BEFORE), self._modules.get(INSERTED_AFTER)
        if before is not None and arguments:
            arguments = (before(arguments[0]), *arguments[1:])
        elif before is not None:
            first = next(iter(options))
            options = {**options, first: before(options[first])}
        output = kind.__call__(self, *arguments, **options)
        return output if after is None else after(output)

    reduce = reduced_as(kind, _surrounded_class)
    body = {"__call__": call, "__reduce_ex__": reduce, "__module__": __name__, "__doc__": kind.__doc__, SURROUNDS: kind}
    return type(f"Surrounded{kind.__name__}", (kind,), body)


def reduced_as(kind: Any, subclass: Callable[[Any], type[nn.Module]]) -> Callable[[nn.Module, Any], Any]:
    """Return ``__reduce_ex__`` of a subclass of a class: pickle names the class below, because the subclass is in no module.

    Args:
        kind: the class below, which may be such a subclass itself.
        subclass: a function of a module that makes the subclass of a class.
    """

    def reduce(self: nn.Module, protocol: Any) -> Any:
        reduced: Any = kind.__reduce_ex__(self, protocol)
        if reduced[0] is _blank:
            return (_blank, (*reduced[1], subclass), *reduced[2:])
        return (_blank, (kind, subclass), *reduced[2:]) if reduced[0].__name__ == "__newobj__" else reduced

    return reduce


def _blank(kind: type[nn.Module], *subclasses: Callable[[Any], type[nn.Module]]) -> nn.Module:
    """Return an empty instance of the subclass of a subclass of a class, to be filled with attributes."""
    for subclass in subclasses:
        kind = subclass(kind)
    made: nn.Module = object.__new__(kind)
    return made
