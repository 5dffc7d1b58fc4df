"""Train a network to a target accuracy, then stop early.

Training goes on until every training image is classified correctly (or another share is), then while validation improves, and
keeps the best epoch. *Best* ranks an epoch that reached the target above every one that did not, then by validation accuracy,
then by validation loss. The result says if the target was missed or the loss diverged.

The same seed gives the same weights, bit for bit, on the same machine with the same number of threads and the same packages
(with or without Numba, see :mod:`shiftscope.training.pools`): batch order, augmentation and random layers have their own
streams, and only deterministic algorithms are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from shiftscope.datasets.sources import Labelled
from shiftscope.engine.checks import evaluating
from shiftscope.runtime.progress import Event, Report, silent
from shiftscope.runtime.seeds import deterministic, seeded_layers, stream
from shiftscope.shifts import sample
from shiftscope.training.mixed import mixed_precision
from shiftscope.training.pools import fast_max_pools
from shiftscope.training.recipe import Recipe, in_batches, make_optimizer, set_learning_rate

__all__ = [
    "SECONDS_BETWEEN_REPORTS",
    "Checkpointer",
    "Epoch",
    "Place",
    "Step",
    "Training",
    "TrainingState",
    "accuracy_if_reached",
    "batches",
    "evaluate",
    "run_epochs",
    "train",
    "train_step",
    "worth_compiling",
]

#: Measure the accuracy on all training images only if the running accuracy is this close to the target: it costs forward passes.
NEAR_TARGET = 0.01
EVALUATION_BATCH = 512
SECONDS_BETWEEN_REPORTS = 0.5
#: Compiling takes a second or two; a training that processes fewer images does not gain it back.
IMAGES_WORTH_COMPILING = 20_000


@runtime_checkable
class Place(Protocol):
    """A function that places images on their canvas, each moved by its shift if shifts are given."""

    def __call__(
        self, images: UInt8[Tensor, "image channel height width"], shifts: Int[Tensor, "image 2"] | None = None
    ) -> Float[Tensor, "image channel tall wide"]:
        """Return the placed images, in [0, 1]."""
        ...


@dataclass(frozen=True)
class Epoch(Event):
    """One pass over the training images. Run folders hold it as JSON, so its field names stay.

    Attributes:
        epoch: counted from 1.
        loss: mean cross-entropy while training.
        running_accuracy: accuracy while training, on each batch before its step.
        train_accuracy: accuracy on all training images after the epoch, without augmentation; None if it misses the target, or if
            the epoch is not better than an earlier one that reached it.
        validation_accuracy: after the epoch.
        validation_loss: mean cross-entropy after the epoch.
        images_per_second: of the training steps alone.
        seconds: of the complete epoch.
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
    """Progress within an epoch, reported twice a second.

    Attributes:
        epoch: counted from 1.
        max_epochs: the most there can be.
        done: number of images processed in this epoch.
        of: number of all training images.
        loss: mean cross-entropy so far in this epoch.
        images_per_second: so far in this epoch.
    """

    epoch: int
    max_epochs: int
    done: int
    of: int
    loss: float
    images_per_second: float

    def words(self) -> str:
        """Return the epoch, the images done in it, and the loss."""
        return f"epoch {self.epoch} of at most {self.max_epochs}: {self.done:,}/{self.of:,} images, loss {self.loss:.3f}"

    def share(self) -> float:
        """Return the share of the epoch's images."""
        return self.done / self.of


@dataclass(frozen=True)
class Training:
    """The outcome of a training, whose model then holds the best epoch's weights.

    Attributes:
        status: ``reached`` the target, ``not reached`` it, or ``diverged``.
        best_epoch: the epoch whose weights the model holds, 0 for the untrained ones.
        epochs: all of them.
        sentence: the outcome in words.
        resumed_after: number of epochs that a checkpoint brought from earlier sessions.
    """

    status: Literal["reached", "not reached", "diverged"]
    best_epoch: int
    epochs: tuple[Epoch, ...]
    sentence: str
    resumed_after: int = 0


@runtime_checkable
class Checkpointer(Protocol):
    """Saves and restores a training that may be interrupted, such as :class:`shiftscope.training.checkpoint.Checkpoint`."""

    def save(self, state: TrainingState) -> None:
        """Save the state after an epoch that did not end the training."""
        ...

    def restore(self, state: TrainingState) -> None:
        """Bring a training that has just begun to the saved state, if there is one."""
        ...


def train(
    model: nn.Module,
    data: tuple[Labelled, Labelled],
    recipe: Recipe,
    *,
    place: Place,
    seed: int,
    device: torch.device | str = "cpu",
    report: Report = silent,
    checkpoint: Checkpointer | None = None,
) -> Training:
    """Train a model in place and leave the best epoch's weights in it.

    Args:
        model: images in [0, 1] -> outputs before the softmax. It is moved to ``device``.
        data: training and validation images.
        recipe: how to train.
        place: places images on their canvas.
        seed: of batch order, augmentation and random layers; the initial weights come with the model.
        device: where to train.
        report: called with each :class:`Step` and :class:`Epoch`.
        checkpoint: restores an interrupted training, and saves this one after each epoch.

    Returns:
        the history and the outcome.
    """
    training, validation = (Labelled(part.images.to(device), part.labels.to(device)) for part in data)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    optimizer = make_optimizer(model.parameters(), recipe)
    order, shifts = stream(seed, "order"), stream(seed, "shifts", device)
    pools = fast_max_pools(model) if worth_compiling(recipe, len(training), device) else nullcontext()
    with deterministic(device), seeded_layers(seed, device) as layers, pools:
        streams = {"order": order, "shifts": shifts, "layers": layers}
        state = TrainingState(model, (training, validation), recipe, place, optimizer, streams, seed)
        resumed_after = run_epochs(state, report, checkpoint)
    return replace(state.end(), resumed_after=resumed_after)


def run_epochs(state: TrainingState, report: Report, checkpoint: Checkpointer | None) -> int:
    """Train until the training is over; return the number of epochs that a checkpoint brought.

    Args:
        state: of the training; changed in place.
        report: called with each :class:`Step` and :class:`Epoch`.
        checkpoint: restores an interrupted training, and saves this one after each epoch.
    """
    if checkpoint is not None:
        checkpoint.restore(state)
    resumed_after = len(state.epochs)
    while not state.is_over:
        started = perf_counter()
        state.add_epoch(*_train_epoch(state, report), started)
        if not state.diverged:
            report(state.epochs[-1])
        if checkpoint is not None and not state.is_over:
            checkpoint.save(state)
    return resumed_after


def worth_compiling(recipe: Recipe, images: int, device: torch.device | str) -> bool:
    """Return whether the compiled pools of :mod:`shiftscope.training.pools` make a training faster: on one CPU thread they do.

    Args:
        recipe: how to train.
        images: number of training images.
        device: where to train.
    """
    one_thread = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    return one_thread and images * recipe.max_epochs >= IMAGES_WORTH_COMPILING


@dataclass
class TrainingState:
    """A training in progress: everything that its future depends on.

    Attributes:
        model: in training, on its device.
        data: training and validation images, on the same device.
        recipe: how to train.
        place: places images on their canvas.
        optimizer: of the model's parameters.
        streams: random generators of batch order, augmentation and layers, by purpose.
        seed: of the streams.
    """

    model: nn.Module
    data: tuple[Labelled, Labelled]
    recipe: Recipe
    place: Place
    optimizer: torch.optim.Optimizer
    streams: Mapping[str, torch.Generator]
    seed: int = 0

    def __post_init__(self) -> None:
        self.epochs: list[Epoch] = []
        self.best_epoch, self.diverged = 0, False
        self.best_rank: tuple[bool, float, float] = (False, -1.0, 0.0)
        self.best_weights = deepcopy(self.model.state_dict())
        self.missed_at = 0

    def add_epoch(self, loss: float, running_accuracy: float, images_per_second: float, started: float) -> None:
        """Evaluate the model after an epoch, record the epoch, and keep the weights if it is the best.

        Args:
            loss: mean cross-entropy while training.
            running_accuracy: accuracy while training.
            images_per_second: of the training steps.
            started: when the epoch began, in seconds of ``perf_counter``.
        """
        training, validation = self.data
        target = self.recipe.target_train_accuracy
        # The loss precedes the last step; only the validation loss shows weights that blew up in it.
        accuracy, validation_loss = evaluate(self.model, validation, place=self.place)
        if not (isfinite(loss) and isfinite(validation_loss)):
            self.diverged = True
            return
        near = target > 0 and running_accuracy >= target - NEAR_TARGET
        exact = None
        if near and (True, accuracy, -validation_loss) > self.best_rank:
            exact, self.missed_at = accuracy_if_reached(self.model, training, target, place=self.place, begin=self.missed_at)
        number, seconds = len(self.epochs) + 1, perf_counter() - started
        epoch = Epoch(number, loss, running_accuracy, exact, accuracy, validation_loss, images_per_second, seconds)
        self.epochs.append(epoch)
        rank = (target == 0 or exact is not None, accuracy, -validation_loss)
        if rank > self.best_rank:
            self.best_rank, self.best_epoch, self.best_weights = rank, number, deepcopy(self.model.state_dict())

    def origins(self) -> dict[str, Tensor]:
        """Return, before the first epoch, what tells this training apart from others with its recipe."""
        training, validation = self.data
        return {
            "seed": torch.tensor(self.seed),
            "training images": training.images,
            "training labels": training.labels,
            "validation images": validation.images,
            "validation labels": validation.labels,
        }

    def begin_epoch(self) -> None:
        """Switch the model to training mode."""
        self.model.train()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches of images and labels."""
        return batches(self.data[0], self.recipe, self.place, self.streams["order"], self.streams["shifts"])

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Update the model once; return the loss and the outputs before the update."""
        return train_step(self.model, self.optimizer, images, labels, self.recipe)

    @property
    def is_over(self) -> bool:
        """Whether the loss diverged, the epochs are used up, or the target was reached and patience is exhausted."""
        exhausted = self.best_rank[0] and len(self.epochs) - self.best_epoch >= self.recipe.patience
        return self.diverged or exhausted or len(self.epochs) >= self.recipe.max_epochs

    def end(self) -> Training:
        """Load the best epoch's weights into the model and return the outcome."""
        self.model.load_state_dict(self.best_weights)
        status, sentence = self._outcome()
        return Training(status, self.best_epoch, tuple(self.epochs), sentence)

    def _outcome(self) -> tuple[Literal["reached", "not reached", "diverged"], str]:
        """Return the status and the outcome in words."""
        kept, number = f"epoch {self.best_epoch}", len(self.epochs)
        target = f"{100 * self.recipe.target_train_accuracy:g} % train accuracy"
        if self.diverged:
            return "diverged", f"The loss stopped being a number in epoch {number + 1}; {kept} is kept. Lower the learning rate."
        reached = [epoch.epoch for epoch in self.epochs if epoch.train_accuracy is not None]
        if reached:
            return "reached", f"Reached {target} in epoch {reached[0]}; {kept} of {number} is kept."
        best = max(epoch.running_accuracy for epoch in self.epochs)
        missed = f"Did not reach {target} in {number} epochs (while training {best:.2%})"
        return "not reached", f"{missed}; {kept} is kept. Raise `max_epochs`."


def evaluate(model: nn.Module, data: Labelled, *, place: Place) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy in evaluation mode and single precision.

    Args:
        model: images in [0, 1] -> outputs before the softmax, on the data's device.
        data: images and labels.
        place: places images on their canvas.
    """
    correct = torch.zeros((), dtype=torch.long, device=data.labels.device)
    loss = torch.zeros((), dtype=torch.float64, device=data.labels.device)
    with evaluating(model), torch.no_grad():
        for start in range(0, len(data), EVALUATION_BATCH):
            batch = data[start : start + EVALUATION_BATCH]
            outputs = model(place(batch.images))
            correct += (outputs.argmax(1) == batch.labels).sum()
            loss += nn.functional.cross_entropy(outputs, batch.labels, reduction="sum")
    return correct.item() / len(data), loss.item() / len(data)


def accuracy_if_reached(
    model: nn.Module, data: Labelled, target: float, *, place: Place, begin: int = 0
) -> tuple[float | None, int]:
    """Return the accuracy in evaluation mode, None as soon as it is certain to be below a target; and where to begin next time.

    A network that is wrong on one image in a thousand shows it in the first thousand, and after another epoch it is often wrong
    on the same image: the rest need not be evaluated.

    Args:
        model: images in [0, 1] -> outputs before the softmax, on the data's device.
        data: images and labels.
        target: accuracy to reach, in [0, 1].
        place: places images on their canvas.
        begin: the first image to evaluate, a multiple of the batch size; those before it come last.
    """
    allowed, wrong = int((1 - target) * len(data) + 1e-9), 0
    with evaluating(model), torch.no_grad():
        for start in (*range(begin, len(data), EVALUATION_BATCH), *range(0, begin, EVALUATION_BATCH)):
            batch = data[start : start + EVALUATION_BATCH]
            wrong += int((model(place(batch.images)).argmax(1) != batch.labels).sum())
            if wrong > allowed:
                return None, start
    return 1 - wrong / len(data), 0


def batches(
    data: Labelled, recipe: Recipe, place: Place, order: torch.Generator, shifts: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch's batches of images and labels in random order.

    Args:
        data: training images.
        recipe: gives the batch size and the largest random shift.
        place: places images on their canvas.
        order: generator of the order, on the CPU.
        shifts: generator of the shifts, on the data's device.
    """
    permutation = torch.randperm(len(data), generator=order).to(data.labels.device)
    for picked in in_batches(permutation, recipe.batch_size):
        moves = sample(len(picked), recipe.translate, shifts) if recipe.translate else None
        images = place(data.images[picked], moves)
        yield images.contiguous(memory_format=torch.channels_last), data.labels[picked]


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Update a model once; return the loss and the outputs before the update.

    Args:
        model: in training mode.
        optimizer: of its parameters.
        images: a batch in [0, 1], [image, channel, height, width].
        labels: of the images.
        recipe: gives the precision.
    """
    optimizer.zero_grad(set_to_none=True)
    with mixed_precision(images.device, enabled=recipe.precision == "bf16"):
        outputs = model(images)
        loss = nn.functional.cross_entropy(outputs, labels)
    loss.backward()
    optimizer.step()
    return loss, outputs


def _train_epoch(state: TrainingState, report: Report) -> tuple[float, float, float]:
    """Train for one epoch; return mean loss (NaN as soon as it is not finite), running accuracy and images per second.

    Loss and accuracy stay on the device and are read only to be reported, so that a GPU need not wait.
    """
    recipe, training, number = state.recipe, state.data[0], len(state.epochs) + 1
    state.begin_epoch()
    set_learning_rate(state.optimizer, recipe, number)
    total: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    done = 0
    started = reported = perf_counter()
    for images, labels in state.batches():
        loss, outputs = state.step(images, labels)
        total = total + loss.detach() * len(labels)
        correct = correct + (outputs.detach().argmax(1) == labels).sum()
        done += len(labels)
        if (now := perf_counter()) - reported >= SECONDS_BETWEEN_REPORTS:
            reported, mean = now, float(total) / done
            if not isfinite(mean):
                break
            report(Step(number, recipe.max_epochs, done, len(training), mean, done / (now - started)))
    mean = float(total) / done
    return mean if isfinite(mean) else float("nan"), float(correct) / done, done / (perf_counter() - started)
