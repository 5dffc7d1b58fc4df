"""By cause: how much of what shifts cost is due to the head, to borders, to aliasing.

The *loss* is 1 - mean cosine between a model's outputs before and after a shift. To attribute it, copies of the model with the
same weights are measured on the same images and shifts. Each copy has one cause removed, and keeps the changes of earlier copies:

1. **head**: the fully connected head sees the mean over positions instead of a weight for each
   (:func:`shiftscope.surgery.global_pool`);
2. **borders**: padding is circular (:func:`shiftscope.surgery.circular`), and so are the shifts: nothing enters or leaves;
3. **aliasing**: polyphase sampling replaces strides (:func:`shiftscope.surgery.make_equivariant`), so that every subsampling
   keeps the same samples of the shifted map;
4. **other**: the loss that is left. If all operators treat positions alike, it is zero.

A cause's part is the loss before its step less the loss after it, for each image; the parts sum to the total. A part is negative
where its step makes the outputs less similar. The order matters: where two causes act together, the part goes to the one that is
removed first. Where a step is impossible its part is unknown, with the reason, and is contained in later parts.

A step can also make similarity meaningless: a head that sees means may answer almost alike to every image. So each step also
reports the similarity of outputs of *different* images, and the verdict warns where it has risen much.

Within aliasing, **activations** is the part that vanishes if every activation is kept from creating frequencies that its map
cannot hold (:class:`shiftscope.layers.AliasFreeActivation`). An activation commutes with a shift by whole pixels; only through
these frequencies, at the next stride, can it cost similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean
from shiftscope.explanations.decomposition import Decomposition, reason_of
from shiftscope.explanations.heads import averaging_head, begins_with, head_change, tokens_go_on
from shiftscope.explanations.token_causes import TokenSteps
from shiftscope.explanations.trial import ROUNDING, Cause, Loss, Measured, Trial
from shiftscope.explanations.wording import causes_verdict, head_phrase, number, shares_add_up
from shiftscope.graphs.geometry import Geometry
from shiftscope.graphs.invariance import INVARIANT, output_change, random_steps
from shiftscope.graphs.operators import POINTWISE
from shiftscope.graphs.tokens import TokenReading
from shiftscope.graphs.tracing import trace
from shiftscope.layers.surrounded import become, view
from shiftscope.surgery import Surgery, circular, global_pool, make_equivariant
from shiftscope.tables import Cell, Table

__all__ = ["Cause", "Causes", "causes_of", "pooled_head"]

#: Images and shifts on which each step is tried.
PROBES, SHIFTS = 2, 2
NOT_CIRCULAR = "it needs circular maps, which are impossible here"


@dataclass(frozen=True)
class Causes:
    """All parts of the loss.

    Attributes:
        before: what shifts cost the unchanged model.
        causes: in the order of the steps; a part of another cause follows it.
        lattice_loss: loss after the step "borders" at shifts by multiples of the subsampling factor, where strides cost nothing;
            None where that step is impossible or nothing is subsampled.
        circular_loss: loss after the same step at the trial's shifts; None likewise.
        main: the cause with the largest part; empty where there is no loss.
        verdict: the main cause in a sentence.
    """

    before: Loss
    causes: tuple[Cause, ...]
    lattice_loss: Estimate | None
    circular_loss: Estimate | None
    main: str
    verdict: str

    def table(self) -> Table:
        """Return a row for each cause, and one for the total."""
        unknown = any(each.part is None for each in self.causes if not each.part_of)
        rows: list[dict[str, Cell]] = [
            {
                "cause": f"of {each.part_of}: {each.name}" if each.part_of else each.name,
                "lost": each.part,
                "share": each.share if shares_add_up(self.causes) and not (each.name == "other" and unknown) else None,
                **_cells(each.after),
                "step": each.step,
                "reason": each.reason or None,
            }
            for each in self.causes
        ]
        rows.append({"cause": "total", "lost": self.before.loss, **_cells(self.before), "step": "the unchanged model"})
        notes = [
            self.verdict,
            "loss: 1 - mean cosine of outputs before and after a shift. The causes' parts sum to the total, not counting a part "
            "of another cause. Each step keeps the changes of earlier ones, and where two causes act together, the part goes to "
            f"the first. Intervals: 95 %, over {self.before.loss.count} images.",
            "cosine between different images: of their unshifted outputs, after the step; near 1 they say little. relative loss: "
            "loss after the step over 1 - that; near 0 where shifts change outputs less than another image does, near 1 where "
            "they change them as much.",
        ]
        if self.lattice_loss is not None and self.circular_loss is not None:
            notes.append(
                f"On circular maps the loss is {number(self.lattice_loss)} at shifts by multiples of the subsampling factor, "
                f"where strides cost nothing, and {number(self.circular_loss)} at the trial's own shifts."
            )
        columns = ("cause", "lost", "share", "different_images", "relative_loss", "step", "reason")
        brief = ("cause", "lost", "share") if shares_add_up(self.causes) else ("cause", "lost")
        return Table("What shifts cost, by cause", columns, tuple(rows), tuple(notes), brief=brief)


def causes_of(
    model: nn.Module,
    trial: Trial,
    geometry: Geometry | None,
    measured: Measured,
    *,
    tokens: TokenReading | None = None,
    seed: int,
) -> Causes:
    """Remove one cause of the loss at a time, and measure what is left.

    Args:
        model: in evaluation mode; it is not changed.
        trial: the images and their shifts.
        geometry: of the model's graph; None where it cannot be read, so that every part is unknown.
        measured: the unchanged model in this trial.
        tokens: how its tokens lie on the image; None for a model without token maps.
        seed: draws the shifts by multiples of the subsampling factor.
    """
    before = measured.estimates()
    if tokens is not None and tokens.blocks:
        follows = TokenSteps(model, trial, tokens, measured.loss)
        found = tuple(follows.run(seed))
        confirmed = _finished(before, found, follows.lattice_loss, follows.circular_loss)
        if geometry is None or _confirms(found):
            return confirmed
        steps = _Steps(model, trial, measured.loss)
        found = tuple(steps.run(geometry))
        changed = any(each.after is not None for each in found if each.name != "head")
        return _of_graph(before, found, steps, geometry, seed) if changed else confirmed
    steps = _Steps(model, trial, measured.loss)
    causes = tuple(steps.without_graph() if geometry is None else steps.run(geometry))
    return _of_graph(before, causes, steps, geometry, seed)


def _confirms(causes: Sequence[Cause]) -> bool:
    """Return whether the part of a step beyond the head is known."""
    return any(each.part is not None for each in causes if each.name not in ("head", "other") and not each.part_of)


def _of_graph(before: Loss, causes: tuple[Cause, ...], steps: _Steps, geometry: Geometry | None, seed: int) -> Causes:
    lattice = None if geometry is None or steps.circular is None else steps.circular.on_lattice(geometry, seed)
    return _finished(before, causes, lattice, None if steps.circular is None else steps.circular.loss)


def _finished(before: Loss, causes: tuple[Cause, ...], lattice: Tensor | None, circular_loss: Tensor | None) -> Causes:
    """Return the causes with their verdict. Where all of the loss is in "other" and causes are unknown, there is no main one."""
    main, verdict = causes_verdict(before, causes)
    if main == "other" and any(each.part is None for each in causes if not each.part_of):
        main = ""
    return Causes(before, causes, _loss(lattice), None if lattice is None else _loss(circular_loss), main, verdict)


@dataclass(frozen=True)
class _Circular:
    """The copy with circular padding, measured under circular shifts."""

    model: nn.Module
    trial: Trial
    loss: Float[Tensor, " image"]

    def on_lattice(self, geometry: Geometry, seed: int) -> Float[Tensor, " image"] | None:
        """Return the loss at shifts by multiples of the factor; None where nothing is subsampled or no such shift exists."""
        trial = self.trial.on_lattice(geometry.lattice, torch.Generator().manual_seed(seed))
        if trial is None or geometry.lattice == (1, 1):
            return None
        return trial.measure(self.model, "shifts by multiples of the factor").loss


class _Steps(Decomposition):
    """Removes the causes, one after the other.

    Attributes:
        model: the model with all changes so far that later steps keep.
        circular: result of the step "borders"; None where it is impossible.
    """

    def __init__(self, model: nn.Module, trial: Trial, total: Float[Tensor, " image"]) -> None:
        super().__init__(total)
        self.model, self.trial = model, trial
        self.circular: _Circular | None = None

    def without_graph(self) -> list[Cause]:
        reason = "the model's graph cannot be read"
        unknown = [self.unknown(name, reason) for name in ("head", "borders", "aliasing", "activations")]
        return [*unknown, self.cause("other", self.total)]

    def run(self, geometry: Geometry) -> list[Cause]:
        if float(self.total.mean()) < ROUNDING:
            return [self.none(name, "there is no loss") for name in ("head", "borders", "aliasing", "other")]
        head, borders = self._head(), self._borders(geometry)
        activations = self._activations(geometry)  # before aliasing, which changes what is left
        return [head, borders, self._aliasing(geometry), activations, self.cause("other", self.left)]

    def _head(self) -> Cause:
        """Roll the maps that reach the head; where it notices, let it see means."""
        probes = self.trial.inputs[:PROBES]
        change = head_change(self.model, probes)
        if change is None:
            return self.unknown("head", "its use of positions cannot be tried in double precision")
        if change < INVARIANT:
            return self.none("head", "rolling the maps that reach the head changes no output")
        if tokens_go_on(self.model, probes):
            return self.unknown("head", "behind the last map its positions go through further layers as tokens")
        phrase = head_phrase(begins_with(self.model, probes))
        self.model = pooled_head(self.model, probes)
        return replace(self.step("head", self.trial.measure(self.model, "without head")), phrase=phrase)

    def _borders(self, geometry: Geometry) -> Cause:
        trial = self.trial.circular(geometry.lattice)
        cause, changed = self._step("borders", trial, geometry.lattice, lambda: circular(self.model, image=trial.image))
        if changed is not None:
            self.circular = _Circular(changed, trial, self.left)
        return cause

    def _aliasing(self, geometry: Geometry) -> Cause:
        if not any(not each.polyphase for each in geometry.subsamplings):
            why = "every subsampling is polyphase sampling already" if geometry.subsamplings else "nothing is subsampled"
            return self.none("aliasing", why)
        if self.circular is None:
            return self.unknown("aliasing", NOT_CIRCULAR)
        trial = self.circular.trial
        return self._step("aliasing", trial, (1, 1), lambda: make_equivariant(self.model, image=trial.image))[0]

    def _activations(self, geometry: Geometry) -> Cause:
        """Measure a part of aliasing: the loss on circular maps less the loss there with low-passed activations."""
        if self.circular is None:
            return self.unknown("activations", NOT_CIRCULAR)
        if not geometry.subsamplings:
            return self.none("activations", "nothing is subsampled")
        try:
            low_passed = _low_passed(self.circular.model, geometry)
            after = self.circular.trial.measure(low_passed, "with low-passed activations")
        except InputError as error:
            return self.unknown("activations", reason_of(error))
        return self.cause("activations", self.circular.loss - after.loss, after)

    def _step(
        self, name: str, trial: Trial, invariant_at: tuple[int, int], change: Callable[[], Surgery]
    ) -> tuple[Cause, nn.Module | None]:
        """Change the model, try whether it does what the step says, and measure it.

        Args:
            name: of the cause.
            trial: of the changed model.
            invariant_at: circular shifts by multiples of this must change none of its outputs.
            change: makes the changed model.

        Returns:
            the cause and the changed model; None where the change is impossible or does not do that.
        """
        try:
            changed = change().model
            if not _follows(changed, trial, invariant_at):
                shifts = "every whole pixel" if invariant_at == (1, 1) else f"multiples of {max(invariant_at)} pixels"
                return self.unknown(name, f"after the step {name}, circular shifts by {shifts} still change the outputs"), None
            after = trial.measure(changed, f"without {name}")
        except InputError as error:
            return self.unknown(name, reason_of(error)), None
        return self.step(name, after), changed


def pooled_head(model: nn.Module, probes: Tensor) -> nn.Module:
    """Return a model with summed weights, which take maps of any size, or else with means repeated at every position.

    Args:
        model: in evaluation mode.
        probes: [image, channel, height, width], images to try it on.
    """
    channels, height, width = probes.shape[1:]
    try:
        surgery = global_pool(model, image=(channels, height, width))
        change = head_change(surgery.model, probes) if surgery.changed else None
    except InputError:
        change = None
    if change is not None and change < INVARIANT:
        return surgery.model
    return averaging_head(model, probes)


def _follows(model: nn.Module, trial: Trial, step: tuple[int, int]) -> bool:
    """Return whether circular shifts by multiples of a step change no output; there may be none within the image."""
    steps = random_steps(SHIFTS, trial.image[1:], step)
    change = output_change(model, trial.images[:PROBES], steps) if steps else 0.0
    return change is not None and change < INVARIANT


def _low_passed(model: nn.Module, geometry: Geometry) -> nn.Module:
    """Return a copy whose activations create no frequencies that their maps cannot hold.

    Raises:
        InputError: an activation cannot be replaced, or there is none.
    """
    copy = deepcopy(model)
    functions = [node for node in trace(copy).graph.nodes if node.op != "call_module" and POINTWISE.match(node, None)]
    if functions:
        raise InputError(f"activations are called as functions (`{functions[0].name}`), which cannot be replaced")
    found = [name for name, part in copy.named_modules() if isinstance(part, POINTWISE.modules)]
    turned = [name for name in found if (place := geometry.maps.get(name)) and place.layout == "channels last"]
    if turned:
        raise InputError(f"`{turned[0]}` works on maps with channels last")
    if not found:
        raise InputError("the model has no activation of a known kind that is a layer")
    for name in found:
        activation = copy.get_submodule(name)
        become(activation, layers.AliasFreeActivation(view(activation)))
    return copy


def _loss(values: Tensor | None) -> Estimate | None:
    return None if values is None else mean(values, bounds=(0.0, 2.0))


def _cells(loss: Loss | None) -> dict[str, Cell]:
    return {} if loss is None else {"different_images": loss.between_images, "relative_loss": loss.relative}
