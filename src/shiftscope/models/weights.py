"""Read weights from files, without unpickling anything but tensors, and put them into a model.

Checkpoints wrap their weights in two ways: the file holds a mapping beside other things (``state_dict``), and wrappers put a
prefix before every name (``module.``). Both are removed; :meth:`Checkpoint.describe` says which.
"""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from shiftscope.errors import InputError, first_line, shortened
from shiftscope.models.archives import check_checkpoint
from shiftscope.models.family import Normalise
from shiftscope.models.spec import METADATA_KEY, ModelSpec
from shiftscope.runtime.inputs import is_file, is_folder, read_json, read_tensors, reading

__all__ = ["Checkpoint", "load_weights", "read_checkpoint", "read_safetensors", "with_normalisation"]

#: Keys under which checkpoints hold their weights beside other things; the first that exists is used.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "model_ema", "ema", "state_dict_ema")
#: Prefixes of DataParallel, torch.compile, Lightning modules and the usual wrappers around a backbone.
WRAPPER_PREFIXES = ("module.", "model.", "backbone.", "encoder.", "net.", "_orig_mod.")
#: The end of the name of a JSON file that says which of several safetensors files holds which tensor.
INDEX = ".index.json"
#: How many names an error lists, and the most characters of each.
LISTED, LONGEST_NAME = 2, 80

#: Converts a checkpoint that holds more than tensors. Run it on trusted files only, because unpickling runs their code.
CONVERSION = (
    'import sys, torch; from safetensors.torch import save_file; c = torch.load(sys.argv[1], "cpu", weights_only=False); '
    'c = next((c[k] for k in ("state_dict", "model_state_dict", "model") if k in c), c) if isinstance(c, dict) else c; '
    'c = c.state_dict() if hasattr(c, "state_dict") else c; '
    "save_file({k: v.clone().contiguous() for k, v in c.items() if torch.is_tensor(v)}, sys.argv[2])"
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name, and where they come from.

    Attributes:
        tensors: by name.
        source: the file.
        part: the key in the file that held the weights; empty if they were at the top level.
        prefix: removed from the names.
        left_out: names without that prefix, which do not belong to the model.
    """

    tensors: Mapping[str, Tensor]
    source: str
    part: str = ""
    prefix: str = ""
    left_out: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return where the weights come from, and what was removed to read them, in words."""
        removed = [f"`{self.part}`"] if self.part else []
        removed += [f"prefix `{self.prefix}` removed"] if self.prefix else []
        removed += [f"left out: {_listed(self.left_out)}"] if self.left_out else []
        return f"{self.source} ({'; '.join(removed)})" if removed else self.source

    def matched(self, names: Collection[str]) -> Checkpoint:
        """Return the checkpoint without the wrappers' prefix whose removal makes most names match the model's.

        Args:
            names: of the model's weights.

        Raises:
            InputError: two prefixes fit equally well, so that the file holds weights for the model twice.
        """
        known = set(names)
        prefixes = sorted(
            {prefix for name in self.tensors for prefix in _prefixes(name)}, key=lambda prefix: (len(prefix), prefix)
        )
        hits = {prefix: sum(name.removeprefix(prefix) in known for name in self._below(prefix)) for prefix in prefixes}
        best = max(hits, key=lambda prefix: hits[prefix], default="")
        rivals = [prefix for prefix in prefixes if hits[prefix] == hits[best]]
        if hits.get(best) and len(rivals) > 1:
            raise InputError(
                f"{self.source} holds weights for the model under {' and '.join(f'`{each}`' for each in rivals)}.",
                "Save the intended ones in a separate file.",
            )
        inside = {name.removeprefix(best): self.tensors[name] for name in self._below(best)}
        left_out = tuple(name for name in self.tensors if not name.startswith(best))
        return replace(self, tensors=inside, prefix=best, left_out=left_out)

    def _below(self, prefix: str) -> list[str]:
        return [name for name in self.tensors if name.startswith(prefix)]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Return the tensors in a safetensors file, by name, and the file's metadata.

    Raises:
        InputError: the file does not exist, or is not a complete safetensors file.
    """
    if not path.exists():
        raise InputError(
            f"{path} does not exist.", "Check the path. If a study's results came without weights, run the study again."
        )
    if is_file(path) and _is_pickle(path):
        raise InputError(
            f"{path} is not a safetensors file, but what torch.save wrote; a pickle can run any code, so it is not read.",
            "Give the model as `timm:NAME` or `module:factory`, and this file as its `weights` if it holds only tensors.",
        )
    with reading(path, "a safetensors file", "Copy or download it again, or save the weights again."):
        return read_tensors(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read weights: a safetensors file, the index of several, or a checkpoint that ``torch.save`` wrote.

    Only tensors are unpickled from a checkpoint. Its weights may lie under ``state_dict``, ``model_state_dict``, ``model``,
    ``model_ema``, ``ema`` or ``state_dict_ema``; the first of these keys that exists is used.

    Raises:
        InputError: the file does not exist, is damaged, holds a fixed copy, or no tensors by name, or more than ``torch.load``
            reads without running code.
    """
    if is_folder(path):
        raise InputError(f"`weights` must be a file, and {path} is a folder.", "Give the file in it, such as model.safetensors.")
    if not is_file(path):
        raise InputError(f"`weights` {path} does not exist.", "Check the path.")
    if path.name.endswith(INDEX):
        return Checkpoint(_read_index(path), str(path))
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        _check_unfixed(path, metadata)
        return Checkpoint(tensors, str(path))
    found, part = _unwrapped(_load_tensors(path))
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)} if found else {}
    if not tensors:
        held = f"holds {_listed([str(key) for key in found])}" if found else "holds none"
        raise InputError(
            f"`weights` {path} is not a state dict, which holds tensors by name; it {held}.", "Save model.state_dict()."
        )
    return Checkpoint(tensors, str(path), part)


def _check_unfixed(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse the file of a fixed copy, whose weights fit the model without the fix, too."""
    with suppress(ValidationError):
        fixes = ModelSpec.model_validate_json(metadata.get(METADATA_KEY, "{}")).fixes
        if fixes:
            raise InputError(
                f"`weights` {path} is a fixed copy ({', '.join(each.kind for each in fixes)}), and its weights alone give the "
                "model without the fix.",
                f"Give {path} as the model itself.",
            )


def load_weights(model: nn.Module, weights: Checkpoint) -> None:
    """Load weights into a model.

    Args:
        model: the model, changed in place.
        weights: all that the model has, under the model's own names.

    Raises:
        InputError: names or shapes differ from the model's; it lists the first of them.
    """
    try:
        model.load_state_dict(dict(weights.tensors))
    except (RuntimeError, TypeError) as error:
        differences = _differences(model.state_dict(), weights.tensors) or [first_line(error)]
        raise InputError(
            f"the weights in {weights.describe()} do not fit the model: {'; '.join(differences)}.",
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


def _load_tensors(path: Path) -> Any:
    """Return what ``torch.save`` wrote, if it is tensors, numbers, text and collections of them."""
    with reading(path, "a file of weights", "Copy or save it again."):
        check_checkpoint(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises anything
        others = _other_objects(path)
        if not others and not _is_pickle(path):
            raise InputError(f"`weights` {path} is damaged, or is not a file of weights.", "Copy or save it again.") from error
        held = f"more than tensors ({_listed(others)})" if others else "more than tensors, or is damaged"
        raise InputError(
            f"`weights` {path} holds {held}; only tensors are read, because a pickle can run any code.",
            f"If you trust whoever wrote it, convert it once:\n  {_conversion(path)}",
        ) from error


def _conversion(path: Path) -> str:
    """Return the command that converts a checkpoint to safetensors by unpickling it."""
    return shlex.join(["python", "-c", CONVERSION, str(path), str(path.with_suffix(".safetensors"))])


def _other_objects(path: Path) -> list[str]:
    """Return the names of functions and classes, beside tensors, that a checkpoint would call when it is unpickled."""
    with suppress(Exception):  # not an archive, or damaged
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return []


def _is_pickle(path: Path) -> bool:
    """Return whether a file is an archive of ``torch.save``, or begins like a pickle and not like a safetensors file."""
    with path.open("rb") as file:
        start = file.read(9)
    return zipfile.is_zipfile(path) or (start[:1] == b"\x80" and start[4:] != b"\0\0\0\0{")


def _unwrapped(found: Any) -> tuple[Mapping[Any, Any], str]:
    """Return the weights in a checkpoint, and the keys under which they lay."""
    keys: list[str] = []
    while isinstance(found, Mapping):
        key = next((key for key in STATE_DICT_KEYS if isinstance(found.get(key), Mapping)), None)
        if key is None:
            return found, ".".join(keys)
        keys.append(key)
        found = found[key]
    return {}, ""


def _read_index(path: Path) -> dict[str, Tensor]:
    """Return the tensors of several safetensors files beside an index, which says which tensor lies where."""
    remedy = "Copy or download it again, with the files that it names."
    with reading(path, "the index of safetensors files", remedy):
        places = read_json(path)["weight_map"]
        files = sorted({str(file) for file in places.values()})
    outside = [file for file in files if not file or Path(file).name != file]
    if outside:
        raise InputError(f"`weights` {path} names {outside[0]!r}, which does not lie beside it.", remedy)
    found = {name: value for file in files for name, value in read_safetensors(path.with_name(file))[0].items()}
    missing = [name for name in places if name not in found]
    if missing:
        raise InputError(f"`weights` {path} names tensors that its files do not hold: {_listed(missing)}.", remedy)
    return {name: found[name] for name in places}


def _prefixes(name: str) -> list[str]:
    """Return every chain of wrappers' prefixes at the start of a name, the empty one included."""
    found = [""]
    while prefix := next((each for each in WRAPPER_PREFIXES if name.startswith(found[-1] + each)), None):
        found.append(found[-1] + prefix)
    return found


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Say which weights are missing, unexpected or of another shape; the first few of each."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        f"{name} is {_shape(given[name])} in the file and {_shape(expected[name])} in the model"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return [f"{len(each)} {kind} ({_listed(each)})" for kind, each in groups if each]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"


def _listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(shortened(name, LONGEST_NAME) for name in names[:LISTED]) + more
