"""Models from names and files."""

from __future__ import annotations

from shiftscope.models.loading import load_model, save_model
from shiftscope.models.origins import Fix, Loaded, Origin

__all__ = ["Fix", "Loaded", "Origin", "load_model", "save_model"]
