"""Polyphase anchoring: roll a map so that patches, windows and strides cut its content alike after any circular shift.

A patch embedding cuts a map at multiples of its period. Anchoring rolls the phase of largest norm to the first position. After a
circular shift of the map the same cuts then meet the same content, and the pieces only move by whole periods. Windows are rolled
back afterwards. No position is computed twice, so this costs no multiply-adds.

Source: Ding et al., "Reviving shift equivariance in vision transformers", 2023 (arXiv 2306.07470); Rojas-Gomez et al., "Making
vision transformers truly shift-equivariant", CVPR 2024 (arXiv 2305.16316). Theirs choose the largest norm, too; ours breaks ties
independently of positions (:class:`shiftscope.layers.polyphase.NormChoice`) and rolls by no more than half a period.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shiftscope.layers.polyphase import NormChoice
from shiftscope.layers.surrounded import reduced_as

__all__ = ["Anchoring", "make_anchored", "roll_each"]

Maps = Float[Tensor, "image channel height width"]
CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def roll_each(maps: Maps, steps: Int[Tensor, "image 2"]) -> Maps:
    """Roll each map down and right by its own steps.

    >>> roll_each(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[0, 1]]))
    tensor([[[[3., 1., 2.]]]])
    """
    height, width = maps.shape[2:]
    rows = (torch.arange(height, device=maps.device) - steps[:, :1]) % height
    columns = (torch.arange(width, device=maps.device) - steps[:, 1:]) % width
    maps = maps.gather(2, rows[:, None, :, None].expand_as(maps))
    return maps.gather(3, columns[:, None, None, :].expand_as(maps))


def _steps(choice: Tensor, period: tuple[int, int]) -> Int[Tensor, "image 2"]:
    """Return how far to roll each map so that its chosen phase starts at the first position, the shorter way round."""
    choice = choice.long()
    phase = torch.stack([choice // period[1], choice % period[1]], dim=1)
    half = torch.tensor(period, device=phase.device)
    return torch.where(2 * phase > half, half - phase, -phase)


class Anchoring(nn.Module):
    """Roll a module's input to its anchor, and the output back where that has the same positions.

    Args:
        period: positions from one patch or window to the next.
        offset: positions by which windows are shifted.
        returns: whether the output is rolled back.
        as_maps: module's input -> map [image, channel, height, width]; None where it is one.
        replaced: (module's input or output, function of its map) -> the same with that map changed; None where it is a map.
    """

    def __init__(
        self,
        period: tuple[int, int],
        *,
        offset: tuple[int, int] = (0, 0),
        returns: bool,
        as_maps: Callable[[Tensor], Tensor] | None = None,
        replaced: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.offset, self.returns = offset, returns
        self.as_maps, self.replaced = as_maps or _as_it_is, replaced or _changed
        self.set_period(period)

    def set_period(self, period: tuple[int, int]) -> None:
        """Change the period."""
        self.period = period
        self._choice = (NormChoice(period),)  # in a tuple, as it is no part of the model that others would read or change

    def forward(self, value: Tensor) -> tuple[Tensor, Int[Tensor, "image 2"]]:
        """Return the rolled input, and by how much each image was rolled."""
        maps = self.as_maps(value)
        period = (min(self.period[0], maps.shape[2]), min(self.period[1], maps.shape[3]))
        steps = torch.zeros(maps.shape[0], 2, dtype=torch.long, device=maps.device)
        if max(period) > 1 and maps.shape[2] % period[0] == 0 and maps.shape[3] % period[1] == 0:
            choose = self._choice[0] if period == self.period else NormChoice(period)
            steps = _steps(choose(maps), period)
        if max(self.offset) > 0:
            steps = steps - torch.tensor(self.offset, device=steps.device)
        return self.replaced(value, lambda found: roll_each(found, steps)), steps

    def back(self, value: Tensor, steps: Int[Tensor, "image 2"]) -> Tensor:
        """Roll an output back."""
        return self.replaced(value, lambda found: roll_each(found, -steps))

    def extra_repr(self) -> str:
        """Return the settings that ``print`` shows."""
        return f"period={self.period}, offset={self.offset}, returns={self.returns}"


class _Anchored:
    """Subclass of a module's own class whose first input is anchored."""

    anchoring: Anchoring

    def forward(self, value: Tensor, *args: Any, **options: Any) -> Any:
        """Roll the input, call the module's own forward, and roll its output back where positions stay."""
        rolled, steps = self.anchoring(value)
        found = cast(Any, super()).forward(rolled, *args, **options)
        if not self.anchoring.returns:
            return found
        if isinstance(found, Tensor):
            return self.anchoring.back(found, steps)
        return (self.anchoring.back(found[0], steps), *found[1:])


def make_anchored(module: nn.Module, anchoring: Anchoring) -> None:
    """Anchor a module's first input from now on, in place. Its class becomes a subclass; its state dict stays the same.

    >>> patches = nn.Conv2d(1, 2, 4, stride=4).double()
    >>> make_anchored(patches, Anchoring((4, 4), returns=False))
    >>> image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    >>> before, after = (patches(each).sum((2, 3)) for each in (image, image.roll((1, 3), (2, 3))))
    >>> torch.allclose(before, after), isinstance(patches, nn.Conv2d), list(patches.state_dict())
    (True, True, ['weight', 'bias'])
    """
    module.__class__ = _anchored_class(type(module))
    module.add_module("anchoring", anchoring)


def _anchored_class(kind: Any) -> type[nn.Module]:
    """Return the subclass of a class whose first input is anchored, always the same one."""
    if kind not in CLASSES:
        body = {"__module__": __name__, "__reduce_ex__": reduced_as(kind, _anchored_class)}
        CLASSES[kind] = type(f"Anchored{kind.__name__}", (_Anchored, kind), body)
    return CLASSES[kind]


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _changed(value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(value)
