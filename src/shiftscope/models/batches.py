"""A model from a file whose graph takes batches of one fixed size, or of any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["InBatches"]


class InBatches(nn.Module):
    """Runs a callable in batches of its own size; the last is filled up with copies of its last image, which are cut off.

    Args:
        run: images -> a tensor or tensors by name, all with an entry an image.
        batch: the size that it takes; None for any.
    """

    def __init__(self, run: Callable[[Tensor], Any], batch: int | None) -> None:
        super().__init__()
        # Hidden from the module's own parts: an exported graph refuses to change its mode.
        self._run = (run,)
        self.batch = batch

    def forward(self, images: Tensor | fx.Proxy) -> Any:
        """The outputs of all images."""
        if isinstance(images, fx.Proxy):
            raise TypeError("its layers are in a file that can only be run")
        if self.batch is None:
            return self._run[0](images)
        pieces = [self._piece(part) for part in images.split(self.batch)]
        if isinstance(pieces[0], dict):
            return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        if isinstance(pieces[0], list | tuple):
            return tuple(torch.cat(list(each)) for each in zip(*pieces, strict=True))
        return torch.cat(pieces)

    def _piece(self, images: Tensor) -> Any:
        count, missing = len(images), (self.batch or 0) - len(images)
        if missing:
            images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        raw = self._run[0](images)
        if isinstance(raw, dict):
            return {name: value[:count] for name, value in raw.items()}
        return tuple(value[:count] for value in raw) if isinstance(raw, list | tuple) else raw[:count]
