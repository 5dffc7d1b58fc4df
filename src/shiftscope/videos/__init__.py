"""How much a model's answers change from one frame of a video to the next."""

from __future__ import annotations

from shiftscope.videos.flicker import Flicker, frames_flicker

__all__ = ["Flicker", "frames_flicker"]
