"""Fixes, tried on the same images and shifts without training: what each brings, what it costs, and which to try first.

The rule of the ranking: fixes whose gain is above zero with its whole interval come first, and among these those that take away
the larger share of the loss for each multiply-add, that is share of the loss taken away / (multiply-adds after / before). The
others follow by the same number, and what cannot be done comes last. Accuracy is told and not counted: before a network is
trained again it says little. So does the gain, in part: a fix that makes outputs alike because they say less gains, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote

from jaxtyping import Float
from torch import Tensor, nn

from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, mean, proportion
from shiftscope.explanations.causes import share
from shiftscope.explanations.trial import Trial, between
from shiftscope.graphs.geometry import Geometry
from shiftscope.surgery import Kind, Surgery, cost, operate
from shiftscope.surveys import correct
from shiftscope.tables import Table

__all__ = ["Remedies", "Remedy", "remedies_of"]

#: Of ``blur``'s filter: the default of ``shiftscope fix``.
FILTER_SIZE = 3
WORDS: dict[Kind, str] = {
    "gap": "the head sees the mean over positions",
    "blur": "a filter before every subsampling",
    "aps": "polyphase sampling on circular maps",
    "circular": "maps continue at their other end",
}


@dataclass(frozen=True)
class Remedy:
    """One fix, tried.

    Attributes:
        kinds: the operations, in order, as ``shiftscope fix --with`` calls them.
        command: that makes it.
        gain: the loss (1 - mean cosine) before less that after; None where it cannot be done.
        share: the gain as a share of the loss before.
        accuracy: after the fix, on the unshifted images; None without labels.
        between: mean cosine between unshifted outputs of different images after the fix; near 1 they say little.
        relative: what is lost after the fix over 1 - that.
        multiply_adds: of one image after the fix.
        ratio: the same over what it was before.
        reason: why it cannot be done; empty otherwise.
    """

    kinds: tuple[Kind, ...]
    command: str
    gain: Estimate | None
    share: Estimate | None
    accuracy: Estimate | None
    between: Estimate | None
    relative: Estimate | None
    multiply_adds: int | None
    ratio: float | None
    reason: str

    @property
    def works(self) -> bool:
        """Whether the gain's whole interval is above zero."""
        return self.gain is not None and self.gain.low > 0

    @property
    def worth(self) -> float:
        """Share of the loss taken away for each multiply-add, relative to before."""
        return self.share.value / self.ratio if self.share is not None and self.ratio else float("-inf")


@dataclass(frozen=True)
class Remedies:
    """All fixes that apply, the best first.

    Attributes:
        remedies: ranked.
        accuracy: of the model as it is, on the unshifted images; None without labels.
        between: mean cosine between its unshifted outputs of different images.
        relative: what it loses over 1 - that.
        multiply_adds: of the model as it is; None without a graph.
        reason: why there is none; empty otherwise.
    """

    remedies: tuple[Remedy, ...]
    accuracy: Estimate | None
    between: Estimate
    relative: Estimate | None
    multiply_adds: int | None
    reason: str

    def table(self) -> Table:
        """A row for each fix, the best first, and one for the model as it is."""
        rows = [
            {
                "fix": " + ".join(each.kinds),
                "gain": each.gain,
                "share": each.share,
                "accuracy": each.accuracy,
                "different_images": each.between,
                "relative_loss": each.relative,
                "multiply_adds": each.multiply_adds,
                "ratio": each.ratio,
                "command": each.command if each.gain is not None else None,
                "reason": each.reason or None,
            }
            for each in self.remedies
        ]
        as_it_is = {"accuracy": self.accuracy, "different_images": self.between, "relative_loss": self.relative}
        rows.append({"fix": "as it is", **as_it_is, "multiply_adds": self.multiply_adds})
        notes = [self.reason] if self.reason else []
        notes.append(
            "gain: what the fix takes away of 1 - mean cosine, on the same images and shifts, without training. Ranked: fixes "
            "whose gain is above zero with its whole interval first, then by share taken away / ratio of multiply-adds. "
            "different_images: mean cosine between unshifted outputs of different images; a fix that brings it near 1 gains by "
            "saying less. relative_loss: what is lost with the fix over 1 - that."
        )
        if any(each.gain is not None for each in self.remedies):
            notes.append("Weights are as they were: train again, then measure again, before you rely on a fix.")
        columns = (
            "fix",
            "gain",
            "share",
            "accuracy",
            "different_images",
            "relative_loss",
            "multiply_adds",
            "ratio",
            "command",
            "reason",
        )
        return Table("Fixes, tried without training", columns, tuple(rows), tuple(notes))


def remedies_of(
    model: nn.Module,
    trial: Trial,
    geometry: Geometry | None,
    lost: Float[Tensor, " image"],
    reference: Float[Tensor, "image class"],
    *,
    name: str,
) -> Remedies:
    """Try every fix that applies.

    Args:
        model: left as it is.
        trial: the images and their shifts.
        geometry: of the model's graph; None where there is none.
        lost: of the model as it is, image by image.
        reference: the unshifted outputs.
        name: of the model, for the commands.
    """
    accuracy = None if trial.labels is None else proportion(correct(reference, trial.labels.cpu()))
    others, relative = mean(between(reference), bounds=(-1.0, 1.0)), share(lost, 1 - between(reference))
    if geometry is None:
        return Remedies((), accuracy, others, relative, None, "No fix can be tried, because the model's graph cannot be traced.")
    before = cost(model, trial.image).multiply_adds
    tried = [_tried(model, trial, lost, kinds, (name, before)) for kinds in _candidates(geometry)]
    ranked = sorted(tried, key=lambda each: (not each.works, each.gain is None, -each.worth))
    reason = "" if ranked else "No fix of this package applies to the model."
    return Remedies(tuple(ranked), accuracy, others, relative, before, reason)


def _candidates(geometry: Geometry) -> Iterator[tuple[Kind, ...]]:
    """Fixes that have something to change, alone and behind a head that averages."""
    strided = any(not each.polyphase for each in geometry.subsamplings)
    leaking = not geometry.borders or any(border != "circular" for border in geometry.borders.values())
    useful: dict[Kind, bool] = {"blur": strided, "circular": leaking, "aps": strided}
    singles = [kind for kind, use in useful.items() if use]
    yield from ((kind,) for kind in singles)
    if geometry.head == "flatten":
        yield ("gap",)
        yield from (("gap", kind) for kind in singles)


def _tried(model: nn.Module, trial: Trial, lost: Tensor, kinds: tuple[Kind, ...], of: tuple[str, int]) -> Remedy:
    name, before = of
    command = f"shiftscope fix {quote(name)} {' '.join(f'--with {kind}' for kind in kinds)} --out fixed.safetensors"
    try:
        fixed = _fixed(model, kinds, trial.image)
        after, reference = trial.lost(fixed.model, f"with {' + '.join(kinds)}")
    except InputError as error:
        reason = str(error).split(". ")[0].rstrip(".")
        return Remedy(kinds, command, None, None, None, None, None, None, None, reason)
    accuracy = None if trial.labels is None else proportion(correct(reference, trial.labels.cpu()))
    multiply_adds = fixed.after.multiply_adds if fixed.after else 0
    ratio = multiply_adds / before if before else 1.0
    gain = mean(lost - after, bounds=(-2.0, 2.0))
    others, relative = mean(between(reference), bounds=(-1.0, 1.0)), share(after, 1 - between(reference))
    return Remedy(kinds, command, gain, share(lost - after, lost), accuracy, others, relative, multiply_adds, ratio, "")


def _fixed(model: nn.Module, kinds: tuple[Kind, ...], image: tuple[int, int, int]) -> Surgery:
    """The operations one after the other; an InputError where one of them finds nothing to change."""
    surgery = Surgery(model, ())
    for kind in kinds:
        surgery = operate(kind, surgery.model, filter_size=FILTER_SIZE if kind == "blur" else 1, image=image)
        if not surgery.changed:
            raise InputError(f"{WORDS[kind]}: nothing to change ({surgery.changes[-1].why if surgery.changes else 'no layer'}).")
    return surgery
