"""Files of a model on the Hugging Face hub: from its local cache if they are there, else downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from shiftscope.errors import InputError, first_line
from shiftscope.runtime.network import hub_answers

__all__ = ["hub_folder", "named"]

CONFIGS = ["config.json", "preprocessor_config.json", "processor_config.json"]
SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
#: What PyTorch writes; only tensors are read from it.
BINARY = ["pytorch_model.bin"]

#: owner/name or name, and a branch, tag or commit.
ID = re.compile(r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[\w./-]+))?")


def hub_folder(model: str, *, weights: bool = True, download: bool = True) -> Path:
    """Return the local folder with the files of a model of the Hugging Face hub.

    Args:
        model: ``owner/name``, or ``owner/name@revision``.
        weights: whether its weights are needed; otherwise its configuration is enough.
        download: whether the network may be used for what is not in the local cache.

    Raises:
        InputError: ``huggingface_hub`` is not installed, there is no such model, or it cannot be reached and is not cached.
    """
    found = ID.fullmatch(model)
    if found is None:
        raise InputError(
            f"{model!r} is neither a folder here nor a name on the Hugging Face hub.",
            "Check the path, or write owner/name or owner/name@revision.",
        )
    name, revision = found["name"], found["revision"]
    folder = _snapshot(name, revision, CONFIGS + SAFETENSORS + BINARY, online=False)
    if folder is not None and _complete(folder, weights=weights):
        return folder
    if not download or not hub_answers():
        why = "cannot be reached" if download else "is not contacted for a model that a file names"
        raise InputError(
            f"the model {model!r} is not in the local cache, and the Hugging Face hub {why}.",
            "Check the path if it is a folder, and the network if it is not; or load the model once by its name.",
        )
    folder = _snapshot(name, revision, CONFIGS + SAFETENSORS * weights, online=True)
    if weights and folder is not None and not _has_weights(folder):
        folder = _snapshot(name, revision, CONFIGS + BINARY, online=True)
    if folder is None or not _complete(folder, weights=weights):
        raise InputError(
            f"the model {model!r} has no config.json with model.safetensors or pytorch_model.bin.", "Choose another model."
        )
    return folder


def named(model: str, folder: Path) -> str:
    """Return a model's name with the commit of its folder in the local cache.

    Args:
        model: ``owner/name``, or ``owner/name@revision``.
        folder: of :func:`hub_folder`.
    """
    return f"{model.partition('@')[0]}@{folder.name[:8]}"


def _snapshot(name: str, revision: str | None, patterns: list[str], *, online: bool) -> Path | None:
    """Return the folder of a model's files; None if it is not cached and ``online`` is False."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise InputError(
            "models of the Hugging Face hub need the package `huggingface_hub`.", "Run `pip install 'shiftscope[transformers]'`."
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=not online))
    except LocalEntryNotFoundError as error:
        if not online:
            return None
        raise _unreachable(name, error) from error
    except Exception as error:  # the library raises errors of its own, of HTTP and of the disk
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> InputError:
    return InputError(
        f"the model {name!r} cannot be loaded from the Hugging Face hub ({first_line(error)}).",
        "Check its name and the network; a private model needs `hf auth login`.",
    )


def _complete(folder: Path, *, weights: bool) -> bool:
    return (folder / "config.json").is_file() and (not weights or _has_weights(folder))


def _has_weights(folder: Path) -> bool:
    """Return whether a folder has weights; if it has an index, all files that the index names."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any((folder / name).is_file() for name in ("model.safetensors", *BINARY))
    named = set(re.findall(r'"(model-[\w.-]+\.safetensors)"', index.read_text(encoding="utf-8")))
    return bool(named) and named <= {file.name for file in folder.iterdir()}
