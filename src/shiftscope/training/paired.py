"""Train a fixed model and, in the same way, the model without the fix, so that the gain is the fix's.

With a folder, a stopped run resumes: ``plan.json`` says what is trained on what, ``NAME.checkpoint.safetensors`` holds a training
that runs, and ``NAME.safetensors`` the weights of one that is finished, each written atomically.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from shiftscope.errors import InputError, first_line
from shiftscope.runtime.files import locked, remove_temporary_files, write_tensors, write_text
from shiftscope.runtime.inputs import parse_json, read_bytes, read_tensors, reading
from shiftscope.runtime.progress import Event, JobEvent, Report, silent
from shiftscope.runtime.settings import Spec, Text
from shiftscope.surgery.copying import copied
from shiftscope.training.checkpoint import Checkpoint
from shiftscope.training.fine_tuning import FineTuned, FineTuning, fine_tune
from shiftscope.training.loop import Epoch, Training

__all__ = ["PairedPlan", "train_all"]

PLAN, METADATA_KEY = "plan.json", "training"
REMEDY = "Remove it to start again, or choose another --out."


class PairedPlan(Spec):
    """What the trainings in a folder belong to.

    Attributes:
        model: its reference.
        model_sha256: checksum of the model without the fix.
        fixes: what was changed, in words.
        data: where the training images are from.
        data_sha256: checksum of their pixels and labels.
        images: their number.
        settings: how each model is trained.
        seed: of validation images, order, shifts and random layers.
    """

    model: Text
    model_sha256: Text
    fixes: Text
    data: Text
    data_sha256: Text
    images: int
    settings: FineTuning
    seed: int


def train_all(
    models: Mapping[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    plan: PairedPlan,
    *,
    folder: Path | None = None,
    report: Report = silent,
    **options: Any,
) -> dict[str, FineTuned]:
    """Train copies of several models on the same images, one after the other.

    Args:
        models: by name; they are not changed.
        images: training images [image, channel, height, width] in [0, 1].
        labels: class of each.
        plan: what is trained on what.
        folder: keeps trainings, finished or not, so that a stopped run resumes; by default nothing is kept.
        report: called with progress events.
        options: ``size``, ``fill`` and ``device`` of :func:`shiftscope.training.fine_tune`.

    Raises:
        InputError: the folder holds other trainings, or what :func:`shiftscope.training.fine_tune` says.
        KeyboardInterrupt: the user stopped it.
    """
    if folder is not None:
        _prepare(folder, plan)
    found = dict[str, FineTuned]()
    with nullcontext() if folder is None else locked(folder):
        for number, (name, model) in enumerate(models.items()):
            tell = partial(_report, report, name, number, len(models))
            known = None if folder is None else _finished(_file(folder, name), model)
            found[name] = known or _train(
                model, images, labels, plan, file=None if folder is None else _file(folder, name), report=tell, **options
            )
    return found


def _train(
    model: nn.Module, images: Tensor, labels: Tensor, plan: PairedPlan, *, file: Path | None, report: Report, **options: Any
) -> FineTuned:
    """Train one model, and keep its weights in a file, if one is given, once it is finished."""
    seen = {"data": plan.data, "data_sha256": plan.data_sha256, "images": str(plan.images)}
    checkpoint = None if file is None else Checkpoint(file.with_suffix(".checkpoint.safetensors"), made_by=seen)
    tuned = fine_tune(model, images, labels, plan.settings, seed=plan.seed, report=report, checkpoint=checkpoint, **options)
    if tuned.stopped:
        raise KeyboardInterrupt
    if file is not None and checkpoint is not None:
        weights = {name: each.cpu().contiguous() for name, each in tuned.model.state_dict().items()}
        write_tensors(file, weights, metadata={METADATA_KEY: json.dumps({**seen, "training": asdict(tuned.training)})})
        checkpoint.remove()
    return tuned


def _finished(file: Path, model: nn.Module) -> FineTuned | None:
    """Return a finished training of a model; None if there is none, or, with a warning, if its file is damaged."""
    if not file.exists():
        return None
    try:
        weights, header = read_tensors(file)
        known = parse_json(header[METADATA_KEY])["training"]
        training = Training(**{**known, "epochs": tuple(Epoch(**each) for each in known["epochs"])})
        trained = copied(model)
        trained.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        warnings.warn(f"{file} cannot be used ({first_line(error)}); it is trained again.", stacklevel=2)
        return None
    return FineTuned(trained.eval(), training)


def _prepare(folder: Path, plan: PairedPlan) -> None:
    """Create a folder for a plan, or check that it holds this very plan."""
    file = folder / PLAN
    if folder.is_dir() and any(folder.iterdir()):
        if not file.exists():
            raise InputError(f"{folder} holds other files.", REMEDY)
        with reading(file, "a complete plan", REMEDY):
            known = PairedPlan.model_validate_json(read_bytes(file))
        if known != plan:
            raise InputError(f"{folder} holds another training ({known.model}, {known.images} images of {known.data}).", REMEDY)
        remove_temporary_files(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, plan.model_dump_json(indent=1) + "\n")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.safetensors"


def _report(report: Report, name: str, number: int, of: int, event: Event) -> None:
    report(JobEvent(name, number, of, event))
