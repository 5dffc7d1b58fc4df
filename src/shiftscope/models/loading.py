"""Load a model from a name or a file. Nothing is unpickled, except in a ``.pt2`` archive that the user trusts.

A reference to a model is one of:

- ``module:factory`` or ``path/to/file.py:factory``: a function that returns it, called without arguments;
- ``timm:name``, ``torchvision:name``, or the bare name;
- ``timm:hf-hub:owner/name``, ``timm:local-dir:FOLDER``: a timm model with its weights, from the hub or a folder;
- ``hf:owner/name``, ``hf:FOLDER``: a classifier or backbone of Hugging Face transformers, from the hub or a folder;
- the folder of a study's run (``studies/digits/runs/...``);
- a safetensors file of :func:`shiftscope.models.save_model`, such as ``shiftscope fix`` writes;
- an ONNX file, or a ``.pt2`` archive of ``torch.export``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from shiftscope.datasets.preprocessing import UNKNOWN, Preprocessing, check_mean
from shiftscope.errors import InputError, UntraceableError
from shiftscope.models.factories import call_factory, is_code
from shiftscope.models.family import Normalise, build
from shiftscope.models.files import Shape, read_exported, read_onnx
from shiftscope.models.huggingface import PREFIX, huggingface_model
from shiftscope.models.libraries import (
    FOLDER,
    PRETRAINED,
    LibraryModel,
    Variant,
    find_library,
    has_weights,
    library_model,
)
from shiftscope.models.preprocessing import overridden
from shiftscope.models.spec import METADATA_KEY, Channels, Fix, ModelSpec
from shiftscope.models.trust import is_of_library, needs_trust
from shiftscope.models.weights import Checkpoint, load_weights, read_checkpoint, read_safetensors, with_normalisation
from shiftscope.runtime.inputs import is_file, is_folder, read_json, reading
from shiftscope.runtime.seeds import stream
from shiftscope.runtime.settings import validation_messages
from shiftscope.runtime.sizes import Size, both, checked_size, one_or_both, size_words

__all__ = ["RANDOM", "LoadedModel", "absolute_reference", "load_model"]

#: Description of untrained weights.
RANDOM = "random"
#: Source of the preprocessing of a study's network, and of a model whose file holds it.
STUDY, FILE = "the study", "the file"
#: The files in a run's folder that hold its weights and, in older runs, its specification.
MODEL, RECORD = "model.safetensors", "record.json"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, and what is known about it.

    Attributes:
        model: images in [0, 1] -> outputs.
        spec: how to build it again; without ``factory`` and ``network`` if it came as a graph.
        image: (channels, height, width) of its input, if known.
        mean: mean per channel that its normalisation subtracts, if known.
        embedding: whether its outputs are known not to be classes.
        preprocessing: how images are prepared for it, and where these settings come from.
        weights: where its weights come from, in words; ``random`` if they are.
        code: the user's file whose code made it, in words; empty if there is none, or if the reference names it.
        classes: names of its classes, by output; empty if nothing names them.
        channels: of its images, where these have no fixed size; None if unknown.
    """

    model: nn.Module
    spec: ModelSpec
    image: tuple[int, int, int] | None
    mean: Channels | None = None
    embedding: bool = False
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    weights: str = RANDOM
    code: str = ""
    classes: tuple[str, ...] = ()
    channels: int | None = None

    @property
    def known_channels(self) -> int | None:
        """Channels of its images; None if unknown."""
        return self.channels if self.image is None else self.image[0]


def load_model(
    name: str,
    *,
    weights: Path | str | None = None,
    size: Size | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
    trust: bool = False,
) -> LoadedModel:
    """Load a model, in evaluation mode, from a name or a file.

    Args:
        name: a reference as listed in :mod:`shiftscope.models.loading`.
        weights: weights for a model that code makes: a safetensors file, the index of several, a checkpoint that ``torch.save``
            wrote, of which only tensors are read, or ``pretrained`` to download those of timm or torchvision. A model of timm or
            torchvision gets the classes and channels of the checkpoint.
        size: of the model's input, one length for both sides or (height, width), pixels; by default the model's own, if known.
        mean: mean per channel to subtract from the images; by default the model's own. Networks of a study normalise by
            themselves.
        std: standard deviation per channel, by which images are then divided; given together with ``mean``.
        trust: whether to run code that a file names or holds: a factory of the user's own in a safetensors file, or a ``.pt2``
            archive.

    Raises:
        InputError: there is no such model; its file is damaged, a pickle or not trusted; the factory fails or returns no module;
            or the weights do not fit.
    """
    _check_normalisation(mean, std)
    size = checked_size(size)
    path, weights = Path(name), None if weights is None else Path(weights)
    if not is_folder(path) and not is_file(path) and path.suffix not in (".onnx", ".pt2", ".safetensors"):
        return _resized(_from_code(ModelSpec(factory=name, size=size, mean=mean, deviation=std), weights), size)
    if path.suffix == ".py" and is_file(path):
        raise InputError(f"{name} holds code, and which function of it makes the model is not said.", f"Give {name}:FUNCTION.")
    if is_folder(path):
        loaded = _from_run(path, trust=trust)
    elif path.suffix == ".onnx":
        loaded = _from_graph(path, *read_onnx(path), mean, std)
    elif path.suffix == ".pt2":
        loaded = _from_graph(path, *read_exported(path, trust=trust), mean, std)
    else:
        loaded = _from_file(path, trust=trust)
    if weights is not None:
        raise InputError(f"`weights` are only for a model that code builds, but {name} holds its own.", "Leave them out.")
    if loaded.spec != ModelSpec(mean=mean, deviation=std) and not _agrees(loaded.model, mean, std):
        raise InputError(f"`mean` and `std` of {name} are in its file.", "Leave them out.")
    return _resized(loaded, size)


def _check_normalisation(mean: Channels | None, std: Channels | None) -> None:
    for values in (mean, std):
        if values is not None and not all(map(isfinite, values)):
            raise InputError(f"`mean` and `std` must be finite numbers, got {values}.", "Give one value per channel.")
    if mean is None and std is not None:
        raise InputError(f"`mean` and `std` must be given together, got `std` {std} alone.", "Give both, or neither.")
    check_mean(mean)


def absolute_reference(name: str) -> str:
    """Return a reference to a model for a process in another working directory: paths in it become absolute.

    Args:
        name: a reference as listed in :mod:`shiftscope.models.loading`.

    >>> absolute_reference("timm:resnet18")
    'timm:resnet18'
    """
    if is_file(Path(name)) or is_folder(Path(name)):
        return str(Path(name).resolve())
    if is_code(name):
        file, _, attribute = name.rpartition(":")
        return f"{Path(file).resolve()}:{attribute}"
    for start in (f"{PREFIX}:", f"timm:{FOLDER}"):
        if name.startswith(start) and is_folder(Path(name.removeprefix(start))):
            return f"{start}{Path(name.removeprefix(start)).resolve()}"
    return name


def _from_code(spec: ModelSpec, weights: Path | None) -> LoadedModel:
    """Load a model that code makes: a library's, or a function of the user's own."""
    name = str(spec.factory)
    library, colon, rest = name.partition(":")
    if is_code(name):
        return _from_factory(spec, weights)
    if not colon:
        found = find_library(name)
        if found is None:
            raise InputError(
                f"there is no model {name!r}.",
                "Give `module:factory`, `path/to/file.py:factory`, `timm:name`, `torchvision:name`, `hf:name`, the folder of a "
                "study's run (studies/NAME/runs/...), a file that `shiftscope fix` wrote, a .pt2 or an .onnx file.",
            )
        library, rest = found, name
    if not is_of_library(f"{library}:"):
        return _from_factory(spec, weights)
    return _from_library(spec.model_copy(update={"factory": f"{library}:{rest}"}), weights)


def _from_library(spec: ModelSpec, weights: Path | None) -> LoadedModel:
    library, _, rest = str(spec.factory).partition(":")
    brings_weights = library == PREFIX or has_weights(rest)
    pretrained = str(weights) == PRETRAINED or (weights is None and brings_weights)
    known = _library_model(spec, pretrained=pretrained)
    described = known.origin
    if weights is None and not brings_weights:
        warnings.warn(f"{spec.factory} has random weights. Give `weights`: '{PRETRAINED}', or a file.", stacklevel=4)
        described = RANDOM
    elif weights is not None and not pretrained:
        spec, known, described = _fitted(spec, known, read_checkpoint(weights))
    found = overridden(known.preprocessing, size=None, mean=spec.mean, std=spec.deviation)
    spec = spec.model_copy(update={"mean": found.mean, "deviation": found.std})
    model = with_normalisation(known.model, found.mean, found.std).eval()
    return LoadedModel(model, spec, known.image, found.mean, known.embedding, found, described, classes=known.classes)


def _library_model(spec: ModelSpec, *, pretrained: bool, download: bool = True) -> LibraryModel:
    """Return the library's model that a specification names, without the normalisation in front."""
    library, _, name = str(spec.factory).partition(":")
    if library == PREFIX:
        return huggingface_model(name, pretrained=pretrained, download=download)
    variant = Variant(spec.classes, spec.channels, spec.size)
    return library_model(library, name, pretrained=pretrained, variant=variant, download=download)


def _fitted(spec: ModelSpec, known: LibraryModel, weights: Checkpoint) -> tuple[ModelSpec, LibraryModel, str]:
    """Return the variant of a library's model that a checkpoint fits, with its weights, and a description of both."""
    weights = weights.matched(known.own.state_dict())
    if known.core is not None:  # transformers knows the names of its earlier versions
        name = str(spec.factory).partition(":")[2]
        return spec, huggingface_model(name, pretrained=False, weights=weights.tensors), weights.describe()
    variant = known.variant_for(weights.tensors)
    described = weights.describe()
    if variant != Variant():
        spec = spec.model_copy(update={"classes": variant.classes, "channels": variant.channels})
        known = _library_model(spec, pretrained=False)
        described += "".join(f", {part}" for part in variant.describe())
    load_weights(known.own, weights)
    return spec, known, described


def _from_factory(spec: ModelSpec, weights: Path | None) -> LoadedModel:
    name = str(spec.factory)
    if weights is not None and str(weights) == PRETRAINED:
        raise InputError(
            f"`weights` '{PRETRAINED}' are for models of timm and torchvision, but your own function makes {name}.",
            "Give a file of weights.",
        )
    made = call_factory(name)
    described = f"as {name} returns them"
    if weights is not None:
        checkpoint = read_checkpoint(weights).matched(made.model.state_dict())
        load_weights(made.model, checkpoint)
        described = checkpoint.describe()
    found = overridden(made.preprocessing, size=None, mean=spec.mean, std=spec.deviation)
    spec = spec.model_copy(update={"mean": found.mean, "deviation": found.std})
    model = with_normalisation(made.model, found.mean, found.std)
    return replace(_described(model, spec, found), weights=described, code=made.code)


def _from_graph(path: Path, model: nn.Module, shape: Shape, mean: Channels | None, std: Channels | None) -> LoadedModel:
    channels, height, width = shape
    image = None if channels is None or height is None or width is None else (channels, height, width)
    own = Preprocessing(size=None if image is None else one_or_both(image[1:]), source=f"{UNKNOWN}: the file does not say")
    found = overridden(own, size=None, mean=mean, std=std)
    spec = ModelSpec(mean=mean, deviation=std)
    normalised = with_normalisation(model, mean, std).eval()
    return LoadedModel(normalised, spec, image, mean, preprocessing=found, weights=str(path), channels=channels)


def _from_run(folder: Path, *, trust: bool) -> LoadedModel:
    if (folder / "runs").is_dir():
        raise InputError(f"{folder} is a study, not a model.", f"Choose a run with --run; `shiftscope list {folder}` names them.")
    file, record = folder / MODEL, folder / RECORD
    if not file.exists() and not record.exists():
        raise InputError(f"{folder} holds no run: it has neither {MODEL} nor {RECORD}.", "Choose the folder of a run.")
    weights, metadata = read_safetensors(file)
    spec = _spec_in_metadata(file, metadata) if METADATA_KEY in metadata else _spec_in_record(record)
    return _built(spec, weights, str(file), trust=trust)


def _spec_in_record(file: Path) -> ModelSpec:
    """Read the specification of a run whose weights do not hold it."""
    with reading(file, "a complete record", "Run the study again."):
        spec = read_json(file)["spec"]
        return ModelSpec(network=spec["network"], data=spec["data"])


def _from_file(path: Path, *, trust: bool) -> LoadedModel:
    weights, metadata = read_safetensors(path)
    if METADATA_KEY not in metadata:
        raise InputError(
            f"{path} holds weights, but does not name their model.",
            "Give the model as `module:factory` or `timm:name`, and this file as its `weights`.",
        )
    return _built(_spec_in_metadata(path, metadata), weights, str(path), trust=trust)


def _spec_in_metadata(path: Path, metadata: Mapping[str, str]) -> ModelSpec:
    try:
        return ModelSpec.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        raise InputError(
            f"{path} does not say how to build its model: {validation_messages(error)[0]}", "Write the file again."
        ) from error


def _built(spec: ModelSpec, weights: Mapping[str, Tensor], source: str, *, trust: bool) -> LoadedModel:
    """Build a model that a file describes, and load its weights; code that the file names runs only if it is trusted."""
    if needs_trust(spec) and not trust:
        raise InputError(
            f"{source} is not trusted, and loading it would call `{spec.factory}`, which whoever wrote the file chose.",
            "If you trust both, pass --trust (`trust=True`).",
        )
    embedding, code, image = bool(spec.embedding), "", None
    classes: tuple[str, ...] = ()
    if spec.network is not None:
        model: nn.Module = build(spec.network, generator=stream(0, "weights"))
        found = Preprocessing(size=spec.network.input_size, source=STUDY)
        image = (spec.network.input_channels, spec.network.input_size, spec.network.input_size)
    elif spec.factory is None:
        raise InputError(f"{source} names neither a network nor a factory.", "Write the file again with `save_model`.")
    elif is_of_library(spec.factory):
        try:
            known = _library_model(spec, pretrained=False, download=False)
        except InputError as error:
            raise InputError(f"{source} needs the model {spec.factory}: {error.problem}", error.remedy) from error
        model, image, found, classes = known.model, known.image, known.preprocessing, known.classes
        embedding = embedding or known.embedding
        image = image if image is None or spec.size is None else (image[0], *both(spec.size))
    else:
        made = call_factory(spec.factory)
        model, found, code = made.model, made.preprocessing, made.code
    if spec.network is None:
        model = with_normalisation(model, spec.mean, spec.deviation)
        found = _as_saved(found, spec)
    found = _normalised(found, model, weights)  # before fixes, which may turn the layer into operations
    for fix in spec.fixes:
        if fix.kind == "anchor":
            _load_fitting(model, weights)  # how tokens lie, and what follows shifts, is tried on the trained model
        model = _fixed(model, fix, image or _fixed_input(model, found))
    load_weights(model, Checkpoint(weights, source))
    described = _described(model, spec, found if spec.source is None else replace(found, source=spec.source))
    origin = source if spec.weights is None else spec.weights
    return replace(described, image=image or described.image, embedding=embedding, weights=origin, code=code, classes=classes)


def _fixed(model: nn.Module, fix: Fix, image: tuple[int, int, int] | None) -> nn.Module:
    """Return a model with a fix. The model runs on an image only where no graph says what its layers are."""
    if fix.kind != "anchor":
        try:
            return fix.apply(model, image=None).model
        except UntraceableError:
            pass  # its layers are found by running it
    return fix.apply(model, image=image).model


def _load_fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights that a model has before its last fixes, which may change the shape of others."""
    known = model.state_dict()
    model.load_state_dict(
        {name: value for name, value in weights.items() if name in known and known[name].shape == value.shape}, strict=False
    )


def _as_saved(found: Preprocessing, spec: ModelSpec) -> Preprocessing:
    """Return the input settings of the code that makes a model, overridden by those in its file."""
    same = (spec.mean, spec.deviation) == (found.mean, found.std) and spec.size in (None, found.size)
    resized = found if spec.size is None else found.at(spec.size)
    return replace(resized, mean=spec.mean, std=spec.deviation, source=found.source if same else FILE)


def _normalised(found: Preprocessing, model: nn.Module, weights: Mapping[str, Tensor]) -> Preprocessing:
    """Return a preprocessing with the normalisation that the weights of a model hold, if nothing says it."""
    place = next((name for name, part in model.named_modules() if isinstance(part, Normalise)), None)
    mean, std = (weights.get(f"{place}.{name}") for name in ("mean", "deviation"))
    if found.mean is not None or mean is None or std is None or not mean.ndim == std.ndim == 1:
        return found  # weights of another shape are refused where they are loaded
    return replace(found, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _described(model: nn.Module, spec: ModelSpec, found: Preprocessing) -> LoadedModel:
    """Return a model with its normalisation, wherever in the model that is, and the shape of its input."""
    normalise = _normalisation(model)
    if normalise is not None and found.mean is None:
        found = replace(found, mean=tuple(normalise.mean.tolist()), std=tuple(normalise.deviation.tolist()))
    channels = len(found.mean) if found.mean else _input_channels(model)
    image = None if found.size is None or channels is None else (channels, *both(found.size))
    return LoadedModel(model.eval(), spec, image, found.mean, preprocessing=found)


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


def _resized(loaded: LoadedModel, size: Size | None) -> LoadedModel:
    """Set the height and width of the model's input, unless the model fixes them."""
    if size is None:
        return loaded
    fixed = loaded.spec.network is not None or loaded.spec.factory is None
    if fixed and loaded.image is not None and loaded.image[1:] != both(size):
        shape = "x".join(map(str, loaded.image))
        raise InputError(f"`size` {size_words(size)} does not fit: the model takes images of {shape}.", "Leave it out.")
    if loaded.image is not None and loaded.image[1:] == both(size) and loaded.preprocessing.size == size:
        return loaded
    channels = loaded.image[0] if loaded.image else len(loaded.mean) if loaded.mean else _input_channels(loaded.model)
    found = overridden(loaded.preprocessing, size=size, mean=None, std=None)
    return replace(loaded, image=None if channels is None else (channels, *both(size)), preprocessing=found)


def _fixed_input(model: nn.Module, found: Preprocessing) -> tuple[int, int, int] | None:
    """Return (channels, height, width) of a model's input; None if that is not known."""
    return None if found.size is None else (_input_channels(model) or 3, *both(found.size))


def _input_channels(model: nn.Module) -> int | None:
    """Return the channels that the first convolution takes; None without a convolution."""
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return None if first is None else first.in_channels
