"""What protocols count: a value for each image from the model's answers to its views. Pure functions.

``values`` are outputs before the softmax under each of an image's shifts, ``reference`` those of the unshifted image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from shiftscope.engine.outputs import Outputs
from shiftscope.estimates import Estimate, mean, proportion
from shiftscope.surveys import cosines, top1_changes

__all__ = ["SCORES", "Answers", "MapAnswers", "Score", "pixel_agreements"]


SHARE, ANY = (0.0, 1.0), (0.0, float("inf"))


@dataclass(frozen=True)
class Answers:
    """A model's outputs on some images and their views.

    Attributes:
        values: of the views.
        reference: of the unshifted images.
        shifts: of the views, (dy, dx) in pixels.
        size: (height, width) of the model's input, pixels.
        labels: of the images, where there are any.
    """

    values: Float[Tensor, "image view class"]
    reference: Float[Tensor, "image class"]
    shifts: Shaped[Tensor, "image view 2"]
    size: tuple[int, int]
    labels: Int[Tensor, " image"] | None

    def outputs(self) -> Outputs:
        """The same, as the engine hands them out."""
        return Outputs(self.values, self.reference, self.shifts)

    def tops(self) -> Int[Tensor, "image view"]:
        """The top class of each view."""
        return self.values.argmax(-1)


@dataclass(frozen=True)
class MapAnswers:
    """The top class of every pixel, of models that answer with maps.

    Attributes:
        values: of the views.
        reference: of the unshifted images.
        shifts: of the views, (dy, dx) in whole pixels.
        circular: whether what left on one side came back on the other.
    """

    values: Int[Tensor, "image view height width"]
    reference: Int[Tensor, "image height width"]
    shifts: Shaped[Tensor, "image view 2"]
    circular: bool


@dataclass(frozen=True)
class Score:
    """One number of each image.

    Attributes:
        of: answers -> [image].
        bounds: the least and the greatest it can be; None where it is a yes or no, whose share has Wilson's interval.
        needs: ``vectors`` (outputs of any meaning), ``classes`` (their largest is the answer), ``labels`` or ``maps``.
    """

    of: Callable[[Answers], Tensor] | Callable[[MapAnswers], Tensor]
    bounds: tuple[float, float] | None
    needs: str = "classes"

    def estimate(self, values: Float[Tensor, " image"]) -> Estimate:
        """The mean over images with its 95 % interval; Wilson's where every image is a yes or a no."""
        yes_or_no = self.bounds is None or (self.bounds == SHARE and bool(((values == 0) | (values == 1)).all()))
        return proportion(values > 0.5) if self.bounds is None or yes_or_no else mean(values, bounds=self.bounds)


def _mcs(answers: Answers) -> Tensor:
    return cosines(answers.outputs())


def _top1_change(answers: Answers) -> Tensor:
    return top1_changes(answers.outputs())


def _all_agree(answers: Answers) -> Tensor:
    tops = answers.tops()
    return (tops == tops[:, :1]).all(dim=1).float()


def _pairs_agree(answers: Answers) -> Tensor:
    """Share of successive pairs of views that agree."""
    tops = answers.tops()
    return (tops[:, ::2] == tops[:, 1::2]).float().mean(dim=1)


def _accuracy(answers: Answers) -> Tensor:
    """Share of views whose top class is the label."""
    assert answers.labels is not None  # noqa: S101 - asked for with labels only
    return (answers.tops() == answers.labels[:, None]).float().mean(dim=1)


def _true_probability(answers: Answers) -> Tensor:
    """Mean over views of the softmax probability of the label."""
    assert answers.labels is not None  # noqa: S101 - asked for with labels only
    picked = answers.labels[:, None, None].expand(-1, answers.values.shape[1], 1)
    return answers.values.double().softmax(-1).gather(2, picked).mean(dim=(1, 2)).float()


def _neighbour_change(answers: Answers) -> Tensor:
    """Share of neighbouring views whose top classes differ."""
    tops = answers.tops()
    return (tops[:, 1:] != tops[:, :-1]).float().mean(dim=1)


def _neighbour_probability_change(answers: Answers) -> Tensor:
    """Mean over neighbouring views of the absolute change of the first one's top class's probability."""
    probabilities = answers.values.double().softmax(-1)
    top = answers.tops()[:, :-1, None]
    change = probabilities[:, 1:].gather(2, top) - probabilities[:, :-1].gather(2, top)
    return change.abs().mean(dim=(1, 2)).float()


def _consistency(view: int) -> Callable[[Answers], Tensor]:
    """Whether one view's top class is that of the unshifted image."""
    return lambda answers: (answers.tops()[:, view] == answers.reference.argmax(-1)).float()


def _probability_change(view: int) -> Callable[[Answers], Tensor]:
    """Absolute change of the unshifted top class's probability in one view."""

    def of(answers: Answers) -> Tensor:
        top = answers.reference.argmax(-1, keepdim=True)
        before = answers.reference.double().softmax(-1).gather(1, top)
        return (answers.values[:, view].double().softmax(-1).gather(1, top) - before).abs()[:, 0].float()

    return of


def _derivative(axis: int, power: int) -> Callable[[Answers], Tensor]:
    """Mean over classes of |dp/dt|^power along an axis, a unit of t being (size - 1) / 2 pixels."""

    def of(answers: Answers) -> Tensor:
        change = answers.values[:, axis].double().softmax(-1) - answers.reference.double().softmax(-1)
        step = answers.shifts[:, axis, axis].double().abs() / ((answers.size[axis] - 1) / 2)
        return (change / step[:, None]).abs().pow(power).mean(dim=1).float()

    return of


def pixel_agreements(answers: MapAnswers) -> Float[Tensor, "image view"]:
    """Share of pixels whose class goes along with the image, for each view.

    Of a circular shift all pixels count, else those that both maps see of the image.
    """
    height, width = answers.reference.shape[1:]
    rows, columns = torch.arange(height), torch.arange(width)
    images = torch.arange(len(answers.reference))[:, None, None]
    found = []
    for view, shifts in enumerate(answers.shifts.long().unbind(1)):
        down, right = rows + shifts[:, :1], columns + shifts[:, 1:]
        kept = ((down >= 0) & (down < height))[:, :, None] & ((right >= 0) & (right < width))[:, None, :]
        moved = answers.values[:, view][images, (down % height)[:, :, None], (right % width)[:, None, :]]
        counted = torch.ones_like(kept) if answers.circular else kept
        same = ((moved == answers.reference) & counted).sum(dim=(1, 2)).double()
        found.append(same / counted.sum(dim=(1, 2)).clamp_min(1))
    return torch.stack(found, dim=1).float()


def _mean_pixel_agreement(answers: MapAnswers) -> Tensor:
    return pixel_agreements(answers).mean(dim=1)


SCORES: dict[str, Score] = {
    "mcs": Score(_mcs, (-1.0, 1.0), "vectors"),
    "top1_change": Score(_top1_change, SHARE),
    "all_agree": Score(_all_agree, None),
    "pairs_agree": Score(_pairs_agree, SHARE),
    "accuracy": Score(_accuracy, SHARE, "labels"),
    "true_probability": Score(_true_probability, SHARE, "labels"),
    "neighbour_change": Score(_neighbour_change, SHARE),
    "neighbour_probability_change": Score(_neighbour_probability_change, SHARE),
    "consistency_whole": Score(_consistency(0), None),
    "consistency_half": Score(_consistency(1), None),
    "probability_change_whole": Score(_probability_change(0), SHARE),
    "probability_change_half": Score(_probability_change(1), SHARE),
    "squared_derivative_y": Score(_derivative(0, 2), ANY),
    "squared_derivative_x": Score(_derivative(1, 2), ANY),
    "absolute_derivative_y": Score(_derivative(0, 1), ANY),
    "absolute_derivative_x": Score(_derivative(1, 1), ANY),
    "mASSC": Score(_mean_pixel_agreement, SHARE, "maps"),
}
