"""Measure what shifts cost any model's outputs, always on the same images and shifts, so that models can be compared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.engine.direct import Canvas
from shiftscope.engine.outputs import shift_outputs
from shiftscope.estimates import Estimate, bootstrap, confidence_interval, mean
from shiftscope.measures import MEASURES
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.shifts import Mode, sample
from shiftscope.surveys import correct, per_shift_cosines

__all__ = ["Cause", "NOTHING", "ROUNDING", "Loss", "Measured", "Trial", "cosines_between_images", "draw_shifts", "share"]

#: A mean loss below this is rounding: what cosines in single precision differ from 1.
ROUNDING = 2e-7
#: A step that changes no image's loss by more changes nothing: rounding differs between the model and its copy.
NOTHING = 2e-6
#: Images measured between two progress reports.
BLOCK = 16


@dataclass(frozen=True)
class Loss:
    """What shifts cost a model: estimates over images.

    Attributes:
        loss: 1 - mean cosine between the outputs before and after a shift.
        between_images: mean cosine between unshifted outputs of different images; near 1 the outputs say little.
        relative: the loss over 1 - ``between_images``: near 0 where shifts change outputs less than another image does, near 1
            where they change them as much. None where all images have the same output.
        accuracy: share of unshifted images classified correctly; None without labels.
    """

    loss: Estimate
    between_images: Estimate
    relative: Estimate | None
    accuracy: Estimate | None


@dataclass(frozen=True)
class Cause:
    """One cause's part of the loss.

    Attributes:
        name: head, borders, aliasing, activations or other.
        part_of: the cause that it is a part of; empty for those that sum to the total.
        part: the cause's part of the loss; None where its step is impossible.
        share: ``part`` as a share of the total; None where the total is zero.
        after: what shifts cost the model after the step; None where the step was not measured.
        step: what was changed.
        shows: what the step can and cannot show.
        reason: why the step is impossible or changes nothing; empty otherwise.
        phrase: what sentences call the cause where its usual phrase would mislead; empty otherwise.
        by_image: ``part`` of each image; None where it is unknown.
    """

    name: str
    part_of: str
    part: Estimate | None
    share: Estimate | None
    after: Loss | None
    step: str
    shows: str
    reason: str
    phrase: str = ""
    by_image: Float[Tensor, " image"] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Measured:
    """What shifts cost a model, image by image.

    Attributes:
        loss: 1 - cosine between the outputs before and after a shift, averaged over the image's shifts.
        reference: the unshifted outputs.
        labels: class of each image; None where it is not known.
    """

    loss: Float[Tensor, " image"]
    reference: Float[Tensor, "image class"]
    labels: Int[Tensor, " image"] | None = None

    def first(self, count: int) -> Measured:
        """Return the first images' part."""
        labels = None if self.labels is None else self.labels[:count]
        return Measured(self.loss[:count], self.reference[:count], labels)

    def estimates(self) -> Loss:
        """Return estimates over images, with 95 % intervals."""
        between = cosines_between_images(self.reference)
        right = None if self.labels is None else correct(self.reference, self.labels.cpu())
        return Loss(
            loss=mean(self.loss, bounds=(0.0, 2.0)),
            between_images=mean(between, bounds=(-1.0, 1.0)),
            relative=share(self.loss, 1 - between),
            accuracy=None if right is None else MEASURES["test_accuracy"].estimate(right),
        )


@dataclass(frozen=True)
class Trial:
    """Images, each with its own shifts, and how they are shifted.

    Attributes:
        images: unshifted images, canvas included; larger than the model's input where crops are taken from them.
        shifts: (dy, dx), pixels.
        mode: what comes in at the border: the ``fill`` (``zero``), or what larger images hold there, or what left on the other
            side (``circular``).
        fill: colour of the canvas in mode ``zero``, one value or one per channel.
        labels: class of each image; None where it is not known.
        batch_size: images a forward pass; None chooses it automatically.
        device: where to compute; None is the model's own.
        report: called with progress events.
        size: (height, width) of the model's input; None where it is that of the images.
    """

    images: Float[Tensor, "image channel tall wide"]
    shifts: Int[Tensor, "image shift 2"]
    mode: Mode = "zero"
    fill: Float[Tensor, " channel"] | float = 0.0
    labels: Int[Tensor, " image"] | None = None
    batch_size: int | None = None
    device: torch.device | str | None = None
    report: Report = silent
    size: tuple[int, int] | None = None

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width) of the model's input."""
        channels, height, width = self.images.shape[1:]
        return (channels, *self.size) if self.size else (channels, height, width)

    @property
    def inputs(self) -> Float[Tensor, "image channel height width"]:
        """The model's unshifted input: the images, or the centre of larger ones."""
        return Canvas(self.mode, self.fill, self.image[1:]).centre(self.images)

    def measure(self, model: nn.Module, description: str) -> Measured:
        """Measure what the shifts cost a model's outputs.

        Args:
            model: images [image, channel, height, width] in [0, 1] -> outputs [image, class].
            description: of the model, for progress events.

        Raises:
            InputError: what :func:`shiftscope.engine.outputs.shift_outputs` says.
        """
        losses, references = [], []
        for start in range(0, len(self.images), BLOCK):
            self.report(Stage(description, start, len(self.images)))
            block = slice(start, start + BLOCK)
            outputs = shift_outputs(
                model,
                self.images[block],
                self.shifts[block],
                mode=self.mode,
                fill=self.fill,
                method="direct",
                batch_size=self.batch_size,
                device=self.device,
                size=self.size,
            )
            losses.append(1 - per_shift_cosines(outputs).double().mean(dim=1))
            references.append(outputs.reference)
        self.report(Stage(description, len(self.images), len(self.images)))
        return Measured(torch.cat(losses), torch.cat(references), self.labels)

    def first(self, count: int) -> Trial:
        """Return the trial with the first images only."""
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=self.images[:count], shifts=self.shifts[:count], labels=labels)

    def circular(self, factor: tuple[int, int]) -> Trial:
        """Return the trial with circular shifts of the same images.

        Args:
            factor: the model's subsampling factor. In mode ``zero`` the canvas is first extended by its fill at the lower and
                right edges to multiples of it, because a map is circular only if every stride divides its size.
        """
        images = self.inputs
        if self.mode == "zero":
            (height, width), (down, right) = images.shape[2:], factor
            fill = torch.as_tensor(self.fill, dtype=images.dtype).reshape(-1, 1, 1)
            images = functional.pad(images - fill, (0, -width % right, 0, -height % down)) + fill
        return replace(self, images=images, mode="circular", size=None)

    def on_lattice(self, factor: tuple[int, int], generator: torch.Generator) -> Trial | None:
        """Return the trial with one random shift per image, a multiple of the subsampling factor along both axes and not zero.

        Args:
            factor: of the model, along height and width.
            generator: draws the shifts.

        Returns:
            None where no such shift is smaller than the image.
        """
        counts = [max(1, size // step) for size, step in zip(self.image[1:], factor, strict=True)]
        if counts == [1, 1]:
            return None
        picks = torch.randint(1, counts[0] * counts[1], (len(self.images),), generator=generator)
        steps = torch.stack([picks // counts[1], picks % counts[1]], dim=1) * torch.tensor(factor)
        return replace(self, shifts=steps[:, None])


def cosines_between_images(reference: Float[Tensor, "image class"]) -> Float[Tensor, " image"]:
    """Return the mean cosine of each image's output with the outputs of all other images.

    Where it is near 1, outputs say little about the image, and their similarity under shifts means little. The cosine of a zero
    output with any other is 0.

    >>> cosines_between_images(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])).tolist()
    [0.5, 0.0, 0.5]
    """
    directions = functional.normalize(reference.double(), dim=1)
    own = directions.square().sum(dim=1)
    return (directions @ directions.sum(dim=0) - own) / (len(reference) - 1)


def share(part: Float[Tensor, " image"], total: Float[Tensor, " image"]) -> Estimate | None:
    """Return the sum of parts over the sum of totals, with a bootstrap interval that resamples both by the same images.

    Returns:
        None where the total is 0 within rounding.

    >>> round(share(torch.tensor([0.1, 0.2]), torch.tensor([0.2, 0.4])).value, 6)
    0.5
    """
    if float(total.mean()) < ROUNDING:
        return None
    value = float(part.double().mean() / total.double().mean())
    parts, totals = bootstrap(part[None]), bootstrap(total[None])
    low, high = confidence_interval(value, parts[totals > 0] / totals[totals > 0], [], images=len(total))
    low, high = min(float(low), value), max(float(high), value)
    if 0 <= value <= 1:  # a share, and so is its interval
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(value, low, high, count=len(total))


def draw_shifts(count: int, shifts: int, max_shift: int, generator: torch.Generator) -> Int[Tensor, "count shifts 2"]:
    """Draw shifts for each image, uniformly from the square of up to ``max_shift`` pixels without the zero shift.

    Args:
        count: number of images.
        shifts: number of shifts of each image.
        max_shift: the largest shift along an axis, pixels.
        generator: draws them.

    >>> steps = draw_shifts(4, 3, 1, torch.Generator().manual_seed(0))
    >>> steps.shape, bool((steps == 0).all(dim=2).any())
    (torch.Size([4, 3, 2]), False)
    """
    steps = sample(count * shifts, max_shift, generator)
    while (zero := (steps == 0).all(dim=1)).any():
        steps[zero] = sample(int(zero.sum()), max_shift, generator)
    return steps.reshape(count, shifts, 2)
