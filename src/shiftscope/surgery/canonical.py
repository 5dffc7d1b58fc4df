"""An input that chooses its own position, so that a model sees the same image wherever it lies.

It needs no layer of the model and no training, so that it works for any callable, black boxes included. How an image is placed
depends on what comes in at its border:

- *Circular*: the image is rolled so that its strongest seam, the two neighbouring rows and columns that differ most, becomes the
  border. A photo that was rolled is thereby unrolled, unless something inside it differs more than its two edges do.
- *Zero*: what differs from the background is moved to the middle, as far as the canvas holds all of it: content that fills its
  bounding box, such as a photo on a canvas, by that box, and other content by its centre of mass.
- *Crop*: of a photo, a smaller crop is cut out and scaled back to the input's size: the one whose middle pixel differs most from
  its neighbours. Two views of a photo give the same crop unless the best one of either leaves the other's frame; then another is
  chosen. The farther crops may lie from the middle, the rarer that is, and the less of the photo each shows.

**Why this is exact.** Every score is a sum of whole numbers, computed from each pixel and its neighbours alone, so that a shift
moves the scores along to the last bit. Where scores of circular images tie, a hash of 64 bits of the whole image as seen from
each position decides; where even these are equal, the views are (or hashes collide, once in 10^19). Of crops that tie, the first
is taken, which a shift does not change. So a model receives the same bits for every circular shift, on a canvas for every shift
that pushes nothing off it, and of a photo for every shift that keeps both best crops in the frame.

**Tasks.** Where the answer lies on the image (maps, boxes), it is moved back by whole pixels, so that it moves along with the
content at the same shifts. A map repeats its edge where the model saw nothing; boxes are not cut.

The idea of an input that chooses its own crop, and that a larger choice makes exceptions rarer, is that of Shifman and Weiss
(Lost in Translation, ECCV 2024); the score is ours. Phases that the content decides are those of Chaman and Dokmanic (CVPR 2021),
who choose them inside networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, fx, nn
from torch.jit._trace import is_tracing
from torch.nn import functional

from shiftscope.engine.framing import Border
from shiftscope.errors import InputError
from shiftscope.layers.resampling import is_rewritten
from shiftscope.shifts import Mode, translate
from shiftscope.tasks import Placing, Task
from shiftscope.tasks.reading import select_output

__all__ = ["Canonical", "moved", "moved_back"]

#: Differences of pixels are counted in these steps: those of 8-bit images.
STEPS = 255
#: Odd numbers that a hash multiplies by (of the generator SplitMix64), and by how many bits it mixes.
FACTORS, BITS = (-7046029254386353131, -4658895280553007687), 29
#: The whole numbers that have as many bytes as a pixel.
BITS_OF = {2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Content that covers at least nine tenths of its bounding box is centred by the box.
FILLED, OF = 9, 10
#: A crop of a photo lies up to a fourteenth of the input's side from the middle by default: 16 of 224 pixels.
PART = 14


class Canonical(nn.Module):
    """A model that sees each image at a position that the image itself decides.

    Args:
        model: images [image, channel, height, width] -> anything.
        border: ``circular`` for images that go round, ``zero`` for content on a background, ``crop`` for photos.
        fill: colour of the background, one value or one per channel.
        reach: how far from the middle a crop of a photo may lie along an axis, pixels; by default a fourteenth of the input's
            shorter side.
        task: what the outputs are, so that maps and boxes are moved back; None for outputs that a shift should not change.
        output: name or position of the output that the task reads, of a model with several.

    Raises:
        InputError: there is no such border, or the reach is below 1.

    >>> image = torch.rand(1, 1, 8, 8)
    >>> model = Canonical(nn.Flatten(), border="circular")
    >>> torch.equal(model(image), model(image.roll((3, 5), (2, 3))))
    True
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        *,
        border: Border = "zero",
        fill: float | Sequence[float] = 0.0,
        reach: int | None = None,
        task: Task | None = None,
        output: str | None = None,
    ) -> None:
        super().__init__()
        if border not in ("zero", "circular", "crop"):
            raise InputError(f"`border` must be 'zero', 'circular' or 'crop', got {border!r}.")
        if reach is not None and reach < 1:
            raise InputError(f"`reach` must be 1 or more pixels, got {reach}.", "Leave it out for a fourteenth of the input.")
        self.model, self.border, self.fill, self.reach = model, border, fill, reach
        self.task, self.output = task, output
        self.training = getattr(model, "training", False)

    def forward(self, images: Tensor | fx.Proxy) -> Any:
        """Return the model's outputs on the images at their own positions; those of a task are moved back."""
        if isinstance(images, fx.Proxy):
            raise TypeError("each image chooses its own position")
        seen, placing = self._placed(images)
        return self.model(seen) if self.task is None else moved_back(self.model(seen), self.task, self.output, placing)

    def unmoved(self, images: Tensor) -> Any:
        """Return the model's outputs on the images at their own positions, as the model gives them."""
        return self.model(self.place(images))

    def place(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel height width"]:
        """Return the images at their own positions, or their own crops scaled to the images' size."""
        return self._placed(images)[0]

    def _placed(self, images: Tensor) -> tuple[Tensor, Placing]:
        """Return what the model sees of the images, and where that lies in them."""
        size = (images.shape[2], images.shape[3])
        if self.border == "crop":
            corners, reach = self.crops(images), self._reach(images)
            seen = (size[0] - 2 * reach, size[1] - 2 * reach)
            return _scaled_crops(images, corners, reach), Placing(corners, seen, size, circular=False)
        with torch.no_grad():
            background = torch.as_tensor(self.fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
            shifts = _to_seam(images) if self.border == "circular" else _to_centre(images - background)
        return moved(images, shifts, self.border, background), Placing(-shifts, size, size, self.border == "circular")

    def crops(self, images: Float[Tensor, "image channel height width"]) -> Int[Tensor, "image 2"]:
        """Return (row, column) of the first pixel of each image's crop, for border ``crop``."""
        reach = self._reach(images)
        with torch.no_grad():
            scores = _details(images, reach)
        best = scores.flatten(1).argmax(dim=1)  # the first of several
        return torch.stack([best // scores.shape[2], best % scores.shape[2]], dim=1)

    def keeps_crop(
        self,
        images: Float[Tensor, "image channel height width"],
        shifted: Float[Tensor, "image channel height width"],
        by: Tensor,
    ) -> Bool[Tensor, " image"]:
        """Return whether each image and its view under a shift (dy, dx), [image, 2], give the same crop of the photo."""
        return (self.crops(shifted) == self.crops(images) + by.to(images.device)).all(dim=1)

    def _reach(self, images: Tensor) -> int:
        side = min(images.shape[2:])
        reach = max(1, side // PART) if self.reach is None else self.reach
        if 4 * reach >= side:
            raise InputError(
                f"`reach` must be less than a quarter of the input's {side} pixels, got {reach}.",
                "Leave it out for a fourteenth of the input.",
            )
        return reach


def _details(images: Float[Tensor, "image channel height width"], reach: int) -> Int[Tensor, "image row column"]:
    """Return how much the middle pixel of each crop differs from its four neighbours, in whole steps."""
    (top, bottom), (left, right) = ((side // 2 - reach, side // 2 + reach + 1) for side in images.shape[2:])
    steps = images[:, :, top - 1 : bottom + 1, left - 1 : right + 1].mul(STEPS).round().long()
    middle = steps[:, :, 1:-1, 1:-1]
    around = (steps[:, :, :-2, 1:-1], steps[:, :, 2:, 1:-1], steps[:, :, 1:-1, :-2], steps[:, :, 1:-1, 2:])
    return torch.stack([(middle - each).abs() for each in around]).sum(dim=(0, 2))


def _scaled_crops(images: Tensor, corners: Int[Tensor, "image 2"], reach: int) -> Tensor:
    """Return each image's crop, which is smaller by ``reach`` on every side, scaled to the image's size."""
    height, width = (side - 2 * reach for side in images.shape[2:])
    if is_rewritten():  # where numbers of corners would be those of the example
        rows, columns = (
            start[:, None] + torch.arange(side, device=start.device)
            for start, side in zip(corners.T, (height, width), strict=True)
        )
        which = torch.arange(images.shape[0], device=images.device)[:, None, None]
        crops = images[which, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
        return functional.interpolate(crops, images.shape[2:], mode="bilinear", align_corners=False)
    cut = [image[:, top : top + height, left : left + width] for image, (top, left) in zip(images, corners.tolist(), strict=True)]
    crops = torch.stack(cut) if cut else images[:, :, :height, :width]
    return functional.interpolate(crops, images.shape[2:], mode="bilinear", align_corners=False)


def _to_seam(images: Float[Tensor, "image channel height width"]) -> Int[Tensor, "image 2"]:
    """Return the shift that rolls each image's strongest seam to its border."""
    scores = [_seams(images, axis) for axis in (2, 3)]
    best = [score == score.amax(dim=1, keepdim=True) for score in scores]
    candidates = best[0][:, :, None] & best[1][:, None, :]
    tied = candidates.flatten(1).sum(dim=1) > 1
    places = candidates.flatten(1).byte().argmax(dim=1)
    if is_tracing() and not torch.compiler.is_compiling():
        raise InputError(
            "`canonical` of circular images cannot be traced: the bits of pixels decide between equal seams.",
            "Use torch.export.",
        )
    if is_rewritten():
        seen = _hashes(images).masked_fill(~candidates, torch.iinfo(torch.int64).min)
        places = torch.where(tied, seen.flatten(1).argmax(dim=1), places)
    elif tied.any():
        seen = _hashes(images[tied]).masked_fill(~candidates[tied], torch.iinfo(torch.int64).min)
        places[tied] = seen.flatten(1).argmax(dim=1)
    width = images.shape[3]
    return -torch.stack([places // width, places % width], dim=1)


def _seams(images: Tensor, axis: int) -> Int[Tensor, "image position"]:
    """Return how much each row or column differs from the one before it, in whole steps, which sum to the same in any order."""
    steps = (images - images.roll(1, axis)).abs().mul(STEPS).round().long()
    return steps.sum(dim=(1, 5 - axis))


def _hashes(images: Float[Tensor, "image channel height width"]) -> Int[Tensor, "image height width"]:
    """Return for each position a hash of the whole image as seen from there: of spans of 1, 2, 4 ... pixels along each axis."""
    bits = images.contiguous().view(BITS_OF[images.element_size()]).long()
    found = torch.zeros_like(bits[:, 0])
    for channel in bits.unbind(1):
        found = _mixed(found, channel)
    for axis, side in ((2, images.shape[3]), (1, images.shape[2])):
        span = 1
        while span < side:
            found = _mixed(found, found.roll(-span, axis))
            span *= 2
    return found


def _mixed(one: Tensor, other: Tensor) -> Tensor:
    """Return a hash of two numbers, in which their order counts; products wrap around."""
    mixed = one * FACTORS[0] + other * FACTORS[1] + 1
    mixed = (mixed ^ (mixed >> BITS)) * FACTORS[0]
    return mixed ^ (mixed >> BITS)


def _to_centre(content: Float[Tensor, "image channel height width"]) -> Int[Tensor, "image 2"]:
    """Return the shift that moves each image's content to the middle, or as near as the canvas holds all of it."""
    steps = content.abs().mul_(STEPS).ceil_()  # whole numbers; what differs from the background at all counts at least 1
    filled = (steps > 0).any(dim=1)
    along = [(steps.sum(dim=(1, 5 - axis), dtype=torch.float64), filled.any(dim=4 - axis)) for axis in (2, 3)]
    (top, height), (left, width) = (_extent(each) for _, each in along)
    boxed = OF * filled.sum(dim=(1, 2)) >= FILLED * height * width
    places = zip(along, ((top, height), (left, width)), strict=True)
    return torch.stack([_centring(mass, first, length, boxed) for (mass, _), (first, length) in places], dim=1)


def _extent(filled: Bool[Tensor, "image position"]) -> tuple[Int[Tensor, " image"], Int[Tensor, " image"]]:
    """Return the first position with content along an axis, and how many lie between it and the last."""
    first = filled.byte().argmax(dim=1)
    return first, filled.shape[1] - filled.flip(1).byte().argmax(dim=1) - first


def _centring(
    mass: Float[Tensor, "image position"], first: Tensor, length: Tensor, boxed: Bool[Tensor, " image"]
) -> Int[Tensor, " image"]:
    """Return how far content moves along an axis: its centre of mass, or the centre of its box, goes to the middle."""
    size, total = mass.shape[1], mass.sum(dim=1)
    places = torch.arange(size, device=mass.device, dtype=mass.dtype)
    # Twice the distance of the centre from the content's first position, rounded: the same wherever the content lies.
    twice = (2 * ((mass * places).sum(dim=1) - first * total) / total.clamp_min(1)).round().long()
    start = ((size - torch.where(boxed, length, twice)) // 2).clamp_min(0)
    start = torch.minimum(start, size - length)
    return torch.where(total > 0, start - first, 0)


def moved_back(raw: Any, task: Task, output: str | None, placing: Placing) -> Any:
    """Return a model's raw output moved back, under the same name where one of several outputs is chosen.

    Args:
        raw: what the model returned.
        task: what it is.
        output: name or position of the output that the task reads.
        placing: where what the model saw lies in the images.
    """
    if output is None:
        return task.place_back(raw, placing)
    return {output: task.place_back(select_output(raw, output), placing)}


def moved(images: Tensor, shifts: Int[Tensor, "image 2"], border: Mode, background: Tensor) -> Tensor:
    """Return each image moved by its own shift; images with the same shift are moved together, which costs less than a gather.

    Args:
        images: [image, channel, height, width].
        shifts: (dy, dx) of each, pixels.
        border: what comes in at the border.
        background: the colour with border ``zero``, [channel, 1, 1] or [1, 1, 1].
    """
    fill = background.flatten().expand(images.shape[1])
    if is_rewritten():  # where the shifts' numbers would be those of the example
        return translate(images, shifts, mode=border, fill=fill)
    each, which = shifts.unique(dim=0, return_inverse=True)
    if border == "circular" and len(each) == 1:
        return images.roll(each[0].tolist(), (2, 3))
    if border == "circular" or len(each) > len(images) // 2:
        return translate(images, shifts, mode=border, fill=fill)
    moved = background.expand_as(images).clone()
    for number, (down, right) in enumerate(each.tolist()):
        (top, bottom), (left, end) = (_kept(step, side) for step, side in zip((down, right), images.shape[2:], strict=True))
        rows = (which == number).nonzero()[:, 0]
        moved[rows, :, top:bottom, left:end] = images[rows][:, :, top - down : bottom - down, left - right : end - right]
    return moved


def _kept(step: int, side: int) -> tuple[int, int]:
    """Return where along an axis the content lies that a shift leaves on the canvas."""
    return min(max(step, 0), side), max(min(side + step, side), 0)
