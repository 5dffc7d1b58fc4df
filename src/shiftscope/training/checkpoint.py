"""A training put down on its way in a file, and taken up again as if it had never stopped.

The file holds all that the training's future depends on: weights, the best epoch's weights, what the optimiser remembers,
where the random streams stand, every epoch so far. Taken up on the same machine with the same number of threads, it ends in the
same weights, bit for bit.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from shiftscope.runtime.files import write_tensors
from shiftscope.training.loop import Epoch, Recipe, Standing

__all__ = ["Checkpoint"]

#: An epoch that ends sooner after the last writing is not worth one: so much work a kill may cost.
SECONDS_BETWEEN = 30.0
VERSION = 1
#: What the optimiser remembers is called so, then by the place of its parameter and by its own name.
DESCENT = "descent."


class Checkpoint:
    """Keeps a training in a file (a :class:`shiftscope.training.loop.Keeper`).

    Args:
        path: of the file, ``.safetensors``.
        made_by: code and machine of this sitting, by name.
        seconds: between two writings, at least.

    Attributes:
        sittings: what made the epochs that were taken up, in order.
    """

    def __init__(self, path: Path, *, made_by: Mapping[str, str] | None = None, seconds: float = SECONDS_BETWEEN) -> None:
        self.path, self.made_by, self.seconds = path, dict(made_by or {}), seconds
        self.sittings: list[dict[str, str]] = []
        self._written = monotonic()

    def put_down(self, standing: Standing) -> None:
        """Write where a training stands after an epoch, unless that was done a moment ago.

        Raises:
            OSError: it cannot be written.
        """
        if monotonic() - self._written < self.seconds:
            return
        course = standing.course
        told = {
            "version": VERSION,
            "recipe": course.recipe.model_dump_json(),
            "device": _device(standing),
            "sittings": [*self.sittings, self.made_by],
            "epochs": [asdict(epoch) for epoch in course.epochs],
            "kept": course.kept,
            "best": course.best,
        }
        write_tensors(self.path, _tensors(standing), metadata={"standing": json.dumps(told)})
        self._written = monotonic()

    def take_up(self, standing: Standing) -> None:
        """Bring a training that has just begun to where it was put down, if it was. A damaged file is told and left aside."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                told = json.loads((file.metadata() or {})["standing"])
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            epochs = [Epoch(**epoch) for epoch in told["epochs"]]
            if told["version"] != VERSION or Recipe.model_validate_json(told["recipe"]) != standing.course.recipe:
                raise ValueError("it is of another training")
            if told["device"] != _device(standing):
                raise ValueError(f"it was trained on {told['device']}, and this is {_device(standing)}")
            if not _fits(standing, tensors):
                raise ValueError("it is of another network")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{self.path} cannot be used ({error}); the training begins anew.", stacklevel=2)
            return
        _restore(standing, tensors)
        self.sittings = told["sittings"]
        course = standing.course
        course.epochs[:] = epochs
        course.kept, course.best = told["kept"], tuple(told["best"])

    def drop(self) -> None:
        """Remove the file, once what it was for is safe elsewhere."""
        self.path.unlink(missing_ok=True)


def _tensors(standing: Standing) -> dict[str, Tensor]:
    """All of a training that is a tensor, by name."""
    course = standing.course
    found = {f"weights.{name}": each for name, each in course.model.state_dict().items()}
    found |= {f"best.{name}": each for name, each in course.weights.items()}
    found |= {f"stream.{name}": each.get_state() for name, each in standing.streams.items()}
    remembered = standing.descent.state_dict()["state"]
    return found | {f"{DESCENT}{place}.{name}": each for place, state in remembered.items() for name, each in state.items()}


def _fits(standing: Standing, tensors: dict[str, Tensor]) -> bool:
    """Whether a file's tensors are those of this network and its optimiser, by name and shape."""
    ours = {name: each.shape for name, each in _tensors(standing).items() if not name.startswith(DESCENT)}
    remembered = _part(tensors, DESCENT)
    if ours != {name: each.shape for name, each in tensors.items() if not name.startswith(DESCENT)}:
        return False
    shapes = {str(place): each.shape for place, each in enumerate(_parameters(standing))}
    return all(each.shape in ((), shapes.get(name.partition(".")[0])) for name, each in remembered.items())


def _restore(standing: Standing, tensors: dict[str, Tensor]) -> None:
    course = standing.course
    course.model.load_state_dict(_part(tensors, "weights."))
    for name, each in _part(tensors, "best.").items():
        course.weights[name].copy_(each)
    for name, each in _part(tensors, "stream.").items():
        standing.streams[name].set_state(each)
    parameters = _parameters(standing)
    for name, each in _part(tensors, DESCENT).items():
        place, _, what = name.partition(".")
        parameter = parameters[int(place)]
        # Like the parameter in memory too: fused optimisers go through both side by side.
        standing.descent.state[parameter][what] = (
            torch.empty_like(parameter).copy_(each) if each.ndim else each.to(parameter.device)
        )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _device(standing: Standing) -> str:
    """The kind of device that a training is on."""
    return _parameters(standing)[0].device.type


def _parameters(standing: Standing) -> list[Tensor]:
    return [parameter for group in standing.descent.param_groups for parameter in group["params"]]
