"""What makes a run repeatable: random streams, and algorithms without chance.

A seed gives each purpose its own stream, so that drawing more for one leaves the others as they were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch

__all__ = ["deterministic", "drawing", "stream"]


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one purpose under one seed.

    >>> stream(0, "order").initial_seed() == stream(0, "weights").initial_seed()
    False
    """
    digest = sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def deterministic(device: torch.device | str) -> Iterator[None]:
    """Only deterministic algorithms; every global switch as it was afterwards."""
    if torch.device(device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    filling: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory
    filling.fill_uninitialized_memory = False  # it would cost time and change nothing: no uninitialised memory is read
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
        filling.fill_uninitialized_memory = before[2]


@contextmanager
def drawing(seed: int, device: torch.device | str) -> Iterator[torch.Generator]:
    """PyTorch's own generator, from which layers draw, on the seed's stream; where it was afterwards.

    Whatever else draws from it meanwhile takes the layers' numbers.
    """
    place = torch.device(device)
    own = torch.cuda.default_generators[place.index or 0] if place.type == "cuda" else torch.default_generator
    before = own.get_state()
    own.manual_seed(stream(seed, "layers").initial_seed())
    try:
        yield own
    finally:
        own.set_state(before)
