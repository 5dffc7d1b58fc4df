"""Save and resume training, bit for bit.

A checkpoint file holds everything that a training's future depends on: weights, the best epoch's weights, the optimizer's state,
the random generators' states and every epoch so far. Resumed on the same machine with the same number of threads, a training
ends in the same weights as without the interruption, bit for bit.
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

from shiftscope.errors import first_line
from shiftscope.runtime.files import checksum, write_tensors
from shiftscope.runtime.inputs import parse_json, read_tensors
from shiftscope.training.loop import Epoch, TrainingState

__all__ = ["Checkpoint"]

#: The least time between two saves. An interruption costs at most so much work.
SECONDS_BETWEEN_SAVES = 30.0
#: The format of the file. Its names (``standing``, ``sittings``, ``descent``) stay, so that older checkpoints are read.
VERSION = 1
METADATA_KEY, SESSIONS, OPTIMIZER = "standing", "sittings", "descent."


class Checkpoint:
    """Saves a training in a file and restores it (a :class:`shiftscope.training.loop.Checkpointer`).

    Args:
        path: of the file, ``.safetensors``.
        made_by: provenance of this session, field -> text.
        seconds: the least time between two saves.

    Attributes:
        sessions: provenance of the earlier sessions that computed the restored epochs, in order.
    """

    def __init__(self, path: Path, *, made_by: Mapping[str, str] | None = None, seconds: float = SECONDS_BETWEEN_SAVES) -> None:
        self.path, self.made_by, self.seconds = path, dict(made_by or {}), seconds
        self.sessions: list[dict[str, str]] = []
        self._saved = monotonic()
        self._origins = ""

    def save(self, state: TrainingState) -> None:
        """Write a training's state, unless that was done a moment ago.

        Args:
            state: of the training, after an epoch.

        Raises:
            OSError: the file cannot be written.
        """
        if monotonic() - self._saved < self.seconds:
            return
        metadata = {
            "version": VERSION,
            "recipe": state.recipe.model_dump_json(),
            "device": _device(state),
            "origins": self._origins,
            SESSIONS: [*self.sessions, self.made_by],
            "epochs": [asdict(epoch) for epoch in state.epochs],
            "kept": state.best_epoch,
            "best": state.best_rank,
        }
        write_tensors(self.path, _tensors(state), metadata={METADATA_KEY: json.dumps(metadata)})
        self._saved = monotonic()

    def restore(self, state: TrainingState) -> None:
        """Bring a training that has just begun to the saved state, if there is one. Warn about an unusable file and ignore it.

        Args:
            state: of the training; changed in place.
        """
        self._origins = checksum(state.origins())
        if not self.path.exists():
            return
        try:
            found, header = read_tensors(self.path)
            metadata, tensors = parse_json(header[METADATA_KEY]), dict(sorted(found.items()))
            epochs = [Epoch(**epoch) for epoch in metadata["epochs"]]
            if metadata["version"] != VERSION or type(state.recipe).model_validate_json(metadata["recipe"]) != state.recipe:
                raise ValueError("it is of another training")
            if metadata["device"] != _device(state):
                raise ValueError(f"it was trained on {metadata['device']}, and this is {_device(state)}")
            if metadata.get("origins", self._origins) != self._origins:  # older checkpoints have none
                raise ValueError("its seed, images or first weights are others")
            if not _matches(state, tensors):
                raise ValueError("it is of another network")
            reached, accuracy, loss = metadata["best"]
            sessions, kept = [dict(each) for each in metadata[SESSIONS]], int(metadata["kept"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{self.path} cannot be used ({first_line(error)}); training starts from the beginning.", stacklevel=2)
            return
        _load_tensors(state, tensors)
        self.sessions = sessions
        state.epochs[:] = epochs
        state.best_epoch, state.best_rank = kept, (reached, accuracy, loss)

    def remove(self) -> None:
        """Remove the file, once the finished training is safe elsewhere."""
        self.path.unlink(missing_ok=True)


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """Return all tensors of a training, by name; the optimizer's by the index of their parameter and their own name."""
    optimizer = state.optimizer.state_dict()["state"]
    return {
        **{f"weights.{name}": each for name, each in state.model.state_dict().items()},
        **{f"best.{name}": each for name, each in state.best_weights.items()},
        **{f"stream.{name}": each.get_state() for name, each in state.streams.items()},
        **{f"{OPTIMIZER}{index}.{name}": each for index, known in optimizer.items() for name, each in known.items()},
    }


def _matches(state: TrainingState, tensors: dict[str, Tensor]) -> bool:
    """Return whether a file's tensors have the names and shapes of this network and its optimizer."""
    ours = {name: each.shape for name, each in _tensors(state).items() if not name.startswith(OPTIMIZER)}
    if ours != {name: each.shape for name, each in tensors.items() if not name.startswith(OPTIMIZER)}:
        return False
    shapes = {str(index): each.shape for index, each in enumerate(_parameters(state))}
    optimizer = _part(tensors, OPTIMIZER)
    return all(each.shape in ((), shapes.get(name.partition(".")[0])) for name, each in optimizer.items())


def _load_tensors(state: TrainingState, tensors: dict[str, Tensor]) -> None:
    """Copy a file's tensors into a training."""
    state.model.load_state_dict(_part(tensors, "weights."))
    for name, each in _part(tensors, "best.").items():
        state.best_weights[name].copy_(each)
    for name, each in _part(tensors, "stream.").items():
        state.streams[name].set_state(each)
    parameters = _parameters(state)
    for name, each in _part(tensors, OPTIMIZER).items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        # Laid out in memory like the parameter too: fused optimizers go through both side by side.
        state.optimizer.state[parameter][key] = (
            torch.empty_like(parameter).copy_(each) if each.ndim else each.to(parameter.device)
        )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _device(state: TrainingState) -> str:
    """Return the kind of device that a training is on."""
    return _parameters(state)[0].device.type


def _parameters(state: TrainingState) -> list[Tensor]:
    return [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
