"""Measure the flicker of a model on videos that are folders of frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from shiftscope.audits.model import CountedModel, model_checksum
from shiftscope.audits.subject import Subject, SubjectSpec, open_subject
from shiftscope.datasets.videos import Videos, open_videos
from shiftscope.engine.checks import evaluating
from shiftscope.errors import InputError
from shiftscope.runtime.progress import Report, Stage, silent
from shiftscope.runtime.provenance import provenance
from shiftscope.tasks import Task
from shiftscope.videos.film import Film, film_of_videos
from shiftscope.videos.flicker import FRAMES, Flicker, measure_flicker, reads_as

__all__ = ["Filmed", "measure_videos", "open_filmed", "task_of_frames"]


@dataclass(frozen=True)
class Filmed:
    """A model, and the videos to measure it on.

    Attributes:
        subject: the model and all frames.
        videos: which frames are whose.
        chosen: what the outputs are, with settings, as the user says it; None to detect it from them.
    """

    subject: Subject
    videos: Videos
    chosen: str | None = None


def open_filmed(spec: SubjectSpec, folder: Path, report: Report = silent, *, task: str | None = None) -> Filmed:
    """Load a model and list the frames of videos.

    Args:
        spec: which model, and how frames are prepared for it; its images are those of the folder.
        folder: of the frames of one video, or with a subfolder of frames for each of several.
        report: called with progress events.
        task: what the outputs are; None to detect it from them.

    Raises:
        InputError: there is no such model, or the folder holds no videos that can be read.
    """
    videos = open_videos(folder)
    return Filmed(open_subject(spec, report, photos=videos.photos), videos, task)


def task_of_frames(filmed: Filmed) -> Task | None:
    """Return the task that is chosen, or that the output for the first frame shows; None for classes.

    Raises:
        InputError: the model fails or returns what cannot be measured, or the frame cannot be read.
    """
    subject, chosen = filmed.subject, filmed.chosen
    chosen = "embedding" if chosen is None and subject.embedding else chosen
    with evaluating(subject.loaded.model), torch.no_grad():
        return reads_as(_counted(subject), next(_batches(subject, range(1), 1)), chosen)


def measure_videos(
    filmed: Filmed, task: Task | None, *, batch_size: int | None = None, report: Report = silent, film: bool = False
) -> tuple[Flicker, Film | None]:
    """Return how much answers change from frame to frame, and, if wanted, frames to show.

    Args:
        filmed: the model and the videos.
        task: that reads the outputs, as :func:`task_of_frames` returns it.
        batch_size: frames per forward pass.
        report: called with progress events.
        film: whether to draw frames.

    Raises:
        InputError: the model fails or returns what cannot be measured, or a frame cannot be read.
    """
    subject, videos = filmed.subject, filmed.videos
    with evaluating(subject.loaded.model), torch.no_grad():
        batches = (_batches(subject, places, batch_size or FRAMES, report) for places in videos.places())
        found = measure_flicker(_counted(subject), batches, task)
    named = {} if task is None else {"task": filmed.chosen or task.name}
    found = replace(found, names=videos.names, notes=subject.images.notes, provenance=_provenance(subject, named))
    return found, film_of_videos(subject, videos, found, task=task) if film else None


def _counted(subject: Subject) -> CountedModel:
    return CountedModel(subject.loaded.model, output=subject.output, device=torch.device(subject.spec.device))


def _provenance(subject: Subject, named: dict[str, str]) -> dict[str, str]:
    checksum = model_checksum(subject.loaded.model, subject.spec.model)
    return {**subject.facts, **named, "model_sha256": checksum, **provenance(subject.spec.device)}


def _batches(subject: Subject, places: range, size: int, report: Report = silent) -> Iterator[Tensor]:
    """Yield the frames at some places, as the model sees them.

    Raises:
        InputError: a frame cannot be read.
    """
    for start in range(places.start, places.stop, size):
        block = subject.images.read(start, min(start + size, places.stop))
        if block.damaged:
            raise InputError(f"the frame {block.damaged[0]} cannot be read as an image.", "Replace it, or remove it.")
        yield subject.images.centre(block.images)
        report(Stage("measuring frames", min(start + size, places.stop), subject.images.count))
