"""How a network is trained: the settings of a training, its optimizer and its batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from shiftscope.runtime.settings import Count, Settings

__all__ = ["Recipe", "in_batches", "make_optimizer", "set_learning_rate"]


class Recipe(Settings):
    """How to train.

    Attributes:
        optimiser: Adam, or SGD with momentum 0.9.
        learning_rate: of the first epoch.
        learning_rate_decay: factor of the learning rate from one epoch to the next.
        batch_size: images per step.
        max_epochs: number of epochs after which to give up.
        target_train_accuracy: share of training images to classify correctly before early stopping is considered.
        patience: epochs without a better one after which to stop, once the target was reached.
        translate: shift every training image anew in every epoch, uniformly by up to this many pixels.
        precision: ``fp32``, or ``bf16`` for mixed precision; evaluation is in fp32 either way.
    """

    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    learning_rate_decay: float = Field(1.0, gt=0, le=1)
    batch_size: Count = 64
    max_epochs: int = Field(100, ge=1, le=10**6)
    target_train_accuracy: float = Field(1.0, gt=0, le=1)
    patience: int = Field(3, ge=0, le=10**6)
    translate: int = Field(0, ge=0, le=2**14)
    precision: Literal["fp32", "bf16"] = "fp32"


def make_optimizer(parameters: Iterable[Tensor] | Iterable[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of parameters or groups of them, at its first learning rate."""
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parameters, recipe.learning_rate, momentum=0.9, fused=True)
    return torch.optim.Adam(parameters, recipe.learning_rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> None:
    """Set the recipe's learning rate of an epoch, counted from 1, times a group's ``scale``, if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("scale", 1.0) * recipe.learning_rate * recipe.learning_rate_decay ** (epoch - 1)


def in_batches(order: Int[Tensor, " image"], size: int) -> list[Int[Tensor, " batch"]]:
    """Return images in batches; a last one of a single image joins the one before, because norms need two.

    >>> [len(each) for each in in_batches(torch.arange(9), 4)]
    [4, 5]
    """
    batches = list(order.split(size))
    return [*batches[:-2], torch.cat(batches[-2:])] if len(batches) > 1 and len(batches[-1]) == 1 else batches
