"""A callback of Lightning that measures a model under shifts while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from shiftscope.audits.protocols import Protocol
from shiftscope.engine.batches import Images
from shiftscope.integrations.watching import Watch

__all__ = ["ShiftCallback"]


class ShiftCallback(Callback):  # type: ignore[misc]  # lightning is not read for its types
    """Audit the same images every few epochs, and log each number with the module's logger.

    Numbers are called ``shift/PROTOCOL/MEASURE``, so that checkpoints and early stopping can follow ``shift/mouton2020/mcs``.
    Several processes measure the same images and log the same numbers.

    Args:
        images: in [0, 1]; a tensor, or a data loader of images or pairs of images and labels.
        labels: classes of all images, in order, where ``images`` holds none.
        every: number of epochs from one measurement to the next.
        protocols: names of protocols, or protocols.
        prefix: of the names of logged numbers.
        **options: keywords of :func:`shiftscope.audit`, such as ``max_shift``.
    """

    def __init__(
        self,
        images: Images,
        labels: Int[Tensor, " image"] | None = None,
        *,
        every: int = 1,
        protocols: Sequence[str | Protocol] = ("mouton2020",),
        prefix: str = "shift",
        **options: Any,
    ) -> None:
        self.watch = Watch(images, labels, every, protocols, prefix, options)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        if self.watch.due(trainer.current_epoch + 1):
            pl_module.log_dict(self.watch.numbers(pl_module))
