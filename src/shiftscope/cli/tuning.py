"""Training after ``shiftscope fix``: its options, and the fixed model compared with the same training without the fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shlex import quote
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from shiftscope.cli.fix_options import Fixing
from shiftscope.cli.measuring import under_shifts
from shiftscope.cli.options import FixOptions, Flag, ModelOptions
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits.subject import Subject, SubjectSpec
    from shiftscope.datasets.training import TrainingImages
    from shiftscope.models import Tuned
    from shiftscope.runtime.progress import Report
    from shiftscope.surgery import Surgery
    from shiftscope.tables import Summary, Table
    from shiftscope.training import FineTuned, FineTuning
    from shiftscope.training.paired import Pair, PairedPlan

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
    every_shift
        Train on all shifts of each image in every step, exactly, instead of a random one. Not for every model.
    layer_decay
        Learning rate of a layer relative to that of the layer after it, above 0 to 1. By default 1.
    seeds
        Number of trainings with and without the fix, each with another seed, so that intervals are over trainings, too. The copy
        of the first seed is saved. By default 1.
    """

    train: Annotated[str | None, Parameter(group=TRAINING_GROUP)] = None
    train_images: Annotated[int | None, Parameter(group=TRAINING_GROUP)] = None
    epochs: Annotated[int | None, Parameter(group=TRAINING_GROUP)] = None
    learning_rate: Annotated[float | None, Parameter(group=TRAINING_GROUP)] = None
    consistency: Annotated[Literal["none", "kl", "cosine"], Parameter(group=TRAINING_GROUP)] = "none"
    every_shift: Annotated[bool, Flag, Parameter(group=TRAINING_GROUP)] = False
    layer_decay: Annotated[float | None, Parameter(group=TRAINING_GROUP)] = None
    seeds: Annotated[int | None, Parameter(group=TRAINING_GROUP)] = None

    def arguments(self) -> list[str]:
        """Return the given options as text, for a command that trains in the same way."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default}
        options = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
        return [name if value is True else f"{name} {quote(str(value))}" for name, value in options.items()]

    def absolute(self) -> TrainOptions:
        """Return the same for a process in another working directory."""
        from shiftscope.datasets.sources import is_folder

        assert self.train is not None  # checked
        return replace(self, train=str(Path(self.train).resolve()) if is_folder(self.train) else self.train)


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


@dataclass(frozen=True)
class _Make:
    """Opens a model and its images, applies fixes, and reads the training images, in any process.

    Attributes:
        spec: the model and the images to measure it on.
        fixing: the fixes.
        training: how to train.
        device: where to train.
    """

    spec: SubjectSpec
    fixing: Fixing
    training: TrainOptions
    device: str

    def __call__(self) -> Pair:
        """Make the pair."""
        from shiftscope.audits.subject import open_subject
        from shiftscope.runtime.progress import silent

        subject = open_subject(self.spec)
        images = _training_images(subject, self.training, silent)
        return self.pair(subject, self.fixing.apply(subject), images)

    def pair(self, subject: Subject, surgery: Surgery, images: TrainingImages) -> Pair:
        """Return the pair of what is open already."""
        from shiftscope.engine.framing import frame
        from shiftscope.training.gains import AFTER, CONTROL
        from shiftscope.training.paired import Pair

        max_shift = subject.images.default_shift if self.spec.max_shift is None else self.spec.max_shift
        framed = frame(images.images, subject.images.size, self.fixing.mode, max_shift)
        settings = _settings(self.training, framed.max_shift, circular=framed.border == "circular")
        return Pair(
            {CONTROL: subject.loaded.model, AFTER: surgery.model},
            framed.images,
            images.labels,
            _plan(subject, surgery, images, settings, size=framed.size),
            size=framed.size,
            fill=subject.fill,
            device=self.device,
        )


def check_training(
    subject: Subject, training: TrainOptions, options: FixOptions, *, workers: int | None = None, out: Path | None = None
) -> None:
    """Raise InputError unless the options of a training are within their bounds, and the model can be trained."""
    if training.train is None:
        others = ["--workers"] * (workers is not None) + ["--executor"] * options.distributes()
        if given := [*training.arguments(), *others]:
            raise InputError(f"`{given[0].partition(' ')[0]}` is for training only.", "Add --train DATA.")
        return
    if training.epochs is not None and training.epochs < 1:
        raise InputError(f"`epochs` must be 1 or more, got {training.epochs}.", f"Leave it out to take {EPOCHS}.")
    if training.learning_rate is not None and not 0 < training.learning_rate < float("inf"):
        raise InputError(f"`learning_rate` must be above 0, got {training.learning_rate}.", f"Leave it out to take {RATE}.")
    if training.layer_decay is not None and not 0 < training.layer_decay <= 1:
        raise InputError(f"`layer_decay` must be above 0, at most 1, got {training.layer_decay}.", "Leave it out to take 1.")
    if training.seeds is not None and training.seeds < 1:
        raise InputError(f"`seeds` must be 1 or more, got {training.seeds}.", "Leave it out to train each model once.")
    if options.executor == "submitit" and out is None:
        raise InputError("Slurm jobs need a folder that all machines can access.", "Give one with --out.")
    options.start(_at_once(options, workers))  # refuses numbers of workers and options that do not go together
    if not subject.loaded.spec.is_code:
        raise InputError(
            f"{subject.spec.model} can only be run, so it cannot be trained.",
            "Give the model as code that makes it, with its `weights`.",
        )
    if subject.embedding or subject.output is not None:
        raise InputError("`--train` needs a model that returns class scores and nothing else.", "Leave out --train.")


def _at_once(options: FixOptions, workers: int | None) -> int | None:
    """Return how many trainings run at once: on this machine one, unless the user gives another number."""
    return 1 if workers is None and options.executor == "processes" else workers


def training_folder(out: Path | None) -> Path | None:
    """Return the folder from which a stopped training resumes, beside the file of the fixed model; None without one."""
    return None if out is None else out.with_suffix(".training")


def train_after(
    subject: Subject,
    surgery: Surgery,
    fixing: Fixing,
    options: FixOptions,
    training: TrainOptions,
    *,
    workers: int | None,
    out: Path | None,
    report: Report,
) -> Trained:
    """Train a fixed model and, in the same way, the model without the fix, and measure both beside the original.

    Args:
        subject: the model and the images to measure it on.
        surgery: the fixed model.
        fixing: its fixes.
        options: of the command.
        training: how to train.
        workers: trainings at once; None for the default.
        out: the fixed model's file, beside which trainings are kept; None keeps none.
        report: called with progress events.
    """
    from shiftscope.audits.subject import absolute_paths
    from shiftscope.training.gains import AFTER
    from shiftscope.training.paired import train_all

    device = options.training_device()
    spec = subject.spec.model_copy(update={**absolute_paths(subject.spec), "device": device})
    images = _training_images(subject, training, report)
    make = _Make(spec, fixing, training.absolute(), device)
    pair = make.pair(subject, surgery, images)
    found = train_all(
        make,
        pair=pair,
        seeds=training.seeds or 1,
        folder=training_folder(out),
        executor=options.start(_at_once(options, workers)),
        report=report,
    )
    table = _measured(subject, options, images, found, report)
    tuned = _tuned(images, found[AFTER][0], pair.plan)
    return Trained(replace(surgery, model=found[AFTER][0].model), table, tuned)


def forget(out: Path | None) -> None:
    """Remove the trainings of a fixed model that is saved."""
    folder = training_folder(out)
    if folder is not None:
        rmtree(folder, ignore_errors=True)


def _training_images(subject: Subject, training: TrainOptions, report: Report) -> TrainingImages:
    """Return the training images; raise InputError where their classes are not the model's."""
    from shiftscope.datasets.training import read_training_images

    loaded, spec = subject.loaded, subject.spec
    assert training.train is not None  # checked
    images = read_training_images(
        training.train,
        subject.images,
        count=training.train_images,
        preprocessing=loaded.preprocessing,
        channels=loaded.known_channels,
        trained_on=loaded.spec.data,
        max_shift=spec.max_shift,
        data_dir=None if spec.data_dir is None else Path(spec.data_dir),
        classes=loaded.classes,
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
        every_shift=training.every_shift,
        layer_decay=training.layer_decay or 1.0,
    )


def _plan(
    subject: Subject, surgery: Surgery, images: TrainingImages, settings: FineTuning, *, size: tuple[int, int]
) -> PairedPlan:
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
        seed=subject.spec.seed,
        size=size,
        fill=tuple(subject.images.fill),
    )


def _tuned(images: TrainingImages, found: FineTuned, plan: PairedPlan) -> Tuned:
    from shiftscope.models import Tuned

    return Tuned(
        data=images.origin,
        data_sha256=images.checksum,
        images=len(images.images),
        epochs=len(found.training.epochs),
        best_epoch=found.training.best_epoch,
        max_shift=plan.settings.translate,
        consistency=plan.settings.consistency,
        every_shift=plan.settings.every_shift,
        layer_decay=plan.settings.layer_decay,
        seed=plan.seed,
    )


def _measured(
    subject: Subject,
    options: ModelOptions,
    images: TrainingImages,
    found: Mapping[str, Sequence[FineTuned]],
    report: Report,
) -> Table:
    """Measure the original and the trained models on the same images and shifts."""
    from shiftscope.training.gains import BEFORE, compare_trained

    block, ignored = subject.read()
    models = {BEFORE: [subject.loaded.model], **{name: [each.model for each in trained] for name, trained in found.items()}}
    table = compare_trained(models, block.images, block.labels, **vars(under_shifts(subject, options)), report=report)
    seen = f"{len(images.images):,} images of {images.origin} (sha256 {images.checksum[:12]})"
    notes = (
        *subject.notes(block, ignored),
        *table.notes,
        f"Trained on {seen}, a fifth of them for validation.",
        *images.notes,
        *_outcomes(found, subject.spec.seed),
    )
    return replace(table, notes=notes, provenance=subject.facts)


def _outcomes(found: Mapping[str, Sequence[FineTuned]], seed: int) -> list[str]:
    """Return how each training ended, in words."""
    notes = []
    for name, trained in found.items():
        for number, each in enumerate(trained):
            which = f", seed {seed + number}" if len(trained) > 1 else ""
            notes.append(f"{name[0].upper()}{name[1:]}{which}: {_lowered(each.training.sentence)}")
    return notes


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
        f"{kept[AFTER]} after training with it. Compared with the same training without it, the fix changes {gains}."
    )
