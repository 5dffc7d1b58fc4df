"""The content of a page: frozen sections, each with its table, maps or images. Nothing here is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from shiftscope.engine.outputs import Outputs
from shiftscope.tables import Table

__all__ = [
    "BeforeAfter",
    "Chart",
    "Drag",
    "Film",
    "FilmFrame",
    "Grid",
    "Lesson",
    "Maps",
    "Missing",
    "Network",
    "Page",
    "Pairs",
    "Rows",
    "Scatter",
    "Section",
    "ShiftMap",
    "Signal",
]


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: the heading.
        caption: a sentence or two below it.
    """

    title: str
    caption: str


@dataclass(frozen=True)
class Chart(Section):
    """A measure against a setting, with a line for each series.

    Attributes:
        table: the rows.
        x: the column on the horizontal axis.
        measure: the column of estimates; the column ``source_`` + measure, where there is one, holds the source's numbers.
        series: the columns that distinguish the lines.
        panel: the column whose values get a drawing each; empty for one drawing.
        source_data: the data set of the source's numbers, for the legend; empty if it is the chart's own.
    """

    table: Table
    x: str
    measure: str
    series: tuple[str, ...] = ()
    panel: str = ""
    source_data: str = ""


@dataclass(frozen=True)
class Grid(Section):
    """Heat maps over two settings, side by side.

    Attributes:
        table: the rows.
        x: the column along the horizontal axis.
        y: the column along the vertical axis.
        panels: heading of each heat map -> its column of numbers or estimates.
        diverging: the headings of heat maps whose colour scale diverges from 0; all others share one scale.
    """

    table: Table
    x: str
    y: str
    panels: Mapping[str, str]
    diverging: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scatter(Section):
    """A measure against another, with the Pareto front. More is better on both axes.

    Attributes:
        table: the rows.
        x: the column of estimates along the horizontal axis.
        y: the column of estimates along the vertical axis.
        names: the columns whose settings name a row.
    """

    table: Table
    x: str
    y: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ShiftMap:
    """A value for every shift of a square grid.

    Attributes:
        name: the network's name.
        values: row by row, from the shift furthest up and left.
        factor: the network's subsampling factor.
    """

    name: str
    values: Float[Tensor, " shift"]
    factor: int


@dataclass(frozen=True)
class Maps(Section):
    """Maps over shifts, in one colour scale; a section without maps is left out."""

    maps: tuple[ShiftMap, ...]


@dataclass(frozen=True)
class Rows(Section):
    """A table that readers can sort, and save as CSV.

    Attributes:
        table: the rows.
        verdicts: the columns whose text is shown as a badge.
    """

    table: Table
    verdicts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """A network and its outputs for the images of a :class:`Drag`.

    Attributes:
        name: the network's name.
        factor: its subsampling factor; None if it is unknown.
        outputs: for every image, under every shift of the grid, row by row from the shift furthest up and left.
        cosines: [image, shift], of the unshifted and each shifted output, where ``outputs`` are the logarithms of some of the
            classes' probabilities; None if they are outputs of all classes.
    """

    name: str
    factor: int | None
    outputs: Outputs
    cosines: Float[Tensor, "image shift"] | None = None


@dataclass(frozen=True)
class Drag(Section):
    """Images to drag, and what networks predict at every shift.

    Attributes:
        images: without canvas.
        labels: the index of each image's class; -1 if it is unknown or not among ``classes``.
        classes: the classes' names.
        canvas: (height, width) of the canvas, pixels.
        colour: the canvas's colour, 0 to 255 for each channel of the images.
        reach: the largest shift along an axis, pixels.
        networks: at least one.
    """

    images: UInt8[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]
    classes: tuple[str, ...]
    canvas: tuple[int, int]
    colour: tuple[int, ...]
    reach: int
    networks: tuple[Network, ...]


@dataclass(frozen=True)
class BeforeAfter:
    """An image before and after a shift, and what a model answers to both.

    Attributes:
        name: of the image.
        moved: the shift in words.
        pictures: both images as data URLs.
        answers: to both; empty if the model's outputs are no classes.
        changes: whether the answer changes; None if the model's outputs are no classes.
        notes: further facts, a few words each.
        drawn: both answers drawn over the unshifted image, the second one moved back, as data URLs; empty where there is no
            drawing.
    """

    name: str
    moved: str
    pictures: tuple[str, str]
    answers: tuple[str, ...]
    changes: bool | None
    notes: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pairs(Section):
    """Images before and after a shift, side by side."""

    pairs: tuple[BeforeAfter, ...]


@dataclass(frozen=True)
class FilmFrame:
    """A frame to show.

    Attributes:
        at: its number or shift, in words.
        picture: with the answer drawn over it, as a data URL.
        answer: in words; empty if there is none.
        change: against the frame before; None where there is none.
    """

    at: str
    picture: str
    answer: str
    change: float | None


@dataclass(frozen=True)
class Film(Section):
    """Strips of frames to slide through.

    Attributes:
        strips: name -> frames, in order.
        change: what a frame's change is, in words.
    """

    strips: Mapping[str, tuple[FilmFrame, ...]]
    change: str


@dataclass(frozen=True)
class Signal:
    """A named signal or kernel of the lesson."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Lesson(Section):
    """The theory in one dimension, as an interactive demonstration that the page computes.

    Attributes:
        signals: to choose from.
        kernels: to choose from.
    """

    signals: tuple[Signal, ...]
    kernels: tuple[Signal, ...]


@dataclass(frozen=True)
class Missing(Section):
    """A list of what the page cannot show, with reasons."""

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """The content of a page.

    Attributes:
        title: what the page is about.
        answer: the result in one sentence.
        sections: in order.
        facts: what the result rests on, a few words each.
        warning: a sentence above all sections, for incomplete results.
        provenance: how the numbers were made, name to value.
    """

    title: str
    answer: str
    sections: tuple[Section, ...]
    facts: tuple[str, ...] = ()
    warning: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
