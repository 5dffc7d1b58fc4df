"""Training after ``shiftscope fix``: its options, and the fixed model held against the same training without the fix."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from shlex import quote
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from shiftscope.cli.measuring import under_shifts
from shiftscope.cli.options import ModelOptions
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits.subject import Subject
    from shiftscope.datasets.training import TrainingImages
    from shiftscope.models import Tuned
    from shiftscope.runtime.progress import Report
    from shiftscope.surgery import Surgery
    from shiftscope.tables import Summary, Table
    from shiftscope.training import FineTuned, FineTuning
    from shiftscope.training.paired import PairedPlan

__all__ = ["TrainOptions", "Trained", "check_training", "forget", "train_after", "training_folder"]

TRAINING_GROUP = Group("Training after the fix", sort_key=2)
#: Epochs and learning rate by default.
EPOCHS, RATE = 10, 3e-4


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of a training after a fix.

    Parameters
    ----------
    train
        Labelled images to train the changed model on, each at a random shift in every step: a folder with one folder a class, or
        a data set as for --data, of which the training images are taken. Images that the model is measured on are left out. The
        model without the fix is trained in the same way, so that the gain is the fix's.
    train_images
        Number of training images, picked with a fixed seed, a fifth of them for validation. By default all.
    epochs
        The most epochs; training stops earlier when validation does not improve. By default 10.
    learning_rate
        Learning rate (Adam). By default 0.0003.
    consistency
        Term beside the cross-entropy that penalises outputs that change under shifts: `kl`, `cosine` or `none`.
    """

    train: Annotated[str | None, Parameter(group=TRAINING_GROUP)] = None
    train_images: Annotated[int | None, Parameter(group=TRAINING_GROUP)] = None
    epochs: Annotated[int | None, Parameter(group=TRAINING_GROUP)] = None
    learning_rate: Annotated[float | None, Parameter(group=TRAINING_GROUP)] = None
    consistency: Annotated[Literal["none", "kl", "cosine"], Parameter(group=TRAINING_GROUP)] = "none"

    def arguments(self) -> list[str]:
        """Return the given options as text, for a command that trains in the same way."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default}
        return [f"--{name.replace('_', '-')} {quote(str(value))}" for name, value in given.items()]


@dataclass(frozen=True)
class Trained:
    """A trained copy with a fix.

    Attributes:
        surgery: the copy, and what was changed.
        table: the original, both trained models, and the gains.
        tuned: what the copy's file says of the training.
    """

    surgery: Surgery
    table: Table
    tuned: Tuned

    def summary(self, command: str) -> Summary:
        """Return what ``shiftscope fix`` prints.

        Args:
            command: to run next.
        """
        from shiftscope.tables import Summary

        return Summary(_verdict(self.table), (self.surgery.narrow_table(), self.table), commands=(command,))


def check_training(subject: Subject, training: TrainOptions) -> None:
    """Raise InputError unless the options of a training are within their bounds, and the model can be trained."""
    if training.train is None:
        if training.arguments():
            raise InputError(f"{training.arguments()[0].partition(' ')[0]} describes a training.", "Add --train DATA.")
        return
    if training.epochs is not None and training.epochs < 1:
        raise InputError(f"`epochs` must be 1 or more, got {training.epochs}.", f"Leave it out to take {EPOCHS}.")
    if training.learning_rate is not None and not 0 < training.learning_rate < float("inf"):
        raise InputError(f"`learning_rate` must be above 0, got {training.learning_rate}.", f"Leave it out to take {RATE}.")
    if not subject.loaded.spec.is_code:
        raise InputError(
            f"{subject.spec.model} can only be run, so that it cannot be trained.",
            "Give the model as code that makes it, with its `weights`.",
        )
    if subject.embedding or subject.output is not None:
        raise InputError("a training needs a model that returns classes alone.", "Leave out --train.")


def training_folder(out: Path | None) -> Path | None:
    """Return the folder from which a stopped training resumes, beside the file of the fixed model; None without one."""
    return None if out is None else out.with_suffix(".training")


def train_after(
    subject: Subject, surgery: Surgery, options: ModelOptions, training: TrainOptions, *, out: Path | None, report: Report
) -> Trained:
    """Train a fixed model and, in the same way, the model without the fix, and measure both beside the original.

    Args:
        subject: the model and the images to measure it on.
        surgery: the fixed model.
        options: of the command.
        training: how to train.
        out: the fixed model's file, beside which trainings are kept; None keeps none.
        report: called with progress events.
    """
    from shiftscope.engine.framing import frame
    from shiftscope.training.gains import AFTER, CONTROL
    from shiftscope.training.paired import train_all

    images = _training_images(subject, options, training, report)
    under = under_shifts(subject, options)
    framed = frame(images.images, under["size"], options.mode, under["max_shift"])
    settings = _settings(training, framed.max_shift, circular=framed.border == "circular")
    found = train_all(
        {CONTROL: subject.loaded.model, AFTER: surgery.model},
        framed.images,
        images.labels,
        _plan(subject, surgery, images, settings, options.seed),
        folder=training_folder(out),
        report=report,
        size=framed.size,
        fill=subject.fill,
        device=options.torch_device(),
    )
    table = _measured(subject, options, images, found, report)
    tuned = _tuned(images, found[AFTER], settings, options.seed)
    return Trained(replace(surgery, model=found[AFTER].model), table, tuned)


def forget(out: Path | None) -> None:
    """Remove the trainings of a fixed model that is saved."""
    folder = training_folder(out)
    if folder is not None:
        rmtree(folder, ignore_errors=True)


def _training_images(subject: Subject, options: ModelOptions, training: TrainOptions, report: Report) -> TrainingImages:
    """Return the training images; raise InputError where their classes are not the model's."""
    from shiftscope.datasets.training import read_training_images

    loaded = subject.loaded
    assert training.train is not None  # checked
    images = read_training_images(
        training.train,
        subject.images,
        count=training.train_images,
        preprocessing=loaded.preprocessing,
        channels=loaded.image[0] if loaded.image else None,
        trained_on=loaded.spec.data,
        max_shift=options.max_shift,
        data_dir=options.data_dir,
        report=report,
    )
    classes = subject.outputs(images.images[:1])
    if classes is not None and images.classes != classes:
        raise InputError(
            f"`train` {training.train} has {images.classes} classes, and the model {classes}.",
            "Give a folder for each of the model's classes, named in the order of its outputs.",
        )
    return images


def _settings(training: TrainOptions, max_shift: int, *, circular: bool) -> FineTuning:
    from shiftscope.training import FineTuning

    return FineTuning(
        max_epochs=training.epochs or EPOCHS,
        learning_rate=training.learning_rate or RATE,
        translate=max_shift,
        mode="circular" if circular else "zero",
        consistency=training.consistency,
    )


def _plan(subject: Subject, surgery: Surgery, images: TrainingImages, settings: FineTuning, seed: int) -> PairedPlan:
    from shiftscope.audits.model import model_checksum
    from shiftscope.training.paired import PairedPlan

    return PairedPlan(
        model=subject.name,
        model_sha256=model_checksum(subject.loaded.model),
        fixes=model_checksum(surgery.model),
        data=images.origin,
        data_sha256=images.checksum,
        images=len(images.images),
        settings=settings,
        seed=seed,
    )


def _tuned(images: TrainingImages, found: FineTuned, settings: FineTuning, seed: int) -> Tuned:
    from shiftscope.models import Tuned

    return Tuned(
        data=images.origin,
        data_sha256=images.checksum,
        images=len(images.images),
        epochs=len(found.training.epochs),
        best_epoch=found.training.best_epoch,
        max_shift=settings.translate,
        consistency=settings.consistency,
        seed=seed,
    )


def _measured(
    subject: Subject, options: ModelOptions, images: TrainingImages, found: dict[str, FineTuned], report: Report
) -> Table:
    """Measure the original and the trained models on the same images and shifts."""
    from shiftscope.training.gains import BEFORE, compare_trained

    block, ignored = subject.read()
    under = {name: value for name, value in under_shifts(subject, options).items() if name != "embedding"}
    models = {BEFORE: subject.loaded.model, **{name: each.model for name, each in found.items()}}
    table = compare_trained(models, block.images, block.labels, **under, report=report)
    seen = f"{len(images.images):,} images of {images.origin} (sha256 {images.checksum[:12]})"
    outcomes = (f"{name[0].upper()}{name[1:]}: {_lowered(each.training.sentence)}" for name, each in found.items())
    notes = (
        *subject.notes(block, ignored),
        *table.notes,
        f"Trained on {seen}, a fifth of them for validation.",
        *images.notes,
        *outcomes,
    )
    return replace(table, notes=notes, provenance=subject.facts)


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _verdict(table: Table) -> str:
    """Return in two sentences what training and the fix gained."""
    from shiftscope.estimates import Estimate
    from shiftscope.measures import MEASURES
    from shiftscope.tables import percent, plus_minus
    from shiftscope.training.gains import AFTER, BEFORE, CONTROL

    rows = {row["model"]: {name: cell for name, cell in row.items() if isinstance(cell, Estimate)} for row in table.rows}
    kept = {name: percent(rows[name]["all_agree"]) for name in (BEFORE, CONTROL, AFTER)}
    gain = rows[f"gain over {CONTROL}"]
    measured = [name for name in ("mcs", "all_agree", "test_accuracy") if name in gain]
    gains = ", ".join(f"{MEASURES[name].label} by {plus_minus(gain[name])}" for name in measured)
    return (
        f"{kept[BEFORE]} of images keep their answer under all shifts, {kept[CONTROL]} after training without the fix, and "
        f"{kept[AFTER]} after training with it. Beside the same training without it, the fix changes {gains}."
    )
