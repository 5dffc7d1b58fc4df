"""Try fixes on the same images and shifts, without training: what each gains, what it costs, and which to try first.

The ranking puts fixes first whose gain is above zero with its complete 95 % interval, ordered by *efficiency*: the share of the
loss that the fix removes over the ratio of multiply-adds after and before. The others follow by the same number, and fixes that
are impossible come last. Accuracy does not count: before the network is trained again it says little. A gain can also mislead:
a fix that makes outputs discriminate less gains, too, so the similarity of outputs of different images stands beside it.

Two fixes wrap the model and need no training: ``canonical`` and ``average``. Of equal efficiency, those in layers come
first. ``average`` costs nine passes, so fewer images try it; its outputs are mean logits here, whose cosines compare with the
model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from shiftscope.engine.framing import Border
from shiftscope.engine.task_trials import TaskTrial
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate, difference, telling
from shiftscope.explanations.trial import ROUNDING, Loss, Measured, Trial, share
from shiftscope.graphs.geometry import Geometry
from shiftscope.graphs.tokens import TokenReading
from shiftscope.shifts import grid
from shiftscope.surgery import WRAPPERS, Average, FixKind, Surgery, Wrapping, anchor, cost, operate
from shiftscope.surgery.wrappers import Wrapper
from shiftscope.tables import Cell, Table

__all__ = ["Fixes", "TriedFix", "border_of", "try_fixes"]

#: Filter size of ``blur``: the default of ``shiftscope fix``.
FILTER_SIZE = 3
#: Largest shift of ``average``, pixels, and so many images try it.
REACH, IMAGES_OF_AVERAGE = 1, 16
#: A fix collapses outputs where 1 - cosine between those of different images becomes less than this share of what it was.
COLLAPSED = 0.01
#: Efficiencies that agree to so many digits are equal.
DIGITS = 3
#: The columns that a narrow terminal shows, as far as they have values.
NARROW = ("fix", "gain", "test_accuracy", "ratio")
DESCRIPTIONS: dict[FixKind, str] = {
    "gap": "a head that sees the mean over positions",
    "blur": "a filter before every subsampling",
    "aps": "polyphase sampling on circular maps",
    "circular": "circular padding",
    "anchor": "patches and windows that follow shifts",
    "canonical": "an input that chooses its own position",
    "average": "a mean over shifts",
}


@dataclass(frozen=True)
class TriedFix:
    """One fix and its effect.

    Attributes:
        kinds: short names of its operations, in order, as ``shiftscope fix --with`` takes them.
        command: makes the fixed model.
        gain: loss before less loss after, the loss being 1 - mean cosine; None where the fix is impossible.
        share: the gain as a share of the loss before.
        after: what shifts cost the fixed model; None where the fix is impossible.
        multiply_adds: of one image with the fix.
        ratio: the same over that of the unchanged model.
        reason: why the fix is impossible; empty otherwise.
        promise: what holds whatever the weights, in words; empty where nothing is promised.
        collapsed: whether outputs of different images become nearly the same, which no shift could change.
    """

    kinds: tuple[FixKind, ...]
    command: str
    gain: Estimate | None = None
    share: Estimate | None = None
    after: Loss | None = None
    multiply_adds: int | None = None
    ratio: float | None = None
    reason: str = ""
    promise: str = ""
    collapsed: bool = False

    @property
    def trains(self) -> bool:
        """Whether the network should be trained again: not if the fix only wraps it."""
        return not all(kind in WRAPPERS for kind in self.kinds)

    @property
    def works(self) -> bool:
        """Whether the complete interval of the gain is above zero."""
        return self.gain is not None and self.gain.low > 0

    @property
    def efficiency(self) -> float:
        """Share of the loss removed, over the ratio of multiply-adds; minus infinity where the fix is impossible."""
        return self.share.value / self.ratio if self.share is not None and self.ratio else float("-inf")


@dataclass(frozen=True)
class Fixes:
    """All fixes that apply to a model.

    Attributes:
        ranked: the best first.
        before: what shifts cost the unchanged model.
        multiply_adds: of one image with the unchanged model.
        reason: why no fix was tried; empty otherwise.
    """

    ranked: tuple[TriedFix, ...]
    before: Loss
    multiply_adds: int | None
    reason: str

    def table(self) -> Table:
        """Return a row for each fix, the best first, and one for the unchanged model."""
        rows: list[dict[str, Cell]] = [
            {
                "fix": " + ".join(each.kinds),
                "gain": each.gain,
                "share": each.share if each.share is not None and 0 <= each.share.value <= 1 else None,
                **_cells(each.after),
                "multiply_adds": each.multiply_adds,
                "ratio": each.ratio,
                "promise": each.promise or None,
                "command": each.command if each.gain is not None else None,
                "reason": each.reason or None,
            }
            for each in self.ranked
        ]
        rows.append({"fix": "none", **_cells(self.before), "multiply_adds": self.multiply_adds})
        notes = [self.reason] if self.reason else []
        notes.append(
            "gain: how much the fix lowers 1 - mean cosine, on the same images and shifts, without training. Fixes whose gain is "
            "above zero with its complete interval come first, ranked by the share of the loss removed over the ratio of "
            "multiply-adds. cosine between different images: of their unshifted outputs; a fix that raises it to nearly 1 "
            "gains because outputs discriminate less, and comes after the others where it brings them a hundred times closer. "
            "relative loss: loss with the fix over 1 - that."
        )
        if any(each.gain is not None and each.trains for each in self.ranked):
            notes.append("The weights are unchanged: train again and measure again before you rely on a fix in layers.")
        if any(each.kinds == ("average",) and each.gain is not None for each in self.ranked):
            images = min(IMAGES_OF_AVERAGE, self.before.loss.count)
            notes.append(f"average: of {len(grid(REACH))} shifts, on {images} images; its gain is that of mean logits.")
        columns = (
            "fix",
            "gain",
            "share",
            "test_accuracy",
            "different_images",
            "relative_loss",
            "multiply_adds",
            "ratio",
            "promise",
            "command",
            "reason",
        )
        brief = tuple(name for name in NARROW if any(row.get(name) is not None for row in rows))
        return Table("Fixes, tried without training", columns, tuple(rows), tuple(notes), brief=brief)


def try_fixes(
    model: nn.Module,
    trial: Trial,
    geometry: Geometry | None,
    measured: Measured,
    *,
    tokens: TokenReading | None = None,
    arguments: str,
    classes: bool = True,
    savable: bool = True,
) -> Fixes:
    """Try every fix that applies to a model, and rank them.

    Args:
        model: in evaluation mode; it is not changed.
        trial: the images and their shifts.
        geometry: of the model's graph; None where it cannot be read: fixes that need no graph are tried.
        measured: the unchanged model in this trial.
        tokens: how its tokens lie on the image; None for a model without token maps.
        arguments: of the command line that name the model and the images.
        classes: whether outputs are classes, which can be averaged.
        savable: whether the command line can save a copy of the model.
    """
    before = measured.estimates()
    multiply_adds = cost(model, trial.image).multiply_adds
    anchored: list[tuple[FixKind, ...]] = [("anchor",)] if tokens else []
    found_by_running: list[tuple[FixKind, ...]] = [] if geometry or tokens else [("blur",), ("circular",)]
    candidates = [*anchored, *(_candidates(geometry, tokens) if geometry else found_by_running)]
    tried = [_try(kinds, model, trial, measured, multiply_adds, arguments, tokens) for kinds in candidates]
    if before.loss.value >= ROUNDING:
        around: list[Wrapper] = ["canonical", "average"] if classes else ["canonical"]
        tried += [_try_around(kind, model, trial, measured, arguments, savable=savable) for kind in around]
    ranked = sorted(tried, key=lambda each: (not each.works, each.gain is None, each.collapsed, -round(each.efficiency, DIGITS)))
    return Fixes(tuple(ranked), before, multiply_adds, "" if ranked else "No fix of this package applies to the model.")


def _candidates(geometry: Geometry, tokens: TokenReading | None) -> Iterator[tuple[FixKind, ...]]:
    """Yield the fixes that have something to change, alone and after a head that averages.

    Token models are anchored instead of sampled or filtered: at stride 1 a patch embedding costs many times as much.
    """
    strided = any(not each.polyphase for each in geometry.subsamplings)
    leaking = (not geometry.borders and not tokens) or any(border != "circular" for border in geometry.borders.values())
    applies: dict[FixKind, bool] = {"blur": strided and not tokens, "circular": leaking, "aps": strided and not tokens}
    singles = [kind for kind, useful in applies.items() if useful]
    yield from ((kind,) for kind in singles)
    if geometry.head == "flatten":
        yield ("gap",)
        yield from (("gap", kind) for kind in singles)


def _try(
    kinds: tuple[FixKind, ...],
    model: nn.Module,
    trial: Trial,
    measured: Measured,
    before: int,
    arguments: str,
    tokens: TokenReading | None,
) -> TriedFix:
    """Apply a fix to a copy and measure it; ``before`` is the unchanged model's number of multiply-adds."""
    command = f"shiftscope fix {arguments} {' '.join(f'--with {kind}' for kind in kinds)} --out fixed.safetensors"
    try:
        surgery = _apply(kinds, model, trial.image, tokens)
        after = trial.measure(surgery.model, f"with {' + '.join(kinds)}")
    except InputError as error:
        return TriedFix(kinds, command, reason=error.problem.rstrip("."))
    return _gained(TriedFix(kinds, command), measured, after, surgery.after.multiply_adds if surgery.after else 0, before)


def _gained(tried: TriedFix, measured: Measured, after: Measured, multiply_adds: int, before: int) -> TriedFix:
    """Return a fix with what it gains and costs; ``before`` is the unchanged model's number of multiply-adds."""
    gain, loss = measured.loss - after.loss, after.estimates()
    apart_before, apart = (1 - each.between_images.value for each in (measured.estimates(), loss))
    return replace(
        tried,
        gain=difference(gain, bounds=(-2.0, 2.0), same=telling(measured.loss)),
        share=share(gain, measured.loss),
        after=loss,
        collapsed=apart < COLLAPSED * apart_before,
        multiply_adds=multiply_adds,
        ratio=multiply_adds / before if before else 1.0,
    )


def _try_around(kind: Wrapper, model: nn.Module, trial: Trial, measured: Measured, arguments: str, *, savable: bool) -> TriedFix:
    """Put a wrapper around the model and measure it; ``average`` on fewer images."""
    mode = " --mode circular" if trial.mode == "circular" else ""
    command = f"shiftscope fix {arguments} --with {kind}{mode}{' --out fixed.safetensors' if savable else ''}"
    wrapping = Wrapping(border_of(trial, kind), REACH if kind == "average" else None, _fill(trial))
    count = IMAGES_OF_AVERAGE if kind == "average" else len(trial.images)
    try:
        surgery = operate(kind, model, wrapping=wrapping, image=trial.image)
        if isinstance(surgery.model, Average):
            surgery.model.of = "logits"
        after = trial.first(count).measure(surgery.model, f"with {kind}")
    except InputError as error:
        return TriedFix((kind,), command, reason=error.problem.rstrip("."))
    assert surgery.before is not None  # the image's shape is known
    assert surgery.after is not None
    held = kind == "canonical" and (surgery.promise is None or surgery.promise.exact)
    promise = surgery.changes[0].why if held else ""
    tried = TriedFix((kind,), command, promise=promise)
    return _gained(tried, measured.first(count), after, surgery.after.multiply_adds, surgery.before.multiply_adds)


def border_of(trial: Trial | TaskTrial, kind: FixKind) -> Border:
    """Return what a wrapper takes for the border: of crops from larger images the photo, which an average does not see."""
    if trial.mode == "circular":
        return "circular"
    larger = trial.size is not None and tuple(trial.images.shape[2:]) != trial.size
    return "crop" if larger and kind == "canonical" else "zero"


def _fill(trial: Trial) -> float | tuple[float, ...]:
    return tuple(trial.fill.tolist()) if isinstance(trial.fill, Tensor) else trial.fill


def _apply(kinds: tuple[FixKind, ...], model: nn.Module, image: tuple[int, int, int], tokens: TokenReading | None) -> Surgery:
    """Return a copy with several operations, one after the other.

    Raises:
        InputError: an operation is impossible or finds nothing to change.
    """
    surgery = Surgery(model, ())
    for kind in kinds:
        if kinds == ("anchor",):
            surgery = anchor(model, image=image, reading=tokens)
        else:
            surgery = operate(kind, surgery.model, filter_size=FILTER_SIZE if kind == "blur" else 1, image=image)
        if not surgery.changed:
            why = surgery.changes[-1].why if surgery.changes else "no layer"
            raise InputError(f"{DESCRIPTIONS[kind]}: nothing to change ({why}).")
    return surgery


def _cells(loss: Loss | None) -> dict[str, Cell]:
    if loss is None:
        return {}
    return {"test_accuracy": loss.accuracy, "different_images": loss.between_images, "relative_loss": loss.relative}
