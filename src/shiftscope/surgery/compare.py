"""Models on a data set's test images: explained, and before and after a fix under every shift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from shiftscope.datasets.dataset import Dataset, DataSpec, load
from shiftscope.engine.outputs import stream_outputs, track
from shiftscope.errors import InputError
from shiftscope.estimates import proportion
from shiftscope.explanations import Explanation, explain
from shiftscope.models import Fix, LoadedModel
from shiftscope.shifts import Mode, grid
from shiftscope.surgery import Change, Surgery, cost
from shiftscope.surveys import survey
from shiftscope.tables import Table

__all__ = ["Progress", "compared", "explained", "fixed", "test_images"]

#: Called with how many of how many images were measured, and on which model.
Progress = Callable[[str, int, int], None]
BLOCK = 64
MEASURED = ("mcs", "pair_consistency", "all_agree", "worst_case")


def fixed(loaded: LoadedModel, fixes: tuple[Fix, ...], *, image: tuple[int, int, int]) -> Surgery:
    """A model with fixes in it, one after the other, and one account of all.

    Raises:
        InputError: the model does not take such images, or what :mod:`shiftscope.surgery` says.
    """
    try:
        before = cost(loaded.model, image)
    except Exception as error:  # whatever the model raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"the model does not take images of {image} ({reason}). Choose other --data or another --canvas."
        ) from error
    model, changes = loaded.model, list[Change]()
    for fix in fixes:
        surgery = fix.apply(model, image=image)
        model = surgery.model
        changes += surgery.changes
    return Surgery(model, tuple(changes), before, cost(model, image))


def test_images(
    loaded: LoadedModel, *, name: str | None, canvas: int | None, data_dir: Path | None, progress: Progress = lambda *_: None
) -> Dataset:
    """What a model is measured on: the data named, else what a study trained it on, else the digits.

    Args:
        loaded: the model.
        name: of a data set or image folder.
        canvas: height and width; the model's input, where that is known, by default.
        data_dir: a local folder that holds the data set.
        progress: told how it goes.

    Raises:
        InputError: no such data, images larger than the canvas, or with another number of channels than the model takes.
    """
    known = loaded.spec.data or DataSpec(image_size=20, validation_images=1)
    if canvas is not None and canvas < 1:
        raise InputError(f"`canvas` must be 1 or more pixels, got {canvas}.")
    size = canvas if canvas is not None else loaded.image[1] if loaded.image else known.canvas
    if name is None or name == known.name:
        spec = known.model_copy(update={"canvas": size})
    else:
        spec = DataSpec(name=name, canvas=size, validation_images=1)
    data = load(spec, data_dir=data_dir, progress=progress)
    channels = data.test.images.shape[1]
    if loaded.image and loaded.image[0] != channels:
        raise InputError(
            f"the model takes images of {loaded.image[0]} channels, but those of {spec.name} have {channels}. "
            "Choose others with --data."
        )
    return data


def explained(
    loaded: LoadedModel,
    data: Dataset,
    *,
    name: str,
    images: int,
    max_shift: int | None,
    mode: Mode = "zero",
    progress: Progress = lambda *_: None,
) -> Explanation:
    """Where a model's invariance is lost, on test images.

    Args:
        loaded: the model.
        data: its test images are measured on.
        name: of the model, as :func:`shiftscope.models.load_model` takes it.
        images: how many of them.
        max_shift: the largest shift, pixels; None for 8 or, where that is less, what the canvas leaves around the image. Where it
            leaves nothing, an eighth of the image.
        mode: what comes in at the border.
        progress: told how it goes.

    Raises:
        InputError: what :func:`shiftscope.explanations.explain` says.
    """
    if images < 2:
        raise InputError(f"`images` must be 2 or more, of which intervals can be made, got {images}.")
    margin = data.canvas.margin(data.test.images.shape[2:])
    reach = min(8, margin) if max_shift is None and margin > 0 else max_shift
    explanation = explain(
        loaded.model,
        data.canvas.place(data.test.images[:images]),
        data.test.labels[:images],
        max_shift=reach,
        mode=mode,
        fill=data.canvas.colour,
        name=name,
        progress=progress,
    )
    return replace(explanation, settings={**explanation.settings, "data": data.origin, "data_sha256": data.checksum})


def compared(
    before: nn.Module,
    surgery: Surgery,
    data: Dataset,
    *,
    images: int,
    max_shift: int | None,
    progress: Progress = lambda *_: None,
) -> Table:
    """The model before and after: measures with intervals, under zero-filled and circular shifts, and the cost.

    Args:
        before: the model as it was.
        surgery: what was done to it.
        data: its test images are measured on.
        images: how many of them.
        max_shift: every shift up to it, in pixels; None for 8 or, where that is less, what the canvas leaves around the image, or
            an eighth of it, where it leaves nothing.
        progress: told how it goes.

    Raises:
        InputError: the model does not take such images; shifts that would push content off the canvas.
    """
    # Where the canvas leaves nothing around the image, any shift cuts some of it off.
    margin = data.canvas.margin(data.test.images.shape[2:]) or max(1, data.canvas.size // 8)
    if images < 1:
        raise InputError(f"`images` must be 1 or more, got {images}.")
    if max_shift is None:
        max_shift = min(8, margin)
    if not 0 <= max_shift <= margin:
        raise InputError(f"`max_shift` must be 0 to {margin}, the margin of the canvas around the image, got {max_shift}.")
    canvases = data.canvas.place(data.test.images[:images])
    labels = data.test.labels[:images]
    rows = []
    costs = (surgery.before, surgery.after)
    modes: tuple[Mode, ...] = ("zero", "circular")
    shifts = grid(max_shift)
    for (name, model), price in zip((("before", before), ("after", surgery.model)), costs, strict=True):
        for mode in modes:
            blocks = stream_outputs(model, canvases.split(BLOCK), shifts, mode=mode, fill=data.canvas.colour)
            found = survey(track(blocks, partial(_tell, progress, f"{name}, {mode}", len(canvases))), labels=labels)
            rows.append(
                {
                    "model": name,
                    "shifts": mode,
                    "test_accuracy": None if found.right is None else proportion(found.right),
                    **{measure: found.estimate(measure) for measure in MEASURED},
                    "multiply_adds": price.multiply_adds if price else None,
                    "parameters": price.parameters if price else None,
                }
            )
    notes = (
        f"In brackets: 95 % intervals over {len(canvases)} test images, each under all {(2 * max_shift + 1) ** 2} shifts up "
        f"to {max_shift} pixels. pair_consistency: two shifts of an image agree on its class; all_agree: all do; worst_case: "
        "right at every one.",
        "Weights are as they were: a network trained without the fix usually loses accuracy by it until it is trained again.",
    )
    columns = ("model", "shifts", "test_accuracy", *MEASURED, "multiply_adds", "parameters")
    return Table("Before and after", columns, tuple(rows), notes, {"data": data.origin, "data_sha256": data.checksum})


def _tell(progress: Progress, what: str, images: int, done: int) -> None:
    progress(f"measuring {what} shifts", done, images)
