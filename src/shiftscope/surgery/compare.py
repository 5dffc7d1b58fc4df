"""Apply several fixes to a model, and compare its outputs under shifts before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from shiftscope.display import Shown
from shiftscope.engine.answers import output_warnings, watched
from shiftscope.engine.batches import Images, Labels, gather, input_size
from shiftscope.engine.checks import check_classes, check_images, check_labels, check_model
from shiftscope.engine.dependence import model_warnings
from shiftscope.engine.direct import Canvas
from shiftscope.engine.framing import Border, Framed, Shifting
from shiftscope.engine.outputs import stream_outputs
from shiftscope.engine.passes import Pace
from shiftscope.engine.task_trials import returns_embeddings, task_for
from shiftscope.errors import InputError, ModelFailsError, first_line
from shiftscope.estimates import Estimate, changed, difference, mean, telling
from shiftscope.graphs.probing import check_initialised
from shiftscope.measures import MEASURES
from shiftscope.runtime.progress import Report, silent
from shiftscope.surgery import ON_BLACK, WRAPPERS, Average, Canonical, Change, FixKind, Surgery, Wrapping, cost, operate
from shiftscope.surgery.copying import Function
from shiftscope.surgery.plan import merge_changes
from shiftscope.surgery.sampled import SHIFTS, TRAIN_AGAIN, changes_layers, described, framings, shifts_for
from shiftscope.surgery.task_compare import compare_tasks, task_verdict
from shiftscope.surveys import Survey, survey
from shiftscope.tables import Cell, Summary, Table, percent, plus_minus
from shiftscope.tasks import Task, Truth

__all__ = ["Fixed", "apply_fixes", "compare", "fix", "summarise"]

#: Images measured between two progress reports.
BLOCK = 64
COMPARED = ("mcs", "pair_consistency", "all_agree", "worst_case")
#: How a note begins that says that answers are all the same after a fix; it comes before what shifts do to them.
SAME_AFTER = "After the fix: All ", "Before and after the fix: All "
DEFINITIONS = tuple(f"{MEASURES[measure].label.capitalize()}: {MEASURES[measure].sentence}" for measure in COMPARED)
#: The columns that a narrow terminal shows.
NARROW = ("model", "shifts", "test_accuracy", "mcs", "all_agree", "worst_case", "pair_consistency")


@dataclass(frozen=True, repr=False)
class Fixed(Shown):
    """A fixed copy of a model, and what it gained.

    Attributes:
        model: the copy.
        changes: what was done to each layer, and why.
        before_and_after: the model and the copy under shifts.
        verdict: the effect in a sentence or two.
    """

    json_file: ClassVar[str] = "fixed"
    table_files: ClassVar[tuple[str, ...]] = ("before_and_after", "changes")

    model: nn.Module
    changes: Table
    before_and_after: Table
    verdict: str = ""

    def words(self) -> str:
        """Return the effect of the fix in a sentence or two."""
        return self.verdict

    def tables(self) -> tuple[Table, ...]:
        """Return the comparison, and the changes."""
        return self.before_and_after, self.changes


def fix(
    model: nn.Module | Callable[[Tensor], Any],
    images: Images,
    labels: Labels | None = None,
    *,
    kinds: FixKind | Sequence[FixKind],
    filter_size: int = 3,
    size: int | tuple[int, int] | None = None,
    max_shift: int | None = None,
    mode: Border | None = None,
    fill: float | Sequence[float] = 0.0,
    reach: int | None = None,
    task: Task | str | None = None,
    truth: Truth | None = None,
    output: str | int | None = None,
    embedding: bool = False,
    seed: int = 0,
    report: Report = silent,
) -> Fixed:
    """Change a copy of a model so that shifts matter less, and measure whether it helped. The weights stay.

    Args:
        model: images [image, channel, height, width] in [0, 1] -> outputs [image, class], or what a task reads. A function has
            no layers, so only ``canonical`` and ``average`` change it.
        images: unshifted images; or a DataLoader, a list or another iterable of batches, each a tensor of images or a pair
            (images, labels).
        labels: class of each image, where the batches do not hold them.
        kinds: a fix, or several that are applied in order: ``blur``, ``aps``, ``lps``, ``gap``, ``circular``, ``anchor``,
            ``canonical`` or ``average``. The last two follow ``mode`` and ``fill``.
        filter_size: of ``blur``, 1 to 7 positions.
        size: (height, width) of the model's input, where images are larger; by default that of the images.
        max_shift: the largest shift along an axis, pixels; by default as in :func:`shiftscope.explain`.
        mode: what comes in at the border; by default both ``circular`` and, of larger images, ``crop``, else ``zero``.
        fill: the canvas's colour in mode ``zero``, one value or one per channel.
        reach: the largest shift that ``average`` averages over, pixels, 1 by default; or how far ``canonical``'s crop of a photo
            may lie from the middle, by default a fourteenth of the input.
        task: what the outputs are: a name of :data:`shiftscope.tasks.TASKS`, with settings as in ``segmentation:ignored=0``, or a
            task. By default detected from them: classes, maps of classes, or the task that recognises them.
        truth: ground truth of each image, as the task takes it.
        output: name or position of the output that the task reads, of a model with several.
        embedding: whether outputs are features, as with ``task="embedding"``.
        seed: draws the shifts of large inputs.
        report: called with progress events.

    Raises:
        InputError: a fix does not apply, none finds anything to change, or the model does not take such images.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 3)).eval()
    >>> found = fix(model, torch.rand(4, 1, 16, 16), kinds=["blur"], max_shift=1)
    >>> [(row["model"], row["shifts"]) for row in found.before_and_after.rows]
    [('before', 'zero'), ('before', 'circular'), ('after', 'zero'), ('after', 'circular')]
    """
    size = input_size(images, size)
    images, labels = gather(images, labels)
    check_model(model)
    check_images(images)
    model = model if isinstance(model, nn.Module) else Function(model).eval()
    under = Shifting(size, max_shift, mode, torch.tensor(fill).expand(images.shape[1]), seed)
    framed = under.frame(images)
    if task is None and (embedding or returns_embeddings(model, output)):
        task = "embedding"
    found = task_for(model, under.unshifted(images[:1]), task, output=output)
    named_fixes = [kinds] if isinstance(kinds, str) else kinds
    chosen = [(kind, filter_size if kind == "blur" else 1) for kind in named_fixes]
    background = float(fill) if isinstance(fill, int | float) else tuple(map(float, fill))
    named = None if output is None else str(output)
    wrapping = Wrapping(framed.border, reach, background, found, named)
    surgery = apply_fixes(model, chosen, wrapping=wrapping, image=(images.shape[1], *framed.size))
    surgery.check_changed(named_fixes, "the model")
    if found is None:
        check_labels(labels)
        if truth is not None:
            raise InputError("`truth` is ground truth for a task, but the output does not tell which.", "Name it with `task`.")
        table = compare(model, surgery, images, labels, under, report=report)
        verdict = _verdict(table)
    else:
        known = labels if truth is None and found.takes_labels else truth
        table = compare_tasks(model, surgery, found, images, under, truth=known, output=output, report=report)
        verdict = task_verdict(table, found)
    return Fixed(surgery.model, surgery.table(), table, verdict)


def apply_fixes(
    model: nn.Module,
    fixes: Sequence[tuple[FixKind, int]],
    *,
    wrapping: Wrapping = ON_BLACK,
    image: tuple[int, int, int],
) -> Surgery:
    """Return a copy of a model with several fixes in it, one after the other, and all changes.

    Args:
        model: a model that ``torch.fx`` can trace; it is not changed.
        fixes: kind and filter size of each, see :func:`shiftscope.surgery.operate`.
        wrapping: border, background and reach of ``canonical`` and ``average``.
        image: (channels, height, width), to count costs and to check that the model runs before and after.

    Raises:
        ModelFailsError: the model does not run on such an image.
        InputError: what :func:`shiftscope.surgery.operate` says.
    """
    check_initialised(model)
    if wrapping.task is not None and wrapping.task.moves and "gap" in [kind for kind, _ in fixes]:
        raise InputError(
            f"`gap` averages over positions, which task {wrapping.task.name!r} needs.", "Choose another fix, such as blur or aps."
        )
    try:
        before = cost(model, image)
    except Exception as error:  # whatever the model raises
        raise ModelFailsError(
            f"The model does not take images of {image} ({first_line(error).rstrip('.')}).",
            "Choose other --data or another --size.",
        ) from error
    changes, form, promise, after = list[Change](), "", None, None
    for kind, filter_size in fixes:
        surgery = operate(kind, model, filter_size=filter_size, wrapping=wrapping, image=image)
        model, changes, form, promise = surgery.model, [*changes, *surgery.changes], surgery.form, surgery.promise
        after = surgery.after if kind in WRAPPERS else None  # its parts may run in a way that is not counted
    return Surgery(model, merge_changes(changes), before, after or cost(model, image), form, promise)


def compare(
    before: nn.Module,
    surgery: Surgery,
    images: Tensor,
    labels: Int[Tensor, " image"] | None,
    under: Shifting,
    *,
    embedding: bool = False,
    provenance: Mapping[str, str] | None = None,
    report: Report = silent,
) -> Table:
    """Measure a model before and after a fix, under the same shifts.

    Inputs of up to 64 pixels are measured under every shift, larger ones under 8 random shifts that all images share.

    Args:
        before: the model without the fix.
        surgery: the fixed model and its costs.
        images: unshifted images in [0, 1], canvas included.
        labels: class of each image; None where they are unknown.
        under: how images are shifted; without a mode as by default and also circularly. Its seed draws the shifts of large
            inputs.
        embedding: whether outputs are not class scores; labels are then ignored.
        provenance: where the images come from, name to value, for the table.
        report: called with progress events.

    Returns:
        a row for each model and kind of shift: measures with 95 % intervals, and the costs.

    Raises:
        InputError: the model does not take such images, or the shifts do not fit them.
    """
    labels = None if embedding else labels
    framed = framings(images, under)
    shifts = shifts_for(framed[0], under.seed)
    found = dict[tuple[str, str], Survey]()
    rows, doubts = [], dict[str, list[str]]()
    warnings = [*model_warnings(before, under.unshifted(images), fill=under.fill)]
    for name, model, price in (("before", before, surgery.before), ("after", surgery.model, surgery.after)):
        answers = dict[str, Tensor]()
        for each in framed:
            stage = f"measuring {name}, {each.border} shifts"
            pace = Pace(report, stage, views=len(images) * len(shifts), done=(0, len(images)), total=len(images))
            blocks = each.images.split(BLOCK)
            outputs = stream_outputs(model, blocks, shifts, mode=each.mode, fill=under.fill, size=each.size, seen=pace.add)
            answers.clear()
            found[name, each.border] = survey(watched(outputs, answers), labels=labels)
            pace.end()
            rows.append(
                {
                    "model": name,
                    "shifts": each.border,
                    **_measured(found[name, each.border], embedding=embedding),
                    "multiply_adds": price.multiply_adds if price else None,
                    "parameters": price.parameters if price else None,
                }
            )
            check_classes(labels, len(answers["tops"]))
        for text in output_warnings(answers, classes=not embedding):
            doubts.setdefault(text, []).append(name)
    measured = described(len(shifts), framed[0].max_shift)
    notes = (
        *warnings,
        *(f"{' and '.join(names).capitalize()} the fix: {text}" for text, names in doubts.items()),
        f"Intervals: 95 %, over {len(images)} images, each under {measured}.",
        *(_paired(found["before", each.border], found["after", each.border], each.border, embedding) for each in framed),
        *(_other_crops(surgery.model, each, shifts, under.fill) for each in framed if _chooses_crops(surgery.model)),
        *DEFINITIONS,
        *((TRAIN_AGAIN,) if changes_layers(surgery) else ()),
    )
    columns = ("model", "shifts", "test_accuracy", *COMPARED, "multiply_adds", "parameters")
    return Table("Before and after", columns, tuple(rows), notes, {**(provenance or {}), SHIFTS: measured})


def summarise(surgery: Surgery, compared: Table | None, *, commands: tuple[str, ...] = ()) -> Summary:
    """Return what ``shiftscope fix`` prints: the effect in plain words, what changed, and the measures before and after.

    Args:
        surgery: the fixed model.
        compared: what :func:`compare` returned; None where nothing was measured.
        commands: to run next.
    """
    changes = surgery.narrow_table()
    if compared is None:
        return Summary("", (changes,), commands=commands)
    columns = tuple(name for name in NARROW if any(row.get(name) is not None for row in compared.rows))
    notes = tuple(note for note in compared.notes if note not in DEFINITIONS and not note.startswith(SAME_AFTER))
    short = replace(compared, title="Before and after, weights unchanged", columns=columns, notes=notes)
    return Summary(_verdict(compared), (changes, short), commands=commands)


def _verdict(compared: Table) -> str:
    """Return the effect of a fix, under the first kind of shifts, in a sentence or two."""
    before, after = (next(row for row in compared.rows if row["model"] == model) for model in ("before", "after"))
    under = f"under {compared.provenance[SHIFTS].removeprefix('the same ')} ({before['shifts']})"
    sentences = (
        *(note for note in compared.notes if note.startswith(SAME_AFTER)),
        _both(before, after, "all_agree", f"of images keep their answer {under}"),
        _both(before, after, "test_accuracy", "of unshifted images are classified correctly"),
    )
    return " ".join(filter(None, sentences))


def _both(before: Mapping[str, object], after: Mapping[str, object], measure: str, what: str) -> str:
    """Return a sentence on a share before and after the fix; empty where it was not measured."""
    first, second = before.get(measure), after.get(measure)
    if not isinstance(first, Estimate) or not isinstance(second, Estimate):
        return ""
    return f"{percent(first)} {what}; with the fix, without training, {percent(second)}."


def _paired(before: Survey, after: Survey, border: str, embedding: bool) -> str:
    """Return what each image gains and loses by the fix, in a sentence: differences are paired, so their intervals are narrow."""
    gains = {MEASURES["mcs"].label: (after.values["mcs", "all"] - before.values["mcs", "all"], 2.0)}
    if not embedding:
        kept = after.values["all_agree", "all"] - before.values["all_agree", "all"]
        gains["share of images that keep their answer"] = (kept, 1.0)
    if after.right is not None and before.right is not None:
        gains["accuracy"] = (after.right.float() - before.right.float(), 1.0)
    same = not any(changed(gain) for gain, _ in gains.values()) and telling(before.values["mcs", "all"])
    found = {name: difference(gain, bounds=(-most, most), same=same) for name, (gain, most) in gains.items()}
    return f"Gained image by image ({border} shifts): {', '.join(f'{name} {plus_minus(gain)}' for name, gain in found.items())}."


def _chooses_crops(model: nn.Module) -> bool:
    """Return whether a model sees crops of photos that it chooses itself, and nothing around it moves the photos first."""
    around = [part for part in model.modules() if isinstance(part, Average | Canonical)]
    return bool(around) and isinstance(around[0], Canonical) and around[0].border == "crop"


def _other_crops(model: nn.Module, framed: Framed, shifts: Tensor, fill: Tensor | float) -> str:
    """Return at what share of shifts another crop of the photo is chosen, in a sentence."""
    canonical = next(part for part in model.modules() if isinstance(part, Canonical))
    canvas = Canvas(framed.mode, fill, framed.size)
    kept = torch.zeros(len(framed.images))
    for shift in shifts:
        by = shift.expand(len(kept), 2)
        kept += canonical.keeps_crop(canvas.centre(framed.images), canvas.move(framed.images, by), by)
    share = mean(1 - kept / len(shifts), bounds=(0.0, 1.0))
    return (
        f"At {percent(share)} of shifts ({framed.border}) the best crop leaves the frame, so that the model sees another; at the "
        "others it sees the same bits. A larger `reach` makes exceptions rarer, and crops smaller."
    )


def _measured(found: Survey, *, embedding: bool) -> dict[str, Cell]:
    """Return accuracy and measures, without those that need labels or classes where there are none."""
    names = [name for name in COMPARED if (name, "all") in found.values and (name == "mcs" or not embedding)]
    accuracy = None if found.right is None else MEASURES["test_accuracy"].estimate(found.right)
    return {"test_accuracy": accuracy, **{name: found.estimate(name) for name in names}}
