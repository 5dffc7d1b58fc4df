"""Object detection: boxes with a class and a confidence. Equivariant: boxes should move along with the image.

The boxes of the shifted image are moved back and paired with those of the unshifted one, one to one, so that the overlaps (IoU)
within a class have the largest sum. Detections at or above a threshold of confidence are counted: each survives, switches its
label, or dies; one that appears is born. What a border cuts in one of the two views is left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.tasks.detections import Detections, looks_like_detections, read_detections
from shiftscope.tasks.matching import areas, match, overlaps
from shiftscope.tasks.objects import Objects, inside, size_of
from shiftscope.tasks.outlines import outlined
from shiftscope.tasks.precision import judge
from shiftscope.tasks.records import to_rows, totals_of
from shiftscope.tasks.task import Task, Truth, View
from shiftscope.tasks.truth import open_objects
from shiftscope.tasks.truth_files import Placement

__all__ = ["Boxes"]

SURVIVAL = "box_survival"
CHANGES = ("confidence_change", "worst_confidence_change")
OTHERS = ("box_iou", "box_jitter", "label_switches", "box_deaths", "box_births", "boxes_cut")
BY_SIZE = tuple(f"confidence_change_{size}" for size in ("small", "medium", "large"))
TOTALS = ("ap", "ap_worst", "ap_range", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class _Pairing(NamedTuple):
    """Detections before a shift, and what became of each.

    Attributes:
        kept: [pair, 2], which detection survives as which.
        switched: [pair, 2], which has another label afterwards.
        after: [before], confidence of its class at its place after the shift, 0 where nothing is left.
        born: [after], whether nothing was there before.
    """

    kept: np.ndarray
    switched: np.ndarray
    after: np.ndarray
    born: np.ndarray


@dataclass(frozen=True)
class Boxes(Task):
    """Boxes with scores and labels, in the forms of :mod:`shiftscope.tasks.detections`.

    Attributes:
        threshold: least confidence of a detection that counts.
        overlap: least IoU of two boxes of the same object.
        no_object: whether the last class of a Hugging Face detector stands for no object (``last``) or none does (``none``);
            empty for what its configuration says.
        truth_labels: what the model's labels are in a COCO file: category ``id``, or ``order`` of the categories, from 0.
        classes: number of classes that the model's configuration says; 0 if it says none.
    """

    name: str = "boxes"
    measures: tuple[str, ...] = (SURVIVAL, *CHANGES, *OTHERS, *BY_SIZE)
    truth_measures: tuple[str, ...] = ("objects_found",)
    total_measures: tuple[str, ...] = TOTALS
    threshold: float = 0.5
    overlap: float = 0.5
    no_object: str = ""
    truth_labels: str = "id"
    classes: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("no_object", ("", "last", "none")), ("truth_labels", ("id", "order"))):
            if getattr(self, name) not in allowed:
                words = " or ".join(repr(each) for each in allowed if each)
                raise InputError(f"`{name}` of task 'boxes' must be {words}, got {getattr(self, name)!r}.")
        for name in ("threshold", "overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"`{name}` of task 'boxes' must be above 0 and at most 1, got {getattr(self, name):g}.")

    def nothing(self) -> str:
        """Return that no detection counts in any image."""
        return (
            f"No image has a detection with a confidence of {self.threshold:g} or more that no border cuts: there is nothing to "
            "compare. Lower the threshold, as with --task boxes:threshold=0.3."
        )

    def knowing(self, model: Any) -> Boxes:
        """Return the task with the number of classes that a Hugging Face model's configuration says."""
        parts = model.modules() if isinstance(model, nn.Module) else [model]
        known = (getattr(getattr(part, "config", None), "num_labels", None) for part in parts)
        return replace(self, classes=next((each for each in known if isinstance(each, int)), self.classes))

    def shows(self, output: Any, count: int, size: tuple[int, int]) -> bool:
        """Return whether an output has names that only detectors give."""
        return looks_like_detections(output, count)

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Detections]:
        """Return each image's detections."""
        known: Any = self.no_object or None
        return read_detections(output, count, size, no_object=known, classes=self.classes or None)

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Objects:
        """Return an image's objects: as such, or from a dict of ``boxes`` (x1 y1 x2 y2, pixels of the input) and ``labels``."""
        return truth if isinstance(truth, Objects) else _objects(truth)

    def compare(self, before: Detections, after: Detections, view: View, truth: Objects | None) -> dict[str, float]:
        """Return shares of detections and how much their confidences and boxes change."""
        back = _moved_back(after, view)
        strong = before.scores >= self.threshold
        seen, seen_after = _whole(before.boxes, after.boxes, view)
        paired = self._pair(before, back)
        counted = strong & seen
        kept = paired.kept[counted[paired.kept[:, 0]]]
        switched = int(counted[paired.switched[:, 0]].sum())
        number = int(counted.sum())
        change = np.abs(before.scores - paired.after)[counted]
        shift = np.abs(before.boxes[kept[:, 0]] - back.boxes[kept[:, 1]])
        found = {
            SURVIVAL: _share(len(kept), number),
            "confidence_change": _mean(change),
            "worst_confidence_change": float(change.max()) if number else nan,
            "box_iou": _mean(np.diagonal(overlaps(before.boxes[kept[:, 0]], back.boxes[kept[:, 1]]))),
            "box_jitter": _mean(shift),
            "label_switches": _share(switched, number),
            "box_deaths": _share(number - len(kept) - switched, number),
            "box_births": float((paired.born & seen_after).sum()),
            "boxes_cut": _share(int(strong.sum()) - number, int(strong.sum())),
        }
        sizes = np.array(size_of(areas(before.boxes[counted])), dtype=object)
        found |= {name: _mean(change[sizes == name.rpartition("_")[2]]) for name in BY_SIZE}
        if truth is not None:
            found["objects_found"] = self._found(after, _shifted(truth, view))
        return found

    def _pair(self, before: Detections, after: Detections) -> _Pairing:
        """Return what becomes of each detection; ``after`` is moved back already."""
        overlap = overlaps(before.boxes, after.boxes)
        same = before.labels[:, None] == after.labels[None]
        strong, strong_after = before.scores >= self.threshold, after.scores >= self.threshold
        kept = match(overlap, same & strong[:, None] & strong_after, least=self.overlap)
        rest, new = _except(strong, kept[:, 0]), _except(strong_after, kept[:, 1])
        switched = match(overlap, ~same & rest[:, None] & new, least=self.overlap)
        faded = match(overlap, same & rest[:, None] & ~strong_after, least=self.overlap)
        left = np.zeros(len(before))
        for one, other in (*kept, *faded):
            left[one] = after.scores[other]
        return _Pairing(kept, switched, left, _except(new, switched[:, 1]))

    def _found(self, found: Detections, objects: Objects) -> float:
        """Return the share of objects that count which are found."""
        counted = objects.at(~objects.ignored)
        allowed = (counted.labels[:, None] == found.labels) & (found.scores >= self.threshold)
        return _share(len(match(overlaps(counted.boxes, found.boxes), allowed, least=self.overlap)), len(counted))

    def records(self, after: Detections, view: View, truth: Objects | None) -> Tensor | None:
        """Return the detections as average precision judges them; None without ground truth."""
        return None if truth is None else torch.from_numpy(to_rows(judge(after, _shifted(truth, view))))

    def totals(self, records: Tensor) -> dict[str, Estimate]:
        """Return the average precision over all images: mean, worst and range over the shifts, and by size."""
        return totals_of(records.numpy())

    def draw(self, picture: Tensor, answer: Detections, view: View) -> Tensor:
        """Draw the detections that count, moved back, each class in its colour, over those of the unshifted image in white."""
        drawn = picture
        for before in view.references if view.shift != (0, 0) else ():
            drawn = outlined(drawn, before.boxes[before.scores >= self.threshold])
        found = _moved_back(answer.at(answer.scores >= self.threshold), view)
        return outlined(drawn, found.boxes, found.labels)

    def open_truth(self, path: Path, names: Sequence[str], placement: Placement) -> Truth:
        """Return the objects of images from the JSON of COCO, or the folders ``images`` and ``labels`` of YOLO."""
        return open_objects(path, names, placement, order=self.truth_labels == "order")

    def words(self, share: str, value: str, moved: str) -> str:
        """Return the share of detections that survive in a sentence."""
        return f"The detector finds {share} of its objects again when images move {moved}."


def _objects(truth: Any) -> Objects:
    """Return objects from a dict of boxes and labels.

    Raises:
        InputError: they have another form.
    """
    if not isinstance(truth, dict) or not {"boxes", "labels"} <= set(truth):
        raise InputError(
            f"`truth` of task 'boxes' must be a dict of 'boxes' and 'labels' for each image, got {type(truth).__name__}.",
            "Give boxes as x1 y1 x2 y2 in pixels of the model's input.",
        )
    scores = torch.ones(len(truth["labels"]))
    found = read_detections([{"boxes": truth["boxes"], "scores": scores, "labels": truth["labels"]}], 1, (0, 0))[0]
    crowd = np.asarray(truth.get("iscrowd", np.zeros(len(found)))).astype(bool)
    own = np.asarray(truth.get("area", areas(found.boxes)), dtype=float)
    return Objects(found.boxes, found.labels, own, crowd)


def _moved_back(after: Detections, view: View) -> Detections:
    """Return detections in the frame of the first view."""
    moved = after.moved((-view.shift[0], -view.shift[1]))
    if not view.circular:
        return moved
    size = np.array([view.size[1], view.size[0]], dtype=float)
    centre = (moved.boxes[:, :2] + moved.boxes[:, 2:]) / 2
    return replace(moved, boxes=moved.boxes - np.tile(np.floor(centre / size) * size, 2))


def _whole(before: np.ndarray, after: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Return which boxes of each view no border cuts in either view."""
    (dy, dx), (height, width) = view.shift, view.size
    size, step = np.array([width, height], dtype=float), np.array([dx, dy], dtype=float)
    if view.circular:
        return _unwrapped(before, step, size), _unwrapped(after, -step, size)
    start = np.array([view.start[1], view.start[0]], dtype=float)
    low = np.maximum(np.maximum(0, start), -step)
    high = np.minimum(np.minimum(size, size + start), size - step)
    return inside(before, low, high), inside(after, low + step, high + step)


def _unwrapped(boxes: np.ndarray, step: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return which boxes neither touch a border nor do so after a circular step (x, y)."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + step
    moved = boxes + np.tile(step, 2) - np.tile(np.floor(centre / size) * size, 2)
    found: np.ndarray = inside(boxes, np.zeros(2), size) & inside(moved, np.zeros(2), size)
    return found


def _shifted(truth: Objects, view: View) -> Objects:
    down, right = (first + step for first, step in zip(view.start, view.shift, strict=True))
    return truth.shifted((down, right), view.size, view.reach, circular=view.circular)


def _except(mask: np.ndarray, places: Sequence[int] | np.ndarray) -> np.ndarray:
    left = mask.copy()
    left[places] = False
    return left


def _share(part: int, whole: int) -> float:
    return part / whole if whole else nan


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else nan
