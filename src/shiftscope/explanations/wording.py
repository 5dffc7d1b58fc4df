"""What an explanation found, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from shiftscope.estimates import Estimate, mean
from shiftscope.explanations.trial import ROUNDING, Cause, Loss
from shiftscope.tables import percent, plus_minus

if TYPE_CHECKING:
    from shiftscope.explanations.ranking import Fixes

__all__ = [
    "PHRASES",
    "causes_verdict",
    "fix_sentence",
    "head_phrase",
    "has_largest_part",
    "no_largest_part",
    "number",
    "shares_add_up",
    "short_verdict",
    "which_is_larger",
]

#: The verdict warns where 1 - cosine between different images has shrunk to less than this share.
MORE_ALIKE = 0.5
#: A share outside [-ROUNDED, 1 + ROUNDED] cannot be a share: one step raises the loss that another one lowers.
ROUNDED = 0.005
#: Parts of the loss, as shares or in the loss's own unit, that are named although they are not the main one.
NAMED_SHARE = 0.05

GUARANTEES = {
    "guaranteed": "The model's graph guarantees the same outputs after every circular shift by whole pixels.",
    "possible": "The model's graph neither guarantees nor excludes invariance.",
    "impossible": "With this head invariance is impossible, whatever the weights.",
    "unknown": "The model's graph cannot be read.",
}
PHRASES = {
    "head": "the head, which has a weight for every position",
    "borders": "borders, where content enters and leaves the image and the maps",
    "windows": "windows: after a shift other tokens are in a window together",
    "position embedding": "the position embedding, which stays where the image moves",
    "relative positions": "relative positions, which end at the border: a shift across it parts neighbours",
    "token mixing": "token mixing, which has a weight for every position",
    "patch grid": "the patch grid: after a shift patches hold other pixels",
    "aliasing": "aliasing, because after a shift every subsampling keeps other samples",
    "other": "what none of these steps removes",
}


class _Part(Protocol):
    """A cause of classes or of a task."""

    @property
    def name(self) -> str: ...

    @property
    def part(self) -> Estimate | None: ...

    @property
    def by_image(self) -> Tensor | None: ...


def head_phrase(begins_with: tuple[str, tuple[int, int]] | None) -> str:
    """Return what to call a head that begins with a convolution; empty for any other.

    Args:
        begins_with: name of the convolution, and (height, width) of the map that it turns into one position.
    """
    if begins_with is None:
        return ""
    name, (height, width) = begins_with
    return (
        f"the head, which on images of this size begins with `{name}`: it turns a map of {height}x{width} positions into "
        "one, with a weight for each"
    )


def shares_add_up(causes: Sequence[Cause]) -> bool:
    """Return whether every cause's share of the loss lies between 0 and 1."""
    shares = [each.share.value for each in causes if each.share is not None and not each.part_of]
    return all(-ROUNDED <= share <= 1 + ROUNDED for share in shares)


def causes_verdict(before: Loss, causes: Sequence[Cause]) -> tuple[str, str]:
    """Return the main cause, empty where there is no loss, and a verdict in a few sentences.

    Args:
        before: what shifts cost the unchanged model.
        causes: in the order of their steps.
    """
    if before.loss.value < ROUNDING:
        return "", "There is no loss: the outputs are the same under these shifts."
    known = [each for each in causes if each.part is not None and not each.part_of]
    ranked = sorted(known, key=lambda each: -each.part.value if each.part else 0.0)
    sentences = [f"Shifts lower the mean cosine of the outputs by {number(before.loss)}."]
    main = ranked[0]
    decided = _has_main_part(main, causes)
    larger = which_is_larger(main, ranked[1:])
    if all(each.name == "other" for each in known):  # the rest after steps that were all left out
        sentences.append("What causes that could not be measured.")
    else:
        sentences += (_shares(ranked) if shares_add_up(causes) else _parts(ranked)) if decided else [_no_main_part(main)]
        sentences += [larger] if decided and larger else []
    if decided and main.after is not None and _alike(before, main.after):
        sentences.insert(2, _warning(before, main.after))
    unknown = [each for each in causes if each.part is None and not each.part_of]
    for reason in dict.fromkeys(each.reason for each in unknown):
        names = ", ".join(each.name for each in unknown if each.reason == reason)
        sentences.append(f"The part of {names} is unknown: {reason}.")
    return main.name, " ".join(sentences)


def short_verdict(
    similarity: Estimate, max_shift: str, before: Loss, causes: Sequence[Cause], fixes: Fixes, *, main: str, status: str
) -> str:
    """Return the main result in a few plain sentences.

    Args:
        similarity: mean cosine between the outputs before and after a shift.
        max_shift: the largest shift, "8 pixels".
        before: what shifts cost the unchanged model.
        causes: in the order of their steps.
        fixes: what each fix would gain.
        main: the main cause; empty without a loss.
        status: of the guarantee.
    """
    sentences = [f"After shifts of up to {max_shift} the outputs keep a mean cosine similarity of {plus_minus(similarity)}."]
    found = next((each for each in causes if each.name == main and main != "other"), None)
    if found is not None and not _has_main_part(found, causes):
        sentences.append(_no_main_part(found))
    elif found is not None and found.share is not None:
        sentences += _shares([found], "the loss") if shares_add_up(causes) else _parts([found])
        sentences.append(which_is_larger(found, [each for each in causes if each is not found and not each.part_of]))
        if found.after is not None and _alike(before, found.after):
            sentences.append(f"But without it outputs discriminate less: {_between(before, found.after)}.")
    sentences += [GUARANTEES[status], fix_sentence(fixes) if main else ""]
    return " ".join(filter(None, sentences))


def has_largest_part(largest: Estimate, others: Iterable[Estimate | None]) -> bool:
    """Return whether there is a largest part at all: its interval lies above 0, or every other part is 0 itself."""
    return largest.low > 0 or all(each is None or max(-each.low, each.high) < ROUNDING for each in others)


def which_is_larger(largest: _Part, others: Sequence[_Part]) -> str:
    """Return a sentence that names another part which may be as large as the largest, image by image; empty if none may be."""
    for each in sorted(others, key=lambda part: -part.part.value if part.part else 0.0):
        if largest.by_image is None or each.by_image is None or each.part is None or each.part.value <= 0:
            continue
        ahead = mean(largest.by_image - each.by_image, bounds=(-torch.inf, torch.inf))
        if ahead.low <= 0:
            names = " or ".join("what no step removes" if part.name == "other" else part.name for part in (largest, each))
            return f"{_few(ahead.count)} cannot tell whether {names} is the larger part."
    return ""


def _has_main_part(main: Cause, causes: Sequence[Cause]) -> bool:
    others = [each.part for each in causes if each is not main and not each.part_of]
    return main.part is not None and has_largest_part(main.part, others)


def _no_main_part(main: Cause) -> str:
    return no_largest_part(main.name, number(main.part), main.part.count) if main.part is not None else ""


def no_largest_part(name: str, part: str, images: int) -> str:
    """Return a sentence on a largest part whose interval includes 0.

    Args:
        name: of the cause.
        part: the part with its interval, in words.
        images: number of images that it was measured on.
    """
    called = "what no step removes" if name == "other" else name
    return f"{_few(images)} cannot tell the main cause: the largest part, {called}, is {part}, which includes 0."


def _few(images: int) -> str:
    return f"{images} images" if images > 1 else "One image"


def _shares(ranked: Sequence[Cause], whole: str = "that") -> list[str]:
    """Return sentences on the causes' shares of the whole."""
    phrase = _phrase(ranked[0])
    sentences = [f"{percent(ranked[0].share)} of {whole} is due to {phrase}."] if ranked[0].share else []
    rest = [f"{each.name} {percent(each.share)}" for each in ranked[1:] if each.share and each.share.value >= NAMED_SHARE]
    return [*sentences, f"The rest: {', '.join(rest)}."] if rest else sentences


def _parts(ranked: Sequence[Cause]) -> list[str]:
    """Return sentences on the causes' parts in the loss's own unit, because some steps raise what others lower."""
    main = ranked[0]
    sentences = [f"The largest part is due to {_phrase(main)}; without it the loss is {_part(main)} lower."]
    for each in ranked[1:]:
        if each.part is not None and each.share is not None and abs(each.share.value) >= NAMED_SHARE:
            less = each.part.value > 0
            sentences.append(f"The step that removes {each.name} {'lowers' if less else 'raises'} it by {_part(each)}.")
    return sentences


def _phrase(cause: Cause) -> str:
    return cause.phrase or PHRASES.get(cause.name, cause.name)


def _part(cause: Cause) -> str:
    """Return by how much a step lowers the loss or, of one that raises it, by how much it raises it."""
    found = cause.part
    assert found is not None  # of a cause whose part is known
    if found.value >= 0:
        return number(found)
    return number(Estimate(-found.value, -found.high, -found.low, found.count))


def _alike(before: Loss, after: Loss) -> bool:
    """Return whether outputs of different images are much more alike after a step."""
    return 1 - after.between_images.value < MORE_ALIKE * (1 - before.between_images.value)


def _between(before: Loss, after: Loss) -> str:
    values = before.between_images.value, after.between_images.value
    low, high = next((pair for pair in (_rounded(values, digits) for digits in (2, 3, 4)) if len({*pair}) == 2), ("below 1", "1"))
    return f"the mean cosine between those of different images rises from {low} to {high}"


def _rounded(values: tuple[float, float], digits: int) -> tuple[str, str]:
    return f"{values[0]:.{digits}f}", f"{values[1]:.{digits}f}"


def _warning(before: Loss, after: Loss) -> str:
    """Return a sentence on outputs that discriminate less after the main cause is removed."""
    text = f"Part of that is because outputs discriminate less without it: {_between(before, after)}"
    if before.relative is not None and after.relative is not None:
        text += f", and the loss relative to their difference goes from {before.relative.value:.2f} to {after.relative.value:.2f}"
    return f"{text}."


def fix_sentence(fixes: Fixes) -> str:
    """Return which fix to try first, and what it does; empty where none works."""
    first = next(iter(fixes.ranked), None)
    if first is None or not first.works or first.share is None or first.after is None:
        return ""
    when = "before any training" if first.trains else "without any training"
    sentence = (
        f"Try first: {' + '.join(first.kinds)}, which removes {first.share.value:.0%} of the loss {when}, at "
        f"{first.ratio:.2f} times the multiply-adds"
    ).replace("%", " %")
    if first.collapsed:
        sentence += ", because it gives all images nearly the same outputs"
    before, after = fixes.before.accuracy, first.after.accuracy
    if before is not None and after is not None and after.value < before.value:
        falls = f"from {100 * before.value:.0f} % to {100 * after.value:.0f} %"
        sentence += (
            f"; train again, because without training accuracy falls {falls}" if first.trains else f"; accuracy falls {falls}"
        )
    promise = first.promise.partition(";")[0]  # the table has all of it
    return f"{sentence}. It promises {promise}." if promise else f"{sentence}."


def number(estimate: Estimate) -> str:
    """Return an estimate with three decimals, or with two significant digits where it is small."""
    if abs(estimate.value) >= 0.01:
        return str(estimate)
    return f"{estimate.value:.2g} [{estimate.low:.2g}, {estimate.high:.2g}]"
