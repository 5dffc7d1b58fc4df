"""Object detection: boxes with a class and a confidence. Equivariant: boxes should move along with the image.

The boxes of the shifted image are moved back and paired with those of the unshifted one, one to one, so that the overlaps (IoU)
within a class have the largest sum. Detections at or above a threshold of confidence are counted: each survives, switches its
label, or dies; one that appears is born. What a border cuts in one of the two views is left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.tasks.box_changes import CHANGES, Frame, batches, changes, confidence_left, objects_of, share_found
from shiftscope.tasks.detections import Detections, boxes_back, looks_like_detections, read_detections
from shiftscope.tasks.matching import areas
from shiftscope.tasks.objects import Objects
from shiftscope.tasks.outlines import outlined
from shiftscope.tasks.packed import pack_rows
from shiftscope.tasks.padded_boxes import DetectionStack
from shiftscope.tasks.placing import Placing
from shiftscope.tasks.precision import judge_together
from shiftscope.tasks.records import to_rows, total_differences, totals_of
from shiftscope.tasks.task import ROUNDING, Pair, Task, Totals, Truth, View
from shiftscope.tasks.truth import open_objects
from shiftscope.tasks.truth_files import Placement

__all__ = ["Boxes"]

NOTHING = Objects(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0, dtype=bool))
#: So many detections are named below a frame.
CAPTION = 5
TOTALS = ("ap", "ap_worst", "ap_range", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


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

    moves: ClassVar[bool | None] = True
    graded: ClassVar[str] = "confidence_change"
    name: str = "boxes"
    measures: tuple[str, ...] = CHANGES
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
            f"compare. Lower the threshold, as with --task boxes:threshold={self.threshold / 2:g}."
        )

    def all_wrong(self) -> str:
        """Return that labels may be numbered in two ways."""
        other = "id" if self.truth_labels == "order" else "order"
        return (
            "No object of the ground truth is found in any image: check that its labels are the model's. Those of COCO files are "
            f"the ids of categories, or their places from 0; --task boxes:truth_labels={other} takes the other."
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

    def place_back(self, output: Any, placing: Placing) -> Any:
        """Return the boxes, moved along, with their scores and labels; masks and points of objects are left out."""
        return boxes_back(output, placing)

    def no_mean(self) -> str:
        """Return that sets of boxes have no mean."""
        return "boxes at several shifts have no mean: which of them show the same object is unknown."

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Objects:
        """Return an image's objects: as such, or from a dict of ``boxes`` (x1 y1 x2 y2, pixels of the input) and ``labels``."""
        return truth if isinstance(truth, Objects) else _objects(truth)

    def compare(self, before: Detections, after: Detections, view: View, truth: Objects | None) -> dict[str, float]:
        """Return shares of detections and how much their confidences and boxes change."""
        return self.compare_all([Pair(before, after, view, truth)])[0]

    def compare_all(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Return what :meth:`compare` does for each pair, computed together."""
        found: dict[int, dict[str, float]] = {}
        for numbers in batches(pairs, [max(len(each.before), len(each.after), len(each.truth or ())) for each in pairs]):
            found |= zip(numbers, self._compared([pairs[number] for number in numbers]), strict=True)
        return [found[number] for number in range(len(pairs))]

    def _compared(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Return the measures of pairs on the same borders."""
        limits = {"threshold": self.threshold, "overlap": self.overlap}
        before, after = (DetectionStack.of(each) for each in zip(*((pair.before, pair.after) for pair in pairs), strict=True))
        values = changes(before, after, Frame.of([pair.view for pair in pairs]), **limits)
        found = [dict(zip(CHANGES, row, strict=True)) for row in values.T.tolist()]
        if any(pair.truth is not None for pair in pairs):
            shares = share_found(after, objects_of(pairs, NOTHING), **limits).tolist()
            for pair, measures, share in zip(pairs, found, shares, strict=True):
                measures |= {} if pair.truth is None else {"objects_found": share}
        return found

    def rule(self, reach: int) -> str:
        """Return which detections are found again, and how."""
        return (
            f"every detection with a confidence of {self.threshold:g} or more that no shift of up to {reach} pixels cuts is "
            f"found again, with the same class, an IoU of {self.overlap:g} or more and a confidence of {self.threshold:g} or more"
        )

    def leads(self, pairs: Sequence[Pair]) -> list[float]:
        """Return by how much the least confidence of the detections that count exceeds the threshold, by more than rounding.

        A detection that is below the threshold by no more than rounding counts, too.
        """
        found: dict[int, float] = {}
        for numbers in batches(pairs, [max(len(each.before), len(each.after)) for each in pairs]):
            some = [pairs[number] for number in numbers]
            before, after = (DetectionStack.of(each) for each in zip(*((pair.before, pair.after) for pair in some), strict=True))
            left = confidence_left(
                before,
                after,
                Frame.of([pair.view for pair in some]),
                threshold=self.threshold - ROUNDING,
                overlap=min(self.overlap + ROUNDING, 1.0),
                reach=some[0].view.reach,
            )
            found |= zip(numbers, (left - self.threshold - ROUNDING).tolist(), strict=True)
        return [found[number] for number in range(len(pairs))]

    def records(self, after: Detections, view: View, truth: Objects | None) -> Tensor | None:
        """Return the detections as average precision judges them; None without ground truth."""
        return self.records_all([Pair(after, after, view, truth)])[0]

    def records_all(self, pairs: Sequence[Pair]) -> list[Tensor | None]:
        """Return what :meth:`records` does for each pair, computed together."""
        found: list[Tensor | None] = [None] * len(pairs)
        known = [number for number, pair in enumerate(pairs) if pair.truth is not None]
        some = [pairs[number] for number in known]
        for numbers in batches(some, [max(len(each.after), len(each.truth)) for each in some]):
            chosen = [some[number] for number in numbers]
            rows = to_rows(judge_together([each.after for each in chosen], objects_of(chosen, NOTHING)))
            for number, each in zip(numbers, rows, strict=True):
                found[known[number]] = torch.from_numpy(each)
        return found

    def pack(self, records: Tensor) -> Tensor:
        """Return the records as bytes, [byte]: five or six per detection, and twenty per view."""
        return torch.from_numpy(pack_rows(records.numpy()).copy())

    def totals(self, records: Tensor) -> Totals:
        """Return the average precision over all images: mean, worst and range over the shifts, by size, and at each shift."""
        return totals_of(records.numpy())

    def caption(self, answer: Detections) -> str:
        """Return the detections that count with their confidences, the most confident first."""
        order = [each for each in np.argsort(-answer.scores, kind="stable") if answer.scores[each] >= self.threshold]
        named = [f"class {answer.labels[each]} {100 * answer.scores[each]:.0f} %" for each in order[:CAPTION]]
        more = [f"{len(order) - CAPTION} more"] if len(order) > CAPTION else []
        return ", ".join([*named, *more]) or "nothing"

    def total_differences(self, before: Tensor, after: Tensor) -> dict[str, Estimate]:
        """Return by how much average precisions of two models differ; the same images are left out of both."""
        return total_differences(before.numpy(), after.numpy())

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
    return replace(after, boxes=Frame.of([view]).back(after.boxes[None])[0])
