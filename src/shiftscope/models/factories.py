"""A model that a function of the user's own makes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from torch import nn

from shiftscope.errors import InputError

__all__ = ["made"]


def made(factory: str) -> nn.Module:
    """What ``module:function`` gives when it is called without arguments, or the module that it names.

    Raises:
        InputError: it cannot be imported, fails, or gives no module.
    """
    module_name, _, function = factory.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        make: Any = importlib.import_module(module_name)
        for part in function.split("."):
            make = getattr(make, part)
    except AttributeError as error:
        raise InputError(f"{factory!r}: {error}.") from error
    except Exception as error:  # whatever a user's module raises
        raise InputError(f"the module of {factory!r} cannot be imported ({type(error).__name__}: {error}).") from error
    try:
        model = make() if not isinstance(make, nn.Module) else make
    except Exception as error:  # whatever a user's function raises
        raise InputError(f"{factory!r} failed when it was called without arguments ({type(error).__name__}: {error}).") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{factory!r} must give a torch.nn.Module, got {type(model).__name__}.")
    return model
