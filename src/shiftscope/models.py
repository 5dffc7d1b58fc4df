"""A model from a name or a file. Nothing here is unpickled.

- ``module:factory``: what a function of yours returns, called without arguments;
- a run's folder (``studies/digits/runs/...``): a trained network of a study;
- a file that ``shiftscope fix`` wrote: such a model with fixes in it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.lab.data import DataSpec
from shiftscope.lab.files import write_tensors
from shiftscope.lab.networks import NetworkSpec, build
from shiftscope.lab.records import MODEL, RECORD, Record
from shiftscope.lab.seeds import stream
from shiftscope.lab.specs import Spec, mistakes
from shiftscope.surgery import Surgery, antialias, circular, global_pool, make_equivariant

__all__ = ["Fix", "Loaded", "Origin", "load_model", "save_model"]

#: Where a file's metadata keep the model's origin.
KEY = "shiftscope"


class Fix(Spec):
    """One operation of :mod:`shiftscope.surgery`.

    Attributes:
        kind: ``blur`` (a filter before each subsampling), ``aps`` or ``lps`` (polyphase sampling on circular maps), ``gap`` (a
            head that sees the mean over positions), or ``circular`` (circular padding).
        filter_size: of the binomial filter of ``blur``, ``aps`` and ``lps``; 1 does not filter.
    """

    kind: Literal["blur", "aps", "lps", "gap", "circular"]
    filter_size: int = Field(1, ge=1, le=7)

    def apply(self, model: nn.Module, *, image: tuple[int, int, int] | None) -> Surgery:
        """A changed copy of a model."""
        if self.kind == "blur":
            return antialias(model, filter_size=self.filter_size, image=image)
        if self.kind in ("aps", "lps"):
            return make_equivariant(model, method=self.kind, filter_size=self.filter_size, image=image)
        return global_pool(model, image=image) if self.kind == "gap" else circular(model, image=image)


class Origin(Spec):
    """All that is needed to make a model again, its weights apart.

    Attributes:
        factory: ``module:function``; or
        network: a network of the source's family.
        fixes: put into it, in this order.
        data: what a study trained it on.
    """

    factory: str | None = None
    network: NetworkSpec | None = None
    fixes: tuple[Fix, ...] = ()
    data: DataSpec | None = None


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, and what is known of it.

    Attributes:
        model: images in [0, 1] -> outputs.
        origin: how to make it again.
        image: (channels, height, width) it takes, where that is known.
    """

    model: nn.Module
    origin: Origin
    image: tuple[int, int, int] | None


def load_model(name: str) -> Loaded:
    """A model from a name or a file.

    Args:
        name: ``module:factory``, a run's folder, or a file of :func:`save_model`.

    Raises:
        InputError: there is none, its file is damaged or a pickle, or the factory gives no module.
    """
    path = Path(name)
    if path.is_dir():
        return _from_run(path)
    if path.suffix == ".safetensors" or path.is_file():
        return _from_file(path)
    if ":" in name:
        return _ready(Origin(factory=name), None)
    raise InputError(
        f"there is no model {name!r}. Give `module:factory`, the folder of a study's run (studies/NAME/runs/...), or a file that "
        "`shiftscope fix` wrote."
    )


def save_model(path: Path, model: nn.Module, origin: Origin) -> None:
    """Write a model's weights as safetensors, with its origin in the metadata.

    Args:
        path: of the file; it is there whole or not at all.
        model: made as ``origin`` says.
        origin: how to make it again.
    """
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    write_tensors(path, weights, metadata={KEY: origin.model_dump_json(exclude_none=True)})


def _from_run(folder: Path) -> Loaded:
    if (folder / "runs").is_dir():
        runs = sorted(run.name for run in (folder / "runs").iterdir() if (run / RECORD).exists())
        listed = ", ".join(f"{folder}/runs/{run}" for run in runs) or "none yet"
        raise InputError(f"{folder} is a study. Choose one of its runs: {listed}.")
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except OSError as error:
        raise InputError(f"{folder} holds no run: {RECORD} cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        raise InputError(f"{folder / RECORD} is not a whole record: {mistakes(error)[0]}") from error
    weights, _ = _weights(folder / MODEL)
    return _ready(Origin(network=record.spec.network, data=record.spec.data), weights, str(folder / MODEL))


def _from_file(path: Path) -> Loaded:
    weights, metadata = _weights(path)
    if KEY not in metadata:
        raise InputError(f"{path} holds weights, but not of which model. Give the model as `module:factory`.")
    try:
        origin = Origin.model_validate_json(metadata[KEY])
    except ValidationError as error:
        raise InputError(f"{path} does not say of which model it is: {mistakes(error)[0]}") from error
    return _ready(origin, weights, str(path))


def _weights(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} does not exist. Where a study's results came without weights, run the study again.")
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a safetensors file ({error}). Pickled models are not read, because a pickle can run anything: save "
            "the weights with safetensors.torch.save_file, and give the model as `module:factory`."
        ) from error


def _ready(origin: Origin, weights: Mapping[str, Tensor] | None, where: str = "") -> Loaded:
    """The model of an origin, with these weights."""
    image = None
    if origin.network is not None:
        spec = origin.network
        model: nn.Module = build(spec, generator=stream(0, "weights"))
        image = (spec.input_channels, spec.input_size, spec.input_size)
    elif origin.factory is not None:
        model = _made(origin.factory)
    else:
        raise InputError(f"{where} names neither a network nor a factory.")
    for fix in origin.fixes:
        model = fix.apply(model, image=None).model
    if weights is not None:
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(f"the weights in {where} do not fit the model: {str(error).splitlines()[-1].strip()}") from error
    return Loaded(model.eval(), origin, image)


def _made(factory: str) -> nn.Module:
    module_name, _, function = factory.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        make: Any = importlib.import_module(module_name)
        for part in function.split("."):
            make = getattr(make, part)
    except (ImportError, ValueError, SyntaxError) as error:
        raise InputError(f"the module of {factory!r} cannot be imported ({error}).") from error
    except AttributeError as error:
        raise InputError(f"{factory!r}: {error}.") from error
    try:
        model = make() if not isinstance(make, nn.Module) else make
    except Exception as error:  # whatever a user's function raises
        raise InputError(f"{factory!r} failed when it was called without arguments ({type(error).__name__}: {error}).") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{factory!r} must give a torch.nn.Module, got {type(model).__name__}.")
    return model
