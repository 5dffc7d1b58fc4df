"""Fixes that wrap a model: it sees each image at a position that the image chooses, or answers for several shifts at once.

They need no layer of the model and no training, so that they work for any callable, black boxes included:
:class:`shiftscope.surgery.canonical.Canonical` moves an image to a position that its own content decides, and :class:`Average`
averages the answers at shifts of up to some pixels. Answers of a task (:mod:`shiftscope.tasks`) are moved back first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from shiftscope.engine.checks import evaluating
from shiftscope.engine.framing import Border
from shiftscope.engine.outputs import Runner, open_runner
from shiftscope.errors import InputError
from shiftscope.shifts import Mode, grid
from shiftscope.surgery.canonical import Canonical, moved
from shiftscope.surgery.copying import copied
from shiftscope.surgery.plan import TOLERANCE, Change, Cost, Promise, Surgery, cost
from shiftscope.tasks import Placing, Task
from shiftscope.tasks.reading import select_output

__all__ = ["AROUND", "ON_BLACK", "WRAPPERS", "Average", "Wrapper", "Wrapping", "wrap"]

Wrapper = Literal["canonical", "average"]
WRAPPERS: tuple[Wrapper, ...] = ("canonical", "average")
#: What a wrapper changes, in a plan's place for layers; what that was, and what the copy is.
AROUND = "input"
AS_IT_COMES = "the image as it comes"
WRAPPED = "The model is wrapped, and none of its layers changes."
#: Shifts of each random image that a promise is tried under.
TRIED = 6


@dataclass(frozen=True)
class Wrapping:
    """How a wrapper moves images.

    Attributes:
        border: what comes in at the border: the background (``zero``), what left on the other side (``circular``), or the rest of
            a photo (``crop``, of ``canonical`` alone).
        reach: the largest shift of ``average``, or how far ``canonical``'s crop of a photo may lie from the middle, pixels; None
            for 1, or a fourteenth of the input.
        fill: colour of the background, one value or one per channel.
        task: what the model's outputs are; None for classes.
        output: name or position of the output that the task reads, of a model with several.
    """

    border: Border = "zero"
    reach: int | None = None
    fill: float | tuple[float, ...] = 0.0
    task: Task | None = None
    output: str | None = None


#: Content on a black background.
ON_BLACK = Wrapping()


class Average(nn.Module):
    """A model whose answer is the mean of its probabilities over shifts; it returns their logarithm.

    Where the engine is exact, all shifts run at once. While gradients are recorded, they run one after the other.

    Args:
        model: images [image, channel, height, width] -> classes [image, class].
        reach: the largest shift along an axis, pixels: (2 reach + 1)^2 shifts.
        border: what comes in at the border.
        fill: the canvas's colour with border ``zero``, one value or one per channel.
        of: ``probabilities``; or ``logits``, of which the mean is returned; or ``votes``, the share of shifts at which a class is
            on top.
        task: what the outputs are, instead of classes: maps are moved back, and the mean is that of
            :meth:`shiftscope.tasks.Task.average`.
        output: name or position of the output that the task reads, of a model with several.

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
        task: Task | None = None,
        output: str | None = None,
    ) -> None:
        super().__init__()
        if border not in ("zero", "circular"):
            raise InputError(f"`border` must be 'zero' or 'circular', got {border!r}.")
        if of not in ("probabilities", "logits", "votes"):
            raise InputError(f"`of` must be 'probabilities', 'logits' or 'votes', got {of!r}.")
        if reach < 1:
            raise InputError(f"`reach` must be 1 or more pixels, got {reach}.", "1 averages over nine shifts.")
        self.model, self.reach, self.border, self.fill, self.of = model, reach, border, fill, of
        self.task, self.output = task, output
        self.training = getattr(model, "training", False)
        self._kept: tuple[Any, Runner] | None = None

    @property
    def shifts(self) -> Int[Tensor, "shift 2"]:
        """The shifts (dy, dx) that are averaged over, pixels."""
        return grid(self.reach)

    def forward(self, images: Tensor | fx.Proxy) -> Any:
        """Return the logarithm of the mean probabilities, the mean logits, or the shares of votes, [image, class].

        Of a task: the mean of its answers, as the task reads it.
        """
        if isinstance(images, fx.Proxy):
            raise TypeError("it averages over shifts")
        if self.task is not None:
            found = self.task.average(self._views(images))
            return found if self.output is None else {self.output: found}
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
            runner.dense.tracer.spectra.clear()  # of weights that may have changed
            return runner(images, self.shifts, seed=0).values.to(images)
        background = torch.as_tensor(self.fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
        found = []
        for shift in self.shifts.to(images.device):
            found.append(self.model(moved(images, shift.expand(len(images), 2), self.border, background)))
            if not isinstance(found[-1], Tensor) or found[-1].ndim != 2:
                raise InputError("`average` needs a model that returns classes [image, class].", "Choose one of its outputs.")
        return torch.stack(found, dim=1)

    def _views(self, images: Tensor) -> Iterator[tuple[Any, Placing]]:
        """Yield what the model returns for each shift, and where what it saw lies in the images."""
        background = torch.as_tensor(self.fill, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
        size = (images.shape[2], images.shape[3])
        for shift in self.shifts.to(images.device):
            by = shift.expand(len(images), 2)
            raw = self.model(moved(images, by, self.border, background))
            chosen = raw if self.output is None else select_output(raw, self.output)
            yield chosen, Placing(-by, size, size, self.border == "circular")

    def _runner(self, images: Tensor) -> Runner | None:
        """Return what runs all shifts at once: it reads the graph again where layers were swapped, or images differ in form.

        Weights may change in between: none is kept. What else changes shows when the runner compares with single shifts.
        """
        if not isinstance(self.model, nn.Module):
            return None
        form = (images.shape[1:], images.dtype, images.device, *_layers(self.model))
        if self._kept is None or self._kept[0] != form:
            fill = torch.as_tensor(self.fill, dtype=images.dtype).reshape(-1).expand(images.shape[1])
            with evaluating(self.model):
                opened = open_runner(self.model, images, self.shifts, mode=self.border, fill=fill, device=images.device)
            self._kept = form, opened
        return self._kept[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a file of the module holds: not the graph, which belongs to these very layers."""
        return {**self.__dict__, "_kept": None}


def _layers(model: nn.Module) -> Iterator[Any]:
    """Yield what a graph is read from: the layers, in order, with their settings in words and the number of their hooks."""
    for part in model.modules():
        yield id(part), type(part), part.extra_repr(), len(part._forward_hooks) + len(part._forward_pre_hooks)


def wrap(kind: Wrapper, model: nn.Module, *, wrapping: Wrapping = ON_BLACK, image: tuple[int, int, int] | None = None) -> Surgery:
    """Return a model with a wrapper around it, what it does, its cost, and what of its promise holds when it is tried.

    Args:
        kind: ``canonical`` or ``average``.
        model: any model; one with weights is copied.
        wrapping: border, background and reach.
        image: (channels, height, width), to count costs and to try the promise.

    Raises:
        InputError: the reach does not fit the image.
    """
    model = copied(model) if _has_weights(model) else model
    before = None if image is None else cost(model, image)
    if kind == "average":
        return _averaged(model, wrapping, before)
    border, fill = wrapping.border, wrapping.fill
    reach = wrapping.reach if border == "crop" else None
    wrapped = Canonical(model, border=border, fill=fill, reach=reach, task=wrapping.task, output=wrapping.output)
    if image is not None and border == "crop":
        wrapped.crops(torch.zeros(1, *image))  # raises where the reach is too large
    promise = None if image is None or border == "crop" else _try(wrapped, border, fill, image)
    becomes, why = _CANONICAL[border]
    if wrapping.task is not None:
        why = f"{why}; maps and boxes are moved back"
    return Surgery(wrapped, (Change(AROUND, AS_IT_COMES, becomes, why),), before, before, WRAPPED, promise)


def _averaged(model: nn.Module, wrapping: Wrapping, before: Cost | None) -> Surgery:
    """Return a model with an average around it, and its cost."""
    reach, border = wrapping.reach or 1, _whole(wrapping.border)
    passes = len(grid(reach))
    if wrapping.task is not None and wrapping.task.no_mean():
        wrapping.task.average(())  # raises InputError
    what = "probabilities" if wrapping.task is None else "answers, moved back,"
    becomes = f"the mean of {what} over {passes} {border} shifts of up to {reach} pixel{'s' if reach > 1 else ''}"
    why = "answers change less when an image moves, but they change: nothing is promised"
    after = None if before is None else Cost(before.multiply_adds * passes, before.parameters)
    form = f"{WRAPPED} Multiply-adds of an average are those of one shift after another."
    task, output = wrapping.task, wrapping.output
    wrapped = Average(model, reach=reach, border=border, fill=wrapping.fill, task=task, output=output)
    return Surgery(wrapped, (Change(AROUND, AS_IT_COMES, becomes, why),), before, after, form)


def _whole(border: Border) -> Mode:
    """Return the border of shifts of the input alone, which holds nothing of the photo around it."""
    return "circular" if border == "circular" else "zero"


_CANONICAL: dict[Border, tuple[str, str]] = {
    "circular": (
        "rolled so that its strongest seam is the border",
        "the same input for every whole-pixel circular shift, and nothing for shifts with another border",
    ),
    "zero": (
        "moved so that the centre of its content lies in the middle",
        "the same input for every whole-pixel shift that pushes nothing off the canvas, on one plain background; an image that "
        "fills the canvas, such as a photo, stays where it is",
    ),
    "crop": (
        "the crop around the pixel near the middle that differs most from its neighbours, scaled to the input",
        "the same input for two views of a photo if the best crop of each lies in the other; else another crop is chosen, and "
        "the answer may change",
    ),
}


def _try(model: Canonical, border: Border, fill: float | Sequence[float], image: tuple[int, int, int]) -> Promise:
    """Return whether random shifts of random images leave the outputs as they are, in double precision where the model has it."""
    under = "random circular shifts" if border == "circular" else "random shifts that keep all content on the canvas"
    try:
        with torch.no_grad():
            error = _largest_change(model, border, fill, image)
    except Exception:  # whatever the model raises
        error = None
    reasons = () if error is None or error <= TOLERANCE else ("the model does not give the same output for the same input",)
    precision: Literal["double", "its own"] = "double" if _has_weights(model) else "its own"
    what: Literal["outputs", "outputs, moved back,"] = "outputs" if model.task is None else "outputs, moved back,"
    return Promise(error, what, reasons, under, precision)


def _has_weights(model: nn.Module) -> bool:
    """Return whether a model can be copied and converted; one in a file that is only run cannot."""
    return next(model.parameters(), None) is not None


def _largest_change(model: Canonical, border: Border, fill: float | Sequence[float], image: tuple[int, int, int]) -> float | None:
    generator = torch.Generator().manual_seed(0)
    weights = _has_weights(model)
    copy = deepcopy(model).cpu().double().eval() if weights else model  # a file that can only be run has its own precision
    kind = torch.float64 if weights else torch.float32
    first, other = (_random_image(border, fill, image, generator).to(kind) for _ in range(2))
    outputs = _flat(copy.unmoved(first))
    different = _flat(copy.unmoved(other))
    if outputs.shape == different.shape and _apart(different, outputs) <= TOLERANCE * float(outputs.abs().max()):
        return None
    changes = []
    for _ in range(TRIED):
        steps = [int(torch.randint(-_room(side), _room(side) + 1, (1,), generator=generator)) for side in image[1:]]
        changes.append(_apart(_flat(copy.unmoved(first.roll(steps, (2, 3)))), outputs))
    return max(changes) / float(outputs.abs().max())


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _random_image(
    border: Border, fill: float | Sequence[float], image: tuple[int, int, int], generator: torch.Generator
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
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, list | tuple) else ()
    return torch.cat([_flat(part) for part in parts] or [torch.zeros(0)])
