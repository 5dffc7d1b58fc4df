"""Read what object detectors return, in any of the forms of their libraries, by shape and names: nothing is imported.

| from | form |
|---|---|
| torchvision | a list with a dict of ``boxes``, ``scores`` and ``labels`` for each image |
| Hugging Face | an object or a mapping with ``logits`` [image, query, class] and ``pred_boxes`` [image, query, 4] |
| ultralytics | a list of ``Results``: objects whose ``boxes`` have ``xyxy``, ``conf`` and ``cls`` |
| others | ``(boxes, scores, labels)`` for each image, or [image, box, ...] of all |
| exports | one tensor [image, box, 6] of x1, y1, x2, y2, score and label |

Boxes are (x1, y1, x2, y2) in pixels of the model's input, except those of Hugging Face: centre and size as shares of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shiftscope.errors import InputError, NotFiniteError
from shiftscope.runtime.text import number_of
from shiftscope.tasks.placing import Placing

__all__ = ["Detections", "NoObject", "boxes_back", "looks_like_detections", "read_detections"]

NAMES = ("boxes", "scores", "labels")
#: Whether the last class of a Hugging Face detector stands for no object (softmax over all), or there is none (a sigmoid each).
NoObject = Literal["last", "none"]
WHAT = "task 'boxes' needs boxes, scores and labels for each image"
FORMS = "Return a list of dicts as torchvision does, or tuples (boxes, scores, labels)."


@dataclass(frozen=True)
class Detections:
    """What a detector finds in an image.

    Attributes:
        boxes: (x1, y1, x2, y2), pixels of the model's input.
        scores: confidence in [0, 1].
        labels: class of each.
    """

    boxes: Float[np.ndarray, "box 4"]
    scores: Float[np.ndarray, " box"]
    labels: Int[np.ndarray, " box"]

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, chosen: np.ndarray) -> Detections:
        """Return some of them: by a mask, or by their numbers in the order to return."""
        return Detections(self.boxes[chosen], self.scores[chosen], self.labels[chosen])

    def moved(self, by: tuple[int | float, int | float]) -> Detections:
        """Return them moved by (dy, dx) pixels."""
        return Detections(self.boxes + np.array([by[1], by[0], by[1], by[0]]), self.scores, self.labels)


def looks_like_detections(output: Any, count: int) -> bool:
    """Return whether an output has names that only detectors give: of torchvision, Hugging Face or ultralytics."""
    if isinstance(_named(output, "pred_boxes"), Tensor):
        return True
    if not isinstance(output, list | tuple) or len(output) != count or not count:
        return False
    first = output[0]
    named = isinstance(first, Mapping) and all(name in first for name in NAMES)
    return named or all(hasattr(getattr(first, "boxes", None), name) for name in ("xyxy", "conf", "cls"))


def read_detections(
    output: Any, count: int, size: tuple[int, int], *, no_object: NoObject | None = None, classes: int | None = None
) -> list[Detections]:
    """Return the detections of each image.

    Args:
        output: what the model returned for a batch.
        count: images in the batch.
        size: (height, width) of the model's input, pixels.
        no_object: whether the last class of ``logits`` stands for no object.
        classes: number of classes of a model with ``logits``, as its configuration says it; tells ``no_object`` if that is None.

    Raises:
        InputError: the output has none of the forms, lengths differ, a box ends before it begins, or a score is not in [0, 1].
        NotFiniteError: boxes or scores hold NaN or infinity.
    """
    boxes = _named(output, "pred_boxes")
    if isinstance(boxes, Tensor):
        found = _of_queries(_named(output, "logits"), boxes, size, no_object, classes)
    else:
        found = [_parts(each) for each in _each_image(output)]
    if len(found) != count:
        raise InputError(f"{WHAT}: the model returned {len(found)} for {number_of(count, 'image')}.", FORMS)
    return _checked_together(found) or [_checked(*each) for each in found]


def boxes_back(output: Any, placing: Placing) -> Any:
    """Return a detector's output for images that were placed before it saw them as one for the images.

    Args:
        output: what it returned.
        placing: where what it saw lies in the images.

    Returns:
        of Hugging Face's queries ``logits`` and ``pred_boxes``, of one tensor [image, box, 6] such a tensor, else a list of
        dicts. Boxes are in double precision and not cut at the borders of the images.

    Raises:
        InputError: the output has none of the forms.
    """
    boxes, count = _named(output, "pred_boxes"), len(placing.corners)
    if isinstance(boxes, Tensor) and len(boxes) == count:
        extent = torch.tensor(placing.size, dtype=torch.float64, device=boxes.device).flip(0)
        moved = torch.stack([placing.boxes_back(each, image) for image, each in enumerate(_corners(boxes, extent))])
        low, high = (moved / extent.repeat(2)).split(2, dim=-1)
        return {"logits": _named(output, "logits"), "pred_boxes": torch.cat([(low + high) / 2, high - low], dim=-1)}
    found = [tuple(torch.as_tensor(part) for part in _parts(each)) for each in _each_image(output)]
    if len(found) != count:
        raise InputError(f"{WHAT}: the model returned {len(found)} for {number_of(count, 'image')}.", FORMS)
    moved_each = [placing.boxes_back(each.reshape(-1, 4), image) for image, (each, _, _) in enumerate(found)]
    if isinstance(output, Tensor):
        return torch.cat([torch.stack(moved_each), output[:, :, 4:]], dim=-1)
    return [dict(zip(NAMES, (box, *rest), strict=True)) for box, (_, *rest) in zip(moved_each, found, strict=True)]


def _corners(boxes: Tensor, extent: Tensor) -> Tensor:
    """Return corners in pixels of boxes given by centre and size as shares of (width, height)."""
    centre, size = boxes.double().split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1) * extent.repeat(2)


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _each_image(output: Any) -> Sequence[Any]:
    """Return what belongs to each image."""
    if isinstance(output, Mapping):
        output = tuple(output.get(name) for name in NAMES)
    if isinstance(output, Tensor) and output.ndim == 3 and output.shape[2] == 6:
        return [(each[:, :4], each[:, 4], each[:, 5]) for each in output]
    if not isinstance(output, list | tuple):
        raise InputError(f"{WHAT}, got {_described(output)}.", FORMS)
    if _is_triple(output):
        boxes, scores, labels = output
        if boxes.ndim == 2:
            return [(boxes, scores, labels)]
        return list(zip(boxes, scores, labels, strict=False))
    return output


def _is_triple(output: Sequence[Any]) -> bool:
    """Return whether an output is (boxes, scores, labels), and not that of three images."""
    return len(output) == 3 and all(isinstance(each, Tensor) for each in output) and output[1].ndim == output[0].ndim - 1


def _parts(each: Any) -> tuple[Any, Any, Any]:
    """Return the boxes, scores and labels of an image."""
    if isinstance(each, Mapping) and "boxes" in each and "scores" in each and "labels" in each:
        return each["boxes"], each["scores"], each["labels"]
    inner = getattr(each, "boxes", None)
    if inner is not None and all(hasattr(inner, name) for name in ("xyxy", "conf", "cls")):
        found = (inner.xyxy, inner.conf, inner.cls)
    elif isinstance(each, list | tuple) and len(each) == 3:
        found = tuple(each)
    else:
        raise InputError(f"{WHAT}, got {_described(each)} for an image.", FORMS)
    return found[0], found[1], found[2]


def _described(each: Any) -> str:
    if isinstance(each, Tensor):
        return f"a tensor of shape {tuple(each.shape)}"
    keys = f" of {', '.join(map(repr, each))}" if isinstance(each, Mapping) else ""
    return f"{type(each).__name__}{keys}"


def _of_queries(
    logits: Any, boxes: Tensor, size: tuple[int, int], no_object: NoObject | None, classes: int | None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return boxes, scores and labels of each image from those of Hugging Face's queries."""
    if not isinstance(logits, Tensor) or logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{WHAT}: `pred_boxes` {tuple(boxes.shape)} and `logits` {shape} do not belong together.", FORMS)
    corners = _corners(boxes, torch.tensor([size[1], size[0]], dtype=torch.float64, device=boxes.device))
    if (no_object or _no_object(logits.shape[2], classes)) == "last":
        scores, labels = logits.double().softmax(-1)[..., :-1].max(-1)
        return list(zip(corners, scores, labels, strict=True))
    # Each class of each query is a candidate of its own: the best ones, as many as there are queries.
    queries, kinds = logits.shape[1:]
    scores, places = logits.double().sigmoid().flatten(1).topk(queries, dim=1)
    return [(each[place // kinds], score, place % kinds) for each, score, place in zip(corners, scores, places, strict=True)]


def _no_object(outputs: int, classes: int | None) -> NoObject:
    if classes not in (outputs, outputs - 1):
        known = "its configuration does not say" if classes is None else f"its configuration says {classes} classes"
        raise InputError(
            f"the detector's `logits` have {outputs} classes, and {known}: the last one may stand for no object.",
            "Say which: --task boxes:no_object=last (DETR, YOLOS) or boxes:no_object=none (Deformable DETR, RT-DETR).",
        )
    return "last" if classes == outputs - 1 else "none"


def _checked_together(images: Sequence[tuple[Any, Any, Any]]) -> list[Detections] | None:
    """Return the detections of images whose tensors are alike, checked all at once; None where one has to be looked at."""
    counts = [len(scores) for _, scores, _ in images if isinstance(scores, Tensor) and scores.ndim == 1]
    if not images or len(counts) < len(images):
        return None
    arrays = [_together(parts, counts, rest) for parts, rest in zip(zip(*images, strict=True), ((4,), (), ()), strict=True)]
    boxes, scores, labels = arrays
    if boxes is None or scores is None or labels is None:
        return None
    sound = np.isfinite(boxes).all() and (boxes[:, 2:] >= boxes[:, :2]).all() and ((scores >= 0) & (scores <= 1)).all()
    if not sound or (labels != labels.round()).any():
        return None
    kinds, ends = labels.astype(np.int64), np.cumsum(counts).tolist()
    spans = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return [Detections(boxes[each], scores[each], kinds[each]) for each in spans]


def _together(parts: Sequence[Any], counts: Sequence[int], rest: tuple[int, ...]) -> np.ndarray | None:
    """Return the values of all images as one array; None if they are no tensors of one type and of the shape (count, *rest)."""
    if not all(isinstance(part, Tensor) for part in parts):
        return None
    if [part.shape for part in parts] != [(count, *rest) for count in counts]:
        return None
    first = parts[0]
    if any(part.dtype != first.dtype or part.device != first.device for part in parts):
        return None
    return _array(torch.cat(tuple(parts)))


def _checked(boxes: Any, scores: Any, labels: Any) -> Detections:
    found, confidence, kinds = (_array(each) for each in (boxes, scores, labels))
    found = found.reshape(-1, 4) if found.size == 0 else found
    if found.ndim != 2 or found.shape[1] != 4:
        raise InputError(f"`boxes` must be [box, 4], got shape {found.shape}.", FORMS)
    if not len(found) == confidence.size == kinds.size:
        raise InputError(
            f"`boxes`, `scores` and `labels` must have one entry per box of an image, got {len(found)}, {confidence.size} and "
            f"{kinds.size}.",
            "Return one score and one label per box.",
        )
    confidence, kinds = confidence.reshape(-1), kinds.reshape(-1)
    if not np.isfinite(found).all() or not np.isfinite(confidence).all():
        raise NotFiniteError("the model returned NaN or infinity in its boxes or scores.", "Check its weights and its input.")
    if (found[:, 2:] < found[:, :2]).any():
        x1, y1, x2, y2 = found[(found[:, 2:] < found[:, :2]).any(axis=1)][0].tolist()
        raise InputError(
            f"`boxes` must be x1 y1 x2 y2 with x1 <= x2 and y1 <= y2, got {x1:g} {y1:g} {x2:g} {y2:g}.",
            "Convert them, for example from centre and size.",
        )
    if len(confidence) and not 0 <= confidence.min() <= confidence.max() <= 1:
        raise InputError(
            f"`scores` must be in [0, 1], got {confidence.min():g} to {confidence.max():g}.", "Apply a sigmoid or a softmax."
        )
    if (kinds != kinds.round()).any():
        raise InputError(f"`labels` must be whole numbers, got {kinds[kinds != kinds.round()][0]:g}.", FORMS)
    return Detections(found, confidence, kinds.astype(np.int64))


def _array(values: Any) -> np.ndarray:
    """Return numbers in double precision on the CPU."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{WHAT}, got {_described(values)} in place of numbers.", FORMS) from error
    array: np.ndarray = tensor.detach().cpu().double().numpy()
    return array
