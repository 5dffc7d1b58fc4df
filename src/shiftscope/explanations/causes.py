"""By cause: what of the lost similarity is owed to the head, to borders, to aliasing.

What is lost is 1 - mean cosine between the outputs of unshifted and shifted images. Counterfactuals on the same weights, images
and shifts take causes away one after the other, in this order:

1. **head**: the fully connected head gets the mean over positions (:func:`shiftscope.surgery.global_pool`);
2. **borders**: then maps continue at their other end (:func:`shiftscope.surgery.circular`), and so do the images;
3. **aliasing**: then every subsampling follows the map (:func:`shiftscope.surgery.make_equivariant`);
4. **other**: what is lost even then. For stationary operators that is nothing.

Each cause's part is the loss before its step less the loss after it, image by image, so that the parts sum to the whole. A part
is negative where a step makes things worse. The order matters: what two causes do together goes to the one that is taken away
first. Where a step is impossible its part is unknown, with the reason, and falls to what comes later.

A step can also take similarity's meaning away: a head that gets means may answer alike to everything. So each step tells how
alike the outputs of *different* images are after it, and the verdict warns where they have come much closer.

Within aliasing, **activations** is the part that goes when every activation is kept from making frequencies that its map cannot
hold (:class:`shiftscope.layers.AliasFreeActivation`). A shift by whole pixels commutes with any activation; only through these
frequencies, at the next subsampling, can a nonlinearity cost similarity.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shiftscope import layers
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, bootstrap, mean, percentile_interval
from shiftscope.explanations.trial import Trial, between
from shiftscope.graphs.geometry import Geometry
from shiftscope.graphs.operators import POINTWISE
from shiftscope.surgery import Surgery, circular, global_pool, make_equivariant
from shiftscope.surgery.head import ONE_POSITION
from shiftscope.tables import Cell, Table

__all__ = ["Cause", "Causes", "causes_of", "share"]

#: A mean loss below this is what cosines in single precision leave of none.
ROUNDING = 2e-7

#: Outputs of different images have come much closer where 1 - cosine has shrunk to less than this share.
CLOSER = 0.5

STEPS = {
    "head": (
        "the head gets the mean over positions instead of a weight for each",
        "shows what the head makes of the same features; not what a head trained on means would answer",
    ),
    "borders": (
        "then images and maps continue at their other end",
        "shows what comes in and leaves at borders, the image's own included; maps without padding grow by it",
    ),
    "aliasing": (
        "then every subsampling keeps the phase of largest norm",
        "shows what other samples of the same map cost; not which filter would bring it back",
    ),
    "activations": (
        "with circular borders, every activation low-passed, subsampling as it was",
        "shows what goes with the frequencies that activations make; maxima make some too, and keep theirs",
    ),
    "other": ("what is lost after all steps", "contains whatever an impossible step would have taken away"),
}
PHRASES = {
    "head": "the head, which weighs every position for itself",
    "borders": "borders: what comes in and leaves at the edges of the image and of the maps",
    "aliasing": "aliasing: a shift lets every subsampling keep other samples",
    "other": "what these counterfactuals do not take away",
}


@dataclass(frozen=True)
class Cause:
    """One cause's part.

    Attributes:
        name: head, borders, aliasing, activations or other.
        part_of: the cause it is a part of; empty for those that sum to the whole.
        lost: its part of 1 - mean cosine; None where its step is impossible.
        share: the same as a share of the whole; None where nothing is lost.
        between: mean cosine between unshifted outputs of different images after the step; None where nothing was run for it.
        relative: what is lost after the step over 1 - that: the loss between shifts as a share of that between images.
        step: the counterfactual.
        shows: what that can and cannot show.
        reason: why the step is impossible, or takes nothing away by itself; empty otherwise.
    """

    name: str
    part_of: str
    lost: Estimate | None
    share: Estimate | None
    between: Estimate | None
    relative: Estimate | None
    step: str
    shows: str
    reason: str


@dataclass(frozen=True)
class Causes:
    """All parts of what is lost.

    Attributes:
        whole: 1 - mean cosine of the model as it is.
        between: mean cosine between its unshifted outputs of different images.
        relative: the whole over 1 - that; None where all images have one output.
        causes: in the order of the steps; those that are part of another come after it.
        lattice, drawn: what is lost on circular maps before subsampling is changed, at shifts by multiples of the factor
            and at the trial's own; None where that step is impossible or the factor is not below the image's size.
        main: the cause of the largest part; empty where nothing is lost.
        verdict: that in a sentence.
    """

    whole: Estimate
    between: Estimate
    relative: Estimate | None
    causes: tuple[Cause, ...]
    lattice: Estimate | None
    drawn: Estimate | None
    main: str
    verdict: str

    def table(self) -> Table:
        """A row for each cause, and one for the whole."""
        rows: list[dict[str, Cell]] = [
            {
                "cause": f"of {each.part_of}: {each.name}" if each.part_of else each.name,
                "lost": each.lost,
                "share": each.share,
                "different_images": each.between,
                "relative_loss": each.relative,
                "step": each.step,
                "reason": each.reason or None,
            }
            for each in self.causes
        ]
        measured = {"lost": self.whole, "different_images": self.between, "relative_loss": self.relative}
        rows.append({"cause": "whole", **measured, "step": "the model as it is"})
        notes = [
            self.verdict,
            "lost: of 1 - mean cosine of outputs; the causes' parts sum to the whole, those within another apart. Steps follow "
            "each other, and what two causes do together goes to the first. In brackets: 95 % intervals over "
            f"{self.whole.count} images.",
            "different_images: mean cosine between the unshifted outputs of different images after the step; near 1 they say "
            "little. relative_loss: what is lost after the step over 1 - that: near 0 where shifts change outputs less than "
            "other images do, near 1 where they change them as much.",
        ]
        if self.lattice is not None and self.drawn is not None:
            notes.append(
                f"On circular maps {_number(self.lattice)} is lost at shifts by multiples of the factor, where subsampling must "
                f"cost nothing, and {_number(self.drawn)} at the shifts that were drawn."
            )
        columns = ("cause", "lost", "share", "different_images", "relative_loss", "step", "reason")
        return Table("What is lost, by cause", columns, tuple(rows), tuple(notes))


def causes_of(
    model: nn.Module,
    trial: Trial,
    geometry: Geometry | None,
    lost: Float[Tensor, " image"],
    reference: Float[Tensor, "image class"],
    *,
    seed: int,
) -> Causes:
    """Take causes away one after the other.

    Args:
        model: left as it is.
        trial: the images and their shifts.
        geometry: of the model's graph; None where there is none.
        lost: of the model as it is, image by image.
        reference: its unshifted outputs.
        seed: draws the lattice shifts.
    """
    whole, others = mean(lost, bounds=(0.0, 2.0)), mean(between(reference), bounds=(-1.0, 1.0))
    relative = share(lost, 1 - between(reference))
    if geometry is None:
        reason = "the model's graph cannot be traced"
        causes = tuple(_cause(name, None, lost, reason) for name in ("head", "borders", "aliasing", "activations"))
        causes += (_cause("other", lost, lost, ""),)
        return Causes(whole, others, relative, causes, None, None, "", _verdict(whole, others, relative, causes)[1])
    steps = _Steps(model, trial, geometry, lost)
    causes = tuple(steps.causes())
    around, lattice = steps.circular_trial, None
    if steps.circular_model is not None and around is not None:
        multiples = around.on_lattice(geometry.factor, torch.Generator().manual_seed(seed))
        if multiples is not None and geometry.factor != (1, 1):
            lattice = mean(multiples.lost(steps.circular_model, "lattice shifts")[0], bounds=(0.0, 2.0))
    drawn = None if lattice is None or steps.circular_lost is None else mean(steps.circular_lost, bounds=(0.0, 2.0))
    main, verdict = _verdict(whole, others, relative, causes)
    return Causes(whole, others, relative, causes, lattice, drawn, main, verdict)


class _Steps:
    """The counterfactuals, one on top of the other."""

    def __init__(self, model: nn.Module, trial: Trial, geometry: Geometry, lost: Tensor) -> None:
        self.model, self.trial, self.geometry = model, trial, geometry
        self.whole = self.left = lost
        self.changed = model
        self.circular_model: nn.Module | None = None
        self.circular_trial: Trial | None = None
        self.circular_lost: Tensor | None = None

    def causes(self) -> list[Cause]:
        if float(self.whole.mean()) < ROUNDING:
            none = torch.zeros_like(self.whole)
            return [_cause(name, none, self.whole, "nothing is lost") for name in ("head", "borders", "aliasing", "other")]
        found = [self._head(), self._borders()]
        activations = self._activations()
        return [*found, self._aliasing(), activations, _cause("other", self.left, self.whole, "")]

    def _head(self) -> Cause:
        if self.geometry.head != "flatten":
            why = "the head averages already" if self.geometry.head == "gap" else "what the head sees of positions is not known"
            known = torch.zeros_like(self.whole) if self.geometry.head == "gap" else None
            return _cause("head", known, self.whole, why)
        left = [change.why for change in global_pool(self.model).changes if not change.becomes]
        if left and left[0] == ONE_POSITION:
            return _cause("head", torch.zeros_like(self.whole), self.whole, left[0])
        if left:
            return _cause("head", None, self.whole, left[0].removeprefix("unsupported: "))
        return self._step("head", self.trial, lambda: global_pool(self.model, image=self.trial.image))

    def _borders(self) -> Cause:
        around = self.trial.around(self.geometry.factor)
        found = self._step("borders", around, lambda: circular(self.model, image=around.image), keep=False)
        if found.lost is not None:
            self.circular_trial, self.circular_lost = around, self.left
            self.circular_model = self.changed
        return found

    def _aliasing(self) -> Cause:
        if not any(not each.polyphase for each in self.geometry.subsamplings):
            why = "every subsampling follows the map already" if self.geometry.subsamplings else "nothing is subsampled"
            return _cause("aliasing", torch.zeros_like(self.whole), self.whole, why)
        if self.circular_trial is None:
            return _cause("aliasing", None, self.whole, "it needs circular maps, which are impossible here")
        around = self.circular_trial
        return self._step("aliasing", around, lambda: make_equivariant(self.model, image=around.image))

    def _activations(self) -> Cause:
        """A part of aliasing: what is lost on circular maps less what is lost there with low-passed activations."""
        if self.circular_model is None or self.circular_trial is None or self.circular_lost is None:
            return _cause("activations", None, self.whole, "it needs circular maps, which are impossible here")
        if not self.geometry.subsamplings:
            return _cause("activations", torch.zeros_like(self.whole), self.whole, "nothing is subsampled")
        low_passed, reason = _low_passed(self.circular_model, self.geometry)
        if low_passed is None:
            return _cause("activations", None, self.whole, reason)
        try:
            after, reference = self.circular_trial.lost(low_passed, "without the activations' new frequencies")
        except InputError as error:
            return _cause("activations", None, self.whole, _short(error))
        return _cause("activations", self.circular_lost - after, self.whole, "", (after, reference))

    def _step(self, name: str, trial: Trial, change: Callable[[], Surgery], *, keep: bool = True) -> Cause:
        """One counterfactual: measured, and kept for those that follow unless ``keep`` says otherwise."""
        try:
            changed = change().model
            after, reference = trial.lost(changed, f"without {name}")
        except InputError as error:
            return _cause(name, None, self.whole, _short(error))
        part, self.left, self.changed = self.left - after, after, changed
        if keep:
            self.model = changed
        return _cause(name, part, self.whole, "", (after, reference))


def _cause(name: str, part: Tensor | None, whole: Tensor, reason: str, after: tuple[Tensor, Tensor] | None = None) -> Cause:
    lost = None if part is None else mean(part, bounds=(-2.0, 2.0))
    others = None if after is None else mean(between(after[1]), bounds=(-1.0, 1.0))
    relative = None if after is None else share(after[0], 1 - between(after[1]))
    step, shows = STEPS[name]
    within = "aliasing" if name == "activations" else ""
    return Cause(name, within, lost, None if part is None else share(part, whole), others, relative, step, shows, reason)


def share(part: Float[Tensor, " image"], whole: Float[Tensor, " image"]) -> Estimate | None:
    """Sum of parts over sum of wholes, with a bootstrap interval over images, which both resample together.

    Returns:
        None where the whole is nothing.

    >>> share(torch.tensor([0.1, 0.2]), torch.tensor([0.2, 0.4])).value
    0.5
    """
    if float(whole.mean()) < ROUNDING:
        return None
    value = float(part.double().mean() / whole.double().mean())
    above, below = bootstrap(part[None]), bootstrap(whole[None])
    low, high = percentile_interval(above[below > 0] / below[below > 0])
    return Estimate(value, min(float(low), value), max(float(high), value), count=len(whole))


def _low_passed(model: nn.Module, geometry: Geometry) -> tuple[nn.Module | None, str]:
    """A copy whose activations make no frequencies that their maps cannot hold; or why there is none."""
    copy = deepcopy(model)
    graph = getattr(copy, "graph", None)
    nodes = graph.nodes if graph is not None else ()
    functions = [node for node in nodes if node.target in (*POINTWISE.functions, *POINTWISE.methods)]
    if functions:
        return None, f"activations are called as functions (`{functions[0].name}`), where no layer can be put"
    found = [name for name, part in copy.named_modules() if isinstance(part, POINTWISE.modules)]
    turned = [name for name in found if (place := geometry.maps.get(name)) and place.layout == "channels last"]
    if turned:
        return None, f"`{turned[0]}` works on maps whose channels come last"
    if not found:
        return None, "the model has no activation that is a layer of a known kind"
    for name in found:
        copy.set_submodule(name, layers.AliasFreeActivation(copy.get_submodule(name)))
    return copy, ""


def _short(error: InputError) -> str:
    """The reason alone, without the remedy."""
    return str(error).split(". ")[0].rstrip(".")


def _verdict(whole: Estimate, others: Estimate, relative: Estimate | None, causes: tuple[Cause, ...]) -> tuple[str, str]:
    """The main cause, and a sentence."""
    if whole.value < ROUNDING:
        return "", "Nothing is lost: the outputs are the same under these shifts."
    known = [each for each in causes if each.share is not None and not each.part_of]
    unknown = [each for each in causes if each.lost is None and not each.part_of]
    ranked = sorted(known, key=lambda each: -each.share.value if each.share else 0.0)
    main = ranked[0]
    sentence = f"The mean cosine falls by {_number(whole)}. {_told(main)} of that is owed to {PHRASES[main.name]}."
    if main.between is not None and 1 - main.between.value < CLOSER * (1 - others.value):
        sentence += (
            f" But part of that is because outputs say less without it: those of different images had cosine {others.value:.2f} "
            f"and have {main.between.value:.2f} then{_against(relative, main.relative)}."
        )
    rest = [f"{each.name} {_told(each)}" for each in ranked[1:] if each.share and abs(each.share.value) >= 0.05]
    if rest:
        sentence += f" The rest: {', '.join(rest)}."
    for reason in dict.fromkeys(each.reason for each in unknown):
        names = ", ".join(each.name for each in unknown if each.reason == reason)
        sentence += f" What is owed to {names} could not be told: {reason}."
    return main.name, sentence


def _against(before: Estimate | None, after: Estimate | None) -> str:
    """The loss against what tells different images apart."""
    if before is None or after is None:
        return ""
    return f"; against what tells these apart, the loss goes from {before.value:.2f} to {after.value:.2f}"


def _told(cause: Cause) -> str:
    if cause.share is None:
        return ""
    return f"{cause.share.value:.0%} [{cause.share.low:.0%}, {cause.share.high:.0%}]"


def _number(estimate: Estimate) -> str:
    """With three decimals, or two digits where these would be zeros."""
    if estimate.value >= 0.01:
        return str(estimate)
    return f"{estimate.value:.2g} [{estimate.low:.2g}, {estimate.high:.2g}]"
