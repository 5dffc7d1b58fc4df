"""Take images in blocks of one size, and count the views that an audit needs of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shiftscope.audits.views import BORDERS
from shiftscope.engine.checks import how_to_scale, refuse_clips
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits.measuring import Measurer
    from shiftscope.audits.task_measuring import TaskMeasurer

__all__ = ["check_block", "count_views", "in_blocks"]

#: Views are counted on so many images, and those of all follow in proportion.
COUNTED = 256


def in_blocks(
    batches: Iterable[tuple[Tensor, Tensor | None]], size: int, shape: tuple[int, ...]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Regroup images into blocks, so that results do not depend on the size of the batches.

    Args:
        batches: images [image, channel, height, width], with their labels, [image], or None.
        size: images per block.
        shape: [channel, height, width], of every image.

    Raises:
        InputError: see :func:`check_block`.
    """
    pending: list[tuple[Tensor, Tensor | None]] = []
    for images, labels in batches:
        check_block(images, shape)
        while len(images):
            missing = size - sum(len(part) for part, _ in pending)
            pending.append((images[:missing], None if labels is None else labels[:missing]))
            images, labels = images[missing:], None if labels is None else labels[missing:]
            if sum(len(part) for part, _ in pending) == size:
                yield _joined(pending)
                pending = []
    if pending:
        yield _joined(pending)


def _joined(parts: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    if len(parts) == 1:
        return parts[0]
    labels = [known for _, known in parts if known is not None]
    return torch.cat([images for images, _ in parts]), torch.cat(labels) if labels else None


def check_block(images: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse images of another shape than [channel, height, width], or that are integers or not finite."""
    refuse_clips(images)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise InputError(
            f"`images` must be [image, channel, height, width], all of one size, got shape {tuple(images.shape)}.",
            "Resize them to one size.",
        )
    if not images.is_floating_point():
        raise InputError(f"`images` must be floating point in [0, 1], got {images.dtype}.", how_to_scale(images.dtype))
    # A finite sum needs no copy of the images.
    bad = 0 if images.sum().isfinite() else int((~images.flatten(1).isfinite().all(dim=1)).sum())
    if bad:
        raise InputError(f"`images` must be finite, got NaN or infinity in {bad} of {len(images)}.", "Leave these images out.")


def count_views(measurer: Measurer | TaskMeasurer, images: int) -> tuple[int, int]:
    """Return how many views an audit forms one by one, and how many shifts its exhaustive grids hold, all images together."""
    counted, grids = min(images, COUNTED), measurer.grids
    plan = measurer.plan(torch.arange(counted))
    alone = torch.ones(len(plan.rows), dtype=torch.bool)
    for mode, reach in grids:
        border = (plan.rows[:, 0] == 0) | (plan.rows[:, 0] == BORDERS.index(mode))
        alone &= ~(border & (plan.steps.abs().amax(dim=1) <= reach) & plan.whole_pixels)
    shifts = sum(len(each.shifts) for each in grids.values()) - max(len(grids) - 1, 0)  # they share the unshifted image
    return round(int(alone.sum()) * images / counted), images * shifts
