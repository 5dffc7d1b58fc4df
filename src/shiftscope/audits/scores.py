"""What protocols compute for each image from a model's outputs on its shifted views. Pure functions.

The normalised variance of transformational measures is the exception: it is a value per unit of the output, from sums over
images. :func:`spread_sums` and :func:`normalised_variance` compute it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from shiftscope.engine.outputs import Outputs
from shiftscope.estimates import LEVEL, Estimate, proportion
from shiftscope.measures import MEASURES
from shiftscope.surveys import cosines, top1_changes

__all__ = [
    "SCORES",
    "MapOutputs",
    "Score",
    "Sums",
    "ViewOutputs",
    "estimate",
    "normalised_variance",
    "pixel_agreements",
    "spread_sums",
]

#: The jackknife leaves out one of so many groups of images at a time.
JACKKNIFE_GROUPS = 10


@dataclass(frozen=True)
class ViewOutputs:
    """A model's outputs on some images and their shifted views.

    Attributes:
        values: outputs on the views, before the softmax.
        reference: outputs on the unshifted images.
        shifts: of the views, (dy, dx) in pixels.
        size: (height, width) of the model's input, pixels.
        labels: classes of the images; None without labels.
    """

    values: Float[Tensor, "image view class"]
    reference: Float[Tensor, "image class"]
    shifts: Shaped[Tensor, "image view 2"]
    size: tuple[int, int]
    labels: Int[Tensor, " image"] | None

    def tops(self) -> Int[Tensor, "image view"]:
        """Return the top class of each view."""
        return self.values.argmax(-1)


@dataclass(frozen=True)
class MapOutputs:
    """The top class of every pixel, for models that return maps.

    Attributes:
        values: on the views.
        reference: on the unshifted images.
        shifts: of the views, (dy, dx) in whole pixels.
        circular: whether content that leaves on one side enters on the other.
    """

    values: Int[Tensor, "image view height width"]
    reference: Int[Tensor, "image height width"]
    shifts: Shaped[Tensor, "image view 2"]
    circular: bool


@dataclass(frozen=True)
class Score:
    """A function that computes one value per image.

    Attributes:
        of: outputs -> [image].
        needs: what the function reads: ``vectors`` (any outputs), ``classes`` (outputs whose largest is the prediction),
            ``labels`` or ``maps``.
    """

    of: Callable[[ViewOutputs], Tensor] | Callable[[MapOutputs], Tensor]
    needs: Literal["vectors", "classes", "labels", "maps"] = "classes"


def estimate(measure: str, values: Float[Tensor, " image"]) -> Estimate:
    """Return the mean of a measure over images with its 95 % interval.

    Args:
        measure: a name of :data:`shiftscope.measures.MEASURES`.
        values: one per image. If all are 0 or 1, as from a single view, their mean is a proportion, with Wilson's interval.
    """
    known = MEASURES[measure]
    binary = known.bounds == (0.0, 1.0) and bool(((values == 0) | (values == 1)).all())
    return proportion(values > 0.5) if binary else known.estimate(values)


def _mcs(outputs: ViewOutputs) -> Tensor:
    return cosines(Outputs(outputs.values, outputs.reference, outputs.shifts))


def _top1_change(outputs: ViewOutputs) -> Tensor:
    return top1_changes(Outputs(outputs.values, outputs.reference, outputs.shifts))


def _all_agree(outputs: ViewOutputs) -> Tensor:
    tops = outputs.tops()
    return (tops == tops[:, :1]).all(dim=1).float()


def _pairs_agree(outputs: ViewOutputs) -> Tensor:
    """Return the share of disjoint pairs of successive views that agree."""
    tops = outputs.tops()
    return (tops[:, ::2] == tops[:, 1::2]).float().mean(dim=1)


def _accuracy(outputs: ViewOutputs) -> Tensor:
    assert outputs.labels is not None  # the score needs labels
    return (outputs.tops() == outputs.labels[:, None]).float().mean(dim=1)


def _true_probability(outputs: ViewOutputs) -> Tensor:
    assert outputs.labels is not None  # the score needs labels
    picked = outputs.labels[:, None, None].expand(-1, outputs.values.shape[1], 1)
    return outputs.values.double().softmax(-1).gather(2, picked).mean(dim=(1, 2)).float()


def _neighbour_change(outputs: ViewOutputs) -> Tensor:
    tops = outputs.tops()
    return (tops[:, 1:] != tops[:, :-1]).float().mean(dim=1)


def _neighbour_probability_change(outputs: ViewOutputs) -> Tensor:
    """Return the mean absolute change, between neighbours, of the probability of the first one's top class."""
    probabilities = outputs.values.double().softmax(-1)
    top = outputs.tops()[:, :-1, None]
    change = probabilities[:, 1:].gather(2, top) - probabilities[:, :-1].gather(2, top)
    return change.abs().mean(dim=(1, 2)).float()


def _consistency(view: int) -> Callable[[ViewOutputs], Tensor]:
    """Score whether one view's top class is that of the unshifted image."""
    return lambda outputs: (outputs.tops()[:, view] == outputs.reference.argmax(-1)).float()


def _probability_change(view: int) -> Callable[[ViewOutputs], Tensor]:
    """Score the absolute change of the unshifted top class's probability in one view."""

    def of(outputs: ViewOutputs) -> Tensor:
        top = outputs.reference.argmax(-1, keepdim=True)
        before = outputs.reference.double().softmax(-1).gather(1, top)
        return (outputs.values[:, view].double().softmax(-1).gather(1, top) - before).abs()[:, 0].float()

    return of


def _derivative(axis: int, power: int) -> Callable[[ViewOutputs], Tensor]:
    """Score the mean over classes of |dp/dt|^power along an axis, with t in units of (size - 1) / 2 pixels."""

    def of(outputs: ViewOutputs) -> Tensor:
        change = outputs.values[:, axis].double().softmax(-1) - outputs.reference.double().softmax(-1)
        step = outputs.shifts[:, axis, axis].double().abs() / ((outputs.size[axis] - 1) / 2)
        return (change / step[:, None]).abs().pow(power).mean(dim=1).float()

    return of


def pixel_agreements(outputs: MapOutputs) -> Float[Tensor, "image view"]:
    """Return the share of pixels whose class moves along with the image, for each view.

    Args:
        outputs: classes of pixels. All pixels count if the shift is circular, else those of the image that both maps see.
    """
    found = []
    for moved, counted in _moved_back(outputs):
        same = ((moved == outputs.reference) & counted).sum(dim=(1, 2)).double()
        found.append(same / counted.sum(dim=(1, 2)).clamp_min(1))
    return torch.stack(found, dim=1).float()


def _moved_back(outputs: MapOutputs) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the classes of each view moved back, [image, height, width], and which pixels count."""
    height, width = outputs.reference.shape[1:]
    rows, columns = torch.arange(height), torch.arange(width)
    images = torch.arange(len(outputs.reference))[:, None, None]
    for view, shifts in enumerate(outputs.shifts.long().unbind(1)):
        down, right = rows + shifts[:, :1], columns + shifts[:, 1:]
        visible = ((down >= 0) & (down < height))[:, :, None] & ((right >= 0) & (right < width))[:, None, :]
        moved = outputs.values[:, view][images, (down % height)[:, :, None], (right % width)[:, None, :]]
        yield moved, torch.ones_like(visible) if outputs.circular else visible


def _mean_ious(outputs: MapOutputs) -> Float[Tensor, " image"]:
    """Return the intersection over union of a class before a shift and moved back, a mean over classes, then over views.

    Classes that neither map shows are left out; pixels count as in :func:`pixel_agreements`.
    """
    classes = int(max(outputs.values.max(), outputs.reference.max())) + 1
    places = (classes + 1) * torch.arange(len(outputs.reference))[:, None, None]  # a class more, of pixels that do not count

    def sizes(pixels: Tensor, counted: Tensor) -> Tensor:
        chosen = (pixels.where(counted, classes) + places).flatten()
        return torch.bincount(chosen, minlength=len(places) * (classes + 1)).reshape(len(places), -1)[:, :classes].double()

    found = []
    for moved, counted in _moved_back(outputs):
        both = sizes(moved, counted & (moved == outputs.reference))
        either = sizes(outputs.reference, counted) + sizes(moved, counted) - both
        found.append((both / either.clamp_min(1)).sum(dim=1) / (either > 0).sum(dim=1).clamp_min(1))
    return torch.stack(found, dim=1).mean(dim=1).float()


def _mean_pixel_agreement(outputs: MapOutputs) -> Tensor:
    return pixel_agreements(outputs).mean(dim=1)


#: By the measure's name in :data:`shiftscope.measures.MEASURES`.
SCORES: dict[str, Score] = {
    "mcs": Score(_mcs, "vectors"),
    "top1_change": Score(_top1_change),
    "all_agree": Score(_all_agree),
    "pairs_agree": Score(_pairs_agree),
    "accuracy": Score(_accuracy, "labels"),
    "true_probability": Score(_true_probability, "labels"),
    "neighbour_change": Score(_neighbour_change),
    "neighbour_probability_change": Score(_neighbour_probability_change),
    "consistency_whole": Score(_consistency(0)),
    "consistency_half": Score(_consistency(1)),
    "probability_change_whole": Score(_probability_change(0)),
    "probability_change_half": Score(_probability_change(1)),
    "squared_derivative_y": Score(_derivative(0, 2)),
    "squared_derivative_x": Score(_derivative(1, 2)),
    "absolute_derivative_y": Score(_derivative(0, 1)),
    "absolute_derivative_x": Score(_derivative(1, 1)),
    "mASSC": Score(_mean_pixel_agreement, "maps"),
    "mean_iou": Score(_mean_ious, "maps"),
}

#: A spread of so many units of the last place of single precision is rounding.
ROUNDINGS = 8

#: Named sums over images, by group of the jackknife.
Sums = dict[str, Tensor]


def spread_sums(values: Float[Tensor, "image view unit"], *, indices: Int[Tensor, " image"]) -> Sums:
    """Return the sums over images that the normalised variance needs, so that memory does not grow with the images.

    Args:
        values: outputs under shifts that all images share.
        indices: of the images in the data; an image's group is its index modulo ``JACKKNIFE_GROUPS``.
    """
    values = values.double()
    group = indices % JACKKNIFE_GROUPS

    def total(each: Tensor) -> Tensor:
        return torch.zeros(JACKKNIFE_GROUPS, *each.shape[1:], dtype=torch.float64).index_add(0, group, each)

    return {
        "count": total(torch.ones(len(values), dtype=torch.float64)),
        "spread": total(values.std(dim=1, correction=0)),
        "sum": total(values),
        "square": total(values.square()),
    }


def normalised_variance(sums: Sums) -> tuple[Estimate, Float[Tensor, " unit"]]:
    """Return the mean over units with its interval, and each unit's value.

    The interval comes from the jackknife: each group of images is left out in turn. Units that are constant over images but not
    over shifts are infinite, and left out of the mean.

    Args:
        sums: from :func:`spread_sums`, over all images.
    """
    from scipy import stats

    count = int(sums["count"].sum())
    units = _ratios({name: total.sum(dim=0) for name, total in sums.items()})
    value = _finite_mean(units)
    groups = [group for group in range(JACKKNIFE_GROUPS) if sums["count"][group] > 0]
    if count < 3 or len(groups) < 2:
        return Estimate(value, 0.0, float("inf"), count=count), units.float()
    left_out = [
        _finite_mean(_ratios({name: total.sum(dim=0) - total[group] for name, total in sums.items()})) for group in groups
    ]
    each = torch.tensor(left_out, dtype=torch.float64)
    error = float(((len(each) - 1) / len(each) * (each - each.mean()).square().sum()).sqrt())
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(each) - 1)) * error
    return Estimate(value, max(value - reach, 0.0), value + reach, count=count), units.float()


def _ratios(sums: Sums) -> Float[Tensor, " unit"]:
    """Return E_x[std_T a] / E_T[std_x a] for each unit; 0 / 0 is 1."""
    count = sums["count"]
    over_shifts = sums["spread"] / count
    middle = sums["sum"] / count
    # The outputs are in single precision: a spread below their rounding, which adds up from layer to layer, is zero.
    noise = ROUNDINGS * torch.finfo(torch.float32).eps * (sums["square"] / count).sqrt()
    over_images = (sums["square"] / count - middle.square()).clamp_min(0).sqrt()
    over_images = over_images.where(over_images > noise, 0.0).mean(dim=0)
    over_shifts = over_shifts.where(over_shifts > noise.mean(dim=0), 0.0)
    return torch.where((over_images == 0) & (over_shifts == 0), 1.0, over_shifts / over_images)


def _finite_mean(units: Tensor) -> float:
    finite = units[units.isfinite()]
    return float(finite.mean()) if len(finite) else float("nan")
