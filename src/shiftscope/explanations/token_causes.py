"""By cause, for token models: the head, borders, windows, the position embedding, the patch grid.

Each step builds on the earlier ones and keeps the weights (:mod:`shiftscope.surgery.anchor`). A step counts only if the changed
model does what its name says, tried in double precision on images of the trial:

- **head**: rolling the last map's tokens changes no output, or the map is replaced by its mean over positions;
- **borders** and **windows**: circular shifts by whole patches change no output if the weights that have a value for each
  position move along with the image;
- **position embedding**: with those weights at their mean over positions, shifts by whole patches change no output;
- **patch grid**: with patches that follow the image, no circular shift by whole pixels changes an output.

A cause whose step fails the trial is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.explanations.decomposition import Decomposition, reason_of
from shiftscope.explanations.trial import ROUNDING, Cause, Measured, Trial
from shiftscope.graphs.invariance import INVARIANT, output_change, random_steps
from shiftscope.graphs.sites import Pair
from shiftscope.graphs.tokens import TokenMap, TokenReading, first_tensor
from shiftscope.surgery.anchor import AnchorPlan, Step, confirmed_positions
from shiftscope.surgery.positions import PositionWeight, averaged, is_mixing

__all__ = ["TokenSteps"]

#: Images on which steps are tried.
PROBES = 2


class TokenSteps(Decomposition):
    """Removes the causes of a token model's loss, one after the other.

    Args:
        model: in evaluation mode; it is not changed.
        trial: the images and their shifts.
        reading: how its tokens lie on the image.
        total: the unchanged model's loss.

    Attributes:
        circular_loss: after borders and windows, at the trial's shifts; None where that is unknown.
        lattice_loss: there, at shifts by whole patches; None likewise.
    """

    def __init__(self, model: nn.Module, trial: Trial, reading: TokenReading, total: Float[Tensor, " image"]) -> None:
        super().__init__(total)
        self.model, self.trial, self.reading = model, trial, reading
        self.around = trial.circular((1, 1))
        self.probes = self.around.images[:PROBES]
        self.circular_loss: Float[Tensor, " image"] | None = None
        self.lattice_loss: Float[Tensor, " image"] | None = None

    def run(self, seed: int) -> list[Cause]:
        """Return the causes in the order of their steps; ``seed`` draws the shifts by whole patches."""
        if float(self.total.mean()) < ROUNDING:
            names = ("head", "borders", "windows", "position embedding", "patch grid", "other")
            return [self.none(name, "there is no loss") for name in names]
        head = self._head()
        plan = AnchorPlan(self.model, self.trial.image, self.reading)
        follows, weights = self._following(plan)
        if weights is None:
            return [head, *self._unconfirmed(), self.cause("other", self.left)]
        borders, windows = self._borders(plan), self._windows(plan, follows)
        self.circular_loss = self.left
        self._measure_lattice(follows, seed)
        position, still = self._position(follows, weights)
        grid = self._grid(plan, still)
        return [head, borders, windows, position, grid, self.cause("other", self.left)]

    def _following(self, plan: AnchorPlan) -> tuple[nn.Module, tuple[PositionWeight, ...] | None]:
        """Return the model with borders and windows that follow the image, and the weights that do not (None: unconfirmed)."""
        ways: tuple[list[Step], ...] = (["borders", "windows"], ["borders", "windows", "whole map"])
        for steps in ways if plan.has("whole map") else ways[:1]:
            follows = plan.applied(steps)
            weights = confirmed_positions(follows, self.reading, self.probes)
            if weights is not None:
                break
        return follows, weights

    def _unconfirmed(self) -> list[Cause]:
        factor = self.reading.factor
        reason = (
            "with circular borders and windows that follow, shifts by whole patches still change the outputs, and no weights are "
            "found that undo it by moving along"
            if factor is not None
            else "the image is no multiple of the patches"
        )
        return [self.unknown(name, reason) for name in ("borders", "windows", "position embedding", "patch grid")]

    def _head(self) -> Cause:
        """Roll the last block's map; where the head notices, replace the map by its mean."""
        tokens, last = self.reading.maps[self.reading.last], self.reading.last
        if not self.reading.complete:
            return self.unknown("head", "it is not known how the tokens that reach the head lie on the image")
        change = _effect(self.model, last, tokens, lambda maps: maps.roll((1, 1), (2, 3)), self.probes[:1])
        if change is None:
            return self.unknown("head", f"`{last}` is not called once a pass, or the model does not run in double precision")
        if change < INVARIANT:
            return self.none("head", "rolling the last map changes no output")
        self.model = _with_map(self.model, last, tokens, lambda maps: maps.mean((2, 3), keepdim=True).expand_as(maps))
        return self.step("head", self.trial.measure(self.model, "without head"))

    def _borders(self, plan: AnchorPlan) -> Cause:
        if self.trial.mode == "circular" and not plan.has("borders"):
            return self.none("borders", "padding and shifts are circular already")
        return self._measured("borders", plan.applied(["borders"]), self.around)

    def _windows(self, plan: AnchorPlan, follows: nn.Module) -> Cause:
        return self._measured("windows", follows, self.around) if plan.has("windows") else self.none("windows", "it has none")

    def _measure_lattice(self, follows: nn.Module, seed: int) -> None:
        factor = self.reading.factor
        lattice = self.around.on_lattice(factor, torch.Generator().manual_seed(seed)) if factor else None
        if lattice is not None:
            self.lattice_loss = lattice.measure(follows, "shifts by multiples of the factor").loss

    def _position(self, follows: nn.Module, weights: tuple[PositionWeight, ...]) -> tuple[Cause, nn.Module | None]:
        """Return the cause, and the model without it; None where there is none."""
        if not weights:
            return self.none("position embedding", "shifts by whole patches change no output"), follows
        relative = all(weight.is_relative for weight in weights)
        mixing = any(is_mixing(follows, weight.name) for weight in weights)
        name = "token mixing" if mixing else "relative positions" if relative else "position embedding"
        shown = ", ".join(f"`{weight.name}`" for weight in weights[:3]) + (" and others" if len(weights) > 3 else "")
        still = averaged(follows, weights)
        if still is not None and self._holds(still, self.reading.factor or (1, 1)):
            cause = self._measured(name, still, self.around)
            return replace(cause, step=f"then {shown} {'is' if len(weights) == 1 else 'are'} the mean over positions"), still
        cause = self._measured(name, follows, self._remainders())
        return replace(cause, step=f"then {shown} move along with the image, by whole patches"), None

    def _remainders(self) -> Trial:
        """Return the trial without the whole patches in its shifts: moving the position weights along undoes those."""
        factor = torch.tensor(self.reading.factor)
        return replace(self.around, shifts=self.around.shifts - torch.round(self.around.shifts / factor).long() * factor)

    def _grid(self, plan: AnchorPlan, still: nn.Module | None) -> Cause:
        if not plan.has("patch grid"):
            return self.unknown("patch grid", "no patch embedding is found that can follow the image")
        if still is None:
            return self.unknown("patch grid", "position weights that are indices have no mean, without which it is not confirmed")
        final = plan.applied(["patch grid"], to=still)
        if not self._holds(final, (1, 1)):
            return self.unknown("patch grid", "with patches that follow the image, circular shifts still change the outputs")
        return self._measured("patch grid", final, self.around)

    def _holds(self, model: nn.Module, step: Pair) -> bool:
        """Return whether circular shifts by multiples of a step change no output."""
        change = output_change(model, self.probes, random_steps(3, self.reading.image, step))
        return change is not None and change < INVARIANT

    def _measured(self, name: str, changed: nn.Module, trial: Trial) -> Cause:
        try:
            after: Measured = trial.measure(changed, f"without {name}")
        except InputError as error:
            return self.unknown(name, reason_of(error))
        return self.step(name, after)


def _with_map(model: nn.Module, layer: str, tokens: TokenMap, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a copy in which one layer's map is changed."""
    copy = deepcopy(model)

    def changed(_: nn.Module, __: Any, out: Any) -> Any:
        found = first_tensor(out)
        assert found is not None  # it was read before
        new = tokens.with_maps(found, change)
        return new if isinstance(out, Tensor) else (new, *out[1:])

    copy.get_submodule(layer).register_forward_hook(changed)
    return copy


def _effect(model: nn.Module, layer: str, tokens: TokenMap, change: Callable[[Tensor], Tensor], images: Tensor) -> float | None:
    """Return by how much a change of one map changes the outputs, relative to the largest; None where that cannot be tried."""
    if ", call " in layer:
        return None
    try:
        copy = _with_map(model, layer, tokens, change).double()
        place = next((value.device for value in copy.parameters()), images.device)
        with torch.no_grad():
            expected = deepcopy(model).double()(images.double().to(place))
            found = copy(images.double().to(place))
        return float((found - expected).abs().max() / expected.abs().max())
    except Exception:  # whatever the model raises on a copy or in double precision
        return None
