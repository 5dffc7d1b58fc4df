"""Image models of Hugging Face transformers (extra ``transformers``), from a folder or the hub.

A folder holds ``config.json`` and weights. Code in a model's repository is never run. A classifier returns its logits. Detectors,
and models of depth or segmentation, return all of their outputs, which a task of :mod:`shiftscope.tasks` reads. Any
other model returns embeddings: image features of models with a text tower (CLIP, SigLIP), else the pooled output; else, where the
checkpoint has no weights for a pooler, the class token; else the mean over positions.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.datasets.preprocessing import UNKNOWN, Preprocessing
from shiftscope.errors import InputError, first_line
from shiftscope.models.hub import hub_folder, named
from shiftscope.models.image_processors import image_processor, tried
from shiftscope.models.libraries import LibraryModel
from shiftscope.models.preprocessing import PROCESSOR, from_processor, swaps_red_and_blue
from shiftscope.runtime.inputs import read_json, reading
from shiftscope.runtime.network import hub_offline
from shiftscope.runtime.sizes import both, one_or_both
from shiftscope.runtime.text import printable

__all__ = ["PREFIX", "Classifier", "huggingface_model", "of_pretrained"]

#: Prefix of the folder or the id of a model of transformers.
PREFIX = "hf"
CLASSIFIER = "ForImageClassification"
#: Ends of the names of classes whose outputs a task reads.
OF_TASKS = ("ForDepthEstimation", "ForSemanticSegmentation", "ForObjectDetection")
#: Ends of the names of classes whose features of the image are measured.
BACKBONES = ("Model", "Backbone", "ForPreTraining", "ForMaskedImageModeling", "WithProjection", "WithTeacher")


class Wrapped(nn.Module):
    """A model of transformers as a function of images alone.

    Args:
        model: of transformers.
        blue_first: whether it takes blue, green and red, in this order.
    """

    def __init__(self, model: nn.Module, *, blue_first: bool = False) -> None:
        super().__init__()
        self.model, self.blue_first = model, blue_first

    def ordered(self, images: Tensor) -> Tensor:
        """Return images with their colours in the order that the model takes."""
        return images.flip(1) if self.blue_first else images


class Classifier(Wrapped):
    """Return the logits of an image classifier; arguments as of :class:`Wrapped`."""

    def forward(self, images: Tensor) -> Tensor:
        """Return [image, class]."""
        logits: Tensor = self.model(pixel_values=self.ordered(images)).logits
        return logits


class OfTask(Wrapped):
    """Return all outputs of a detector, or of a model of depth or segmentation; arguments as of :class:`Wrapped`."""

    def __init__(self, model: nn.Module, *, blue_first: bool = False) -> None:
        super().__init__(model, blue_first=blue_first)
        self.config = getattr(model, "config", None)

    def forward(self, images: Tensor) -> Any:
        """Return the library's own object."""
        return self.model(pixel_values=self.ordered(images))


class Embedder(Wrapped):
    """Return one vector per image from a backbone.

    Args:
        model, blue_first: of :class:`Wrapped`.
        pooler: whether its pooled output may be used; not if the pooler's weights are random. A buffer, so that files of weights
            hold it.
    """

    returns_embeddings = True
    pooler: Tensor

    def __init__(self, model: nn.Module, *, pooler: bool, blue_first: bool = False) -> None:
        super().__init__(model, blue_first=blue_first)
        self.register_buffer("pooler", torch.tensor(pooler))
        self.class_token = any(name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters())

    def forward(self, images: Tensor) -> Tensor:
        """Return [image, feature]."""
        described = getattr(self.model, "get_image_features", self.model)
        return self._vector(described(pixel_values=self.ordered(images)))

    def _vector(self, found: Any) -> Tensor:
        if isinstance(found, Tensor):
            return found
        pooled: Tensor | None = getattr(found, "image_embeds", None)
        if pooled is None and self.pooler:
            pooled = getattr(found, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        last: Tensor = found.last_hidden_state if hasattr(found, "last_hidden_state") else found.feature_maps[-1]
        if last.ndim == 4:
            return last.mean(dim=(2, 3))
        return last[:, 0] if self.class_token else last.mean(dim=1)


def huggingface_model(
    reference: str, *, pretrained: bool, download: bool = True, weights: Mapping[str, Tensor] | None = None
) -> LibraryModel:
    """Return a model of transformers, from a folder or the hub.

    Args:
        reference: a folder with ``config.json``; or ``owner/name`` or ``owner/name@revision`` on the hub, taken from the local
            cache if it is there.
        pretrained: whether to load its weights; otherwise they are random, the same every time.
        download: whether a model that is not in the local cache may be downloaded.
        weights: to load instead of the model's own, by the names of this or an earlier version of transformers.

    Raises:
        InputError: transformers is not installed, there is no such model, it needs code of its own or takes no images, or its
            weights are damaged or incomplete.
    """
    local = Path(reference)
    folder = local if local.is_dir() else hub_folder(reference, weights=pretrained, download=download)
    config = _read_json(folder / "config.json")
    architecture = _architecture(config, folder)
    transformers = _import()
    try:
        # Its files are there. A folder's config may name a backbone on the hub, which the user did not ask for.
        asked = download and not local.is_dir()
        with _quiet(transformers), nullcontext() if asked else hub_offline(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inner, missing = _loaded(transformers, architecture, folder, pretrained=pretrained, weights=weights)
    except InputError:
        raise
    except Exception as error:  # the library raises anything
        pickled = "Weights only load failed" in str(error)
        reason = (
            "its file of weights holds more than tensors, which a pickle can use to run code" if pickled else first_line(error)
        )
        raise InputError(
            f"transformers cannot load the model in {folder} ({reason}).", "Check its config.json and the weights."
        ) from error
    poolerless = bool(missing) and all("pooler" in name for name in missing)
    if missing and not poolerless:
        raise InputError(
            f"the weights for {folder} are incomplete: {len(missing)} of {architecture or 'the model'} are missing "
            f"({', '.join(missing[:3])}).",
            "Give the weights of the complete model.",
        )
    origin = reference if local.is_dir() else named(reference, folder)
    found, blue_first = _prepared(transformers, config, folder)
    known = _described(inner, folder, pooler=not poolerless, blue_first=blue_first)
    image = None if found.size is None else (_channels(config), *both(found.size))
    return replace(known, image=image, preprocessing=found, origin=origin if pretrained else "")


def _loaded(
    transformers: ModuleType, architecture: str, folder: Path, *, pretrained: bool, weights: Mapping[str, Tensor] | None
) -> tuple[Any, list[str]]:
    """Return the model, and the names of weights that its files do not hold."""
    kind = transformers.AutoModel
    if CLASSIFIER in architecture:
        kind = transformers.AutoModelForImageClassification
    elif architecture.endswith(("WithProjection", *OF_TASKS)):
        kind = getattr(transformers, architecture)
    local = {"trust_remote_code": False, "local_files_only": True}
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if pretrained:
        model, info = kind.from_pretrained(folder, **options, **local)
        _check_fit(folder, info, ignored=info["unexpected_keys"])  # a backbone in a classifier's file
        return model, sorted(info["missing_keys"])
    config = transformers.AutoConfig.from_pretrained(folder, **local)
    model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    if weights is None:
        return model, []
    model, info = type(model).from_pretrained(None, config=config, state_dict=dict(weights), **options)
    _check_fit(folder, info)
    return model, sorted(info["missing_keys"])


def _check_fit(folder: Path, info: Mapping[str, Any], *, ignored: Collection[str] = ()) -> None:
    """Refuse weights of another shape, and weights that the model does not have."""
    shapes = [
        f"{name} is {'x'.join(map(str, given))} in the file and {'x'.join(map(str, own))} in the model"
        for name, given, own in sorted(info["mismatched_keys"])
    ]
    unexpected = sorted(set(info["unexpected_keys"]) - set(ignored))
    groups = (("unexpected", unexpected), ("of another shape", shapes))
    differences = [f"{len(each)} {kind} ({', '.join(each[:3])})" for kind, each in groups if each]
    if differences:
        raise InputError(
            f"the weights do not fit the model in {folder}: {'; '.join(differences)}.",
            "Give the weights of this very architecture; `num_labels` in config.json is its number of classes.",
        )


def _channels(config: Mapping[str, Any]) -> int:
    """Return the number of channels that a configuration says."""
    return int({**config, **(config.get("vision_config") or {})}.get("num_channels") or 3)


def _described(inner: Any, folder: Path, *, pooler: bool, blue_first: bool) -> LibraryModel:
    """Wrap a model so that it maps images to a tensor, and say what is known about its output."""
    features = hasattr(inner, "get_image_features")
    if not features and getattr(inner, "main_input_name", "pixel_values") != "pixel_values":
        raise InputError(f"the model in {folder} takes `{inner.main_input_name}`, not images.", "Choose an image model.")
    classifier = CLASSIFIER in type(inner).__name__
    task = type(inner).__name__.endswith(OF_TASKS)
    model: nn.Module
    if classifier or task:
        model = (Classifier if classifier else OfTask)(inner, blue_first=blue_first)
    else:
        model = Embedder(inner, pooler=pooler, blue_first=blue_first)
    classes = _class_names(inner.config) if classifier else ()
    return LibraryModel(model.eval(), None, Preprocessing(), embedding=not classifier and not task, core=inner, classes=classes)


def _class_names(config: Any) -> tuple[str, ...]:
    """Return the names of a classifier's classes, by output; empty where they are the library's placeholders."""
    named = getattr(config, "id2label", None) or {}
    names = [named.get(label) for label in range(len(named))]
    if not all(isinstance(name, str) for name in names) or any(re.fullmatch(r"LABEL_\d+", str(name)) for name in names):
        return ()
    return tuple(printable(str(name)) for name in names)


def of_pretrained(model: nn.Module) -> Preprocessing | None:
    """Return how images are prepared for a model of transformers that the user's code made; None for any other model.

    Its image processor is looked up where the model says that it came from: a folder, or the hub's local cache.

    Args:
        model: as the user's code returned it.
    """
    library = sys.modules.get("transformers.modeling_utils")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return None
    config: dict[str, Any] = model.config.to_dict()
    origin = str(getattr(model.config, "name_or_path", "") or "")
    try:
        folder = Path(origin) if Path(origin).is_dir() else hub_folder(origin, weights=False, download=False)
        found, blue_first = _prepared(_import(), config, folder)
    except InputError:  # not in the local cache, or made from a configuration
        return _preprocessing(config, {})
    return replace(found, source=f"{found.source}, but for the order of colours") if blue_first else found


def _prepared(transformers: ModuleType, config: Mapping[str, Any], folder: Path) -> tuple[Preprocessing, bool]:
    """Return how images are prepared for the model in a folder, and whether it takes blue before red."""
    processor = _processor(folder)
    found, blue_first = _preprocessing(config, processor), swaps_red_and_blue(processor)
    if processor and _channels(config) == 3:
        with _quiet(transformers):
            found = tried(image_processor(transformers, folder), found, swapped=blue_first)
    return found, blue_first


def _preprocessing(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Preprocessing:
    """Return what an image processor does, for the size that a model's configuration names unless the processor does."""
    side = {**config, **(config.get("vision_config") or {})}.get("image_size")
    side = side if isinstance(side, int) or side is None else one_or_both(side)
    if not processor:
        return Preprocessing(size=side, source=f"{UNKNOWN}: no {PROCESSOR}")
    return from_processor(processor, size=side)


def _processor(folder: Path) -> Mapping[str, Any]:
    """Return the configuration of a model's image processor; empty if it has none, so that nothing is normalised."""
    for name in (PROCESSOR, "processor_config.json"):
        if (folder / name).is_file():
            found = _read_json(folder / name)
            inner = found.get("image_processor", found)
            return inner if isinstance(inner, Mapping) else found
    return {}


def _architecture(config: Mapping[str, Any], folder: Path) -> str:
    """Return the name of a model's class; empty if its configuration does not say."""
    if "model_type" not in config:
        remedy = f"Give it as timm:local-dir:{folder}." if "architecture" in config else "Choose another folder."
        raise InputError(f"{folder / 'config.json'} names no model of transformers.", remedy)
    names: Sequence[str] = config.get("architectures") or [CLASSIFIER if "id2label" in config else ""]
    name = str(names[0])
    if name and CLASSIFIER not in name and not name.endswith((*BACKBONES, *OF_TASKS)):
        raise InputError(
            f"the model in {folder} is a {name}, which is not a classifier, backbone, detector, depth or segmentation model.",
            "Choose another model.",
        )
    if config.get("mask_ratio"):
        raise InputError(
            f"the model in {folder} masks random parts of every image (`mask_ratio`), so its outputs are random.",
            "Load its encoder by your own function, or from timm.",
        )
    return name


def _read_json(file: Path) -> Mapping[str, Any]:
    with reading(file, "JSON", "Give the folder that save_pretrained wrote."):
        found = read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file} is not the configuration of a model.", "Copy or download it again.")
    return found


@contextmanager
def _quiet(transformers: ModuleType) -> Iterator[None]:
    """Silence the library's progress bars and reports meanwhile."""
    log = transformers.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _import() -> ModuleType:
    try:
        transformers = importlib.import_module("transformers")
        importlib.import_module("transformers.modeling_utils")
    except Exception as error:  # a build of torchvision that does not match the installed PyTorch raises anything
        raise InputError(
            f"transformers cannot be imported ({first_line(error)}).",
            "Install it with `pip install 'shiftscope[transformers]'`, and torchvision, if it is there, in a build that matches "
            "your PyTorch.",
        ) from error
    return transformers
