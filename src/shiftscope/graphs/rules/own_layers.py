"""Rules of this package's own layers: each is read as one operator, not by its code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from shiftscope import layers
from shiftscope.graphs.operators import POINTWISE
from shiftscope.graphs.rules.call import Note, UnknownError
from shiftscope.graphs.rules.windows import windowed
from shiftscope.graphs.symmetry import Factor, Symmetry, fixed, joined, length, moves
from shiftscope.layers.polyphase import NormChoice, PhaseLogits, TakePhase
from shiftscope.layers.surrounded import INSERTED, core

__all__ = ["OwnLayers", "is_own"]

FILTERS = (layers.BlurPool2d, layers.MaxBlurPool2d)
CHOICES = (NormChoice, PhaseLogits)
#: Layers whose code is not read: what they do to positions is known.
KNOWN = (*FILTERS, *CHOICES, TakePhase, layers.AliasFreeActivation)


class OwnLayers:
    """The rule of this package's layers during one run of a model.

    Args:
        note: see :data:`~shiftscope.graphs.rules.call.Note`.
    """

    def __init__(self, note: Note) -> None:
        self.note = note
        #: What each polyphase sampling chose from: the frame, the factors and the stride.
        self.choices: list[tuple[Any, ...]] = []

    def __call__(self, part: nn.Module, given: Sequence[Symmetry], result: Tensor) -> Symmetry:
        """Return the symmetry of a layer's result.

        Args:
            part: the layer.
            given: symmetries of its arguments.
            result: what it returned.

        Raises:
            UnknownError: the layer does not follow shifts, or not as far as is known.
        """
        maps = given[0]
        if isinstance(part, layers.AliasFreeActivation):
            if not all(maps.goes_around(factor) for factor in maps.factors) or not maps.circular:
                raise UnknownError
            return replace(maps, local=False)
        if any(map(moves, maps.axes[:2])) or not all(len(axis) == 1 and len(axis[0]) == 1 for axis in maps.axes[2:]):
            raise UnknownError
        if isinstance(part, FILTERS):
            return self._filtered(part, maps, result)
        if isinstance(part, TakePhase):
            return self._phase(part, maps, given[1], result)
        # A choice has one value per image; the map that is sampled by it later moves with it.
        used = [maps, *(each for each in given[1:] if list(map(length, each.axes[2:])) == list(map(length, maps.axes[2:])))]
        if not all(each.circular and all(map(each.goes_around, each.factors)) for each in used):
            self.note("polyphase border")
            raise UnknownError
        if any((each.frame, each.factors) != (maps.frame, maps.factors) for each in used):
            raise UnknownError
        self.choices.append((maps.frame, maps.factors, part.stride))
        axes = (maps.axes[0], *(fixed(size) for size in result.shape[1:]))
        return replace(joined(used), axes=axes, frame=len(self.choices), local=False)

    def _phase(self, part: TakePhase, maps: Symmetry, choice: Symmetry, result: Tensor) -> Symmetry:
        """Take the phase that was chosen: the map moves with that choice, for every shift, as do others that share it."""
        if not choice.frame or not maps.circular or (maps.frame, maps.factors, part.stride) != self.choices[choice.frame - 1]:
            raise UnknownError
        self.note("polyphase")
        found, axes = joined([maps, replace(choice, frame=0)]), [*maps.axes[:2]]
        for axis, size, stride, taps in zip(maps.axes[2:], result.shape[2:], part.stride, part.filter.taps, strict=True):
            factor = axis[0][0]
            found = found.widened(factor.kind, len(taps) + stride - 2, factor.step)
            axes.append(((Factor(int(size), factor.kind, factor.step * stride),),))
        return replace(found, axes=tuple(axes), frame=choice.frame)

    def _filtered(self, part: layers.BlurPool2d | layers.MaxBlurPool2d, maps: Symmetry, result: Tensor) -> Symmetry:
        border = {"zero": "zeros", "valid": ""}.get(part.filter.border, part.filter.border)
        for place, (taps, stride, margins) in enumerate(
            zip(part.filter.taps, part.filter.stride, part.filter.margins, strict=True), start=2
        ):
            axis = place - 2
            if isinstance(part, layers.MaxBlurPool2d):
                kernel, padding, dilation = part.kernel_size[axis], part.padding[axis], part.dilation[axis]
                before = maps.axes[place][0][0].size + 2 * padding - dilation * (kernel - 1)
                zeros = "zeros" if padding else ""
                maps = windowed(maps, place, reach=dilation * (kernel - 1), stride=1, size=before, border=zeros, note=self.note)
            around = maps.circular and all(
                maps.goes_around(factor) and factor.size == maps.period(factor) for factor in maps.factors
            )
            wraps = border == "circular" and around and sum(margins) == len(taps) - 1
            maps = windowed(
                maps,
                place,
                reach=len(taps) - 1,
                stride=stride,
                size=int(result.shape[place]),
                border="" if wraps or not any(margins) else border,
                note=self.note,
            )
        return maps


def is_own(part: nn.Module) -> bool:
    """Return whether a layer of ours does what its type says: nobody changed its forward, its hooks or the layers inside."""
    if type(core(part)) not in KNOWN or "forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks:
        return False
    inner = [each for name, child in part.named_children() if name not in INSERTED for each in child.modules()]
    if any(each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in inner):
        return False
    if isinstance(part, PhaseLogits):
        circular = all(isinstance(e, nn.Conv2d) and e.padding_mode == "circular" for e in (part.score[0], part.score[2]))
        return circular and [type(each) for each in part.score] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    return all(type(each) in POINTWISE.modules for each in inner)
