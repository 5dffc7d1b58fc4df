"""Train a changed model on labelled images, so that it classifies them wherever they lie.

The loop, its checkpoints and its determinism are those of :mod:`shiftscope.training.loop`. What differs: the first weights
count as epoch 0 and are kept if no epoch is better; validation images are shifted too, each by one shift that
stays; and there is no accuracy to reach, so that training stops as soon as validation does not improve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from shiftscope.datasets.sources import Labelled
from shiftscope.engine.batches import Images, gather
from shiftscope.engine.checks import check_classes, check_fill, check_images, check_labels, check_size, device_of, evaluating
from shiftscope.engine.direct import Canvas
from shiftscope.errors import InputError
from shiftscope.runtime.progress import Report, silent
from shiftscope.runtime.seeds import deterministic, seeded_layers, stream
from shiftscope.shifts import Mode, sample
from shiftscope.surgery.copying import copied
from shiftscope.training.loop import Checkpointer, Training, TrainingState, evaluate, run_epochs
from shiftscope.training.mixed import mixed_precision
from shiftscope.training.objectives import Consistency, EveryShift, Objective, RandomShifts
from shiftscope.training.recipe import Recipe, in_batches, make_optimizer

__all__ = ["FineTuned", "FineTuning", "check_every_shift", "fine_tune", "layer_rates"]

#: The share of the images that is held out for validation.
VALIDATION = 5


class FineTuning(Recipe):
    """How to fine-tune: a :class:`shiftscope.training.recipe.Recipe` with shifts and without a target accuracy.

    Attributes:
        learning_rate: of the last layer, in the first epoch.
        max_epochs: the most epochs; training stops earlier as :attr:`patience` says.
        target_train_accuracy: must stay 0, as there is no accuracy to reach.
        patience: epochs without a better one after which to stop, at least 1.
        translate: the largest shift along each axis, pixels.
        mode: what comes in at the border.
        shifts: random shifts of each image in a step.
        every_shift: all shifts of each image in a step, in one pass, instead of random ones. Batch norms then keep their running
            statistics, and dropout drops nothing.
        consistency: a term that penalises outputs that change under shifts, see :func:`shiftscope.training.inconsistency`.
        consistency_weight: of that term.
        layer_decay: learning rate of a layer relative to that of the layer after it.
    """

    learning_rate: float = Field(3e-4, gt=0)
    max_epochs: int = Field(10, ge=1)
    target_train_accuracy: float = Field(0.0, ge=0, le=0)
    patience: int = Field(3, ge=1, le=10**6)
    translate: int = Field(8, ge=0)
    mode: Mode = "zero"
    shifts: int = Field(1, ge=1)
    every_shift: bool = False
    consistency: Consistency = "none"
    consistency_weight: float = Field(1.0, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)


@dataclass(frozen=True)
class FineTuned:
    """A trained copy of a model.

    Attributes:
        model: the copy, with the weights of its best epoch.
        training: its epochs and outcome.
        stopped: whether Ctrl-C ended it.
    """

    model: nn.Module
    training: Training
    stopped: bool = False


def fine_tune(
    model: nn.Module,
    data: Images,
    labels: Tensor | None = None,
    settings: FineTuning | None = None,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    size: tuple[int, int] | None = None,
    fill: Float[Tensor, " channel"] | float = 0.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    report: Report = silent,
    checkpoint: Checkpointer | None = None,
) -> FineTuned:
    """Train a copy of a model on labelled images under shifts, and keep its best epoch on validation images.

    Ctrl-C ends the training, and the best epoch so far is returned. The same seed gives the same weights, as in
    :func:`shiftscope.training.loop.train`.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class] before the softmax; it is not changed.
        data: training images, or batches of (images, labels), such as a DataLoader.
        labels: class of each image, where the batches do not hold them.
        settings: how to train; by default :class:`FineTuning`'s own.
        validation: images and labels to choose the epoch by; by default a fifth of the data, drawn with the seed.
        size: (height, width) of the model's input, where images are larger, so that real content comes in at the border.
        fill: the canvas's colour in mode ``zero``, one value or one per channel.
        seed: of validation images, batch order, shifts and random layers.
        device: where to train; the model's own by default.
        report: called with each :class:`shiftscope.training.loop.Step` and :class:`shiftscope.training.loop.Epoch`.
        checkpoint: saves the training after an epoch, and restores it; see :class:`shiftscope.training.checkpoint.Checkpoint`.

    Raises:
        InputError: images have no labels, fewer than two classes, labels beyond the model's classes, or are too few; nothing can
            be trained; or `every_shift` is set and the dense method is not exact for the model, its images or the precision.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    >>> tuned = fine_tune(model, images, labels, FineTuning(max_epochs=1, translate=1))
    >>> len(tuned.training.epochs), tuned.stopped
    (1, False)
    """
    settings = settings or FineTuning()
    images, known = gather(data, labels)
    check_images(images)
    check_fill(images, fill)
    outer = (images.shape[2], images.shape[3])
    canvas = Canvas(settings.mode, fill, check_size(outer, size, settings.mode))
    place = device_of(model, device)
    model = copied(model).to(place)
    both = _split(images, known, seed) if validation is None else (_labelled(images, known), _labelled(*validation))
    _check_classes(model, canvas, both, place)
    moved = [Labelled(each.images.to(place), each.labels.to(place)) for each in both]
    with deterministic(place), seeded_layers(seed, place) as layers:
        streams = {"order": stream(seed, "order"), "shifts": stream(seed, "shifts", place), "layers": layers}
        state = _state(model, (moved[0], moved[1]), settings, canvas, streams, seed)
        stopped = False
        try:
            resumed = run_epochs(state, report, checkpoint)
        except KeyboardInterrupt:
            stopped, resumed = True, 0
    return FineTuned(model.eval(), replace(state.end(), resumed_after=resumed), stopped)


def check_every_shift(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: FineTuning,
    *,
    size: tuple[int, int] | None = None,
    fill: Float[Tensor, " channel"] | float = 0.0,
) -> None:
    """Try ``every_shift`` on an image, before a long training.

    Args:
        model: as :func:`fine_tune` takes it.
        images: training images.
        labels: class of each.
        settings: how to train.
        size: (height, width) of the model's input, where images are larger.
        fill: the canvas's colour in mode ``zero``, one value or one per channel.

    Raises:
        InputError: the dense method is not exact for the model, its images or the precision.
    """
    outer = (images.shape[2], images.shape[3])
    canvas = Canvas(settings.mode, fill, check_size(outer, size, settings.mode))
    place = device_of(model)
    try:
        _objective(copied(model), settings, canvas, outer)(images[:1].to(place), labels[:1].to(place), torch.Generator())
    except InputError as error:
        raise InputError(f"`every_shift` cannot train a model: {error.problem}", "Leave it out.") from error


def layer_rates(model: nn.Module, decay: float) -> list[tuple[nn.Parameter, float]]:
    """Return each trainable parameter with its learning rate relative to the last layer's, ``decay ** (layers after it)``.

    A layer is a matrix or kernel with the vectors that follow it: biases, norms.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    >>> [rate for _, rate in layer_rates(model, 0.5)]
    [0.5, 0.5, 0.5, 0.5, 1.0, 1.0]
    """
    depth, found = 0, list[tuple[nn.Parameter, int]]()
    for parameter in model.parameters():
        depth += parameter.ndim > 1
        found.append((parameter, depth))
    return [(parameter, decay ** (depth - own)) for parameter, own in found if parameter.requires_grad]


class _FineTuningState(TrainingState):
    """A fine-tuning in progress: its first weights are a candidate, and its validation images lie at one shift each.

    Attributes:
        objective: what a step minimises.
        frozen: whether the model stays in evaluation mode.
    """

    objective: Objective
    frozen = False

    def begin(self) -> None:
        """Evaluate the weights of the beginning, as epoch 0."""
        accuracy, loss = evaluate(self.model, self.data[1], place=self.place)
        self.best_rank, self.start = (True, accuracy, -loss), accuracy

    def origins(self) -> dict[str, Tensor]:
        """Return, before the first epoch, what tells this training apart from others with its settings."""
        return {**super().origins(), **{f"weights.{name}": each for name, each in self.model.state_dict().items()}}

    def begin_epoch(self) -> None:
        """Switch the model to training mode, unless gradients are taken in evaluation mode."""
        self.model.train(not self.frozen)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's images, not shifted yet, and labels in random order."""
        training = self.data[0]
        order = torch.randperm(len(training), generator=self.streams["order"])
        for picked in in_batches(order, self.recipe.batch_size):
            places = picked.to(training.labels.device)
            yield training.images[places], training.labels[places]

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Update the model once; return the loss and outputs before the update."""
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(images.device, enabled=self.recipe.precision == "bf16"):
            loss, outputs = self.objective(images, labels, self.streams["shifts"])
        loss.backward()
        self.optimizer.step()
        return loss, outputs

    def _outcome(self) -> tuple[Literal["reached", "not reached", "diverged"], str]:
        kept = f"epoch {self.best_epoch} of {len(self.epochs)}" if self.best_epoch else "the untrained copy (no epoch was better)"
        before, after = f"{100 * self.start:.1f} %", f"{100 * self.best_rank[1]:.1f} %"
        found = f"validation accuracy under random shifts {before} before, {after} in what is kept: {kept}"
        if self.diverged:
            return (
                "diverged",
                f"The loss stopped being a number in epoch {len(self.epochs) + 1}; {found}. Lower the learning rate.",
            )
        return "reached", f"{found[0].upper()}{found[1:]}."


def _state(
    model: nn.Module,
    data: tuple[Labelled, Labelled],
    settings: FineTuning,
    canvas: Canvas,
    streams: dict[str, torch.Generator],
    seed: int,
) -> _FineTuningState:
    """Return a fine-tuning that is ready to begin."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # known to torch, not to its types
    rates = layer_rates(model, settings.layer_decay)
    if not rates:
        raise InputError("`model` has no weights that can be trained.", "Set requires_grad on some of them.")
    groups = [{"params": [parameter], "scale": rate} for parameter, rate in rates]
    shifted = _shifted(data[1], canvas, settings.translate, streams["shifts"])
    optimizer = make_optimizer(groups, settings)
    state = _FineTuningState(model, (data[0], shifted), settings, _unchanged, optimizer, streams, seed)
    state.frozen = settings.every_shift
    state.objective = _objective(model, settings, canvas, tuple(data[0].images.shape[2:]))
    state.begin()
    return state


def _objective(model: nn.Module, settings: FineTuning, canvas: Canvas, outer: tuple[int, ...]) -> Objective:
    term: Consistency = settings.consistency
    if not settings.every_shift:
        return RandomShifts(model, canvas, settings.translate, settings.shifts, term, settings.consistency_weight)
    if canvas.size != outer:
        raise InputError(
            "`every_shift` needs images of the model's input size: dense is not exact where content comes in at the border.",
            "Leave it out, and raise `shifts`.",
        )
    if settings.precision == "bf16":
        raise InputError(
            "`every_shift` needs `precision` fp32: in bf16 its outputs are not those of shifted copies.", "Leave it out."
        )
    model.eval()
    return EveryShift(model, canvas, settings.translate, consistency=term, weight=settings.consistency_weight)


def _unchanged(images: Tensor, shifts: Tensor | None = None) -> Tensor:
    """Return images that lie where they should."""
    del shifts
    return images


def _shifted(data: Labelled, canvas: Canvas, max_shift: int, generator: torch.Generator) -> Labelled:
    """Return validation images, each at a random shift."""
    return Labelled(canvas.move(data.images, sample(len(data), max_shift, generator)), data.labels)


def _labelled(images: Tensor, labels: Tensor | None) -> Labelled:
    if labels is None:
        raise InputError(
            "`data` must have labels to train on, got none.", "Give `labels`, or a folder with one folder per class."
        )
    check_labels(labels)
    if len(labels) != len(images):
        raise InputError(f"`labels` must hold one class for each of {len(images)} images, got {len(labels)}.")
    return Labelled(images, labels.long())


def _split(images: Tensor, labels: Tensor | None, seed: int) -> tuple[Labelled, Labelled]:
    """Return training and validation images: a fifth is held out."""
    data = _labelled(images, labels)
    if len(data) < VALIDATION:
        raise InputError(f"`data` must hold {VALIDATION} images or more, got {len(data)}.", "Give more images.")
    order = torch.randperm(len(data), generator=stream(seed, "validation"))
    held_out = len(data) // VALIDATION
    return data[order[held_out:]], data[order[:held_out]]


def _check_classes(model: nn.Module, canvas: Canvas, data: tuple[Labelled, Labelled], device: torch.device) -> None:
    """Raise InputError unless the labels are two or more of the model's classes."""
    labels = torch.cat([each.labels for each in data])
    if len(labels.unique()) < 2:
        raise InputError(f"`data` must have two classes or more to train on, got {int(labels[0])} only.", "Add images of others.")
    with evaluating(model), torch.no_grad():
        outputs = model(canvas.centre(data[0].images[:1]).to(device))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise InputError("`model` must return one vector of class scores per image.", "Wrap it so that it does.")
    check_classes(labels, outputs.shape[1])
