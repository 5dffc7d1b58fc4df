"""Frames to slide through: a pan of an image, or a part of a video, with the model's answer to each frame.

They are computed once an audit is complete, and written as ``film.json`` beside it, so that its page can be made again where
neither the model nor the images are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field, ValidationError
from torch import Tensor

from shiftscope.audits.model import CountedModel
from shiftscope.audits.pictures import DataUrl, data_url
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.subject import Subject
from shiftscope.audits.views import framing_of
from shiftscope.datasets.videos import Videos
from shiftscope.engine.checks import evaluating
from shiftscope.errors import InputError
from shiftscope.runtime.files import write_text
from shiftscope.runtime.inputs import read_bytes
from shiftscope.runtime.seeds import evenly_spread
from shiftscope.runtime.settings import Spec
from shiftscope.tasks import Task, View
from shiftscope.videos.flicker import Flicker, step_change

__all__ = [
    "FILM",
    "Film",
    "FilmFrame",
    "Strip",
    "film_of_pan",
    "film_of_videos",
    "load_film",
    "read_film",
    "shift_words",
    "write_film",
]

#: The file's name in a folder.
FILM = "film.json"
#: Strips of a film, and frames of a strip, at most.
STRIPS, FRAMES = 3, 64
#: What to do about a film that cannot be shown.
WITHOUT_FILM = "Remove it for a page without frames, or measure again."
#: Frames per forward pass.
BATCH = 16
Text = Annotated[str, Field(max_length=500)]


class FilmFrame(Spec):
    """A frame with the model's answer.

    Attributes:
        at: the frame's number or shift, in words.
        picture: the frame, with the answer drawn over it where it can be, as a data URL.
        answer: in words; None if it has none.
        change: against the frame before; None of the first frame, and where the task defines none.
    """

    at: Text
    picture: DataUrl
    answer: Text | None = None
    change: float | None = None


class Strip(Spec):
    """Successive frames."""

    name: Text
    frames: Annotated[tuple[FilmFrame, ...], Field(max_length=1000)]


class Film(Spec):
    """Strips to slide through, and the name of the measure whose change each frame gives."""

    measure: Text
    strips: Annotated[tuple[Strip, ...], Field(max_length=100)]


def shift_words(shift: tuple[float, float]) -> str:
    """Return a shift (dy, dx) in words.

    >>> shift_words((3.0, -1.0)), shift_words((0.25, 0.0)), shift_words((0.0, 0.0))
    ('3 pixels down, 1 left', '0.25 pixels down', '0 pixels')
    """
    steps = ((shift[0], "down", "up"), (shift[1], "right", "left"))
    parts = [f"{abs(step):.4g} {forward if step > 0 else back}" for step, forward, back in steps if step]
    first, *more = parts or ["0"]
    number, *way = first.split()
    unit = "pixel" if number == "1" else "pixels"
    return ", ".join([" ".join([number, unit, *way]), *more])


@dataclass(frozen=True)
class _Camera:
    """A model that answers to frames."""

    subject: Subject
    task: Task | None

    def strip(self, name: str, frames: Tensor, ats: Sequence[str], views: Sequence[View]) -> Strip:
        """Return a strip of [frame, channel, height, width], and how each frame lies against the one before."""
        answers = list(self._answers(frames))
        shown = [
            FilmFrame(at=at, picture=data_url(self._drawn(frame, answer, view, answers[0])), answer=self._text(answer))
            for at, frame, answer, view in zip(ats, frames, answers, views, strict=True)
        ]
        steps = [nan, *(self._change(*each) for each in zip(answers, answers[1:], views[1:], strict=False))]
        known = [
            each.model_copy(update={"change": step if isfinite(step) else None}) for each, step in zip(shown, steps, strict=True)
        ]
        return Strip(name=name[:500], frames=tuple(known))

    def _answers(self, frames: Tensor) -> Iterator[Any]:
        loaded = self.subject.loaded
        model = CountedModel(loaded.model, output=self.subject.output, device=torch.device(self.subject.spec.device))
        with evaluating(loaded.model), torch.no_grad():
            for batch in frames.split(BATCH):
                size = (int(batch.shape[2]), int(batch.shape[3]))
                yield from model(batch).softmax(dim=1) if self.task is None else model.read(batch, self.task, size)

    def _drawn(self, frame: Float[Tensor, "channel height width"], answer: Any, view: View, first: Any) -> Tensor:
        """Return a frame with its answer; values are drawn in the scale of the first answer."""
        if self.task is None:
            return frame
        still = replace(view, shift=(0, 0), start=(0.0, 0.0), references=(first,))
        drawn = self.task.draw(frame[:3].expand(3, -1, -1), answer, still)
        return frame if drawn is None else drawn

    def _text(self, answer: Any) -> str | None:
        if self.task is not None:
            return self.task.caption(answer)[:500] or None
        top, names = int(answer.argmax()), self.subject.class_names
        name = str(names[top]) if len(names) == len(answer) else f"class {top}"
        return f"{name}, {100 * float(answer[top]):.1f} %"[:500]

    def _change(self, before: Any, after: Any, view: View) -> float:
        if self.task is None:
            return float(before.argmax() != after.argmax())
        return step_change(self.task, before, after, replace(view, references=self.task.gather([before])))


def film_of_pan(subject: Subject, protocol: Protocol, images: Sequence[int], *, task: Task | None, measure: str) -> Film:
    """Return the pan of some images.

    Args:
        subject: the model and the images.
        protocol: whose path the images follow.
        images: their numbers, the most interesting first; the first few are shown.
        task: that reads the outputs; None for classes.
        measure: name of the measure that changes.

    Raises:
        InputError: the model fails on a view.
    """
    path = [protocol.path[place] for place in evenly_spread(len(protocol.path), FRAMES)]
    size, camera, strips = subject.images.size, _Camera(subject, task), []
    for number in images[:STRIPS]:
        block = subject.images.read(number, number + 1)
        if not len(block.images):
            continue
        framing = framing_of(block.images, size, subject.images.fill, subject.images.mean)
        border = framing.border(protocol)
        frames = framing.view(block.images.expand(len(path), -1, -1, -1), torch.tensor(path, dtype=torch.float64), border)
        views = list(_views(path, size, circular=border == "circular"))
        strips.append(camera.strip(subject.images.name(number), frames, [shift_words(step) for step in path], views))
    return Film(measure=measure, strips=tuple(strips))


def _views(path: Sequence[tuple[float, float]], size: tuple[int, int], *, circular: bool) -> Iterator[View]:
    """Yield how each frame of a path lies against the one before; the first against itself."""
    for before, after in zip([path[0], *path], path, strict=False):
        step = (after[0] - before[0], after[1] - before[1])
        yield View(step, size, circular, (float(before[0]), float(before[1])))


def film_of_videos(subject: Subject, videos: Videos, found: Flicker, *, task: Task | None) -> Film:
    """Return the part of each video around its largest change, of the videos that change most.

    Args:
        subject: the model and all frames.
        videos: which frames are whose.
        found: how much answers change.
        task: that reads the outputs; None for classes.

    Raises:
        InputError: the model fails on a frame, or one cannot be read.
    """
    means = [float(each.nanmean().nan_to_num(nan=-1.0)) for each in found.changes]
    order = sorted(range(len(means)), key=lambda number: -means[number])[:STRIPS]
    size, camera, strips = subject.images.size, _Camera(subject, task), []
    for number in order:
        places = _around_largest(videos.places()[number], found.changes[number])
        frames = subject.images.centre(subject.images.read(places.start, places.stop).images)
        first = places.start - videos.places()[number].start + 1
        ats = [f"frame {place}" for place in range(first, first + len(frames))]
        strips.append(camera.strip(videos.names[number], frames, ats, [View((0, 0), size, circular=False)] * len(frames)))
    return Film(measure=found.measure, strips=tuple(strips))


def _around_largest(places: range, changes: Float[Tensor, " step"]) -> range:
    """Return successive frames of a video around its largest change, at most ``FRAMES``."""
    worst = 0 if changes.isnan().all() else int(changes.nan_to_num(nan=-1.0).argmax())
    start = min(max(worst - FRAMES // 2, 0), max(len(places) - FRAMES, 0))
    return places[start : start + FRAMES]


def write_film(folder: Path, film: Film | None) -> None:
    """Write a film into a folder, or remove an older one if there is none.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        if film is None:
            (folder / FILM).unlink(missing_ok=True)
        else:
            write_text(folder / FILM, film.model_dump_json(indent=1) + "\n")
    except OSError as error:
        problem = f"{folder / FILM} cannot be written ({error.strerror or error})."
        raise InputError(problem, "Choose another folder with --out.") from error


def load_film(folder: Path, found: Flicker) -> Film | None:
    """Return the film of videos in a folder; None if it holds none.

    Raises:
        InputError: it cannot be read, or is that of other videos.
    """
    file = folder / FILM
    try:
        film = Film.model_validate_json(read_bytes(file)) if file.exists() else None
    except (OSError, ValidationError) as error:
        raise InputError(f"{file} is damaged, or holds no frames.", WITHOUT_FILM) from error
    names = {found.name(number)[:500] for number in range(len(found.changes))}
    if film is not None and not (film.measure == found.measure and names.issuperset(each.name for each in film.strips)):
        raise InputError(f"{file} holds the frames of other videos.", WITHOUT_FILM)
    return film


def read_film(folder: Path) -> Film | None:
    """Return the film in a folder; None if it holds none that can be read."""
    try:
        return Film.model_validate_json(read_bytes(folder / FILM))
    except (OSError, ValueError):
        return None
