"""Read weights from files, without unpickling anything, and put them and a normalisation into a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.models.family import Normalise

__all__ = ["load_weights", "read_safetensors", "read_weights", "with_normalisation"]

#: Keys under which checkpoints hold the state dict, next to other things.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "state_dict_ema")
#: Prefixes that DataParallel and torch.compile put before every name.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Return the tensors in a safetensors file, by name, and the file's metadata.

    Raises:
        InputError: the file does not exist, or is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(
            f"{path} does not exist.", "Check the path. If a study's results came without weights, run the study again."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a safetensors file ({error}); pickled models are not read, because a pickle can run any code.",
            "Save the weights with safetensors.torch.save_file and give the model as `module:factory`.",
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file, or in a state dict that ``torch.save`` wrote, by name.

    Raises:
        InputError: the file does not exist, is damaged, or holds anything but tensors by name.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if not path.is_file():
        raise InputError(f"`weights` {path} does not exist.", "Check the path.")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the archive's reader and the unpickler raise anything
        raise InputError(
            f"`weights` {path} holds more than tensors, or is damaged; a pickled model is not read, because a pickle can run any "
            "code.",
            "If you trust it, load it yourself and save its weights with safetensors.torch.save_file(model.state_dict(), FILE).",
        ) from error
    for key in STATE_DICT_KEYS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"`weights` {path} is not a state dict, which holds tensors by name.", "Save model.state_dict().")
    return {str(name): value for name, value in found.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a model, after removing the prefixes of wrappers.

    Args:
        model: the model, changed in place.
        weights: tensors by name, all that the model has.
        source: where they come from, for the error.

    Raises:
        InputError: names or shapes differ from the model's.
    """
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"the weights in {source} do not fit the model: {str(error).splitlines()[-1].strip()}",
            "Give the weights of this very architecture.",
        ) from error


def with_normalisation(model: nn.Module, mean: tuple[float, ...] | None, deviation: tuple[float, ...] | None) -> nn.Module:
    """Return the model with (images - mean) / deviation in front; the model itself if both are None.

    Args:
        model: takes normalised images.
        mean: one value per channel.
        deviation: one positive value per channel.

    Raises:
        InputError: only one of the two is given, their lengths differ, or a deviation is not positive.
    """
    if mean is None and deviation is None:
        return model
    if mean is None or deviation is None or len(mean) != len(deviation) or min(deviation) <= 0:
        raise InputError(
            f"`mean` and `std` must be given together, one value per channel, `std` positive, got {mean} and {deviation}.",
            "Give both, or neither to take the model's own.",
        )
    normalise = Normalise(len(mean))
    normalise.mean.copy_(torch.tensor(mean))
    normalise.deviation.copy_(torch.tensor(deviation))
    return nn.Sequential(normalise, model)
