"""Apply several fixes to a model, and compare its outputs under every shift before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor, nn

from shiftscope.engine.outputs import stream_outputs, track
from shiftscope.errors import ModelFailsError, first_line
from shiftscope.measures import MEASURES
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.shifts import Mode, grid
from shiftscope.surgery import Change, Kind, Surgery, cost, operate
from shiftscope.surveys import survey
from shiftscope.tables import Table

__all__ = ["compare", "fix"]

#: Images measured between two progress reports.
BLOCK = 64
COMPARED = ("mcs", "pair_consistency", "all_agree", "worst_case")
MODES: tuple[Mode, ...] = ("zero", "circular")


def fix(model: nn.Module, fixes: Sequence[tuple[Kind, int]], *, image: tuple[int, int, int]) -> Surgery:
    """Return a copy of a model with several fixes in it, one after the other, and all changes.

    Args:
        model: a model that ``torch.fx`` can trace; it is not changed.
        fixes: kind and filter size of each, see :func:`shiftscope.surgery.operate`.
        image: (channels, height, width), to count costs and to check that the model runs before and after.

    Raises:
        ModelFailsError: the model does not run on such an image.
        InputError: what :func:`shiftscope.surgery.operate` says.
    """
    try:
        before = cost(model, image)
    except Exception as error:  # whatever the model raises
        raise ModelFailsError(
            f"The model does not take images of {image} ({first_line(error).rstrip('.')}).",
            "Choose other --data or another --canvas.",
        ) from error
    changes = list[Change]()
    for kind, filter_size in fixes:
        surgery = operate(kind, model, filter_size=filter_size, image=image)
        model, changes = surgery.model, [*changes, *surgery.changes]
    return Surgery(model, tuple(changes), before, cost(model, image))


def compare(
    before: nn.Module,
    surgery: Surgery,
    images: Float[Tensor, "image channel height width"],
    labels: Int[Tensor, " image"],
    *,
    max_shift: int,
    fill: Float[Tensor, " channel"] | float = 0.0,
    provenance: Mapping[str, str] | None = None,
    report: Report = silent,
) -> Table:
    """Measure a model before and after a fix, under zero-filled and circular shifts.

    Args:
        before: the model without the fix.
        surgery: the fixed model and its costs.
        images: unshifted images in [0, 1], canvas included.
        labels: class of each image.
        max_shift: measure every shift up to this many pixels along each axis.
        fill: colour that zero-filled shifts bring in, in [0, 1]: one value or one a channel.
        provenance: where the images come from, name to value, for the table.
        report: called with progress events.

    Returns:
        a row for each model and kind of shift: measures with 95 % intervals, and the costs.

    Raises:
        InputError: the model does not take such images, or ``max_shift`` does not fit them.
    """
    shifts = grid(max_shift)
    models = {"before": (before, surgery.before), "after": (surgery.model, surgery.after)}
    rows = []
    for name, (model, price) in models.items():
        for mode in MODES:
            outputs = stream_outputs(model, images.split(BLOCK), shifts, mode=mode, fill=fill)
            stage = partial(_report_stage, report, f"measuring {name}, {mode} shifts", len(images))
            found = survey(track(outputs, stage), labels=labels)
            rows.append(
                {
                    "model": name,
                    "shifts": mode,
                    "test_accuracy": None if found.right is None else MEASURES["test_accuracy"].estimate(found.right),
                    **{measure: found.estimate(measure) for measure in COMPARED},
                    "multiply_adds": price.multiply_adds if price else None,
                    "parameters": price.parameters if price else None,
                }
            )
    notes = (
        f"In brackets: 95 % intervals over {len(images)} test images, each under all {len(shifts)} shifts up to {max_shift} "
        "pixels.",
        *(f"{MEASURES[measure].label.capitalize()}: {MEASURES[measure].sentence}" for measure in COMPARED),
        "A network trained without the fix usually loses accuracy by it until it is trained again.",
    )
    columns = ("model", "shifts", "test_accuracy", *COMPARED, "multiply_adds", "parameters")
    return Table("Before and after", columns, tuple(rows), notes, provenance or {})


def _report_stage(report: Report, sentence: str, images: int, done: int) -> None:
    report(Stage(sentence, done, images))
