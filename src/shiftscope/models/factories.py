"""Models from the user's own code: a function in an importable module, or in a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.errors import InputError
from shiftscope.models.huggingface import of_pretrained
from shiftscope.models.preprocessing import from_description, of_model

__all__ = ["FactoryModel", "call_factory", "is_code"]


@dataclass(frozen=True)
class FactoryModel:
    """A model that the user's code returned.

    Attributes:
        model: the model, without a normalisation in front.
        preprocessing: what the factory or the model itself says about its input.
        code: the file that ran, in words; empty if it is unknown, or if the reference names it.
    """

    model: nn.Module
    preprocessing: Preprocessing
    code: str


def is_code(reference: str) -> bool:
    """Return whether a reference names a function in a Python file: ``path/to/mine.py:factory``."""
    file, colon, _ = reference.rpartition(":")
    return bool(colon) and file.endswith(".py")


def call_factory(reference: str) -> FactoryModel:
    """Return the model that a function returns when called without arguments, or the module that the reference names.

    The function may return its preprocessing too: ``(model, preprocessing)``, the latter in any form that
    :func:`shiftscope.models.preprocessing.from_description` knows. PyTorch's random state on the CPU is that of seed 0 meanwhile.

    Args:
        reference: ``module:function``, with the working directory on the import path; or ``path/to/file.py:function``, which runs
            that file, with its folder on the import path.

    Raises:
        InputError: importing or calling it fails, or the result is not a ``torch.nn.Module``.
    """
    source, _, attribute = reference.rpartition(":")
    # A fixed seed, so that every command measures the same random weights, without touching the global random state.
    with torch.random.fork_rng(devices=[]), _import_path(source):
        torch.default_generator.manual_seed(0)
        module = _module(reference, source)
        try:
            factory: Any = module
            for part in attribute.split("."):
                factory = getattr(factory, part)
        except AttributeError as error:
            raise InputError(f"{reference!r}: {error}.", "Check the function's name.") from error
        try:
            found = factory if isinstance(factory, nn.Module) else factory()
        except Exception as error:  # a user's function raises anything
            raise InputError(
                f"{reference!r} failed when called without arguments ({type(error).__name__}: {error}).",
                "Give a function that needs none.",
            ) from error
    return _described(reference, found, "" if source.endswith(".py") else _file(module))


def _described(reference: str, found: Any, code: str) -> FactoryModel:
    """Return the model, and the preprocessing that came with it or that it states itself."""
    model, given = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"{reference!r} must return a torch.nn.Module, got {type(model).__name__}.", "Return the model itself.")
    preprocessing = of_pretrained(model) or of_model(model) if given is None else from_description(given)
    if preprocessing is None:
        raise InputError(
            f"{reference!r} returns a model and a {type(given).__name__}, which does not describe preprocessing.",
            "Return the model alone, or with a dictionary of size, mean and std.",
        )
    return FactoryModel(model, preprocessing, code)


def _file(module: ModuleType) -> str:
    """Return a module's file in words; relative to the working directory if it lies there."""
    if not getattr(module, "__file__", None):
        return ""
    file, here = Path(str(module.__file__)).resolve(), Path.cwd().resolve()
    return f"{file.relative_to(here)} of the current folder" if file.is_relative_to(here) else str(file)


@contextmanager
def _import_path(source: str) -> Iterator[None]:
    """Put the working directory (for a module) or the file's folder on the import path during the block."""
    is_file = source.endswith(".py")
    folder = str(Path(source).resolve().parent if is_file else Path.cwd())
    if folder in sys.path or (not is_file and "" in sys.path):
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if is_file:  # a module's folder stays, since its model may import more of its neighbours when it runs
            with suppress(ValueError):
                sys.path.remove(folder)


def _module(reference: str, source: str) -> ModuleType:
    """Import a module, or run a file as one."""
    if source.endswith(".py") and not Path(source).is_file():
        raise InputError(f"{source} does not exist.", "Check the path.")
    try:
        return _run_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:  # a user's module raises anything
        remedy = (
            "Fix it, or install what it imports."
            if source.endswith(".py")
            else f"Install it, run the command in its folder ({Path.cwd()} is on the import path, because the model is given as "
            "`module:factory`), or give its file: `path/to/file.py:factory`."
        )
        raise InputError(f"the module of {reference!r} cannot be imported ({type(error).__name__}: {error}).", remedy) from error


def _run_file(file: Path) -> ModuleType:
    """Run a Python file as a module of its own, under a name that no other module has."""
    path = file.resolve()
    name = f"{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
