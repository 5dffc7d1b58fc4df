"""What callbacks have in common: an audit of the same few images every few epochs, as numbers to log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from shiftscope.audits import audit
from shiftscope.audits.protocols import Protocol
from shiftscope.engine.batches import Images
from shiftscope.errors import InputError
from shiftscope.integrations.loggers import named_numbers

__all__ = ["Watch"]


@dataclass(frozen=True)
class Watch:
    """Which images to measure, how, and when.

    Attributes:
        images: as :func:`shiftscope.audit` takes them; the same in every epoch.
        labels: classes of all images, in order, where ``images`` holds none.
        every: number of epochs from one measurement to the next.
        protocols: names of protocols, or protocols.
        prefix: of the names of logged numbers.
        options: keywords of :func:`shiftscope.audit`, such as ``max_shift``.

    Raises:
        InputError: ``every`` is below 1.
    """

    images: Images
    labels: Int[Tensor, " image"] | None = None
    every: int = 1
    protocols: Sequence[str | Protocol] = ("mouton2020",)
    prefix: str = "shift"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"`every` must be 1 or more epochs, got {self.every}.", "Leave it out to measure every epoch.")

    def due(self, epochs: int) -> bool:
        """Return whether to measure after so many epochs."""
        return epochs > 0 and epochs % self.every == 0

    def numbers(self, model: Callable[[Tensor], Any]) -> dict[str, float]:
        """Return ``prefix/protocol/measure`` -> number."""
        found = audit(model, self.images, self.labels, protocols=self.protocols, **self.options)
        return named_numbers(found, self.prefix, intervals=False)
