"""Keypoints: places of named points, such as a person's joints. Equivariant: points should move along with the image.

The points of the shifted image are moved back and compared with those of the unshifted one, point by point. Where an image shows
several instances, these are paired first, one to one, by the overlaps (IoU) of their boxes, or of those around their points.
Points that lie outside what both views show are left out, and where there are boxes also instances that a border cuts. A point of
an instance that is not found again, or that is no longer visible, is not kept; it has no distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shiftscope.errors import InputError, NotFiniteError
from shiftscope.runtime.text import number_of
from shiftscope.tasks.box_changes import Frame
from shiftscope.tasks.keypoint_truth import coco_keypoints
from shiftscope.tasks.matching import areas, match, overlaps
from shiftscope.tasks.outlines import outlined
from shiftscope.tasks.task import Task, Truth, View
from shiftscope.tasks.truth_files import Placement

__all__ = ["COCO_SIGMAS", "Keypoints", "Poses", "similarities"]

#: COCO's spread of each of the 17 points of a person, as a share of the square root of its area.
COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),  # nose, eyes, ears
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),  # shoulders, elbows, wrists
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),  # hips, knees, ankles
)
MEASURES = ("keypoints_kept", "keypoint_distance", "keypoint_oks", "visibility_flips", "pose_survival")
TRUTH = ("truth_keypoints", "truth_keypoint_distance", "truth_keypoint_oks")
WHAT = "task 'keypoints' needs keypoints for each image"
FORMS = "Return a list of dicts as torchvision does, or one tensor [image, point, 2 or 3] of x, y and confidence."
HEATMAPS = "Of heatmaps, return the places of their maxima, found as your application finds them."
#: Fewer points than this say nothing about their unit.
FEW_POINTS = 8


@dataclass(frozen=True)
class Poses:
    """The instances that a model finds in an image.

    Attributes:
        points: (x, y) of each point, pixels of the model's input.
        confidence: of each point, or its visibility; NaN where the model gives none.
        scores: confidence of each instance.
        boxes: (x1, y1, x2, y2) of each instance; None of a model that gives none.
    """

    points: Float[np.ndarray, "pose point 2"]
    confidence: Float[np.ndarray, "pose point"]
    scores: Float[np.ndarray, " pose"]
    boxes: Float[np.ndarray, "pose 4"] | None

    def at(self, chosen: np.ndarray) -> Poses:
        """Return some of the instances."""
        boxes = None if self.boxes is None else self.boxes[chosen]
        return Poses(self.points[chosen], self.confidence[chosen], self.scores[chosen], boxes)

    def shown(self, least: float) -> Bool[np.ndarray, "pose point"]:
        """Return which points are visible: of a confidence of at least ``least``, or of none that is known."""
        shown: np.ndarray = np.isnan(self.confidence) | (self.confidence >= least)
        return shown

    def extents(self, least: float) -> Float[np.ndarray, "pose 4"]:
        """Return the box of each instance, by default that around its visible points; see :meth:`shown`."""
        return _around(self.points, self.shown(least)) if self.boxes is None else self.boxes


def similarities(
    apart: Float[np.ndarray, "pose point"], own: Float[np.ndarray, " pose"], sigmas: Sequence[float] = COCO_SIGMAS
) -> Float[np.ndarray, "pose point"]:
    """Return exp(-d^2 / (2 s^2 k^2)) of each point, whose mean over points is COCO's object keypoint similarity (OKS).

    Args:
        apart: distance d of each point, pixels.
        own: area s^2 of each instance, square pixels.
        sigmas: of each point; k is twice as much.

    >>> similarities(np.array([[0.0, 10.0]]), np.array([2500.0]), [0.05, 0.1]).round(3).tolist()
    [[1.0, 0.607]]
    """
    spread = np.square(2 * np.asarray(sigmas)) * np.maximum(own, np.finfo(float).tiny)[:, None]
    found: np.ndarray = np.exp(-np.square(apart) / (2 * spread))
    return found


@dataclass(frozen=True)
class Keypoints(Task):
    """Keypoints of torchvision's and ultralytics' models, or [image, point, 2 or 3] of one instance per image.

    Attributes:
        near: distance within which a point is kept, as a share of the longer side of its instance's box, or without one of that
            around its points (PCK).
        threshold: least confidence of an instance that counts.
        overlap: least IoU of two boxes of one instance.
        visible: least confidence of a point that is visible.
        sigma: of every point, for OKS; 0 for COCO's of 17 points, and no OKS for another number of points.
        given: what points and boxes are given in: ``pixels`` of the model's input, or ``shares`` of its width and height.
    """

    name: str = "keypoints"
    measures: tuple[str, ...] = MEASURES
    truth_measures: tuple[str, ...] = TRUTH
    near: float = 0.1
    threshold: float = 0.5
    overlap: float = 0.5
    visible: float = 0.5
    sigma: float = 0.0
    given: str = "pixels"

    def __post_init__(self) -> None:
        for name in ("near", "threshold", "overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"`{name}` of task 'keypoints' must be above 0 and at most 1, got {getattr(self, name):g}.")
        if self.sigma < 0:
            raise InputError(f"`sigma` of task 'keypoints' must be 0 or more, got {self.sigma:g}.")
        if self.given not in ("pixels", "shares"):
            raise InputError(f"`given` of task 'keypoints' must be 'pixels' or 'shares', got {self.given!r}.")

    def nothing(self) -> str:
        """Return that no instance counts in any image."""
        return (
            f"No image has an instance whose points can be kept: one with a confidence of {self.threshold:g} or more that no "
            f"border cuts, a visible point (of {self.visible:g} or more) and a size, from a box or several points. Lower the "
            f"threshold, as with --task keypoints:threshold={self.threshold / 2:g}."
        )

    def shows(self, output: Any, count: int, size: tuple[int, int]) -> bool:
        """Return whether an output has names that only models of keypoints give."""
        return isinstance(output, list | tuple) and len(output) == count > 0 and _fields(output[0]) is not None

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Poses]:
        """Return each image's instances."""
        scale = np.array([size[1], size[0]], dtype=float) if self.given == "shares" else np.ones(2)
        if isinstance(output, Tensor):
            if output.ndim == 4 and len(output) == count and output.shape[1] > 1:
                raise InputError(f"{WHAT}, {count} of them, got maps of shape {tuple(output.shape)}.", HEATMAPS)
            if output.ndim != 3 or len(output) != count or output.shape[2] not in (2, 3):
                raise InputError(f"{WHAT}, {count} of them, got shape {tuple(output.shape)}.", FORMS)
            ones = torch.ones(1, dtype=torch.float64)
            return [_poses(each[None], None, ones, None, scale=scale) for each in output]
        if not isinstance(output, list | tuple) or len(output) != count:
            raise InputError(f"{WHAT}, {count} of them, got {type(output).__name__}.", FORMS)
        found = [_fields(each) for each in output]
        if any(each is None for each in found):
            raise InputError(f"{WHAT}, got {type(output[0]).__name__} without keypoints.", FORMS)
        return [_poses(*each, scale=scale) for each in found if each is not None]

    def tally_answers(self, answers: Sequence[Poses]) -> dict[str, Tensor]:
        """Return the number of points, and how many of them lie further than 1 from the corner."""
        points = np.concatenate([each.points.reshape(-1, 2) for each in answers]) if answers else np.zeros((0, 2))
        return {"points": torch.tensor(float(len(points))), "beyond": torch.tensor(float((points > 1).any(axis=1).sum()))}

    def doubts(self, sums: Mapping[str, Tensor]) -> list[str]:
        """Return that places look like shares of the image, where they are read as pixels."""
        if self.given != "pixels" or not sums or float(sums["beyond"]) or float(sums["points"]) < FEW_POINTS:
            return []
        return [
            "All points lie between 0 and 1, and are read as pixels: if they are shares of the image's width and height, add "
            "--task keypoints:given=shares."
        ]

    def compare(self, before: Poses, after: Poses, view: View, truth: Any) -> dict[str, float]:
        """Return how far points move against the image, and what becomes of instances and of visibility."""
        before, after = (each.at(each.scores >= self.threshold) for each in (before, after))
        if len(before.points) and len(after.points) and before.points.shape[1:] != after.points.shape[1:]:
            raise InputError(f"{WHAT}: the number of points differs between views.", "Return the same points for every image.")
        found = self._between(before, after, Frame.of([view]))
        return found if truth is None else found | self._against(truth, after, view)

    def _against(self, truth: Poses, after: Poses, view: View) -> dict[str, float]:
        """Return how many of the true points are found, and how far away; places count, however sure the model is of them."""
        if len(truth.points) and len(after.points) and truth.points.shape[1] != after.points.shape[1]:
            raise InputError(
                f"`truth` of task 'keypoints' has {number_of(truth.points.shape[1], 'point')} an instance, and the model returns "
                f"{after.points.shape[1]}.",
                "Give ground truth of the model's points.",
            )
        (top, left), (down, right) = view.start, view.shift
        frame = Frame.of([replace(view, start=(0.0, 0.0), shift=(top + down, left + right))])
        nowhere = (after.points == 0).all(axis=2) & ~after.shown(self.visible)  # as ultralytics returns points that it hides
        found = self._between(truth, replace(after, confidence=np.where(nowhere, 0.0, nan)), frame)
        return dict(zip(TRUTH, (found["keypoints_kept"], found["keypoint_distance"], found["keypoint_oks"]), strict=True))

    def _between(self, before: Poses, after: Poses, frame: Frame) -> dict[str, float]:
        """Return the measures of instances before and after."""
        one, other, whole = self._paired(before, after, frame)
        if not whole.any():
            return dict.fromkeys(MEASURES, nan)
        # What an instance that is not found again has in the second view: points nowhere, which are not visible.
        again = Poses(np.full_like(before.points, nan), np.zeros_like(before.confidence), np.zeros(len(whole)), None)
        again.points[one], again.confidence[one] = after.points[other], after.confidence[other]
        found = np.zeros(len(whole), dtype=bool)
        found[one] = True
        survival = len(one) / int(whole.sum())
        return {"pose_survival": survival} | self._changes(before.at(whole), again.at(whole), found[whole], frame)

    def _changes(self, before: Poses, after: Poses, found: Bool[np.ndarray, " pose"], frame: Frame) -> dict[str, float]:
        """Return the measures of the points of instances before and after; ``found`` says which were found again."""
        apart, inside = _distances(before.points, after.points, frame)
        boxes = before.extents(self.visible)
        side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0)[:, None]
        sigmas = [self.sigma] * apart.shape[1] if self.sigma else COCO_SIGMAS
        alike = similarities(apart, areas(boxes), sigmas) if len(sigmas) == apart.shape[1] else np.full(apart.shape, nan)
        shown, shown_after = before.shown(self.visible), after.shown(self.visible)
        known = inside & found[:, None] & ~np.isnan(before.confidence) & ~np.isnan(after.confidence)
        both = inside & shown & shown_after
        return {
            # Where there is no size, as of a single point, nothing is near.
            "keypoints_kept": _mean(shown_after & (apart <= self.near * side), inside & shown & (side > 0)),
            "keypoint_distance": _mean(apart, both),
            "keypoint_oks": _mean(alike, both),
            "visibility_flips": _mean(shown != shown_after, known),
        }

    def _paired(self, before: Poses, after: Poses, frame: Frame) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " pose"]]:
        """Return which instances are the same before and after, and which of those before count."""
        boxed = before.boxes is not None and after.boxes is not None
        if not boxed and max(len(before.points), len(after.points)) <= 1:
            same = np.arange(min(len(before.points), len(after.points)))
            return same, same, np.ones(len(before.points), dtype=bool)
        if not boxed and before.points.shape[1] == 1:
            raise InputError(f"{WHAT}: several instances of one point have no size to pair them by.", "Return their boxes.")
        boxes, boxes_after = (each.extents(self.visible) for each in (before, after))
        whole, whole_after = (each[0] for each in frame.whole(boxes[None], boxes_after[None]))
        whole = whole if boxed else np.ones(len(boxes), dtype=bool)
        shared = overlaps(boxes, frame.back(boxes_after[None])[0])
        pairs = match(shared, whole[:, None] & np.ones(len(whole_after), dtype=bool), least=self.overlap)
        return pairs[:, 0], pairs[:, 1], whole

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Poses:
        """Return an image's instances, in pixels of the model's input.

        Args:
            truth: [point, 2 or 3] or [instance, point, 2 or 3], x, y and COCO's visibility (0 where a point is not labelled); or
                a dict of such ``keypoints`` and ``boxes`` (x1 y1 x2 y2).
            size: (height, width) of the model's input, pixels.

        Raises:
            InputError: it has another form.
        """
        if isinstance(truth, Poses):
            return truth
        given, boxes = (truth.get("keypoints"), truth.get("boxes")) if isinstance(truth, Mapping) else (truth, None)
        places = _array(given)
        places = places[None] if places.ndim == 2 else places
        if places.ndim != 3 or places.shape[2] not in (2, 3) or (boxes is not None and len(boxes) != len(places)):
            raise InputError(
                f"`truth` of task 'keypoints' must be [instance, point, 2 or 3] for each image, got shape {places.shape}.",
                "Give x, y and visibility in pixels of the model's input, or a dict of 'keypoints' and 'boxes'.",
            )
        labelled = places[..., 2] > 0 if places.shape[2] == 3 else np.ones(places.shape[:2], dtype=bool)
        around = _around(places[..., :2], labelled) if boxes is None else _array(boxes).reshape(-1, 4)
        return Poses(places[..., :2], np.where(labelled, nan, -np.inf), np.ones(len(places)), around)

    def open_truth(self, path: Path, names: Sequence[str], placement: Placement) -> Truth:
        """Return the instances of images from the JSON of COCO."""
        return coco_keypoints(path, names, placement)

    def draw(self, picture: Tensor, answer: Poses, view: View) -> Tensor:
        """Draw the points of instances that count, moved back, each in its colour, over those of the unshifted image in white."""
        drawn = picture
        for before in view.references if view.shift != (0, 0) else ():
            drawn = outlined(drawn, _dots(self._shown(before), picture))
        points = self._shown(answer) - np.array([view.shift[1], view.shift[0]])
        labels = np.tile(np.arange(points.shape[1]), len(points))
        return outlined(drawn, _dots(points, picture), labels)

    def _shown(self, answer: Poses) -> Float[np.ndarray, "pose point 2"]:
        return answer.points[answer.scores >= self.threshold]

    def caption(self, answer: Poses) -> str:
        """Return how many instances count, and how many of their points are visible."""
        counted = answer.at(answer.scores >= self.threshold)
        visible = int((counted.confidence >= self.visible).sum())
        points = "" if np.isnan(counted.confidence).all() else f", {visible} visible points"
        return f"{number_of(len(counted.scores), 'instance')}{points}"

    def words(self, share: str, value: str, moved: str) -> str:
        """Return the share of points that are kept in a sentence."""
        return f"Keypoints stay within {self.near:g} of the size of their object for {share} of points when images move {moved}."


def _fields(each: Any) -> tuple[Any, Any, Any, Any] | None:
    """Return points, their confidence, scores and boxes of an image's instances, as libraries name them; None without points.

    torchvision's third number of a point is always 1, and its ``keypoints_scores`` are not between 0 and 1: how visible its
    points are is unknown.
    """
    if isinstance(each, Mapping):
        points = each.get("keypoints")
        if points is None:
            return None
        unknown = "keypoints_scores" in each and isinstance(points, Tensor) and points.ndim == 3
        return points[..., :2] if unknown else points, None, each.get("scores"), each.get("boxes")
    inner, boxes = getattr(each, "keypoints", None), getattr(each, "boxes", None)
    if inner is None or boxes is None or getattr(inner, "xy", None) is None:
        return None
    return inner.xy, getattr(inner, "conf", None), boxes.conf, boxes.xyxy


def _poses(points: Any, confidence: Any, scores: Any, boxes: Any, *, scale: Float[np.ndarray, " axis"]) -> Poses:
    """Return instances from what a model gives for an image; ``scale`` turns its places into pixels.

    Raises:
        InputError: shapes do not belong together.
        NotFiniteError: numbers are NaN or infinite.
    """
    places = _array(points)
    count = len(places)
    if places.ndim != 3 or places.shape[2] not in (2, 3):
        raise InputError(f"`keypoints` must be [instance, point, 2 or 3], got shape {places.shape}.", FORMS)
    given = places[..., 2] if confidence is None and places.shape[2] == 3 else None
    known = np.full(places.shape[:2], nan) if confidence is None else _array(confidence)
    known = known if given is None else given
    ones = np.ones(count) if scores is None else _array(scores).reshape(-1)
    frames = None if boxes is None else _array(boxes).reshape(-1, 4)
    if known.shape != places.shape[:2] or len(ones) != count or (frames is not None and len(frames) != count):
        raise InputError(
            "`keypoints`, `scores` and `boxes` must have one entry per instance of an image.", "Return one of each per instance."
        )
    if not all(np.isfinite(each).all() for each in (places, ones, *([] if frames is None else [frames]))):
        raise NotFiniteError("the model returned NaN or infinity in its keypoints, boxes or scores.", "Check its weights.")
    return Poses(places[..., :2] * scale, known, ones, None if frames is None else frames * np.tile(scale, 2))


def _around(places: Float[np.ndarray, "pose point 2"], counted: Bool[np.ndarray, "pose point"]) -> Float[np.ndarray, "pose 4"]:
    """Return the box around the counted points of each instance; of no size where there are none."""
    if not places.size:
        return np.zeros((len(places), 4))
    low, high = (np.where(counted[..., None], places, far) for far in (np.inf, -np.inf))
    ends = np.concatenate([low.min(axis=1), high.max(axis=1)], axis=1)
    found: np.ndarray = np.where(counted.any(axis=1, keepdims=True), ends, 0.0)
    return found


def _array(values: Any) -> np.ndarray:
    """Return numbers in double precision on the CPU."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{WHAT}, got {type(values).__name__} in place of numbers.", FORMS) from error
    array: np.ndarray = tensor.detach().cpu().double().numpy()
    return array


def _distances(
    before: Float[np.ndarray, "pose point 2"], after: Float[np.ndarray, "pose point 2"], frame: Frame
) -> tuple[Float[np.ndarray, "pose point"], Bool[np.ndarray, "pose point"]]:
    """Return how far points lie apart once moved back, pixels, and which lie in what both views show of the image."""
    step, start = frame.steps[0], frame.starts[0]
    apart = after - step - before
    if frame.circular:
        apart -= np.round(apart / frame.size) * frame.size
        return np.hypot(apart[..., 0], apart[..., 1]), np.ones(apart.shape[:2], dtype=bool)
    low = np.maximum(np.maximum(0, start), -step)
    high = np.minimum(np.minimum(frame.size, frame.size + start), frame.size - step)
    return np.hypot(apart[..., 0], apart[..., 1]), ((before >= low) & (before <= high)).all(axis=-1)


def _mean(values: np.ndarray, chosen: Bool[np.ndarray, "pose point"]) -> float:
    return float(values[chosen].mean()) if chosen.any() else nan


def _dots(points: Float[np.ndarray, "pose point 2"], picture: Tensor) -> Float[np.ndarray, "dot 4"]:
    """Return small boxes around points."""
    around = 1 + min(picture.shape[1:]) // 100
    flat = points.reshape(-1, 2)
    return np.concatenate([flat - around, flat + around], axis=1)
