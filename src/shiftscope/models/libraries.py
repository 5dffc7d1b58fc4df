"""Models of timm and torchvision by name (extra ``zoo``), with the input size and normalisation that these tell."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any

import torch
from torch import nn

from shiftscope.errors import InputError

__all__ = ["LIBRARIES", "PRETRAINED", "Exhibit", "exhibit", "library_of"]

LIBRARIES = ("timm", "torchvision")
#: What is given instead of a file to fetch a library's own weights from the network.
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Exhibit:
    """A library's model.

    Attributes:
        model: without normalisation.
        image: (channels, height, width) it was made for, where the library tells.
        mean, deviation: of its normalisation, where the library tells.
        embedding: whether it has no head for classes.
    """

    model: nn.Module
    image: tuple[int, int, int] | None
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None
    embedding: bool


def library_of(name: str) -> str | None:
    """The library that knows a bare name, timm before torchvision; None where none does or none is installed."""
    for library in LIBRARIES:
        try:
            module = _imported(library)
        except InputError:
            continue
        if (library == "timm" and module.is_model(name)) or (library == "torchvision" and name in module.list_models()):
            return library
    return None


def exhibit(library: str, name: str, *, pretrained: bool) -> Exhibit:
    """A model of a library.

    Args:
        library: ``timm`` or ``torchvision``.
        name: as the library knows it.
        pretrained: fetch its weights from the network; otherwise they are random.

    Raises:
        InputError: the library is not installed, does not know the name, or its weights cannot be fetched.
    """
    module = _imported(library)
    known = module.is_model(name) if library == "timm" else name in module.list_models()
    if not known:
        raise InputError(f"{library} knows no model {name!r}. Its names: {_names(library)}.")
    try:
        # Random weights are the same every time, and nobody else's stream is touched.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _of_timm(module, name, pretrained) if library == "timm" else _of_torchvision(module, name, pretrained)
    except InputError:
        raise
    except Exception as error:  # whatever the library raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        told = "the weights cannot be fetched" if pretrained else "it cannot be made"
        raise InputError(f"{library}:{name}: {told} ({reason}).") from error


def _of_timm(timm: ModuleType, name: str, pretrained: bool) -> Exhibit:
    model: Any = timm.create_model(name, pretrained=pretrained)
    told: dict[str, Any] = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    image, classes = told.get("input_size"), getattr(model, "num_classes", None)
    return Exhibit(model, image and tuple(image), _floats(told.get("mean")), _floats(told.get("std")), classes == 0)


def _of_torchvision(models: ModuleType, name: str, pretrained: bool) -> Exhibit:
    builder = models.get_model_builder(name)
    # A backbone's weights would be fetched by default.
    options = {"weights_backbone": None} if "weights_backbone" in signature(builder).parameters else {}
    model = models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    told = models.get_model_weights(name).DEFAULT.transforms()
    size = _one(getattr(told, "crop_size", None))
    return Exhibit(
        model,
        None if size is None else (3, size, size),
        _floats(getattr(told, "mean", None)),
        _floats(getattr(told, "std", None)),
        False,
    )


def _imported(library: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("timm" if library == "timm" else "torchvision.models")
    except Exception as error:  # a build that does not match the installed PyTorch raises anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{library} cannot be imported ({reason}). Install it with `pip install 'shiftscope[zoo]'`, in a build that matches "
            "your PyTorch."
        ) from error


def _names(library: str) -> str:
    return "timm.list_models()" if library == "timm" else "torchvision.models.list_models()"


def _floats(values: Any) -> tuple[float, ...] | None:
    return tuple(map(float, values)) if values is not None else None


def _one(sizes: Any) -> int | None:
    if isinstance(sizes, list | tuple):
        return int(sizes[0])
    return None if sizes is None else int(sizes)
