"""Follow shifts through a copy of a model, and try what follows from that on random images.

The rules of :mod:`shiftscope.graphs.rules` are a proof, and they may have mistakes. So what they say is tried, too: in double
precision where the model runs in it, at random circular shifts, with the model's weights and buffers and with random ones,
because weights of zero hide what a layer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from shiftscope.errors import first_line
from shiftscope.graphs.execution import Run, follow
from shiftscope.graphs.geometry import Geometry
from shiftscope.graphs.probing import restoring_random_numbers
from shiftscope.graphs.symmetry import Symmetry, length, moves
from shiftscope.similarity import largest_difference

__all__ = ["COUNTEREXAMPLE", "Observed", "observe", "probe_shape"]

#: Relative differences below this are rounding.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
#: Relative differences above this are no rounding in double precision.
COUNTEREXAMPLE = 1e-6
SHIFTS = 2
#: Values of all maps that are kept at once to be compared.
KEPT_VALUES = 1 << 22


@dataclass(frozen=True)
class Observed:
    """What running a copy of a model showed.

    Attributes:
        run: how its maps and outputs follow shifts.
        problem: why nothing follows from that; empty where something does.
        change: largest relative change of the outputs under circular shifts by whole pixels, with the model's weights or with
            random ones; None where outputs do not depend on the image, or the model does not run.
        stray: largest relative difference between a map and where it should have moved, of the last maps, likewise.
        tolerance: relative differences below this are rounding.
    """

    run: Run
    problem: str
    change: float | None
    stray: float | None
    tolerance: float


def observe(model: nn.Module, image: tuple[int, int, int]) -> Observed:
    """Run a copy of a model on random images, and return what that shows.

    The copy is the only one: it is followed in the model's own precision, then tried in double precision in place.

    Args:
        model: the model; it is not changed.
        image: (channels, height, width) of its input.
    """
    try:
        with restoring_random_numbers():
            return _observed(model, image)
    except Exception as error:  # whatever the model, or its copying, raises
        return Observed(Run(), f"it cannot be tried on images of {image} ({first_line(error).rstrip('.')})", None, None, 0.0)


def probe_shape(model: nn.Module, geometry: Geometry | None) -> tuple[int, int, int]:
    """Return (channels, height, width) of images on which to try a model whose input is not known: eight positions a side."""
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    channels = first.in_channels if first is not None and not is_lazy(first.weight) else 3
    factor = geometry.lattice if geometry is not None else (8, 8)
    return (channels, 8 * factor[0], 8 * factor[1])


def _observed(model: nn.Module, image: tuple[int, int, int]) -> Observed:
    images, shifts = _probes(image)
    copy, like = _copied(model, images)
    first, second, third = (follow(copy, each.to(like)) for each in (images, images.flip(0), _moved(images, shifts[0])))
    _leave_inference(copy)
    problem = first.problem or second.problem or _differing(first, second, third)
    try:
        return _Trial(copy.double(), images, shifts, problem).observed(second)
    except Exception:  # its code is written for one precision
        del copy
    return _Trial(_copied(model, images)[0], images.to(like), shifts, problem).observed(second)


def _copied(model: nn.Module, images: Tensor) -> tuple[nn.Module, torch.dtype]:
    """Return a copy of a model on the CPU, its lazy layers initialized, and the type of its weights."""
    copy = deepcopy(model).cpu().eval()
    lazy = any(map(is_lazy, copy.parameters()))
    weights = (each.dtype for each in copy.parameters() if not is_lazy(each) and each.is_floating_point())
    like = next(weights, torch.get_default_dtype())
    if lazy:
        copy(images.to(like))
    return copy, like


def _leave_inference(model: nn.Module) -> None:
    """Replace weights and buffers that a model's code has made in inference mode, which cannot be written into later."""
    for part in model.modules():
        for name, value in part._parameters.items():
            if value is not None and value.is_inference():
                part._parameters[name] = nn.Parameter(value.clone(), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()


def _differing(first: Run, second: Run, third: Run) -> str:
    """Return a sentence's part if calls of a model differ in what they do; empty if they do not."""
    if second.trace != third.trace:
        return "its code does something else for other images, or each time"
    claims = [_claims(run) for run in (first, second, third)]
    return "" if claims[0] == claims[1] == claims[2] else "its code does something else in the first call"


def _claims(run: Run) -> list[Any]:
    return [(type(each).__name__, getattr(each, "lattice", None), getattr(each, "circular", None)) for each in run.outputs]


class _Trial:
    """Tries a model on random images and shifts, with its weights and with random ones."""

    def __init__(self, model: nn.Module, images: Tensor, shifts: Sequence[tuple[int, int]], problem: str) -> None:
        self.model, self.images, self.shifts, self.problem = model, images, shifts, problem
        self.tolerance = 0.0

    def observed(self, run: Run) -> Observed:
        with torch.no_grad():
            numbers = self._to_compare()
            own = self._change(), self._stray(numbers)
            self._compare_alone()
            _redraw(self.model)
            redrawn = self._change(), self._stray(numbers)
        change = None if redrawn[0] is None else max(own[0] or 0.0, redrawn[0])
        strays = [each for each in (own[1], redrawn[1]) if each is not None]
        return Observed(run, self.problem, change, max(strays, default=None), self.tolerance)

    def _to_compare(self) -> list[int]:
        """Return the numbers of the maps that can be tried, from the last backwards, as many as fit."""
        numbers: list[int] = []
        room = KEPT_VALUES
        for number, found in reversed(list(enumerate(follow(self.model, self.images).maps))):
            if _can_be_tried(found):
                room -= prod(map(length, found.axes))
                if numbers and room < 0:
                    break
                numbers.append(number)
        return numbers

    def _change(self) -> float | None:
        before, again = self._outputs(self.images), self._outputs(self.images)
        if not all(bool(each.isfinite().all()) for each in before):
            self.problem = self.problem or "its outputs are not finite on random images"
        elif _difference(again, before) > 0:
            self.problem = self.problem or "its outputs differ from call to call"
        if all(largest_difference(each[:1], each[1:]) <= 1e-9 for each in before if each.ndim):
            return None  # outputs that are the same for any image say nothing about shifts
        # Each image by shifts of its own, so that nothing that images share can hide a change.
        return max(_difference(self._outputs(_moved(self.images, shift, -shift[0])), before) for shift in self.shifts)

    def _compare_alone(self) -> None:
        """Compare an image's outputs with those that it has alone: users run one image, and nothing else here does."""
        if self.problem:
            return
        try:
            alone = self._outputs(self.images[:1])
        except Exception as error:  # whatever the model raises
            self.problem = f"it does not run on one image alone ({first_line(error).rstrip('.')})"
            return
        together = [each[:1] if each.ndim and len(each) == len(self.images) else each for each in self._outputs(self.images)]
        if len(alone) == len(together):  # `squeeze` drops the axis of one image
            pairs = zip(alone, together, strict=True)
            alone = [one.reshape(other.shape) if one.numel() == other.numel() else one for one, other in pairs]
        if _difference(alone, together) > self.tolerance:
            self.problem = "its outputs for an image depend on the other images of a batch"

    def _outputs(self, images: Tensor) -> list[Tensor]:
        return [each for each in tree_leaves(self.model(images.clone())) if isinstance(each, Tensor)]

    def _stray(self, numbers: Sequence[int]) -> float | None:
        run = follow(self.model, self.images, keep=numbers)
        precision = run.precision if run.precision in TOLERANCES else torch.float32
        self.tolerance = max(self.tolerance, TOLERANCES[precision])
        found = {number: run.maps[number] for number in numbers if number in run.kept and _can_be_tried(run.maps[number])}
        errors: list[float] = []
        for lattice, each_its_own in dict.fromkeys((each.lattice, self._has_images_first(each)) for each in found.values()):
            group = {
                n: each for n, each in found.items() if (each.lattice, self._has_images_first(each)) == (lattice, each_its_own)
            }
            for shift in self.shifts:
                # Each image by a shift of its own, so that nothing that images share can hide a difference.
                both = [
                    (down * lattice[0], right * lattice[1]) for down, right in (shift, (-shift[0], 0) if each_its_own else shift)
                ]
                after = follow(self.model, _rolled(self.images, both), keep=group).kept
                errors += [_strayed(run.kept[number], after.get(number), each, both) for number, each in group.items()]
        return max(errors, default=None)

    def _has_images_first(self, found: Symmetry) -> bool:
        """Return whether a map's first axis holds the images."""
        return length(found.axes[0]) == len(self.images) and not moves(found.axes[0])


def _strayed(before: Tensor, after: Tensor | None, found: Symmetry, steps: Sequence[tuple[int, int]]) -> float:
    """Return the largest relative difference between a map, image by image, and where each image's shift should have moved it."""
    if after is None or after.shape != before.shape:
        return float("inf")
    rolled = [_candidates(before, found, step) for step in steps]
    return max(
        min(largest_difference(after[[place]], each[[place]]) for each in rolled[place if len(after) == len(steps) else 0])
        for place in range(len(after))
    )


def _can_be_tried(found: Symmetry) -> bool:
    """Return whether a tensor is a whole torus, so that shifts roll it."""
    whole = all(factor.size == found.period(factor) for factor in found.factors)
    return found.circular and whole and all(len(axis) == 1 for axis in found.axes)


def _candidates(values: Tensor, found: Symmetry, shift: tuple[int, int]) -> list[Tensor]:
    """Return values rolled as a shift of the image should roll them; behind polyphase sampling, by up to one position more."""
    factors = [factor for axis in found.axes for factor in axis[0]]
    split = values.reshape([factor.size for factor in factors])
    rolls = []
    for place, factor in enumerate(factors):
        if factor.moves:
            exact = Fraction(shift[factor.kind == "right"]) / factor.step
            low = exact.numerator // exact.denominator
            rolls.append([(place, low + more) for more in ((-1, 0, 1, 2) if found.frame else (0,))])
    return [
        split.roll([by for _, by in each], [place for place, _ in each]).reshape(values.shape) if each else values
        for each in product(*rolls)
    ]


def _redraw(model: nn.Module) -> None:
    """Replace parameters and buffers by random numbers of a similar size, in place; buffers above zero stay above it."""
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        if value.is_floating_point() and value.numel():
            spread = float(value.std()) if value.numel() > 1 else 0.0
            mean = float(value.mean())
            value.normal_(mean if spread or abs(mean) <= 1 else 0.0, spread or 0.1, generator=generator)
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.numel() and bool(buffer.isfinite().all()):
            noise = torch.randn(buffer.shape, generator=generator, dtype=torch.float32).to(buffer.dtype)
            buffer.copy_(buffer * (1 + 0.5 * noise.abs()) if bool((buffer > 0).all()) else buffer + 0.1 * noise)


def _probes(image: tuple[int, int, int]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return two random images in double precision, and random shifts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *image, generator=generator, dtype=torch.float64)
    images[1] = 6 * images[1] - 3
    drawn = torch.randint(1, max(2, min(image[1:])), (2,), generator=generator)
    return images, [(1, 1), (int(drawn[0]), int(drawn[1]))][:SHIFTS]


def _moved(images: Tensor, shift: tuple[int, int], other: int | None = None) -> Tensor:
    """Return images rolled by a shift, the second one by another distance down if one is given."""
    return _rolled(images, [shift, shift if other is None else (other, 0)])


def _rolled(images: Tensor, shifts: Sequence[tuple[int, int]]) -> Tensor:
    """Return images, each rolled by its own shift."""
    return torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(images, shifts, strict=True)])


def _difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest difference of outputs; infinite where their number or shapes differ."""
    if len(ours) != len(theirs) or any(one.shape != other.shape for one, other in zip(ours, theirs, strict=True)):
        return float("inf")
    return max((largest_difference(one, other) for one, other in zip(ours, theirs, strict=True)), default=float("inf"))
