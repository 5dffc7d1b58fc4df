"""A callback of Hugging Face's Trainer that measures a model under shifts while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shiftscope.audits.protocols import Protocol
from shiftscope.engine.batches import Images
from shiftscope.integrations.watching import Watch

__all__ = ["ShiftTrainerCallback"]


class ShiftTrainerCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not read for its types
    """Audit the same images every few epochs, and log each number as the trainer logs its own.

    ``trainer.add_callback(ShiftTrainerCallback(trainer, images))``. Numbers are called ``shift/PROTOCOL/MEASURE``.

    Args:
        trainer: that logs the numbers.
        images: as the model receives them as ``pixel_values``; a tensor or a data loader.
        labels: classes of all images, in order, where ``images`` holds none.
        every: number of epochs from one measurement to the next.
        protocols: names of protocols, or protocols.
        prefix: of the names of logged numbers.
        **options: keywords of :func:`shiftscope.audit`, such as ``max_shift``; ``fill`` is the background in the units of
            ``pixel_values``.
    """

    def __init__(
        self,
        trainer: Trainer,
        images: Images,
        labels: Int[Tensor, " image"] | None = None,
        *,
        every: int = 1,
        protocols: Sequence[str | Protocol] = ("mouton2020",),
        prefix: str = "shift",
        **options: Any,
    ) -> None:
        self.trainer = trainer
        self.watch = Watch(images, labels, every, protocols, prefix, options)

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer's protocol
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - the trainer's protocol
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Measure and log."""
        if model is not None and self.watch.due(round(state.epoch or 0)):
            self.trainer.log(self.watch.numbers(model))
