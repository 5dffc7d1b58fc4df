"""A model from a name or a file. Nothing here is unpickled.

- ``module:factory``: what a function of yours returns, called without arguments;
- ``timm:name`` or ``torchvision:name``, or the bare name;
- a run's folder (``studies/digits/runs/...``): a trained network of a study;
- a file that ``shiftscope fix`` wrote: such a model with fixes in it;
- a ``.pt2`` file of ``torch.export``, or an ONNX file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.models.factories import made
from shiftscope.models.family import Normalise, build
from shiftscope.models.files import read_exported
from shiftscope.models.libraries import LIBRARIES, PRETRAINED, exhibit, library_of
from shiftscope.models.onnx import read_onnx
from shiftscope.models.origins import Loaded, Origin
from shiftscope.models.weights import fill, normalised, read_safetensors, read_weights
from shiftscope.runtime.files import write_tensors
from shiftscope.runtime.seeds import stream
from shiftscope.runtime.settings import mistakes

__all__ = ["load_model", "save_model"]

#: Where a file's metadata keep the model's origin.
KEY = "shiftscope"
#: The files of a study's run that hold its weights and its specification.
MODEL, RECORD = "model.safetensors", "record.json"

Colours = tuple[float, ...]


def load_model(
    name: str,
    *,
    weights: Path | None = None,
    size: int | None = None,
    mean: Colours | None = None,
    std: Colours | None = None,
    trust: bool = False,
) -> Loaded:
    """A model from a name or a file.

    Args:
        name: see the module.
        weights: of a model that is made by name: safetensors, a state dict that torch.save wrote, or ``pretrained`` for the
            library's own, which are fetched from the network.
        size: height and width of the images it takes, pixels; else as the model tells.
        mean: to take from the images, a value a channel; else as the model tells. Not for networks of a study, which
            normalise themselves.
        std: to divide by after that.
        trust: whether a file of ``shiftscope fix`` may name the function of your own that made its model, to be called.

    Raises:
        InputError: there is none, its file is damaged, a pickle or not trusted, the factory gives no module, or the weights do
            not fit.
    """
    for values in (mean, std):
        if values is not None and not all(map(isfinite, values)):
            raise InputError(f"`mean` and `std` must be numbers, got {values}.")
    path = Path(name)
    if path.is_dir():
        loaded = _from_run(path)
    elif path.suffix == ".onnx":
        loaded = _with(*read_onnx(path), mean, std)
    elif path.suffix == ".pt2":
        loaded = _with(*read_exported(path), mean, std)
    elif path.suffix == ".safetensors" or path.is_file():
        loaded = _from_file(path, trust=trust)
    else:
        return _sized(_by_name(name, weights, mean, std), size)
    if weights is not None:
        raise InputError(f"`weights` belong to a model that is made by name; {name} brings its own.")
    if path.is_dir() or (path.is_file() and path.suffix not in (".onnx", ".pt2")):
        known = next(
            ((part.mean, part.deviation) for part in loaded.model.modules() if isinstance(part, Normalise)), (None, None)
        )
        if not all(asked is None or _alike(asked, own) for asked, own in zip((mean, std), known, strict=True)):
            raise InputError(f"`mean` and `std` are known of {name}. Leave them out.")
    return _sized(loaded, size)


def _alike(asked: Colours, known: Tensor | None) -> bool:
    """Whether values are those that a model has, up to single precision."""
    return known is not None and len(asked) == known.numel() and torch.allclose(torch.tensor(asked), known.cpu().reshape(-1))


def save_model(path: Path, model: nn.Module, origin: Origin) -> None:
    """Write a model's weights as safetensors, with its origin in the metadata.

    Args:
        path: of the file; it is there whole or not at all.
        model: made as ``origin`` says.
        origin: how to make it again.
    """
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    write_tensors(path, weights, metadata={KEY: origin.model_dump_json(exclude_none=True)})


def _by_name(name: str, weights: Path | None, mean: Colours | None, std: Colours | None) -> Loaded:
    library, colon, rest = name.partition(":")
    if not colon:
        found = library_of(name)
        if found is None:
            raise InputError(
                f"there is no model {name!r}. Give `module:factory`, `timm:name`, `torchvision:name`, the folder of a study's "
                "run (studies/NAME/runs/...), a file that `shiftscope fix` wrote, a .pt2 or an .onnx file."
            )
        library, rest = found, name
    pretrained = weights is not None and str(weights) == PRETRAINED
    if library not in LIBRARIES:
        if pretrained:
            raise InputError(f"`weights` '{PRETRAINED}' are those of timm and torchvision; {name} is made by your own function.")
        return _ready(Origin(factory=name, mean=mean, deviation=std), None, fresh=weights)
    shown = exhibit(library, rest, pretrained=pretrained)
    if weights is None:
        warnings.warn(f"{library}:{rest} has random weights. Give `weights`: a file, or '{PRETRAINED}'.", stacklevel=3)
    elif not pretrained:
        fill(shown.model, read_weights(weights), str(weights))
    mean, std = (shown.mean, shown.deviation) if mean is None and std is None else (mean, std)
    origin = Origin(factory=f"{library}:{rest}", mean=mean, deviation=std)
    model = normalised(shown.model, mean, std).eval()
    return Loaded(model, origin, shown.image, mean, shown.embedding)


def _with(model: nn.Module, image: tuple[int, int, int] | None, mean: Colours | None, std: Colours | None) -> Loaded:
    return Loaded(normalised(model, mean, std).eval(), Origin(mean=mean, deviation=std), image, mean)


def _sized(loaded: Loaded, size: int | None) -> Loaded:
    """With the size asked for, where the model leaves it open."""
    if size is None:
        return loaded
    if size < 1:
        raise InputError(f"`size` must be 1 or more pixels, got {size}.")
    fixed = loaded.image is not None and (loaded.origin.network is not None or loaded.origin.factory is None)
    if fixed and loaded.image is not None and loaded.image[1:] != (size, size):
        raise InputError(f"`size` {size} does not fit: the model takes images of {'x'.join(map(str, loaded.image))}.")
    channels = loaded.image[0] if loaded.image else len(loaded.mean) if loaded.mean else _channels(loaded.model)
    return loaded if channels is None else replace(loaded, image=(channels, size, size))


def _channels(model: nn.Module) -> int | None:
    """What the first convolution takes."""
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return None if first is None else first.in_channels


def _from_run(folder: Path) -> Loaded:
    if (folder / "runs").is_dir():
        runs = sorted(run.name for run in (folder / "runs").iterdir() if (run / RECORD).exists())
        listed = ", ".join(f"{folder}/runs/{run}" for run in runs) or "none yet"
        raise InputError(f"{folder} is a study. Choose one of its runs: {listed}.")
    try:
        record = json.loads((folder / RECORD).read_bytes())
        origin = Origin(network=record["spec"]["network"], data=record["spec"]["data"])
    except OSError as error:
        raise InputError(f"{folder} holds no run: {RECORD} cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        raise InputError(f"{folder / RECORD} is not a whole record: {mistakes(error)[0]}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / RECORD} is not a whole record: it names no network and no data.") from error
    weights, _ = read_safetensors(folder / MODEL)
    return _ready(origin, weights, str(folder / MODEL))


def _from_file(path: Path, *, trust: bool) -> Loaded:
    weights, metadata = read_safetensors(path)
    if KEY not in metadata:
        raise InputError(
            f"{path} holds weights, but not of which model. Give the model as `module:factory` or `timm:name`, and this file as "
            "its `weights`."
        )
    try:
        origin = Origin.model_validate_json(metadata[KEY])
    except ValidationError as error:
        raise InputError(f"{path} does not say of which model it is: {mistakes(error)[0]}") from error
    if origin.factory is not None and origin.factory.partition(":")[0] not in LIBRARIES and not trust:
        raise InputError(
            f"{path} is of a model that `{origin.factory}` makes, and whoever wrote the file chose what to call. Where you know "
            "both, say so with --trust (`trust=True`)."
        )
    return _ready(origin, weights, str(path))


def _ready(origin: Origin, weights: Mapping[str, Tensor] | None, where: str = "", *, fresh: Path | None = None) -> Loaded:
    """The model of an origin, with these weights; or, before its normalisation, with those of a file."""
    image, embedding, colour = None, False, origin.mean
    if origin.network is not None:
        spec = origin.network
        model: nn.Module = build(spec, generator=stream(0, "weights"))
        image = (spec.input_channels, spec.input_size, spec.input_size)
    elif origin.factory is not None:
        library, _, rest = origin.factory.partition(":")
        if library in LIBRARIES:
            shown = exhibit(library, rest, pretrained=False)
            model, image, embedding = shown.model, shown.image, shown.embedding
        else:
            model = made(origin.factory)
        if fresh is not None:
            fill(model, read_weights(fresh), str(fresh))
        model = normalised(model, origin.mean, origin.deviation)
    else:
        raise InputError(f"{where} names neither a network nor a factory.")
    for fix in origin.fixes:
        model = fix.apply(model, image=None).model
    if weights is not None:
        fill(model, weights, where)
    known = next((part.mean for part in model.modules() if isinstance(part, Normalise)), None)
    colour = colour if known is None else tuple(known.tolist())
    return Loaded(model.eval(), origin, image, colour, embedding)
