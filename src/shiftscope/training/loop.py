"""Training to a target, then early stopping. It knows no architecture, no canvas and no data set.

The rule: train until every training image is right (or another target share), go on while validation improves, and keep
the best epoch. *Best* ranks an epoch that reached the target above every one that did not, then by validation accuracy, then
by validation loss. A run that never reaches its target, or whose loss is no longer a number, says so in its result.

The same seed gives the same weights, bit for bit, on the same machine with the same number of threads and the same packages
(with or without Numba, see :mod:`shiftscope.training.pools`): batch order, augmentation and random layers have their own
streams, and only deterministic algorithms are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from shiftscope.datasets.sources import Labelled
from shiftscope.engine.checks import evaluating
from shiftscope.runtime.progress import Event, Report, silent
from shiftscope.runtime.seeds import deterministic, drawing, stream
from shiftscope.runtime.settings import Spec
from shiftscope.shifts import sample
from shiftscope.training.pools import quick_pools

__all__ = [
    "SECONDS_BETWEEN_STEPS_TOLD",
    "Course",
    "Epoch",
    "Keeper",
    "Place",
    "Recipe",
    "Standing",
    "Step",
    "Training",
    "batches",
    "evaluate",
    "optimiser",
    "reaching",
    "set_rate",
    "step",
    "train",
    "worth_compiling",
]

#: The exact accuracy on all training images is worth its forward passes only when the running one is this near the target.
NEAR_TARGET = 0.01
EVALUATION_BATCH = 512
SECONDS_BETWEEN_STEPS_TOLD = 0.5
#: Compiling takes a second or two: a training that goes through fewer images than this would not gain it back.
IMAGES_WORTH_COMPILING = 20_000


class Recipe(Spec):
    """How to train.

    Attributes:
        optimiser: Adam, or SGD with momentum 0.9.
        learning_rate: at the start.
        learning_rate_decay: what the rate is multiplied by after each epoch.
        batch_size: images a step.
        max_epochs: give up after so many.
        target_train_accuracy: the share of training images to get right before stopping is considered.
        patience: once the target was reached, stop after so many epochs without a better one.
        translate: shift every training image anew in every epoch, uniformly by up to so many pixels.
        precision: ``fp32``, or ``bf16`` for mixed precision; evaluation is in fp32 either way.
    """

    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    learning_rate_decay: float = Field(1.0, gt=0, le=1)
    batch_size: int = Field(64, ge=1)
    max_epochs: int = Field(100, ge=1)
    target_train_accuracy: float = Field(1.0, gt=0, le=1)
    patience: int = Field(3, ge=0)
    translate: int = Field(0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"


@runtime_checkable
class Place(Protocol):
    """Puts raw images on their canvas, each moved by its shift where shifts are given."""

    def __call__(
        self, images: UInt8[Tensor, "image channel height width"], shifts: Int[Tensor, "image 2"] | None = None
    ) -> Float[Tensor, "image channel tall wide"]:
        """The placed images, in [0, 1]."""
        ...


@dataclass(frozen=True)
class Epoch(Event):
    """One pass over the training images.

    Attributes:
        epoch: counted from 1.
        loss: mean cross-entropy while training.
        running_accuracy: share right while training, before each step.
        train_accuracy: share of all training images right afterwards, without augmentation; None where it misses the target.
        validation_accuracy, validation_loss: afterwards.
        images_per_second: of the training steps alone.
        seconds: of the whole epoch.
    """

    epoch: int
    loss: float
    running_accuracy: float
    train_accuracy: float | None
    validation_accuracy: float
    validation_loss: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Step(Event):
    """Where a running epoch stands, told every half second."""

    epoch: int
    max_epochs: int
    done: int
    of: int
    loss: float
    images_per_second: float


@dataclass(frozen=True)
class Training:
    """How a training ended; the model then holds the kept epoch's weights.

    Attributes:
        status: ``reached`` the target, ``not reached`` it, or ``diverged``.
        kept: the epoch whose weights were kept, 0 for the untrained ones.
        epochs: all of them.
        sentence: the outcome in words.
        taken_up: how many of the epochs are of a sitting before this one.
    """

    status: Literal["reached", "not reached", "diverged"]
    kept: int
    epochs: tuple[Epoch, ...]
    sentence: str
    taken_up: int = 0


def train(
    model: nn.Module,
    data: tuple[Labelled, Labelled],
    recipe: Recipe,
    *,
    place: Place,
    seed: int,
    device: torch.device | str = "cpu",
    report: Report = silent,
    keeper: Keeper | None = None,
) -> Training:
    """Train a model in place and leave the best epoch's weights in it.

    Args:
        model: images in [0, 1] -> outputs before the softmax. It is moved to ``device``.
        data: training and validation images.
        recipe: how.
        place: puts raw images on their canvas.
        seed: of batch order and augmentation; the weights come with the model.
        device: where to train.
        report: told where the epoch stands, and of each epoch's end.
        keeper: puts the training down after each epoch, and has taken it up where it was put down before.

    Returns:
        the history and how it ended.
    """
    training, validation = (Labelled(part.images.to(device), part.labels.to(device)) for part in data)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    descent = optimiser(model.parameters(), recipe)
    order, shifts = stream(seed, "order"), stream(seed, "shifts", device)
    course = Course(model, (training, validation), recipe, place)
    pools = quick_pools(model) if worth_compiling(recipe, len(training), device) else nullcontext()
    with deterministic(device), drawing(seed, device) as layers, pools:
        standing = Standing(course, descent, {"order": order, "shifts": shifts, "layers": layers})
        if keeper is not None:
            keeper.take_up(standing)
        taken_up = len(course.epochs)
        for number in range(taken_up + 1, recipe.max_epochs + 1):
            started = perf_counter()
            pieces = batches(training, recipe, place, order, shifts)
            loss, running, speed = _one_epoch(model, descent, pieces, recipe, number, len(training), report)
            if not course.add(loss, running, speed, started):
                break
            report(course.epochs[-1])
            if course.is_over:
                break
            if keeper is not None:
                keeper.put_down(standing)
    return replace(course.end(), taken_up=taken_up)


def worth_compiling(recipe: Recipe, images: int, device: torch.device | str) -> bool:
    """Whether a training of so many images gains by :mod:`shiftscope.training.pools` here, with Numba: by one thread it does."""
    alone = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    return alone and images * recipe.max_epochs >= IMAGES_WORTH_COMPILING


class Course:
    """A training on its way: its epochs, and the best of them with its weights.

    Args:
        model: in training, on its device.
        data: training and validation images, there too.
        recipe: its target and patience.
        place: puts raw images on their canvas.
    """

    def __init__(self, model: nn.Module, data: tuple[Labelled, Labelled], recipe: Recipe, place: Place) -> None:
        self.model, self.data, self.recipe, self.place = model, data, recipe, place
        self.epochs: list[Epoch] = []
        self.kept, self.diverged = 0, False
        self.best, self.weights = (False, -1.0, 0.0), deepcopy(model.state_dict())

    def add(self, loss: float, running: float, speed: float, started: float) -> bool:
        """Ask the model after an epoch; False where it diverged.

        Args:
            loss: mean while training.
            running: share right while training.
            speed: images a second.
            started: when the epoch began.
        """
        training, validation = self.data
        target = self.recipe.target_train_accuracy
        # The loss is from before the last step, so that what the step left is asked too.
        accuracy, validation_loss = evaluate(self.model, validation, place=self.place)
        if not (isfinite(loss) and isfinite(validation_loss)):
            self.diverged = True
            return False
        exact = reaching(self.model, training, target, place=self.place) if running >= target - NEAR_TARGET else None
        number, seconds = len(self.epochs) + 1, perf_counter() - started
        self.epochs.append(Epoch(number, loss, running, exact, accuracy, validation_loss, speed, seconds))
        rank = (exact is not None, accuracy, -validation_loss)
        if rank > self.best:
            self.best, self.kept, self.weights = rank, number, deepcopy(self.model.state_dict())
        return True

    @property
    def is_over(self) -> bool:
        """Whether the target was reached and patience is at its end."""
        return self.best[0] and len(self.epochs) - self.kept >= self.recipe.patience

    def end(self) -> Training:
        """Leave the best epoch's weights in the model; how it ended."""
        self.model.load_state_dict(self.weights)
        return _ended(self.epochs, self.kept, self.recipe, len(self.epochs) + 1 if self.diverged else None)


@dataclass(frozen=True)
class Standing:
    """All that the future of a training depends on, alive.

    Attributes:
        course: the training's.
        descent: its optimiser.
        streams: what draws its batches and shifts, by purpose.
    """

    course: Course
    descent: torch.optim.Optimizer
    streams: Mapping[str, torch.Generator]


class Keeper(Protocol):
    """Keeps a training that may be interrupted (:class:`shiftscope.training.checkpoint.Checkpoint` does, in a file)."""

    def put_down(self, standing: Standing) -> None:
        """Keep where the training stands after an epoch that did not end it."""
        ...

    def take_up(self, standing: Standing) -> None:
        """Bring a training that has just begun to where it was put down, if it was."""
        ...


def evaluate(model: nn.Module, data: Labelled, *, place: Place) -> tuple[float, float]:
    """Accuracy and mean cross-entropy in evaluation mode and single precision, on the data's device."""
    right = torch.zeros((), dtype=torch.long, device=data.labels.device)
    loss = torch.zeros((), dtype=torch.float64, device=data.labels.device)
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(data), EVALUATION_BATCH):
            batch = data[start : start + EVALUATION_BATCH]
            outputs = model(place(batch.images))
            right += (outputs.argmax(1) == batch.labels).sum()
            loss += nn.functional.cross_entropy(outputs, batch.labels, reduction="sum")
    return right.item() / len(data), loss.item() / len(data)


def reaching(model: nn.Module, data: Labelled, target: float, *, place: Place) -> float | None:
    """Accuracy as :func:`evaluate` takes it; None, as soon as that is certain, where it is below a target.

    A network that is wrong on one image in a thousand shows it in the first thousand: the rest need not be asked.
    """
    allowed, wrong = int((1 - target) * len(data) + 1e-9), 0
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(data), EVALUATION_BATCH):
            batch = data[start : start + EVALUATION_BATCH]
            wrong += int((model(place(batch.images)).argmax(1) != batch.labels).sum())
            if wrong > allowed:
                return None
    return 1 - wrong / len(data)


def optimiser(parameters: Iterable[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's, at its first rate."""
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parameters, recipe.learning_rate, momentum=0.9, fused=True)
    return torch.optim.Adam(parameters, recipe.learning_rate, fused=True)


def set_rate(descent: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> None:
    """The learning rate of an epoch, counted from 1."""
    for group in descent.param_groups:
        group["lr"] = recipe.learning_rate * recipe.learning_rate_decay ** (epoch - 1)


def batches(
    data: Labelled, recipe: Recipe, place: Place, order: torch.Generator, shifts: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch's batches in random order, placed and, where the recipe says so, shifted."""
    picks = torch.randperm(len(data), generator=order).to(data.labels.device)
    for picked in picks.split(recipe.batch_size):
        moves = sample(len(picked), recipe.translate, shifts) if recipe.translate else None
        images = place(data.images[picked], moves)
        yield images.contiguous(memory_format=torch.channels_last), data.labels[picked]


def _one_epoch(
    model: nn.Module,
    descent: torch.optim.Optimizer,
    pieces: Iterator[tuple[Tensor, Tensor]],
    recipe: Recipe,
    number: int,
    count: int,
    report: Report,
) -> tuple[float, float, float]:
    """Mean loss (NaN as soon as it is not finite), running accuracy and images a second.

    Loss and accuracy stay on the device; they are read only when they are told, so that a GPU is not made to wait.
    """
    model.train()
    set_rate(descent, recipe, number)
    total: Tensor | float = 0.0
    right: Tensor | float = 0.0
    done = 0
    started = told = perf_counter()
    for images, labels in pieces:
        loss, outputs = step(model, descent, images, labels, recipe)
        total = total + loss.detach() * len(labels)
        right = right + (outputs.detach().argmax(1) == labels).sum()
        done += len(labels)
        if (now := perf_counter()) - told >= SECONDS_BETWEEN_STEPS_TOLD:
            told = now
            mean = float(total) / done
            if not abs(mean) < float("inf"):
                return float("nan"), 0.0, 0.0
            report(Step(number, recipe.max_epochs, done, count, mean, done / (now - started)))
    mean = float(total) / done
    return (mean if abs(mean) < float("inf") else float("nan")), float(right) / done, done / (perf_counter() - started)


def step(
    model: nn.Module, descent: torch.optim.Optimizer, images: Tensor, labels: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Forward, backward and one update; the loss and the outputs."""
    descent.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        outputs = model(images)
        loss = nn.functional.cross_entropy(outputs, labels)
    loss.backward()
    descent.step()
    return loss, outputs


def _ended(epochs: list[Epoch], kept: int, recipe: Recipe, diverged: int | None = None) -> Training:
    history = tuple(epochs)
    target = f"{100 * recipe.target_train_accuracy:g} % train accuracy"
    if diverged is not None:
        return Training(
            "diverged",
            kept,
            history,
            f"The loss stopped being a number in epoch {diverged}; epoch {kept} is kept. Lower the learning rate.",
        )
    reached = [epoch.epoch for epoch in epochs if epoch.train_accuracy is not None]
    if reached:
        return Training(
            "reached", kept, history, f"Reached {target} in epoch {reached[0]}; epoch {kept} of {len(epochs)} is kept."
        )
    best = max(epoch.running_accuracy for epoch in epochs)
    return Training(
        "not reached",
        kept,
        history,
        f"Did not reach {target} in {len(epochs)} epochs (while training {best:.2%}); epoch {kept} is kept. Raise `max_epochs`.",
    )
