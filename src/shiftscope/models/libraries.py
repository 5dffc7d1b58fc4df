"""Models that Python code makes: by name from timm and torchvision (extra ``zoo``), or from a function of the user's own."""

from __future__ import annotations

import importlib
import sys
import warnings
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from shiftscope.errors import InputError, first_line

__all__ = ["LIBRARIES", "PRETRAINED", "LibraryModel", "call_factory", "find_library", "library_model"]

LIBRARIES = ("timm", "torchvision")
#: Given instead of a file of weights, it downloads the library's own.
PRETRAINED = "pretrained"


@dataclass(frozen=True)
class LibraryModel:
    """A library's model and what the library says about its input.

    Attributes:
        model: the model, without normalisation.
        image: (channels, height, width) that it was made for, if known.
        mean: mean per channel that its normalisation subtracts, if known.
        deviation: standard deviation per channel that its normalisation divides by, if known.
        embedding: whether it has no classification head.
    """

    model: nn.Module
    image: tuple[int, int, int] | None
    mean: tuple[float, ...] | None
    deviation: tuple[float, ...] | None
    embedding: bool


def find_library(name: str) -> str | None:
    """Return the library that has a model of this name, timm before torchvision; None if neither has or is installed."""
    for library in LIBRARIES:
        try:
            module = _import(library)
        except InputError:
            continue
        if _knows(library, module, name):
            return library
    return None


def library_model(library: str, name: str, *, pretrained: bool) -> LibraryModel:
    """Return a model of a library.

    Args:
        library: ``timm`` or ``torchvision``.
        name: the library's name for the model.
        pretrained: whether to download the library's weights; otherwise they are random, the same every time.

    Raises:
        InputError: the library is not installed or has no such model, or its weights cannot be downloaded.
    """
    module = _import(library)
    if not _knows(library, module, name):
        names = "timm.list_models()" if library == "timm" else "torchvision.models.list_models()"
        raise InputError(f"{library} has no model {name!r}.", f"See {names}.")
    try:
        # A fixed seed, without touching the global random state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _from_timm(module, name, pretrained) if library == "timm" else _from_torchvision(module, name, pretrained)
    except Exception as error:  # the libraries raise anything
        reason = first_line(error)
        if pretrained:
            raise InputError(
                f"{library} cannot download the weights of {name} ({reason}).", "Check the network, or give a file of `weights`."
            ) from error
        raise InputError(f"{library} cannot build {name} ({reason}).", "Choose another model.") from error


def call_factory(reference: str) -> nn.Module:
    """Return the model that ``module:function`` returns when called without arguments, or the module that it names.

    Args:
        reference: ``module:function``; the working directory is on the import path.

    Raises:
        InputError: importing or calling it fails, or the result is not a ``torch.nn.Module``.
    """
    module_name, _, attribute = reference.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except AttributeError as error:
        raise InputError(f"{reference!r}: {error}.", "Check the function's name.") from error
    except Exception as error:  # a user's module raises anything
        raise InputError(
            f"the module of {reference!r} cannot be imported ({type(error).__name__}: {error}).",
            "Install it, or run the command in its folder.",
        ) from error
    try:
        model = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:  # a user's function raises anything
        raise InputError(
            f"{reference!r} failed when called without arguments ({type(error).__name__}: {error}).",
            "Give a function that needs none.",
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{reference!r} must return a torch.nn.Module, got {type(model).__name__}.", "Return the model itself.")
    return model


def _knows(library: str, module: ModuleType, name: str) -> bool:
    return bool(module.is_model(name)) if library == "timm" else name in module.list_models()


def _from_timm(timm: ModuleType, name: str, pretrained: bool) -> LibraryModel:
    model: Any = timm.create_model(name, pretrained=pretrained)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    image, classes = config.get("input_size"), getattr(model, "num_classes", None)
    return LibraryModel(
        model, image and tuple(image), _floats(config.get("mean")), _floats(config.get("std")), embedding=classes == 0
    )


def _from_torchvision(models: ModuleType, name: str, pretrained: bool) -> LibraryModel:
    # By default a segmentation model downloads its backbone's weights.
    options = {"weights_backbone": None} if "weights_backbone" in signature(models.get_model_builder(name)).parameters else {}
    model = models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    crop = getattr(transforms, "crop_size", None)
    size = crop[0] if isinstance(crop, list | tuple) else crop
    image = None if size is None else (3, int(size), int(size))
    mean, deviation = (_floats(getattr(transforms, key, None)) for key in ("mean", "std"))
    return LibraryModel(model, image, mean, deviation, embedding=False)


def _import(library: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except Exception as error:  # a build that does not match the installed PyTorch raises anything
        reason = first_line(error)
        raise InputError(
            f"{library} cannot be imported ({reason}).",
            "Install it with `pip install 'shiftscope[zoo]'`, in a build that matches your PyTorch.",
        ) from error


def _floats(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))
