"""Several networks of one form trained at once: their weights stacked, each layer one grouped operation over all of them.

Each network sees its own batches in its own order, has its own loss and stops by its own rule, as if it were alone; only the
last bits differ, because the operations are other ones. On a GPU that a small network leaves idle this costs hardly more time
than one; on a CPU it gains nothing (``benchmarks/training.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from shiftscope.datasets.sources import Labelled
from shiftscope.runtime.progress import Report, silent
from shiftscope.runtime.seeds import deterministic, stream
from shiftscope.training.loop import (
    SECONDS_BETWEEN_REPORTS,
    Place,
    Recipe,
    Step,
    Training,
    TrainingState,
    batches,
    make_optimizer,
    set_learning_rate,
)

__all__ = ["train_together"]


def train_together(
    models: Sequence[nn.Module],
    data: tuple[Labelled, Labelled],
    recipe: Recipe,
    *,
    place: Place,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    report: Report = silent,
) -> list[Training]:
    """Train models of one form in place, each with its own seed, and leave the best epoch's weights in each.

    Args:
        models: images in [0, 1] -> outputs before the softmax; the same layers, other weights. They are moved to ``device``.
        data: training and validation images, shared.
        recipe: how, for all.
        place: puts raw images on their canvas.
        seeds: of each one's batch order and augmentation.
        device: where to train.
        report: told where the epoch stands (images of all models), and of each epoch's end, model after model.

    Returns:
        the history of each and how it ended, as :func:`shiftscope.training.loop.train` would tell.
    """
    parts = tuple(Labelled(part.images.to(device), part.labels.to(device)) for part in data)
    streams = [(stream(seed, "order"), stream(seed, "shifts", device)) for seed in seeds]
    stack = _Stack([model.to(device) for model in models], recipe)
    states = [TrainingState(model, (parts[0], parts[1]), recipe, place, stack.optimizer, {}) for model in models]
    at_work = list(range(len(models)))
    with deterministic(device):
        for number in range(1, recipe.max_epochs + 1):
            started = perf_counter()
            pieces = [batches(parts[0], recipe, place, *streams[one]) for one in at_work]
            losses, rights, speed = stack.epoch(pieces, number, len(parts[0]), report)
            stack.write_to([models[one] for one in at_work])
            going_on = []
            for row, one in enumerate(at_work):
                states[one].add_epoch(losses[row], rights[row], speed / len(at_work), started)
                if states[one].diverged:
                    continue
                report(states[one].epochs[-1])
                if not states[one].is_over:
                    going_on.append(row)
            if not going_on:
                break
            if len(going_on) < len(at_work):
                stack.keep(going_on)
                at_work = [at_work[row] for row in going_on]
    return [state.end() for state in states]


class _Stack:
    """The weights of several models along a new first axis, and what moves them."""

    def __init__(self, models: Sequence[nn.Module], recipe: Recipe) -> None:
        self.recipe = recipe
        self.weights, self.buffers = stack_module_state(list(models))
        self.form = deepcopy(models[0]).to("meta").train()
        self.optimizer = make_optimizer(self.weights.values(), recipe)

    def epoch(self, pieces: Sequence[object], number: int, count: int, report: Report) -> tuple[list[float], list[float], float]:
        """Each model's mean loss and share right, and images a second of all."""
        set_learning_rate(self.optimizer, self.recipe, number)
        losses: Tensor | float = 0.0
        rights: Tensor | float = 0.0
        done, started = 0, perf_counter()
        told = started
        for several in zip(*pieces, strict=True):
            images, labels = (torch.stack(each) for each in zip(*several, strict=True))
            loss, outputs = self._step(images, labels)
            losses = losses + loss * labels.shape[1]
            rights = rights + (outputs.argmax(-1) == labels).sum(dim=1)
            done += labels.shape[1]
            if (now := perf_counter()) - told >= SECONDS_BETWEEN_REPORTS:
                told, each = now, len(labels)
                mean = float(torch.as_tensor(losses).nanmean()) / done
                report(Step(number, self.recipe.max_epochs, each * done, each * count, mean, each * done / (now - started)))
        speed = len(torch.as_tensor(losses)) * done / (perf_counter() - started)
        return (torch.as_tensor(losses) / done).tolist(), (torch.as_tensor(rights).double() / done).tolist(), speed

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One update of every model; their losses and outputs. No gradient goes from one model to another."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            outputs: Tensor = vmap(self._outputs)(self.weights, self.buffers, images)
            losses = vmap(functional.cross_entropy)(outputs, labels)
        losses.sum().backward()
        self.optimizer.step()
        return losses.detach(), outputs.detach()

    def _outputs(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        found: Tensor = functional_call(self.form, (weights, buffers), (images,))
        return found

    def write_to(self, models: Sequence[nn.Module]) -> None:
        """Give each model its weights."""
        for row, model in enumerate(models):
            model.load_state_dict({name: each[row] for name, each in (self.weights | self.buffers).items()})

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the models; the optimiser remembers what it knew of them."""
        before, known = self.weights, self.optimizer.state
        self.weights = {name: each.detach()[rows].requires_grad_() for name, each in before.items()}
        self.buffers = {name: each[rows] for name, each in self.buffers.items()}
        self.optimizer = make_optimizer(self.weights.values(), self.recipe)
        for name, old in before.items():
            state = {key: value[rows] if value.ndim else value for key, value in known[old].items()}
            self.optimizer.state[self.weights[name]] = state
