"""Measure, explain and fix how a vision model responds to shifted images.

Modules and public names load when they are first used, so that the command line answers without waiting for PyTorch.
"""

#: Type checkers take it for true. Nothing is imported here, `__future__` neither: `python -m shiftscope` would take modules from
#: the current folder, which is taken off the import path only later.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from shiftscope.audits import Audit, audit
    from shiftscope.audits.subject import load_images
    from shiftscope.certificates import Certificate, certify
    from shiftscope.engine.outputs import Outputs, shift_outputs, stream_outputs
    from shiftscope.errors import InputError
    from shiftscope.estimates import Estimate
    from shiftscope.explanations.explanation import Explanation, explain
    from shiftscope.models import load_model
    from shiftscope.runtime.progress import show_progress
    from shiftscope.shifts import grid
    from shiftscope.surgery.compare import Fixed, fix
    from shiftscope.surveys import Survey, survey
    from shiftscope.tables import Table

__all__ = [
    "Audit",
    "Certificate",
    "Estimate",
    "Explanation",
    "Fixed",
    "InputError",
    "Outputs",
    "Survey",
    "Table",
    "audit",
    "certify",
    "explain",
    "fix",
    "grid",
    "load_images",
    "load_model",
    "shift_outputs",
    "show_progress",
    "stream_outputs",
    "survey",
]

#: The module that defines each public name.
_HOMES = {
    "Audit": "audits",
    "Certificate": "certificates",
    "Estimate": "estimates",
    "Explanation": "explanations.explanation",
    "Fixed": "surgery.compare",
    "InputError": "errors",
    "Outputs": "engine.outputs",
    "Survey": "surveys",
    "Table": "tables",
    "audit": "audits",
    "certify": "certificates",
    "explain": "explanations.explanation",
    "fix": "surgery.compare",
    "grid": "shifts",
    "load_images": "audits.subject",
    "load_model": "models",
    "shift_outputs": "engine.outputs",
    "show_progress": "runtime.progress",
    "stream_outputs": "engine.outputs",
    "survey": "surveys",
}


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"shiftscope.{_HOMES[name]}"), name)
    if name in _submodules():
        return import_module(f"shiftscope.{name}")
    raise AttributeError(f"module 'shiftscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_submodules()})


def _submodules() -> set[str]:
    from pkgutil import iter_modules

    return {module.name for module in iter_modules(__path__) if not module.name.startswith("_")}
