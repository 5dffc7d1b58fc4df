"""Segmentation: a class for each pixel. Equivariant: the map should move along with the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import nan
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor
from torch.nn import functional

from shiftscope.errors import InputError
from shiftscope.runtime.text import number_of
from shiftscope.tasks.dense import aligned, mean_map, of_size
from shiftscope.tasks.drawing import blended, class_colours
from shiftscope.tasks.placing import Placing
from shiftscope.tasks.reading import finite_rows, select_output
from shiftscope.tasks.task import Pair, Task, View
from shiftscope.tasks.truth_files import MapFiles, Placement

__all__ = ["NAMES", "ClassMap", "Segmentation", "intersections"]

#: Names that libraries give the map among several outputs.
NAMES = ("logits", "out")
#: Classes that a map of whole numbers may have.
MOST_CLASSES = 256
#: Maps of ground truth of which labels are looked at before anything is measured.
LOOKED_AT = 16


class ClassMap(NamedTuple):
    """The top class of each pixel of the model's input, of so many classes."""

    tops: Integer[Tensor, "height width"]
    classes: int
    #: Whether a single channel that is read as a logit holds a value that is no probability; True of other maps.
    outside: bool = True


def intersections(one: Tensor, other: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return how many pixels each class has in both of two maps, and how many in either, [class].

    >>> intersections(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2)
    (tensor([1, 1]), tensor([2, 2]))
    """
    one, other = one.flatten().long(), other.flatten().long()
    both = torch.bincount(one[one == other], minlength=classes)
    return both, torch.bincount(one, minlength=classes) + torch.bincount(other, minlength=classes) - both


@dataclass(frozen=True)
class Segmentation(Task):
    """Classes of pixels, [image, class, height, width] before the softmax; maps of another size than the input are enlarged.

    One channel, [image, 1, height, width], holds a logit of the second of two classes, or its probability, and counts from a
    probability of 0.5 on. Whole numbers, [image, height, width] or with one channel, are the classes themselves.

    Attributes:
        ignored: the label of ground truth that stands for no class.
        kept: least share of pixels with the same class at which a map counts as kept.
        given: what a single channel holds, ``logits`` or ``probabilities``.
        wraps: whether images are circular.
    """

    moves: ClassVar[bool | None] = True
    name: str = "segmentation"
    measures: tuple[str, ...] = ("mASSC", "mean_iou", "boundary_agreement", "interior_agreement")
    truth_measures: tuple[str, ...] = ("truth_iou", "truth_pixels")
    ignored: int = 255
    kept: float = 0.99
    given: str = "logits"
    wraps: bool = False

    def __post_init__(self) -> None:
        if self.given not in ("logits", "probabilities"):
            raise InputError(f"`given` of task 'segmentation' must be logits or probabilities, got {self.given!r}.")

    def shows(self, output: Any, count: int, size: tuple[int, int]) -> bool:
        """Return whether the output is a map of whole numbers."""
        if not isinstance(output, Tensor) or output.is_floating_point() or output.is_complex() or len(output) != count:
            return False
        one_channel = output.ndim == 3 or (output.ndim == 4 and output.shape[1] == 1)
        return one_channel and min(output.shape[-2:]) > 1

    def wrapping(self) -> Segmentation:
        """Return the task for circular images: coarse maps are enlarged circularly."""
        return replace(self, wraps=True)

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[ClassMap]:
        """Return each image's top classes."""
        found = select_output(output, None, NAMES)
        if not found.is_floating_point():
            return _as_class_maps(found, count, size)
        single = found.ndim == 4 and found.shape[1] == 1
        outside = ((found < 0) | (found > 1)).flatten(1).any(dim=1).tolist() if single else [True] * len(found)
        found = self._scores(output, count)
        maps, classes = of_size(finite_rows(found), size, wraps=self.wraps), found.shape[1]
        kind = torch.uint8 if classes <= 256 else torch.int32
        return [ClassMap(each, classes, beyond) for each, beyond in zip(maps.max(dim=1).indices.to(kind), outside, strict=True)]

    def _channels(self, output: Any, count: int) -> Tensor:
        """Return the channels in an output, [image, channel, height, width]."""
        found = select_output(output, None, NAMES)
        if found.ndim != 4 or len(found) != count or not found.is_floating_point():
            raise InputError(
                f"task 'segmentation' needs scores [image, class, height, width], or classes as whole numbers [image, height, "
                f"width], for {number_of(count, 'image')}, got {found.dtype} of shape {tuple(found.shape)}.",
                "Choose another --task or `output`.",
            )
        return found

    def _scores(self, output: Any, count: int) -> Tensor:
        """Return the scores in an output, [image, class, height, width], of two classes where the model returns one channel."""
        found = self._channels(output, count)
        return self._of_two(found) if found.shape[1] == 1 else found

    def _of_two(self, found: Tensor) -> Tensor:
        """Return the scores of two classes, whose softmax is the probability of the second, [image, 2, height, width]."""
        if self.given == "probabilities":
            low, high = float(found.min()), float(found.max())
            if low < 0 or high > 1:
                raise InputError(f"the model returns {low:.3g} to {high:.3g}, which are not probabilities.", "Leave `given` out.")
            found = found.logit(eps=torch.finfo(found.dtype).eps)
        return torch.cat([torch.zeros_like(found), found], dim=1)

    def place_back(self, output: Any, placing: Placing) -> Tensor:
        """Return the model's channels, moved along, [image, channel, height, width]."""
        return placing.maps_back(of_size(self._channels(output, len(placing.corners)), placing.size))

    def average(self, outputs: Iterable[tuple[Any, Placing]]) -> Tensor:
        """Return the logarithm of the mean probabilities of each pixel, moved back, [image, class, height, width].

        Of a model with a single channel: one channel of mean probabilities, as a logit if the model returns these.
        """
        views = ((self._channels(raw, len(place.corners)), place) for raw, place in outputs)
        first = next(views)
        single = first[0].shape[1] == 1
        both = ((self._of_two(each) if single else each, place) for each, place in chain([first], views))
        scores = ((of_size(each, place.size), place) for each, place in both)
        found = mean_map((each.softmax(dim=1), place) for each, place in scores)
        if single and self.given == "probabilities":
            return found[:, 1:]
        logs = found.clamp_min(torch.finfo(found.dtype).tiny).log()
        return logs[:, 1:] - logs[:, :1] if single else logs

    def no_mean(self) -> str:
        """Return nothing: there is a mean."""
        return ""

    def compare(self, before: ClassMap, after: ClassMap, view: View, truth: Tensor | None) -> dict[str, float]:
        """Return agreements and intersections over union of the two maps."""
        one, other = aligned(before.tops, after.tops, view)
        same = one == other
        edge = _boundary(one)
        found = {
            "mASSC": _mean(same),
            "mean_iou": _mean_iou(*intersections(one, other, before.classes)),
            "boundary_agreement": _mean(same[edge]),
            "interior_agreement": _mean(same[~edge]),
        }
        if truth is not None:
            known, _ = aligned(truth, after.tops, view)
            counted = known != self.ignored
            self._check_labels(known[counted], before.classes)
            right = known[counted], other[counted]
            found["truth_iou"] = _mean_iou(*intersections(*right, before.classes))
            found["truth_pixels"] = _mean(right[0] == right[1])
        return found

    def _check_labels(self, known: Tensor, classes: int) -> None:
        """Refuse labels of ground truth that are no classes of the model."""
        wrong = known[(known < 0) | (known >= classes)]
        if len(wrong):
            label = int(wrong[0])
            raise InputError(
                f"`truth` has pixels of label {label}, and the model has classes 0 to {classes - 1}.",
                f"If {label} stands for no class, use --task segmentation:ignored={label}; else number the classes from 0.",
            )

    def rule(self, reach: int) -> str:
        """Return how many pixels keep their class."""
        return f"at least {self.kept:g} of the pixels that both views see have the same class, the map moved back"

    def leads(self, pairs: Sequence[Pair]) -> list[float]:
        """Return by how much the share of pixels with the same class exceeds its limit."""
        both = (aligned(each.before.tops, each.after.tops, each.view) for each in pairs)
        return [_mean(one == other) - self.kept for one, other in both]

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Tensor:
        """Return labels of pixels as [height, width]."""
        found = torch.as_tensor(truth)
        if tuple(found.shape) != size or found.is_floating_point():
            raise InputError(
                f"`truth` of task 'segmentation' must be whole numbers [{size[0]}, {size[1]}] for each image, got "
                f"{found.dtype} of shape {tuple(found.shape)}.",
                "Give labels of the size of the model's input.",
            )
        return found.long()

    def open_truth(self, path: Path, names: Sequence[str], placement: Placement) -> MapFiles:
        """Return the maps of labels in a folder.

        Raises:
            InputError: they hold nothing but 0 and the label that stands for no class, as masks of 0 and 255 do.
        """
        found = MapFiles.open(path, names, placement, _labels)
        labels = {label for each in found.some(LOOKED_AT) for label in each.unique().tolist()}
        if self.ignored and labels == {0, self.ignored}:
            raise InputError(
                f"the maps in {path} hold only the labels 0 and {self.ignored}, and {self.ignored} stands for no class.",
                "Save the pixels of the object as 1.",
            )
        return found

    def tally(self, before: ClassMap, after: ClassMap, view: View, truth: Tensor | None) -> dict[str, Tensor]:
        """Return pixels of each class in both maps and in either."""
        both, either = intersections(*aligned(before.tops, after.tops, view), before.classes)
        return {"both": both.double(), "either": either.double()}

    def tally_answers(self, answers: Sequence[ClassMap]) -> dict[str, Tensor]:
        """Return for how many images an output that is read as a logit is no probability."""
        return {"outside": torch.tensor(float(sum(each.outside for each in answers)))}

    def doubts(self, sums: Mapping[str, Tensor]) -> list[str]:
        """Return that maps of a single channel look like probabilities, where they are read as logits."""
        if self.given != "logits" or "outside" not in sums or float(sums["outside"]):
            return []
        return [
            "All values of the maps lie between 0 and 1, and are read as logits, of which none is below 0: if the model ends in "
            f"a sigmoid, add --task {self.name}:given=probabilities."
        ]

    def units(self, sums: Mapping[str, Tensor]) -> Tensor:
        """Return the intersection over union of each class, over all images and shifts; NaN for a class that never appears."""
        return sums["both"] / sums["either"]

    def draw(self, picture: Tensor, answer: ClassMap, view: View) -> Tensor:
        """Draw each class in its colour over the picture."""
        return blended(picture, class_colours(answer.tops), view)

    def words(self, share: str, value: str, moved: str) -> str:
        """Return the pixel agreement in a sentence."""
        return f"The answer stays the same for {share} of pixels when images move {moved}."


def _as_class_maps(found: Tensor, count: int, size: tuple[int, int]) -> list[ClassMap]:
    """Return the class maps that a model returns as whole numbers."""
    maps = found[:, 0] if found.ndim == 4 and found.shape[1] == 1 else found
    if maps.ndim != 3 or len(maps) != count:
        raise InputError(
            f"task 'segmentation' needs whole numbers [image, height, width] for {number_of(count, 'image')}, "
            f"got shape {tuple(found.shape)}.",
            "Choose another --task or `output`.",
        )
    low, high = (int(each) for each in maps.long().aminmax())
    if low < 0 or high >= MOST_CLASSES:
        raise InputError(f"the model returns classes of pixels from {low} to {high}, and they must be 0 to {MOST_CLASSES - 1}.")
    enlarged = functional.interpolate(maps[:, None].float().cpu(), size, mode="nearest-exact")[:, 0]
    return [ClassMap(each, MOST_CLASSES) for each in enlarged.to(torch.uint8)]


def _labels(values: np.ndarray) -> Tensor:
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool:
        raise InputError(f"`truth` of task 'segmentation' must be whole numbers, got {values.dtype}.", "Save labels of pixels.")
    return torch.from_numpy(values.astype(np.int64))


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else nan


def _mean_iou(both: Tensor, either: Tensor) -> float:
    """Return the mean over classes that appear in either map; NaN without any."""
    there = either > 0
    return _mean(both[there].double() / either[there])


def _boundary(classes: Tensor) -> Tensor:
    """Return whether a pixel has another class than one of its four neighbours, [height, width]."""
    found = torch.zeros(classes.shape, dtype=torch.bool)
    down, right = classes[1:] != classes[:-1], classes[:, 1:] != classes[:, :-1]
    found[1:] |= down
    found[:-1] |= down
    found[:, 1:] |= right
    found[:, :-1] |= right
    return found
