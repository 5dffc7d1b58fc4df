"""Ground truth of keypoints in files: the JSON of COCO, with the points of each person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shiftscope.errors import InputError
from shiftscope.runtime.inputs import parse_json, read_bytes, reading
from shiftscope.tasks.truth import coco_images
from shiftscope.tasks.truth_files import LARGEST_TRUTH, Placement

__all__ = ["coco_keypoints"]

FORM = "It needs `images` (id, file_name, width, height) and `annotations` (image_id, keypoints, bbox)."


def coco_keypoints(path: Path, names: Sequence[str], placement: Placement) -> list[dict[str, np.ndarray] | None]:
    """Return the labelled instances of images from COCO's JSON; None for an image that it does not know.

    Crowds, and instances without a labelled point, are left out.

    Args:
        path: of the file.
        names: of the images, in order.
        placement: how images lie in the model's input.

    Returns:
        of each image ``keypoints`` [instance, point, 3], x, y and visibility (0 where a point is not labelled), and ``boxes``
        [instance, 4], in pixels of the model's input.

    Raises:
        InputError: it is no such JSON, something in it is no instance, it lists none of the images, or has another shape for one.
    """
    with reading(path, "JSON of COCO", FORM):
        content = parse_json(read_bytes(path, limit=LARGEST_TRUTH))
        sizes, numbers = coco_images(content, path, names, placement)
        rows: dict[Any, list[np.ndarray]] = {number: [] for number in sizes}
        for each in content["annotations"]:
            row = _row(path, each, rows)
            if row[2:-4:3].any() and not each.get("iscrowd", 0):
                rows[each["image_id"]].append(row)
    if len({len(row) for several in rows.values() for row in several}) > 1:
        raise InputError(f"{path}: annotations have different numbers of keypoints.", "Give files of one category each.")
    if names and all(number is None for number in numbers):
        raise InputError(f"`truth` {path} lists none of the {len(names)} images.", f"The first one is {names[0]!r}.")
    return [None if number is None else _placed(rows[number], sizes[number], placement) for number in numbers]


def _row(path: Path, each: Mapping[str, Any], images: Mapping[Any, Any]) -> np.ndarray:
    """Return x, y and visibility of each point of an annotation, and its box (x, y, width, height), in pixels of its image."""
    name = f"{path}: annotation {each.get('id', 'without an id')}"
    if each["image_id"] not in images:
        raise InputError(f"{name} is of image {each['image_id']}, which is not listed.", FORM)
    points, box = each.get("keypoints"), each.get("bbox")
    if not isinstance(points, list) or not points or len(points) % 3 or not isinstance(box, list) or len(box) != 4:
        raise InputError(f"{name} has no keypoints of three numbers each, or no bbox of four.", FORM)
    row = np.array([*points, *box], dtype=float)
    if not np.isfinite(row).all() or min(row[-2:]) < 0:
        raise InputError(f"{name} holds numbers that are not finite, or a bbox of less than nothing.", FORM)
    return row


def _placed(rows: Sequence[np.ndarray], size: tuple[int, int], placement: Placement) -> dict[str, np.ndarray]:
    """Return instances in pixels of the model's input."""
    tall, wide, top, left = placement.of(*size)
    scale, start = np.array([wide / size[1], tall / size[0]]), np.array([left, top])
    table = np.array(rows, dtype=float).reshape(len(rows), -1)
    points = table[:, :-4].reshape(len(rows), -1, 3) if len(rows) else np.zeros((0, 0, 3))
    places = np.concatenate([points[..., :2] * scale - start, points[..., 2:]], axis=2)
    low, extent = (table[:, -4:-2], table[:, -2:]) if len(rows) else (np.zeros((0, 2)), np.zeros((0, 2)))
    return {"keypoints": places, "boxes": np.concatenate([low * scale - start, (low + extent) * scale - start], axis=1)}
