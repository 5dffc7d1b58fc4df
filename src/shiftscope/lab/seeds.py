"""Random streams. A seed gives each purpose its own stream, so that drawing more for one leaves the others as they were."""

from __future__ import annotations

from hashlib import sha256

import torch

__all__ = ["stream"]


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one purpose under one seed.

    >>> stream(0, "order").initial_seed() == stream(0, "weights").initial_seed()
    False
    """
    digest = sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
