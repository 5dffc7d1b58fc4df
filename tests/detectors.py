"""Detectors with known answers: they find bright rectangles, exactly or with a known fault."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Found = list[dict[str, Tensor]]


def rectangles(images: Tensor) -> Found:
    """Return each image's bright rectangles: confidence is their brightness, the label its tenths. Exactly equivariant."""
    from scipy import ndimage

    found = []
    for image in images[:, 0].numpy():
        parts, _ = ndimage.label(image > 0.05)
        places = ndimage.find_objects(parts)
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in places]
        scores = torch.tensor([float(image[place].max()) for place in places])
        found.append(
            {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "scores": scores, "labels": (scores * 10).round().long()}
        )
    return found


def snapping(step: int) -> Callable[[Tensor], Found]:
    """Return a detector whose boxes lie on a grid of so many pixels, as behind a stride, and whose confidence falls between."""

    def detect(images: Tensor) -> Found:
        found = rectangles(images)
        for each in found:
            corner = each["boxes"][:, :2]
            off = corner - (corner / step).floor() * step
            each["boxes"] = each["boxes"] - off.repeat(1, 2)
            each["scores"] = each["scores"] - 0.01 * off.sum(dim=1) / step
        return found

    return detect


def scenes(count: int, *, size: int = 64, margin: int = 10, seed: int = 0) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return images with two rectangles of brightness 0.6 to 0.9 each, and their ground truth; none comes near a border."""
    generator = np.random.default_rng(seed)
    images, truth = torch.zeros(count, 1, size, size), []
    for image in images:
        boxes, labels = [], []
        for left in (margin, size // 2 + 1):
            width, height = generator.integers(6, size // 2 - margin - 6, 2).tolist()
            x = left + int(generator.integers(0, 5))
            y = margin + int(generator.integers(0, size - 2 * margin - height))
            level = int(generator.integers(6, 10))
            image[0, y : y + height, x : x + width] = level / 10
            boxes.append([x, y, x + width, y + height])
            labels.append(level)
        truth.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)})
    return images, truth
