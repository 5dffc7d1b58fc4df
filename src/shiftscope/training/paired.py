"""Train a fixed model and, in the same way, the model without the fix, so that the gain is the fix's.

With a folder, a stopped run resumes: ``plan.json`` says what is trained on what, ``NAME.checkpoint.safetensors`` holds a training
that runs, and ``NAME.safetensors`` the weights of one that is finished, each written atomically. With an executor the trainings
run at once, in processes that make the models and read the images for themselves; files and weights are the same, bit for bit,
for equal numbers of threads.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from shiftscope.errors import InputError, first_line
from shiftscope.runtime.executors import Executor
from shiftscope.runtime.files import locked, write_bytes, write_tensors
from shiftscope.runtime.inputs import parse_json, read_tensors
from shiftscope.runtime.plans import hold_plan
from shiftscope.runtime.progress import Event, JobEvent, Report, Stage, silent
from shiftscope.runtime.settings import Spec, Text
from shiftscope.surgery.copying import copied
from shiftscope.training.checkpoint import Checkpoint
from shiftscope.training.fine_tuning import FineTuned, FineTuning, check_every_shift, fine_tune
from shiftscope.training.loop import Epoch, Training

__all__ = ["Pair", "PairedPlan", "train_all"]

METADATA_KEY = "training"
REMEDY = "Remove it to start again, or choose another --out."


class PairedPlan(Spec):
    """What the trainings in a folder were begun for.

    Attributes:
        model: its reference.
        model_sha256: checksum of the model without the fix.
        fixes: checksum of the model with it.
        data: where the training images are from.
        data_sha256: checksum of their pixels and labels.
        images: their number.
        settings: how each model is trained.
        seed: of validation images, order, shifts and random layers; the next ones for further trainings.
        size: (height, width) of the models' input, where images are larger.
        fill: the canvas's colour in mode ``zero``, one value per channel.
    """

    model: Text
    model_sha256: Text
    fixes: Text
    data: Text
    data_sha256: Text
    images: int
    settings: FineTuning
    seed: int
    size: tuple[int, int] | None = None
    fill: tuple[float, ...] = ()

    def described(self) -> str:
        """Return the plan in words."""
        return f"training ({self.model}, {self.images} images of {self.data})"

    def trains_as(self, other: PairedPlan) -> bool:
        """Return whether another plan has the same models, images and settings, whatever they are called."""
        return other.model_copy(update={"model": self.model, "data": self.data}) == self


@dataclass(frozen=True)
class Pair:
    """Models that are trained alike, and their images.

    Attributes:
        models: by name; they are not changed.
        images: training images [image, channel, height, width] in [0, 1].
        labels: class of each.
        plan: what is trained on what.
        size: (height, width) of the models' input, where images are larger.
        fill: the canvas's colour in mode ``zero``, one value or one per channel.
        device: where to train; the models' own by default.
    """

    models: Mapping[str, nn.Module]
    images: Tensor
    labels: Tensor
    plan: PairedPlan
    size: tuple[int, int] | None = None
    fill: Tensor | float = 0.0
    device: torch.device | str | None = None


#: Makes a pair, in any process; equal ones make equal pairs.
Make = Callable[[], Pair]


@dataclass(frozen=True)
class _Job:
    """A training, wherever it is done.

    Attributes:
        make: makes the pair.
        plan: of the pair.
        name: of the model.
        seed: of the training.
        folder: where its files are.
        files: what an earlier session left of it, name -> content, for a machine without access to the folder.
        label: the training in words.
    """

    make: Make
    plan: PairedPlan
    name: str
    seed: int
    folder: Path
    label: str
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.label

    @property
    def file(self) -> Path:
        """The file of its weights."""
        others = "" if self.seed == self.plan.seed else f",seed={self.seed}"
        return self.folder / f"{self.name.replace(' ', '-')}{others}.safetensors"

    def checkpoint(self) -> Checkpoint:
        """Return what saves it while it runs."""
        return Checkpoint(self.file.with_suffix(".checkpoint.safetensors"), made_by=_seen(self.plan))


def train_all(
    make: Make,
    *,
    pair: Pair | None = None,
    seeds: int = 1,
    folder: Path | None = None,
    executor: Executor | None = None,
    report: Report = silent,
) -> dict[str, tuple[FineTuned, ...]]:
    """Train copies of several models on the same images.

    Args:
        make: makes the models and their images. Other processes call it, too, where an executor is given.
        pair: what ``make`` returns, where it is at hand.
        seeds: trainings of each model, with a seed of its own each.
        folder: keeps trainings, finished or not, so that a stopped run resumes; by default nothing is kept.
        executor: runs trainings at once, each with one thread; None runs one after the other, with all threads.
        report: called with progress events.

    Returns:
        the trainings of each model, by name, in the order of their seeds.

    Raises:
        InputError: ``seeds`` is below 1; the folder holds other trainings; another machine's models or images differ; or what
            :func:`shiftscope.training.fine_tune` says.
        KeyboardInterrupt: the user stopped it.
    """
    if seeds < 1:
        raise InputError(f"`seeds` must be 1 or more, got {seeds}.", "Leave it out to train each model once.")
    pair = pair or make()
    for model in pair.models.values() if pair.plan.settings.every_shift else ():
        check_every_shift(model, pair.images, pair.labels, pair.plan.settings, size=pair.size, fill=pair.fill)
    if folder is not None:
        hold_plan(folder, pair.plan, REMEDY, PairedPlan.described)
    elif executor is not None:
        with TemporaryDirectory() as place:
            return train_all(make, pair=pair, seeds=seeds, folder=Path(place) / "training", executor=executor, report=report)
    jobs = _jobs(make, pair, seeds, folder)
    with nullcontext() if folder is None else locked(folder):
        if executor is not None:
            _train_at_once(jobs, pair, executor, report)
        return _collect(jobs, pair, report, keep=folder is not None)


def _jobs(make: Make, pair: Pair, seeds: int, folder: Path | None) -> list[_Job]:
    """Return the trainings, all models with one seed before the next seed, so that what is finished can be compared."""
    drawn = range(pair.plan.seed, pair.plan.seed + seeds)
    return [
        _Job(make, pair.plan, name, seed, folder or Path(), f"{name}, seed {seed}" if seeds > 1 else name)
        for seed in drawn
        for name in pair.models
    ]


def _collect(jobs: Sequence[_Job], pair: Pair, report: Report, *, keep: bool) -> dict[str, tuple[FineTuned, ...]]:
    """Return every training by the name of its model, after doing in this process those that have no file."""
    found: dict[str, tuple[FineTuned, ...]] = dict.fromkeys(pair.models, ())
    for number, job in enumerate(jobs):
        known = _finished(job.file, pair.models[job.name]) if keep else None
        tell = partial(_report, report, job.label, number, len(jobs))
        found[job.name] += (known or _train(job, pair, report=tell, keep=keep),)
    return found


def _train_at_once(jobs: Sequence[_Job], pair: Pair, executor: Executor, report: Report) -> None:
    """Let an executor do the trainings that have no file yet, and leave their files in the folder."""
    missing = [job for job in jobs if _finished(job.file, pair.models[job.name]) is None]
    done = len(jobs) - len(missing)

    def tell(job: _Job, event: Event) -> None:
        report(JobEvent(job.label, done, len(jobs), event))

    given = [replace(job, files=_files_to_resume(job)) for job in missing] if executor.remote else missing
    for job, content in executor.run(_do_away if executor.remote else _do_here, given, tell):
        if content is not None:
            write_bytes(job.file, content)
            job.checkpoint().remove()
        done += 1
        tell(job, Stage("finished", 0, 0))


def _files_to_resume(job: _Job) -> dict[str, bytes]:
    """Return the checkpoint of a training that was stopped; nothing for a new one."""
    path = job.checkpoint().path
    return {path.name: path.read_bytes()} if path.exists() else {}


def _do_here(job: _Job, report: Report) -> None:
    """Do a training in another process of a machine that sees the folder."""
    report(Stage("loading the model and its images", 0, 0))
    pair = _made(job.make)
    if not pair.plan.trains_as(job.plan):
        raise InputError(
            f"the models or images of the training `{job.label}` differ from those that it was planned with.",
            "Bring the same files to every machine; a factory must make the same weights whenever it is called.",
        )
    _train(job, pair, report=report, keep=True)


def _do_away(job: _Job, report: Report) -> bytes:
    """Do a training on a machine without access to the folder; return its file."""
    with TemporaryDirectory() as place:
        for name, content in job.files.items():
            write_bytes(Path(place) / name, content)
        there = replace(job, folder=Path(place))
        _do_here(there, report)
        return there.file.read_bytes()


@lru_cache(maxsize=1)
def _made(make: Make) -> Pair:
    """Make a pair once per process."""
    return make()


def _train(job: _Job, pair: Pair, *, report: Report, keep: bool) -> FineTuned:
    """Do a training, and keep its weights in its file once it is finished."""
    checkpoint = job.checkpoint() if keep else None
    tuned = fine_tune(
        pair.models[job.name],
        pair.images,
        pair.labels,
        job.plan.settings,
        seed=job.seed,
        size=pair.size,
        fill=pair.fill,
        device=pair.device,
        report=report,
        checkpoint=checkpoint,
    )
    if tuned.stopped:
        raise KeyboardInterrupt
    if checkpoint is not None:
        weights = {name: each.cpu().contiguous() for name, each in tuned.model.state_dict().items()}
        about = {**_seen(job.plan), "training": asdict(tuned.training)}
        write_tensors(job.file, weights, metadata={METADATA_KEY: json.dumps(about)})
        checkpoint.remove()
    return tuned


def _seen(plan: PairedPlan) -> dict[str, str]:
    """Return what files say of a training's images."""
    return {"data": plan.data, "data_sha256": plan.data_sha256, "images": str(plan.images)}


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
        trained.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as training leaves it: outputs are equal
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        warnings.warn(f"{file} cannot be used ({first_line(error)}); it is trained again.", stacklevel=2)
        return None
    return FineTuned(trained.eval(), training)


def _report(report: Report, name: str, number: int, of: int, event: Event) -> None:
    report(JobEvent(name, number, of, event))
