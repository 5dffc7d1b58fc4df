"""Weights from files, without a pickle that could run anything; and their normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.models.family import Normalise

__all__ = ["fill", "normalised", "read_safetensors", "read_weights"]

#: Where checkpoints keep the weights beside other things.
INSIDE = ("state_dict", "model_state_dict", "model", "state_dict_ema")
#: What wrappers put before every name.
WRAPPERS = ("module.", "_orig_mod.")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """The tensors of a safetensors file and its metadata.

    Raises:
        InputError: there is none, or it is something else.
    """
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


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights from safetensors, or from a state dict that torch.save wrote.

    Raises:
        InputError: there is no such file, it holds more than tensors, or none.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if not path.is_file():
        raise InputError(f"`weights` {path} does not exist. Check the path.")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the archive and the unpickler raise
        raise InputError(
            f"`weights` {path} holds more than tensors, or is damaged. A pickled model is not read, because a pickle can run "
            "anything: where you trust it, load it yourself and save its weights with safetensors.torch.save_file("
            "model.state_dict(), FILE)."
        ) from error
    for name in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"`weights` {path} is not a state dict: tensors by name. Save model.state_dict().")
    return {str(name): value for name, value in found.items()}


def fill(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a model.

    Raises:
        InputError: they do not fit.
    """
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in weights):
            weights = {name.removeprefix(wrapper): value for name, value in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"the weights in {where} do not fit the model: {str(error).splitlines()[-1].strip()}") from error


def normalised(model: nn.Module, mean: tuple[float, ...] | None, deviation: tuple[float, ...] | None) -> nn.Module:
    """The model with (images - mean) / deviation before it; the model itself without them.

    Raises:
        InputError: only one of them, of different lengths, or a deviation that is not positive.
    """
    if mean is None and deviation is None:
        return model
    if mean is None or deviation is None or len(mean) != len(deviation) or min(deviation) <= 0:
        raise InputError(
            f"`mean` and `std` must be given together, a value a channel, `std` positive, got {mean} and {deviation}."
        )
    before = Normalise(len(mean))
    before.mean.copy_(torch.tensor(mean))
    before.deviation.copy_(torch.tensor(deviation))
    return nn.Sequential(before, model)
