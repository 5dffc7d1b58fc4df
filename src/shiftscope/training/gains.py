"""Measure the gains of a fix and of a training separately, on the same images and shifts, with paired intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shiftscope.engine.checks import check_classes
from shiftscope.engine.framing import Border, frame
from shiftscope.engine.outputs import Outputs, stream_outputs, track
from shiftscope.estimates import Estimate, changed, mean_over_seeds, telling
from shiftscope.measures import MEASURES
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.surgery.compare import BLOCK, COMPARED
from shiftscope.surgery.sampled import shifts_for
from shiftscope.surveys import survey
from shiftscope.tables import Cell, Table

__all__ = ["AFTER", "BEFORE", "CONTROL", "compare_trained"]

#: What the models are called: the original, the same training without the fix, and the fix with training.
BEFORE, CONTROL, AFTER = "original", "trained without the fix", "trained with the fix"


def compare_trained(
    models: Mapping[str, nn.Module | Sequence[nn.Module]],
    images: Float[Tensor, "image channel height width"],
    labels: Int[Tensor, " image"] | None,
    *,
    size: int | tuple[int, int] | None = None,
    max_shift: int | None = None,
    mode: Border | None = None,
    fill: Float[Tensor, " channel"] | float = 0.0,
    seed: int = 0,
    report: Report = silent,
) -> Table:
    """Measure models on the same images and shifts, and the last one's gain over each other one.

    Args:
        models: by name; the last is compared with the others. Several trainings of a model, one per seed, count as one model with
            intervals over seeds and images; trainings with the same place in their sequences are pairs.
        images: unshifted images in [0, 1] that none of them was trained on.
        labels: class of each image; None where they are unknown.
        size: (height, width) of the models' input, where images are larger.
        max_shift: the largest shift along each axis, pixels.
        mode: what comes in at the border.
        fill: the canvas's colour in mode ``zero``.
        seed: draws the shifts of large inputs.
        report: called with progress events.

    Returns:
        a row for each model with 95 % intervals, and one for each gain with the 95 % interval of the paired differences.

    Raises:
        InputError: a model does not take such images, or labels are not its classes.
    """
    framed = frame(images, size, mode, max_shift)
    shifts = shifts_for(framed, seed)
    values, rows = dict[str, dict[str, Tensor]](), list[dict[str, Cell]]()
    for name, each in models.items():
        trained = [each] if isinstance(each, nn.Module) else list(each)
        found = []
        for number, model in enumerate(trained, start=1):
            sentence = f"measuring the model {name}" + (f", {number} of {len(trained)}" if len(trained) > 1 else "")
            blocks = track(
                stream_outputs(model, framed.images.split(BLOCK), shifts, mode=framed.mode, fill=fill, size=framed.size),
                partial(_report, report, sentence, len(images)),
            )
            found.append(_values(blocks, labels))
        values[name] = {measure: torch.stack([one[measure] for one in found]) for measure in found[0]}
        rows.append(
            {"model": name, **{measure: MEASURES[measure].estimate_over_seeds(each) for measure, each in values[name].items()}}
        )
    *others, last = values
    for other in others:
        rows.append({"model": f"gain over {other}", **_gains(values[last], values[other])})
    columns = ("model", *(name for name in ("test_accuracy", *COMPARED) if name in values[last]))
    seeds = len(next(iter(values[last].values())))
    notes = (
        f"{len(images)} images, each under {len(shifts)} shifts of up to {framed.max_shift} pixels ({framed.border}).",
        f"Gains: of the model {last}. Intervals: 95 %; those of gains are of the differences image by image.",
        *((f"Trained {seeds} times, with another seed each time: intervals are over trainings and images.",) * (seeds > 1)),
    )
    return Table("After training", columns, tuple(rows), notes)


def _values(blocks: Iterable[Outputs], labels: Tensor | None) -> dict[str, Tensor]:
    """Return measure -> one value an image."""
    outputs = list(blocks)
    check_classes(labels, outputs[0].reference.shape[1])
    found = survey(outputs, labels=labels)
    accuracy = {} if found.right is None else {"test_accuracy": found.right}
    return {**accuracy, **{name: found.values[name, "all"] for name in COMPARED if (name, "all") in found.values}}


def _gains(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Cell]:
    """Return what each measure [seed, image] gains over another model's, which may have one seed only."""
    apart = {name: values.float() - theirs[name].float() for name, values in ours.items()}
    if not any(map(changed, apart.values())) and all(map(telling, theirs["mcs"])):  # the models are the same
        return {name: Estimate(0.0, 0.0, 0.0, count=each.shape[1], seeds=len(each)) for name, each in apart.items()}
    reach = {name: MEASURES[name].bounds[1] - MEASURES[name].bounds[0] for name in apart}
    return {name: mean_over_seeds(each, bounds=(-reach[name], reach[name])) for name, each in apart.items()}


def _report(report: Report, sentence: str, images: int, done: int) -> None:
    report(Stage(sentence, done, images))
