"""Models by name from timm and torchvision (extra ``zoo``), built to fit a checkpoint's classes, channels and size."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.errors import InputError, first_line
from shiftscope.models.hub import hub_folder, named
from shiftscope.models.preprocessing import from_torchvision, of_model
from shiftscope.runtime.sizes import Size, both
from shiftscope.runtime.text import printable

__all__ = ["FOLDER", "HUB", "LIBRARIES", "PRETRAINED", "LibraryModel", "Variant", "find_library", "has_weights", "library_model"]

LIBRARIES = ("timm", "torchvision")
#: Value of ``weights`` that downloads the library's own.
PRETRAINED = "pretrained"
#: Prefixes of a model's id on the Hugging Face hub, and of a folder: timm reads its config.json and weights.
HUB, FOLDER = "hf-hub:", "local-dir:"
#: Classes of torchvision's models by default: ImageNet's, and those of its segmentation models.
TORCHVISION_CLASSES = (1000, 21, 91)


@dataclass(frozen=True)
class Variant:
    """How a model differs from the library's default.

    Attributes:
        classes: length of its output; 0 for embeddings; None for the default.
        channels: of its input; None for the default.
        size: of its input, one length for both sides or (height, width), pixels, for models that fix it; None for the default.
    """

    classes: int | None = None
    channels: int | None = None
    size: Size | None = None

    def describe(self) -> list[str]:
        """Return what differs, in words."""
        heads = {None: [], 0: ["no head, so embeddings"]}
        classes = heads.get(self.classes, [f"{self.classes} classes"])
        return [*classes, *([] if self.channels is None else [f"{self.channels} channels"])]


@dataclass(frozen=True)
class LibraryModel:
    """A library's model and what the library says about its input.

    Attributes:
        model: the model, without normalisation.
        image: (channels, height, width) that it was made for, if known.
        preprocessing: how images are prepared for it.
        embedding: whether it has no classification head.
        origin: where its weights come from; empty if they are random.
        core: the library's own module, whose names checkpoints use, if the model wraps it; None if it is the model.
        classes: names of its classes, by output; empty if it does not name them.
    """

    model: nn.Module
    image: tuple[int, int, int] | None
    preprocessing: Preprocessing
    embedding: bool
    origin: str = ""
    core: nn.Module | None = None
    classes: tuple[str, ...] = ()

    @property
    def own(self) -> nn.Module:
        """The library's own module."""
        return self.model if self.core is None else self.core

    def variant_for(self, tensors: Mapping[str, Tensor]) -> Variant:
        """Return which variant of the model has the classes and channels of a checkpoint.

        Args:
            tensors: the checkpoint's, under the names of the model.
        """
        own, config = self.own.state_dict(), getattr(self.own, "pretrained_cfg", None)
        if self.core is not None:
            return Variant()
        if not isinstance(config, Mapping):
            return Variant(classes=_resized_head(own, tensors, TORCHVISION_CLASSES))
        heads, stems = (
            [f"{name}.weight" for name in _names(config.get(key)) if f"{name}.weight" in own or f"{name}.weight" in tensors]
            for key in ("classifier", "first_conv")
        )
        default = getattr(self.model, "num_classes", 0)
        classes = _only({tensors[name].shape[0] for name in heads if name in tensors})
        if classes is None:
            headless = bool(heads) and not any(name in tensors for name in heads)
            classes = 0 if headless else _resized_head(own, tensors, (default,))
        channels = _only({tensors[name].shape[1] for name in stems if name in tensors and tensors[name].ndim == 4})
        usual = _only({own[name].shape[1] for name in stems if name in own})
        return Variant(None if classes == default else classes, None if channels == usual else channels)


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


def library_model(
    library: str, name: str, *, pretrained: bool, variant: Variant = Variant(), download: bool = True
) -> LibraryModel:
    """Return a model of a library.

    Args:
        library: ``timm`` or ``torchvision``.
        name: the library's name for the model. For timm also ``hf-hub:owner/name``, with the hub's weights, from the local cache
            if they are there; and ``local-dir:FOLDER``, with the folder's weights.
        pretrained: whether to load the library's, the hub's or the folder's weights; otherwise they are random, the same every
            time.
        variant: what differs from the library's default.
        download: whether a model of the hub that is not in the local cache may be downloaded.

    Raises:
        InputError: the library is not installed or has no such model, or its weights cannot be downloaded or read.
    """
    module = _import(library)
    folder = _folder(name, weights=pretrained, download=download) if library == "timm" else None
    if folder is None and not _knows(library, module, name):
        raise _unknown(library, module, name)
    try:
        # A fixed seed, without touching the global random state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if library == "torchvision":
                return _from_torchvision(module, name, pretrained, variant)
            found = _from_timm(module, name if folder is None else f"{FOLDER}{folder}", pretrained, variant)
            origin = named(name.removeprefix(HUB), folder) if folder is not None and name.startswith(HUB) else found.origin
            return replace(found, origin=origin if pretrained else "")
    except Exception as error:  # the libraries raise anything
        raise _failure(library, name, first_line(error), pretrained=pretrained, folder=folder) from error


def _failure(library: str, name: str, reason: str, *, pretrained: bool, folder: Path | None) -> InputError:
    if folder is not None:
        remedy = f"Give it as hf:{folder} if transformers wrote it, else check its config.json and its weights."
        return InputError(f"{library} cannot load the model in {folder} ({reason}).", remedy)
    if pretrained:
        problem = f"{library} cannot download the weights of {name} ({reason})."
        return InputError(problem, "Check the network, or give a file of `weights`.")
    return InputError(f"{library} cannot build {name} ({reason}).", "Choose another model.")


def has_weights(name: str) -> bool:
    """Return whether a name says where the weights are: timm's ``hf-hub:owner/name`` and ``local-dir:FOLDER`` do."""
    return name.startswith((HUB, FOLDER))


def _folder(name: str, *, weights: bool, download: bool) -> Path | None:
    """Return the folder of a timm model that is not one of the library's own names."""
    if name.startswith(HUB):
        return hub_folder(name.removeprefix(HUB), weights=weights, download=download)
    return Path(name.removeprefix(FOLDER)) if name.startswith(FOLDER) else None


def _unknown(library: str, module: ModuleType, name: str) -> InputError:
    """Return the error that a library has no such model, with close names."""
    close = get_close_matches(name, module.list_models(), n=3)
    remedy = f"Did you mean {' or '.join(close)}? " if close else ""
    names = "timm.list_models()" if library == "timm" else "torchvision.models.list_models()"
    return InputError(f"{library} has no model {name!r}.", f"{remedy}See {names}.")


def _knows(library: str, module: ModuleType, name: str) -> bool:
    return bool(module.is_model(name)) if library == "timm" else name in module.list_models()


def _from_timm(timm: ModuleType, name: str, pretrained: bool, variant: Variant) -> LibraryModel:
    options = {"num_classes": variant.classes, "in_chans": variant.channels}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    model: Any = timm.create_model(name, pretrained=pretrained, **given)
    found = of_model(model)
    if variant.size not in (None, found.size) and getattr(model, "pretrained_cfg", {}).get("fixed_input_size"):
        model = timm.create_model(name, pretrained=pretrained, img_size=variant.size, **given)
    size = getattr(model, "pretrained_cfg", {}).get("input_size")
    channels = variant.channels or (size[0] if size else None)
    image = (channels, size[1], size[2]) if channels and size else None
    origin = "" if not pretrained else name.removeprefix(FOLDER) if name.startswith(FOLDER) else "timm's own"
    embedding, classes = getattr(model, "num_classes", None) == 0, _class_names(model)
    return LibraryModel(model, image, found, embedding=embedding, origin=origin, classes=classes)


def _class_names(model: Any) -> tuple[str, ...]:
    """Return the names of a timm model's classes, by output; empty if its configuration does not name each of them."""
    named = getattr(model, "pretrained_cfg", {}).get("label_names") or ()
    whole = len(named) == getattr(model, "num_classes", 0) and all(isinstance(name, str) for name in named)
    return tuple(map(printable, named)) if whole else ()


def _from_torchvision(models: ModuleType, name: str, pretrained: bool, variant: Variant) -> LibraryModel:
    # By default a segmentation model downloads its backbone's weights.
    options: dict[str, Any] = {}
    if "weights_backbone" in signature(models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None
    if variant.classes is not None:
        options["num_classes"] = variant.classes
    model = models.get_model(name, weights="DEFAULT" if pretrained else None, **options)
    found = from_torchvision(models.get_model_weights(name).DEFAULT.transforms())
    image = None if found.size is None else (3, *both(found.size))
    return LibraryModel(model, image, found, embedding=False, origin="torchvision's own" if pretrained else "")


def _resized_head(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], usual: tuple[int, ...]) -> int | None:
    """Return the length of a checkpoint's output, if weights of the usual length differ from the model's in that alone."""
    return _only(
        {
            tensors[name].shape[0]
            for name, value in own.items()
            if name in tensors
            and value.ndim
            and value.shape[0] in usual
            and tensors[name].shape[:1] != value.shape[:1]
            and tensors[name].shape[1:] == value.shape[1:]
        }
    )


def _only(values: set[int]) -> int | None:
    """Return the only value of a set; None if there is none, or several."""
    return next(iter(values)) if len(values) == 1 else None


def _names(given: Any) -> tuple[str, ...]:
    return () if not given else (given,) if isinstance(given, str) else tuple(given)


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
