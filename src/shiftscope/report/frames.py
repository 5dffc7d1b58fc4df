"""Gather the page of videos: by how much answers change from frame to frame, and frames to slide through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from shiftscope.estimates import mean
from shiftscope.measures import MEASURES
from shiftscope.report import Chart, Page, Rows, content
from shiftscope.report.content import Section
from shiftscope.runtime.text import number_of
from shiftscope.tables import Cell, Table
from shiftscope.videos.film import Film
from shiftscope.videos.flicker import Flicker

__all__ = ["film_section", "flicker_page"]

#: Videos that are drawn, at most.
DRAWN = 6
#: How to slide.
SLIDE = "Slide with the mouse, a finger or the arrow keys. The model computed its answers beforehand"


def flicker_page(found: Flicker, film: Film | None = None) -> Page:
    """Return the content of the page of videos.

    Args:
        found: how much answers change.
        film: frames to show, if there are any.
    """
    provenance = dict(found.provenance)
    model = Path(provenance.get("model", "the model")).name
    frames = sum(len(each) + 1 for each in found.changes)
    sections: list[Section] = [] if film is None else [film_section("Slide through the frames", film)]
    sections += [*_charts(found)]
    caption = "Mean and largest change from the frame before. Click a heading to sort."
    sections.append(Rows("Every video", caption, found.sequence_table()))
    videos = number_of(len(found.changes), "video")
    facts = (model, videos, f"{frames:,} frames")
    return Page(f"How much does {model} flicker?", found.words(), tuple(sections), facts, provenance=provenance)


def film_section(title: str, film: Film) -> content.Film:
    """Return the section of a film."""
    measure = MEASURES.get(film.measure)
    label = film.measure if measure is None else f"1 less the {measure.label}" if measure.better == "more" else measure.label
    drawn = {
        each.name: tuple(content.FilmFrame(frame.at, frame.picture, frame.answer or "", frame.change) for frame in each.frames)
        for each in film.strips
    }
    count = max((len(each.frames) for each in film.strips), default=0)
    caption = f"{SLIDE}, for {count} frames. Bars: the change from each frame to the next ({label})."
    return content.Film(title, caption, drawn, "change from the frame before")


def _charts(found: Flicker) -> Iterator[Chart]:
    """Yield the change against the frame: a mean over videos where there are several, and each of those that change most."""
    means = [float(each.nanmean().nan_to_num(nan=-1.0)) for each in found.changes]
    order = sorted(range(len(means)), key=lambda number: -means[number])[:DRAWN]
    if len(means) > 1:
        rows = tuple(_mean_rows(found))
        if rows:
            caption = "A mean over the videos that have a value at this frame, two or more, with 95 % intervals."
            yield Chart(
                "Change, a mean over videos", caption, Table("Mean over videos", ("frame", "change"), rows), "frame", "change"
            )
    some = f" The {DRAWN} of {len(means)} videos that change most." if len(means) > DRAWN else ""
    table = Table("Change by frame", ("video", "frame", "change"), tuple(row for number in order for row in _rows(found, number)))
    yield Chart("Change from the frame before", f"Frames are compared as they are.{some}", table, "frame", "change", ("video",))


def _rows(found: Flicker, number: int) -> Iterator[Mapping[str, Cell]]:
    for frame, change in enumerate(found.changes[number].tolist(), start=2):
        yield {"video": found.name(number), "frame": frame, "change": None if change != change else change}


def _mean_rows(found: Flicker) -> Iterator[Mapping[str, Cell]]:
    for step in range(max(map(len, found.changes))):
        values = torch.stack([each[step] for each in found.changes if len(each) > step])
        known = values[~values.isnan()]
        if len(known) > 1:
            bounds = MEASURES[found.measure].bounds
            yield {"frame": step + 2, "change": mean(known, bounds=bounds if bounds == (0.0, 1.0) else (0.0, float("inf")))}
