"""Load a model from a name or a file, and save one."""

from __future__ import annotations

from shiftscope.models.loading import LoadedModel, absolute_reference, load_model
from shiftscope.models.spec import Fix, ModelSpec, Tuned, save_model
from shiftscope.models.trust import needs_trust

__all__ = ["Fix", "LoadedModel", "ModelSpec", "Tuned", "absolute_reference", "load_model", "needs_trust", "save_model"]
