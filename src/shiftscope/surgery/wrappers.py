"""Fixes around a model: it sees each image at a position that the image chooses, or answers for several shifts at once.

They need no layer of the model and no training, so that they work for any callable, black boxes included.

- :class:`Canonical` moves an image to a position that its own content decides, so that shifted copies become the same input.
  *Circular*: the image is rolled so that its strongest seam, the two neighbouring rows and columns that differ most, becomes the
  border. A photo that was rolled is thereby unrolled, unless something inside it differs more than its two edges do. *Zero*: what
  differs from the background is moved so that its centre of mass lies in the middle, as far as the canvas holds all of it.
- :class:`Average` averages the answers at shifts of up to some pixels.

**Why canonical is exact.** Every score is a sum of whole numbers, computed from each pixel and its neighbours alone, so that a
shift moves the scores along to the last bit. Where scores tie, a hash of 64 bits of the whole image as seen from each position
decides; where even these are equal, the views are (or hashes collide, once in 10^19). So a model receives the same bits for every
circular shift, and on a canvas for every shift that pushes nothing off it.

The idea of an input that chooses its own position is that of Shifman and Weiss (Lost in Translation, ECCV 2024), who choose a
crop. Phases that the content decides are those of Chaman and Dokmanic (CVPR 2021), who choose them inside networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from shiftscope.engine.checks import evaluating
from shiftscope.engine.outputs import Runner, open_runner
from shiftscope.errors import InputError
from shiftscope.shifts import Mode, grid, translate
from shiftscope.surgery.plan import TOLERANCE, Change, Cost, Promise, Surgery, cost

__all__ = ["AROUND", "ON_BLACK", "WRAPPERS", "Average", "Canonical", "Wrapper", "Wrapping", "wrap"]

Wrapper = Literal["canonical", "average"]
WRAPPERS: tuple[Wrapper, ...] = ("canonical", "average")
#: What a wrapper changes, in a plan's place for layers.
AROUND = "input"
#: Differences of pixels are counted in these steps: those of 8-bit images.
STEPS = 255
#: Shifts of each random image that a promise is tried under.
TRIED = 6
#: Odd numbers that a hash multiplies by (of the generator SplitMix64), and by how many bits it mixes.
FACTORS, BITS = (-7046029254386353131, -4658895280553007687), 29


@dataclass(frozen=True)
class Wrapping:
    """How a wrapper moves images.

    Attributes:
        border: what comes in at the border: the background (``zero``), or what left on the other side (``circular``).
        reach: the largest shift of ``average``, pixels.
        fill: colour of the background, one value or one a channel.
    """

    border: Mode = "zero"
    reach: int = 1
    fill: float | tuple[float, ...] = 0.0


#: Content on a black background.
ON_BLACK = Wrapping()


class Canonical(nn.Module):
    """A model that sees each image at a position that the image itself decides.

    Args:
        model: images [image, channel, height, width] -> anything.
        border: ``circular`` for images that go round, ``zero`` for content on a background.
        fill: colour of the background, one value or one a channel.

    Raises:
        InputError: there is no such border.

    >>> image = torch.rand(1, 1, 8, 8)
    >>> model = Canonical(nn.Flatten(), border="circular")
    >>> torch.equal(model(image), model(image.roll((3, 5), (2, 3))))
    True
    """

    def __init__(self, model: Callable[[Tensor], Any], *, border: Mode = "zero", fill: float | Sequence[float] = 0.0) -> None:
        super().__init__()
        if border not in ("zero", "circular"):
            raise InputError(f"`border` must be 'zero' or 'circular', got {border!r}.")
        self.model, self.border, self.fill = model, border, fill
        self.training = getattr(model, "training", False)

    def forward(self, images: Tensor | fx.Proxy) -> Any:
        """Return the model's outputs on the images at their own positions."""
        if isinstance(images, fx.Proxy):
            raise TypeError("each image chooses its own position")
        return self.model(self.place(images))

    def place(self, images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image channel height width"]:
        """Return the images at their own positions."""
        with torch.no_grad():
            background = torch.as_tensor(self.fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
            shifts = _to_seam(images) if self.border == "circular" else _to_centre(images - background)
        return _moved(images, shifts, self.border, background)


class Average(nn.Module):
    """A model whose answer is the mean of its probabilities over shifts; it returns their logarithm.

    Where the engine is exact, all shifts run at once. While gradients are recorded, they run one after the other.

    Args:
        model: images [image, channel, height, width] -> classes [image, class].
        reach: the largest shift along an axis, pixels: (2 reach + 1)^2 shifts.
        border: what comes in at the border.
        fill: the canvas's colour with border ``zero``, one value or one a channel.
        of: ``probabilities``; or ``logits``, of which the mean is returned; or ``votes``, the share of shifts at which a class is
            on top.

    Raises:
        InputError: there is no such border or mean, or the reach is below 1.

    >>> bright = lambda images: torch.stack([images[:, 0, 2, 2], images[:, 0, 2, 1]], dim=1)
    >>> image = torch.zeros(1, 1, 5, 5)
    >>> image[0, 0, 2, 2] = 1
    >>> Average(bright, of="votes")(image).argmax().item(), len(Average(bright, reach=8).shifts)
    (0, 289)
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        reach: int = 1,
        border: Mode = "zero",
        fill: float | Sequence[float] = 0.0,
        of: Literal["probabilities", "logits", "votes"] = "probabilities",
    ) -> None:
        super().__init__()
        if border not in ("zero", "circular"):
            raise InputError(f"`border` must be 'zero' or 'circular', got {border!r}.")
        if of not in ("probabilities", "logits", "votes"):
            raise InputError(f"`of` must be 'probabilities', 'logits' or 'votes', got {of!r}.")
        if reach < 1:
            raise InputError(f"`reach` must be 1 or more pixels, got {reach}.", "1 averages over nine shifts.")
        self.model, self.reach, self.border, self.fill, self.of = model, reach, border, fill, of
        self.training = getattr(model, "training", False)

    @property
    def shifts(self) -> Int[Tensor, "shift 2"]:
        """The shifts (dy, dx) that are averaged over, pixels."""
        return grid(self.reach)

    def forward(self, images: Tensor | fx.Proxy) -> Tensor:
        """Return the logarithm of the mean probabilities, the mean logits, or the shares of votes, [image, class]."""
        if isinstance(images, fx.Proxy):
            raise TypeError("it averages over shifts")
        outputs = self._outputs(images)
        if self.of == "logits":
            return outputs.mean(dim=1)
        if self.of == "votes":
            return nn.functional.one_hot(outputs.argmax(-1), outputs.shape[-1]).to(outputs).mean(dim=1)
        mean: Tensor = outputs.log_softmax(-1).logsumexp(dim=1) - torch.tensor(len(self.shifts)).log()
        return mean

    def _outputs(self, images: Tensor) -> Float[Tensor, "image shift class"]:
        runner = None if torch.is_grad_enabled() or self.training else self._runner(images)
        if runner is not None and runner.dense is not None:
            return runner(images, self.shifts, seed=0).values.to(images)
        background = torch.as_tensor(self.fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
        found = []
        for shift in self.shifts.to(images.device):
            found.append(self.model(_moved(images, shift.expand(len(images), 2), self.border, background)))
            if not isinstance(found[-1], Tensor) or found[-1].ndim != 2:
                raise InputError("`average` needs a model that returns classes [image, class].", "Choose one of its outputs.")
        return torch.stack(found, dim=1)

    def _runner(self, images: Tensor) -> Runner | None:
        """Return what runs all shifts at once; it reads the model anew each time, because weights may have changed."""
        if not isinstance(self.model, nn.Module):
            return None
        fill = torch.as_tensor(self.fill, dtype=images.dtype).reshape(-1).expand(images.shape[1])
        with evaluating(self.model):
            return open_runner(self.model, images, self.shifts, mode=self.border, fill=fill, device=images.device)


def wrap(kind: Wrapper, model: nn.Module, *, wrapping: Wrapping = ON_BLACK, image: tuple[int, int, int] | None = None) -> Surgery:
    """Return a model with a wrapper around it, what it does, its cost, and what of its promise holds when it is tried.

    Args:
        kind: ``canonical`` or ``average``.
        model: any model; one with weights is copied.
        wrapping: border, background and reach.
        image: (channels, height, width), to count costs and to try the promise.
    """
    border, reach, fill = wrapping.border, wrapping.reach, wrapping.fill
    model = deepcopy(model) if _has_weights(model) else model
    if kind == "canonical":
        wrapped: nn.Module = Canonical(model, border=border, fill=fill)
        becomes, why = _CANONICAL[border]
        passes = 1
    else:
        wrapped = Average(model, reach=reach, border=border, fill=fill)
        passes = len(grid(reach))
        becomes = f"the mean of probabilities over {passes} {border} shifts of up to {reach} pixel{'s' if reach > 1 else ''}"
        why = "answers change less when an image moves, but they change: nothing is promised"
    before = None if image is None else cost(model, image)
    after = None if before is None else Cost(before.multiply_adds * passes, before.parameters)
    promise = None if image is None or kind == "average" else _try(wrapped, border, fill, image)
    form = (
        "The model is wrapped, and none of its layers changes. Multiply-adds of an average are those of one shift after another."
    )
    change = Change(AROUND, "the image as it comes", becomes, why)
    return Surgery(wrapped, (change,), before, after, form if kind == "average" else form.partition(". ")[0] + ".", promise)


_CANONICAL: dict[Mode, tuple[str, str]] = {
    "circular": (
        "rolled so that its strongest seam is the border",
        "the same input for every whole-pixel circular shift; says nothing about shifts with another border",
    ),
    "zero": (
        "moved so that the centre of its content lies in the middle",
        "the same input for every whole-pixel shift that pushes nothing off the canvas, on one plain background; an image that "
        "fills the canvas, such as a photo, stays where it is",
    ),
}


def _to_seam(images: Float[Tensor, "image channel height width"]) -> Int[Tensor, "image 2"]:
    """Return the shift that rolls each image's strongest seam to its border."""
    scores = [_seams(images, axis) for axis in (2, 3)]
    best = [score == score.amax(dim=1, keepdim=True) for score in scores]
    candidates = best[0][:, :, None] & best[1][:, None, :]
    tied = candidates.flatten(1).sum(dim=1) > 1
    places = candidates.flatten(1).byte().argmax(dim=1)
    if tied.any():
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
    bits = images.contiguous().view(torch.int64 if images.dtype == torch.float64 else torch.int32).long()
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
    """Return the shift that moves each image's centre of mass to the middle, or as near as the canvas holds all of it."""
    steps = content.abs().mul_(STEPS).ceil_()  # whole numbers; what differs from the background at all counts at least 1
    return torch.stack([_centring(steps.sum(dim=(1, 5 - axis), dtype=torch.float64)) for axis in (2, 3)], dim=1)


def _centring(mass: Float[Tensor, "image position"]) -> Int[Tensor, " image"]:
    """Return how far content moves along an axis, from the mass at each position."""
    size = mass.shape[1]
    filled = (mass > 0).byte()
    first = filled.argmax(dim=1)
    length = size - filled.flip(1).argmax(dim=1) - first
    total = mass.sum(dim=1)
    places = torch.arange(size, device=mass.device, dtype=mass.dtype)
    # Twice the distance of the centre of mass from the content's first position, rounded: the same wherever the content lies.
    twice = (2 * ((mass * places).sum(dim=1) - first * total) / total.clamp_min(1)).round().long()
    start = ((size - twice) // 2).clamp_min(0)
    start = torch.minimum(start, size - length)
    return torch.where(total > 0, start - first, 0)


def _moved(images: Tensor, shifts: Int[Tensor, "image 2"], border: Mode, background: Tensor) -> Tensor:
    """Return each image moved by its own shift; images with the same shift are moved together, which costs less than a gather."""
    each, which = shifts.unique(dim=0, return_inverse=True)
    if border == "circular" and len(each) == 1:
        return images.roll(each[0].tolist(), (2, 3))
    if border == "circular" or len(each) > len(images) // 2:
        return translate(images, shifts, mode=border, fill=background.flatten().expand(images.shape[1]))
    moved = background.expand_as(images).clone()
    for number, (down, right) in enumerate(each.tolist()):
        (top, bottom), (left, end) = (_kept(step, side) for step, side in zip((down, right), images.shape[2:], strict=True))
        rows = (which == number).nonzero()[:, 0]
        moved[rows, :, top:bottom, left:end] = images[rows][:, :, top - down : bottom - down, left - right : end - right]
    return moved


def _kept(step: int, side: int) -> tuple[int, int]:
    """Return where along an axis the content lies that a shift leaves on the canvas."""
    return min(max(step, 0), side), max(min(side + step, side), 0)


def _try(model: nn.Module, border: Mode, fill: float | Sequence[float], image: tuple[int, int, int]) -> Promise:
    """Return whether random shifts of random images leave the outputs as they are, in double precision where the model has it."""
    under = "random circular shifts" if border == "circular" else "random shifts that keep all content on the canvas"
    try:
        with torch.no_grad():
            error = _largest_change(model, border, fill, image)
    except Exception:  # whatever the model raises
        error = None
    reasons = () if error is None or error <= TOLERANCE else ("the model does not give the same output for the same input",)
    precision: Literal["double", "its own"] = "double" if _has_weights(model) else "its own"
    return Promise(error, "outputs", reasons, under, precision)


def _has_weights(model: nn.Module) -> bool:
    """Return whether a model can be copied and converted; one in a file that is only run cannot."""
    return next(model.parameters(), None) is not None


def _largest_change(model: nn.Module, border: Mode, fill: float | Sequence[float], image: tuple[int, int, int]) -> float | None:
    generator = torch.Generator().manual_seed(0)
    weights = _has_weights(model)
    copy = deepcopy(model).cpu().double().eval() if weights else model  # a file that can only be run has its own precision
    kind = torch.float64 if weights else torch.float32
    first, other = (_random_image(border, fill, image, generator).to(kind) for _ in range(2))
    outputs = _flat(copy(first))
    if float((_flat(copy(other)) - outputs).abs().max()) <= TOLERANCE * float(outputs.abs().max()):
        return None
    changes = []
    for _ in range(TRIED):
        steps = [int(torch.randint(-_room(side), _room(side) + 1, (1,), generator=generator)) for side in image[1:]]
        changes.append(float((_flat(copy(first.roll(steps, (2, 3)))) - outputs).abs().max()))
    return max(changes) / float(outputs.abs().max())


def _random_image(
    border: Mode, fill: float | Sequence[float], image: tuple[int, int, int], generator: torch.Generator
) -> Float[Tensor, "1 channel height width"]:
    """Return a random image; with border ``zero`` on a background that leaves room on every side."""
    found = torch.rand(1, *image, generator=generator, dtype=torch.float64)
    if border == "circular":
        return found
    top, left = (_room(side) for side in image[1:])
    canvas = torch.as_tensor(fill, dtype=found.dtype).reshape(-1, 1, 1).expand(image)[None].clone()
    canvas[:, :, top : image[1] - top, left : image[2] - left] = found[:, :, top : image[1] - top, left : image[2] - left]
    return canvas


def _room(side: int) -> int:
    return side // 4


def _flat(outputs: Any) -> Tensor:
    """Return what a model returned as one row of numbers."""
    if isinstance(outputs, Tensor):
        return outputs.flatten()
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return torch.cat([part.flatten() for part in parts if isinstance(part, Tensor)])
