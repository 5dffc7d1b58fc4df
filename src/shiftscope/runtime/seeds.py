"""Make runs repeatable: random streams, deterministic algorithms, and samples that leave nothing to chance.

A seed gives each purpose its own stream, so that drawing more numbers for one purpose does not change the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch

__all__ = ["deterministic", "evenly_spread", "seeded_layers", "stream"]


def stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the random generator of one purpose under one seed.

    Args:
        seed: of the run.
        purpose: what the numbers are for, such as "order".
        device: where the numbers are drawn.

    >>> stream(0, "order").initial_seed() == stream(0, "weights").initial_seed()
    False
    """
    digest = sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def evenly_spread(count: int, most: int) -> list[int]:
    """Return the indices of at most ``most`` of ``count`` items, evenly spread, increasing: the middles of equal parts.

    >>> evenly_spread(100, 4)
    [12, 37, 62, 87]
    """
    few = min(count, most)
    return [(2 * number + 1) * count // (2 * few) for number in range(few)]


@contextmanager
def deterministic(device: torch.device | str) -> Iterator[None]:
    """Use only deterministic algorithms for the duration, and restore PyTorch's global settings afterwards.

    Args:
        device: the one that computes.
    """
    if torch.device(device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    filling: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, filling.fill_uninitialized_memory
    filling.fill_uninitialized_memory = False  # it costs time and changes nothing: no uninitialised memory is read
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
        filling.fill_uninitialized_memory = before[2]


@contextmanager
def seeded_layers(seed: int, device: torch.device | str) -> Iterator[torch.Generator]:
    """Seed PyTorch's global generator, from which random layers draw, for the duration; restore its state afterwards.

    Anything else that draws from it meanwhile changes the layers' numbers.

    Args:
        seed: of the run.
        device: where the layers are.
    """
    place = torch.device(device)
    generator = torch.cuda.default_generators[place.index or 0] if place.type == "cuda" else torch.default_generator
    before = generator.get_state()
    generator.manual_seed(stream(seed, "layers").initial_seed())
    try:
        yield generator
    finally:
        generator.set_state(before)
