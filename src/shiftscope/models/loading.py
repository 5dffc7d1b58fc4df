"""Load a model from a name or a file. Nothing is unpickled, except in a ``.pt2`` archive that the user trusts.

A reference to a model is one of:

- ``module:factory``: a function that returns it, called without arguments;
- ``timm:name``, ``torchvision:name``, or the bare name;
- the folder of a study's run (``studies/digits/runs/...``);
- a safetensors file of :func:`save_model`, such as ``shiftscope fix`` writes;
- an ONNX file, or a ``.pt2`` archive of ``torch.export``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from shiftscope.datasets.dataset import DataSpec
from shiftscope.errors import InputError
from shiftscope.models.family import NetworkSpec, Normalise, build
from shiftscope.models.files import read_exported, read_onnx
from shiftscope.models.libraries import LIBRARIES, PRETRAINED, call_factory, find_library, library_model
from shiftscope.models.weights import load_weights, read_safetensors, read_weights, with_normalisation
from shiftscope.runtime.files import write_tensors
from shiftscope.runtime.seeds import stream
from shiftscope.runtime.settings import Spec, validation_messages
from shiftscope.surgery import Kind, Surgery, operate

__all__ = ["Fix", "LoadedModel", "ModelSpec", "load_model", "save_model"]

#: The key of a safetensors file's metadata that holds the model's specification.
METADATA_KEY = "shiftscope"
#: The files in a run's folder that hold its weights and, in older runs, its specification.
MODEL, RECORD = "model.safetensors", "record.json"

Channels = tuple[float, ...]


class Fix(Spec):
    """One operation of :mod:`shiftscope.surgery`.

    Attributes:
        kind: ``blur`` (a low-pass filter before each subsampling), ``aps`` or ``lps`` (adaptive or learned polyphase sampling on
            circular maps), ``gap`` (global average pooling before the head), or ``circular`` (circular padding).
        filter_size: of the binomial filter of ``blur``, ``aps`` and ``lps``, in positions; 1 does not filter.
    """

    kind: Kind
    filter_size: int = Field(1, ge=1, le=7)

    def apply(self, model: nn.Module, *, image: tuple[int, int, int] | None) -> Surgery:
        """Return a changed copy of a model, with an account of what changed.

        Args:
            model: the model, which stays as it is.
            image: (channels, height, width) of its input, to count operations; None does not count.
        """
        return operate(self.kind, model, filter_size=self.filter_size, image=image)


class ModelSpec(Spec):
    """How to build a model, except its weights. Model files hold it as JSON, so its field names stay.

    Attributes:
        factory: ``module:function``, ``timm:name`` or ``torchvision:name``; or
        network: a network of :mod:`shiftscope.models.family`.
        mean: mean per channel of the normalisation in front of the model.
        deviation: standard deviation per channel of that normalisation.
        fixes: applied in this order.
        data: the data set that a study trained the network on.
    """

    factory: str | None = None
    network: NetworkSpec | None = None
    mean: Channels | None = None
    deviation: Channels | None = None
    fixes: tuple[Fix, ...] = ()
    data: DataSpec | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, and what is known about it.

    Attributes:
        model: images in [0, 1] -> outputs.
        spec: how to build it again; without ``factory`` and ``network`` if it came as a graph.
        image: (channels, height, width) of its input, if known.
        mean: mean per channel that its normalisation subtracts, if known.
        embedding: whether its outputs are known not to be classes.
    """

    model: nn.Module
    spec: ModelSpec
    image: tuple[int, int, int] | None
    mean: Channels | None = None
    embedding: bool = False


def load_model(
    name: str,
    *,
    weights: Path | None = None,
    size: int | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
    trust: bool = False,
) -> LoadedModel:
    """Load a model, in evaluation mode, from a name or a file.

    Args:
        name: a reference as listed in :mod:`shiftscope.models.loading`.
        weights: weights for a model that code makes: a safetensors file, a state dict that ``torch.save`` wrote, or
            ``pretrained`` to download those of timm or torchvision.
        size: height and width of the model's input, pixels; by default the model's own, if known.
        mean: mean per channel to subtract from the images; by default the model's own. Networks of a study normalise by
            themselves.
        std: standard deviation per channel to divide by after that; given together with ``mean``.
        trust: whether to run code that a file names or holds: a factory of the user's own in a safetensors file, or a ``.pt2``
            archive.

    Raises:
        InputError: there is no such model; its file is damaged, a pickle or not trusted; the factory fails or returns no module;
            or the weights do not fit.
    """
    for values in (mean, std):
        if values is not None and not all(map(isfinite, values)):
            raise InputError(f"`mean` and `std` must be finite numbers, got {values}.", "Give one value per channel.")
    path = Path(name)
    if not path.is_dir() and not path.is_file() and path.suffix not in (".onnx", ".pt2", ".safetensors"):
        return _resized(_from_code(name, weights, mean, std), size)
    if path.is_dir():
        loaded = _from_run(path)
    elif path.suffix == ".onnx":
        loaded = _from_graph(*read_onnx(path), mean, std)
    elif path.suffix == ".pt2":
        loaded = _from_graph(*read_exported(path, trust=trust), mean, std)
    else:
        loaded = _from_file(path, trust=trust)
    if weights is not None:
        raise InputError(f"`weights` are for a model that code makes, but {name} holds its own.", "Leave them out.")
    if loaded.spec != ModelSpec(mean=mean, deviation=std) and not _agrees(loaded.model, mean, std):
        raise InputError(f"`mean` and `std` of {name} are in its file.", "Leave them out.")
    return _resized(loaded, size)


def save_model(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write a model's weights as safetensors, with its specification in the metadata.

    Args:
        path: of the file, which is written atomically.
        model: built as ``spec`` says.
        spec: how to build it again.
    """
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    write_tensors(path, weights, metadata={METADATA_KEY: spec.model_dump_json(exclude_none=True)})


def _from_code(name: str, weights: Path | None, mean: Channels | None, std: Channels | None) -> LoadedModel:
    library, colon, rest = name.partition(":")
    if not colon:
        found = find_library(name)
        if found is None:
            raise InputError(
                f"there is no model {name!r}.",
                "Give `module:factory`, `timm:name`, `torchvision:name`, the folder of a study's run (studies/NAME/runs/...), a "
                "file that `shiftscope fix` wrote, a .pt2 or an .onnx file.",
            )
        library, rest = found, name
    if library not in LIBRARIES:
        return _from_factory(name, weights, mean, std)
    pretrained = weights is not None and str(weights) == PRETRAINED
    known = library_model(library, rest, pretrained=pretrained)
    if weights is None:
        warnings.warn(f"{library}:{rest} has random weights. Give `weights`: a file, or '{PRETRAINED}'.", stacklevel=3)
    elif not pretrained:
        load_weights(known.model, read_weights(weights), str(weights))
    mean, std = (known.mean, known.deviation) if mean is None and std is None else (mean, std)
    spec = ModelSpec(factory=f"{library}:{rest}", mean=mean, deviation=std)
    return LoadedModel(with_normalisation(known.model, mean, std).eval(), spec, known.image, mean, known.embedding)


def _from_factory(name: str, weights: Path | None, mean: Channels | None, std: Channels | None) -> LoadedModel:
    if weights is not None and str(weights) == PRETRAINED:
        raise InputError(
            f"`weights` '{PRETRAINED}' are for models of timm and torchvision, but your own function makes {name}.",
            "Give a file of weights.",
        )
    model = call_factory(name)
    if weights is not None:
        load_weights(model, read_weights(weights), str(weights))
    spec = ModelSpec(factory=name, mean=mean, deviation=std)
    return _described(with_normalisation(model, mean, std), spec)


def _from_graph(model: nn.Module, image: tuple[int, int, int] | None, mean: Channels | None, std: Channels | None) -> LoadedModel:
    return LoadedModel(with_normalisation(model, mean, std).eval(), ModelSpec(mean=mean, deviation=std), image, mean)


def _from_run(folder: Path) -> LoadedModel:
    if (folder / "runs").is_dir():
        runs = sorted(run.name for run in (folder / "runs").iterdir() if (run / MODEL).exists() or (run / RECORD).exists())
        listed = ", ".join(f"{folder}/runs/{run}" for run in runs) or "none yet"
        raise InputError(f"{folder} is a study, not a model.", f"Choose one of its runs: {listed}.")
    file, record = folder / MODEL, folder / RECORD
    if not file.exists() and not record.exists():
        raise InputError(f"{folder} holds no run: it has neither {MODEL} nor {RECORD}.", "Choose the folder of a run.")
    weights, metadata = read_safetensors(file)
    spec = _spec_in_metadata(file, metadata) if METADATA_KEY in metadata else _spec_in_record(record)
    return _built(spec, weights, str(file))


def _spec_in_record(file: Path) -> ModelSpec:
    """Read the specification of a run whose weights do not hold it."""
    remedy = "Run the study again."
    try:
        spec = json.loads(file.read_bytes())["spec"]
        return ModelSpec(network=spec["network"], data=spec["data"])
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).", remedy) from error
    except ValidationError as error:
        raise InputError(f"{file} is not a complete record: {validation_messages(error)[0]}", remedy) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is not a complete record: it names no network and no data.", remedy) from error


def _from_file(path: Path, *, trust: bool) -> LoadedModel:
    weights, metadata = read_safetensors(path)
    if METADATA_KEY not in metadata:
        raise InputError(
            f"{path} holds weights, but not of which model.",
            "Give the model as `module:factory` or `timm:name`, and this file as its `weights`.",
        )
    spec = _spec_in_metadata(path, metadata)
    if spec.factory is not None and spec.factory.partition(":")[0] not in LIBRARIES and not trust:
        raise InputError(
            f"{path} is not trusted, and loading it would call `{spec.factory}`, which whoever wrote the file chose.",
            "If you trust both, pass --trust (`trust=True`).",
        )
    return _built(spec, weights, str(path))


def _spec_in_metadata(path: Path, metadata: Mapping[str, str]) -> ModelSpec:
    try:
        return ModelSpec.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        raise InputError(
            f"{path} does not say how to build its model: {validation_messages(error)[0]}", "Write the file again."
        ) from error


def _built(spec: ModelSpec, weights: Mapping[str, Tensor], source: str) -> LoadedModel:
    """Build a model and load its weights."""
    image, embedding = None, False
    if spec.network is not None:
        model: nn.Module = build(spec.network, generator=stream(0, "weights"))
        image = (spec.network.input_channels, spec.network.input_size, spec.network.input_size)
    elif spec.factory is None:
        raise InputError(f"{source} names neither a network nor a factory.", "Write the file again with `save_model`.")
    elif spec.factory.partition(":")[0] in LIBRARIES:
        library, _, name = spec.factory.partition(":")
        known = library_model(library, name, pretrained=False)
        model, image, embedding = known.model, known.image, known.embedding
    else:
        model = call_factory(spec.factory)
    if spec.network is None:
        model = with_normalisation(model, spec.mean, spec.deviation)
    for fix in spec.fixes:
        model = fix.apply(model, image=None).model
    load_weights(model, weights, source)
    return replace(_described(model, spec), image=image, embedding=embedding)


def _described(model: nn.Module, spec: ModelSpec) -> LoadedModel:
    normalise = _normalisation(model)
    return LoadedModel(model.eval(), spec, None, spec.mean if normalise is None else tuple(normalise.mean.tolist()))


def _normalisation(model: nn.Module) -> Normalise | None:
    return next((part for part in model.modules() if isinstance(part, Normalise)), None)


def _agrees(model: nn.Module, mean: Channels | None, std: Channels | None) -> bool:
    """Return whether the model's normalisation has these values, up to single precision; None agrees with any."""
    normalise = _normalisation(model)
    if normalise is None:
        return mean is None and std is None
    pairs = ((mean, normalise.mean), (std, normalise.deviation))
    return all(
        given is None or (len(given) == len(known) and torch.allclose(torch.tensor(given), known.cpu())) for given, known in pairs
    )


def _resized(loaded: LoadedModel, size: int | None) -> LoadedModel:
    """Set the height and width of the model's input, unless the model fixes them."""
    if size is None:
        return loaded
    if size < 1:
        raise InputError(f"`size` must be 1 or more pixels, got {size}.", "Leave it out to take the model's own.")
    fixed = loaded.spec.network is not None or loaded.spec.factory is None
    if fixed and loaded.image is not None and loaded.image[1:] != (size, size):
        shape = "x".join(map(str, loaded.image))
        raise InputError(f"`size` {size} does not fit: the model takes images of {shape}.", "Leave it out.")
    channels = loaded.image[0] if loaded.image else len(loaded.mean) if loaded.mean else _input_channels(loaded.model)
    return loaded if channels is None else replace(loaded, image=(channels, size, size))


def _input_channels(model: nn.Module) -> int | None:
    """Return the channels that the first convolution takes; None without a convolution."""
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return None if first is None else first.in_channels
