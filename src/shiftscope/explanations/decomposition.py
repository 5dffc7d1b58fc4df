"""The loss, decomposed step by step: each step's part is the loss before it minus the loss after it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean
from shiftscope.explanations.trial import NOTHING, Cause, Measured, share

__all__ = ["STEPS", "Decomposition", "reason_of"]

#: Cause -> its step, and what the step can and cannot show.
STEPS = {
    "head": (
        "the head sees the mean over positions instead of a weight for each",
        "shows what the head costs with the same features; not what a head trained on means would cost",
    ),
    "borders": (
        "then circular padding and circular shifts",
        "shows what enters and leaves at borders, the image's own included; maps without padding grow by it",
    ),
    "windows": (
        "then windows start at the phase of largest norm",
        "shows what it costs that a shift brings other tokens together in a window",
    ),
    "position embedding": (
        "then position embeddings are their mean over positions",
        "shows what it costs that embeddings stay where the image moves; the network was not trained without them",
    ),
    "relative positions": (
        "then relative positions continue across the border",
        "shows what it costs that tokens which a shift brings to the other side are far apart there",
    ),
    "token mixing": (
        "then weights between positions are their mean over positions",
        "shows what it costs that every position has weights of its own; the network was not trained without them",
    ),
    "patch grid": (
        "then patches and merged tokens start at the phase of largest norm",
        "shows what it costs that patches hold other pixels after a shift",
    ),
    "aliasing": (
        "then every subsampling keeps the phase of largest norm",
        "shows what sampling other positions of the same map costs; not which filter would repair it",
    ),
    "activations": (
        "with circular borders, every activation low-passed, strides unchanged",
        "shows the part of frequencies that activations create; those that maxima create remain",
    ),
    "other": ("the loss after all steps", "contains the part of every impossible step"),
}


class Decomposition:
    """What is left of the loss after each step.

    Attributes:
        total: loss of the unchanged model.
        left: loss after the last step that was possible.
    """

    def __init__(self, total: Float[Tensor, " image"]) -> None:
        self.total = self.left = total

    def step(self, name: str, after: Measured) -> Cause:
        """Return a cause that a step removed, and continue from what is left."""
        cause = self.cause(name, self.left - after.loss, after)
        self.left = after.loss
        return cause

    def none(self, name: str, reason: str) -> Cause:
        """Return a cause that costs nothing, with the reason."""
        return self.cause(name, self.total * 0, reason=reason)

    def unknown(self, name: str, reason: str) -> Cause:
        """Return a cause whose part is unknown, with the reason."""
        return self.cause(name, None, reason=reason)

    def cause(self, name: str, part: Tensor | None, after: Measured | None = None, reason: str = "") -> Cause:
        """Return a cause with a part of the loss, by image."""
        step, shows = STEPS[name]
        return Cause(
            name=name,
            part_of="aliasing" if name == "activations" else "",
            part=None if part is None else _part(part),
            share=None if part is None else share(part, self.total),
            after=None if after is None else after.estimates(),
            step=step,
            shows=shows,
            reason=reason,
            by_image=part,
        )


def _part(values: Float[Tensor, " image"]) -> Estimate:
    """Return the mean over images. Where a step changes nothing, this is no sample of zeros: the part is zero."""
    if float(values.abs().max()) < NOTHING:
        return Estimate(value := float(values.mean()), value, value, len(values))
    return mean(values, bounds=(-2.0, 2.0))


def reason_of(error: InputError) -> str:
    """Return an error's problem as the reason of an impossible step."""
    return error.problem.rstrip(".")
