"""What a page consists of: frozen values with a table, maps or images each. Nothing here is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from shiftscope.engine.outputs import Outputs
from shiftscope.tables import Table

__all__ = [
    "Chart",
    "Drag",
    "Grid",
    "Lesson",
    "Maps",
    "Missing",
    "Network",
    "Page",
    "Rows",
    "Scatter",
    "Section",
    "ShiftMap",
    "Signal",
]


@dataclass(frozen=True)
class Chart:
    """One measure against one setting, a line for each combination of others.

    Attributes:
        title, caption: above and below it.
        table: the rows.
        across: the column on the horizontal axis.
        measure: the column of estimates; ``source_`` + measure holds printed numbers, where there are any.
        series: the columns that tell lines apart.
    """

    title: str
    caption: str
    table: Table
    across: str
    measure: str
    series: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """Heat maps over two settings, side by side.

    Attributes:
        title, caption: above and below them.
        table: the rows.
        across, down: the columns of the two settings.
        panels: heading -> column of numbers or estimates; ``diverging`` names those whose colours part at 0.
        diverging: headings.
    """

    title: str
    caption: str
    table: Table
    across: str
    down: str
    panels: Mapping[str, str]
    diverging: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scatter:
    """One measure against another, more being better on both axes, with the rows that no other beats on both.

    Attributes:
        title, caption: above and below it.
        table: the rows.
        across, up: the columns of estimates.
        names: the columns that name a row.
    """

    title: str
    caption: str
    table: Table
    across: str
    up: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ShiftMap:
    """A value for every shift of a square grid.

    Attributes:
        name: whose it is.
        values: [shift], row by row, from (-reach, -reach).
        factor: the subsampling factor, whose multiples are marked.
    """

    name: str
    values: Float[Tensor, " shift"]
    factor: int


@dataclass(frozen=True)
class Maps:
    """Maps over shifts, in one scale of colours."""

    title: str
    caption: str
    maps: tuple[ShiftMap, ...]


@dataclass(frozen=True)
class Rows:
    """A table that can be sorted and saved.

    Attributes:
        title, caption: above and below it.
        table: the rows.
        verdicts: columns whose text is shown as a badge.
    """

    title: str
    caption: str
    table: Table
    verdicts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """A network and what it says of the images of a :class:`Drag` under every shift of its grid.

    Attributes:
        name: of the network.
        factor: its subsampling factor.
        outputs: of all images; all share their shifts, row by row from (-reach, -reach).
    """

    name: str
    factor: int
    outputs: Outputs


@dataclass(frozen=True)
class Drag:
    """Images that can be dragged, and what networks answer at every shift.

    Attributes:
        title, caption: above and below it.
        images: without canvas.
        labels: of the images.
        classes: their names.
        canvas: height and width of the canvas, pixels.
        colour: of the canvas, 0 to 255 for each colour of the images.
        reach: the largest shift along an axis, pixels.
        networks: at least one.
    """

    title: str
    caption: str
    images: UInt8[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]
    classes: tuple[str, ...]
    canvas: int
    colour: tuple[int, ...]
    reach: int
    networks: tuple[Network, ...]


@dataclass(frozen=True)
class Signal:
    """A signal of the lesson: its name and its values."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Lesson:
    """The theory on one axis, to be played with; the page computes it.

    Attributes:
        title, caption: above and below it.
        signals: to choose from.
        kernels: to choose from.
    """

    title: str
    caption: str
    signals: tuple[Signal, ...]
    kernels: tuple[Signal, ...]


@dataclass(frozen=True)
class Missing:
    """What a page cannot show, and why."""

    title: str
    sentences: tuple[str, ...]


Section = Chart | Grid | Scatter | Maps | Rows | Drag | Lesson | Missing


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: what it is about.
        answer: the result in one sentence.
        facts: what a reader should know at once, a few words each.
        warning: shown above all else, where something is incomplete.
        sections: in order.
        words: column -> what a reader is shown instead.
        provenance: how the numbers were made.
    """

    title: str
    answer: str
    sections: tuple[Section, ...]
    facts: tuple[str, ...] = ()
    warning: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
