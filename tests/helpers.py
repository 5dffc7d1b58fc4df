"""What several tests use."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType


def as_users_import_it(module: ModuleType) -> ModuleType:
    """The module without the annotation checks that the tests add, so that its own checks are what answers."""
    name = f"plain_{module.__name__.replace('.', '_')}"
    loader = SourceFileLoader(name, str(module.__file__))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    plain = importlib.util.module_from_spec(spec)
    sys.modules[name] = plain
    loader.exec_module(plain)
    return plain
