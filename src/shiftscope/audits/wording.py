"""The rows of an audit, and what it found in plain sentences: the verdict, the images that change most, the cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shiftscope.audits.parts import Changed, Cost
from shiftscope.estimates import Estimate
from shiftscope.measures import MEASURES
from shiftscope.tables import percent, plus_minus
from shiftscope.tasks import Task, known_task

__all__ = ["Row", "changed_images", "cost_sentence", "map_words", "shifts_of", "verdict"]

#: The measures of which the first one that an audit has is the verdict.
LEADING = ("top1_change", "all_agree", "worst_case", "neighbour_change", "mASSC", "mcs")
#: So many of the images that change most are named in a note.
CHANGED = 5


@dataclass(frozen=True)
class Row:
    """One measure of one protocol.

    Attributes:
        protocol: its name; ``unshifted`` for the accuracy on unshifted images.
        measure: its name in :data:`shiftscope.measures.MEASURES`; for a ring of shifts with ``, radius r``.
        border: what fills the border.
        max_shift: the largest shift along an axis, pixels.
        views: shifted views per image.
        estimate: over all images.
        given_right: over the images that are classified correctly unshifted; None without labels or without such images.
    """

    protocol: str
    measure: str
    border: str
    max_shift: int | float
    views: int
    estimate: Estimate
    given_right: Estimate | None


def verdict(rows: Sequence[Row], task: str = "") -> str:
    """Return the main result in a plain sentence, and the accuracy in another one if there are labels.

    Args:
        rows: of the audit.
        task: the task that the outputs were read as, with its settings; empty without one.
    """
    if task:
        return _of_task(rows, known_task(task))
    first = {row.measure: row for row in reversed(rows) if row.protocol != "unshifted"}
    leading = next((first[name] for name in LEADING if name in first), next(iter(reversed(first.values())), None))
    sentences = [_leading(leading)] if leading else []
    accuracy = next((row for row in rows if row.protocol == "unshifted"), None)
    if accuracy:
        sentences.append(f"Without a shift, {percent(accuracy.estimate)} of images are classified correctly.")
    return " ".join(sentences)


def _of_task(rows: Sequence[Row], task: Task | None) -> str:
    """Return the leading measure of a task in a sentence, and in another one what there is without a shift."""
    shifted = [row for row in rows if row.protocol != "unshifted"]
    leading = next((row for row in shifted if task is not None and row.measure == task.measures[0]), next(iter(shifted), None))
    if leading is None:
        return "Nothing could be measured: no measure is defined for any image."
    sentence = ""
    if task is not None and leading.measure == task.measures[0]:
        sentence = task.words(percent(leading.estimate), plus_minus(leading.estimate), _moved(leading))
    if task is not None and leading.measure == "flicker":
        where = "frame of the pan" if leading.protocol == "pan" else "position of a path"
        lead = MEASURES[task.measures[0]]
        what = f"1 less the {lead.label}" if lead.better == "more" else lead.label
        sentence = f"From one {where} to the next, answers change by {plus_minus(leading.estimate)} ({what}, moved back)."
    truth = next((row for row in rows if row.protocol == "unshifted"), None)
    known = f" Without a shift: {MEASURES[truth.measure].label} {plus_minus(truth.estimate)}." if truth else ""
    return (sentence or _leading(leading)) + known


def _moved(row: Row) -> str:
    return f"by {_reach(row)}"


def _reach(row: Row) -> str:
    reach = f"up to {row.max_shift:g} {'pixel' if row.max_shift == 1 else 'pixels'}"
    return reach + {"circular": ", circularly", "crop": " in the frame"}.get(row.border, "")


def _leading(row: Row) -> str:
    """Return a sentence on a row; a generic one for a measure without words of its own."""
    moved = f"after a random shift of {_reach(row)}" if row.views == 1 else f"when they move {_moved(row)}"
    share = percent(row.estimate)
    match row.measure:
        case "top1_change" if row.views == 1:
            return f"The answer changes for {share} of images {moved}."
        case "top1_change":
            return f"The answer changes for {share} of pairs of an image and a shift of up to {row.max_shift:g} pixels."
        case "all_agree":
            return f"The answer is the same at {_count(row)} for {share} of images."
        case "worst_case":
            return f"The answer is correct at {_count(row)} for {share} of images."
        case "neighbour_change" if row.protocol == "pan":
            return f"The answer changes from one frame of the pan to the next in {share} of steps."
        case "neighbour_change":
            return f"The answer changes from one position of the path to the next in {share} of steps."
        case "mASSC":
            return f"The answer stays the same for {share} of pixels {moved}."
        case "mcs":
            return f"The outputs keep a mean cosine similarity of {plus_minus(row.estimate)} {moved}."
    measure = MEASURES[row.measure.partition(",")[0]]
    value = percent(row.estimate) if measure.bounds == (0.0, 1.0) else plus_minus(row.estimate)
    return f"{measure.label[:1].upper()}{measure.label[1:]}: {value}."


def _count(row: Row) -> str:
    """Return "both of two crops", "each of 289 shifts", and how far they reach."""
    noun, off = {"circular": ("circular shifts", ""), "crop": ("crops", " off the centre")}.get(row.border, ("shifts", ""))
    which = "both of two" if row.views == 2 else f"each of {row.views:,}"
    return f"{which} {noun} up to {row.max_shift:g} pixels{off}"


def shifts_of(row: Row) -> str:
    """Return how many views of which shift a row rests on: "2 crops, ≤16" pixels."""
    noun = {"crop": " crop" if row.views == 1 else " crops", "circular": " circular"}.get(row.border, "")
    return f"{row.views:,}{noun}, ≤{row.max_shift:g}"


def cost_sentence(cost: Cost) -> str:
    """Return how many views were measured, of how many images, and how fast."""
    saved = f" ({cost.asked:,} if each protocol ran alone)" if cost.asked > cost.distinct else ""
    checks = f", and on {cost.checks:,} more to check" if cost.checks else ""
    engine = f" All shifts of a grid ran at once for {cost.dense:,} images." if cost.dense else ""
    rate = cost.distinct / cost.seconds if cost.seconds else float("inf")
    return (
        f"{cost.distinct:,} views of {cost.images:,} images{saved}; the model ran on {cost.forward:,} of them{checks}.{engine} "
        f"{cost.seconds:.1f} s, {rate:,.{0 if rate >= 100 else 1}f} views per second."
    )


def changed_images(changed: Sequence[Changed]) -> str:
    """Return which images change most, and at which shift; empty without any."""
    if not changed:
        return ""
    what = MEASURES[changed[0].measure].label if changed[0].measure else "similarity"
    listed = ", ".join(
        f"{each.image} (shift ({each.shift[0]:g}, {each.shift[1]:g}) {each.border}: {each.similarity:.3f})"
        for each in changed[:CHANGED]
    )
    return f"Images that change most, by number, with shift (dy, dx) and {what}: {listed}."


def map_words(classes: int, height: int, width: int) -> str:
    """Return what maps that nothing names are taken for, in a note."""
    return (
        f"The output is taken as scores of {classes:,} classes at {height}x{width} positions. If it is something else, such as "
        "heatmaps or features, name its task or wrap the model."
    )
