"""Shifted views of images: what fills each kind of border, and which views of a block differ from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from shiftscope.audits.protocols import Border, Protocol
from shiftscope.engine.framing import inner_size
from shiftscope.errors import InputError
from shiftscope.shifts import Mode, centre, translate, translate_by_parts

__all__ = ["BORDERS", "Framing", "ViewPlan", "plan_views", "views_of"]

#: Borders by number. An unshifted image looks the same with all of them and has number 0.
BORDERS: tuple[Border | None, ...] = (None, "zero", "mean", "circular", "crop", "reflect", "replicate")


@dataclass(frozen=True)
class Framing:
    """How the model's input is cut from the images.

    Attributes:
        size: (height, width) of the model's input, cut from the images' centre, pixels.
        margin: (rows, columns) of the images around that on each side, pixels.
        fill: the canvas's colour, one value per channel in [0, 1].
        mean: the mean colour, one value per channel in [0, 1]; None if unknown.
    """

    size: tuple[int, int]
    margin: tuple[int, int]
    fill: tuple[float, ...]
    mean: tuple[float, ...] | None

    def border(self, protocol: Protocol) -> Border:
        """Return what fills a protocol's border here: without a margin, the canvas's colour surrounds crops.

        Raises:
            InputError: the protocol's crops exceed the margin.
        """
        border = protocol.border
        if border == "mean" and self.mean in (None, self.fill):
            return "zero"
        if border != "crop":
            return border
        if self.margin == (0, 0):
            return "zero"
        if protocol.max_shift > min(self.margin):
            height, width = (size + 2 * edge for size, edge in zip(self.size, self.margin, strict=True))
            raise InputError(
                f"{protocol.name} crops up to {protocol.max_shift} pixels from the centre, but images of {height}x{width} leave "
                f"{min(self.margin)} around a model input of {self.size[0]}x{self.size[1]}.",
                "Lower `max_shift` or give larger images.",
            )
        return border

    def centre(self, images: Float[Tensor, "image channel tall wide"]) -> Float[Tensor, "image channel height width"]:
        """Return the images as the model sees them unshifted."""
        return centre(images, self.size)

    def view(
        self,
        images: Float[Tensor, "image channel tall wide"],
        shifts: Float[Tensor, "image 2"],
        border: Border | None,
    ) -> Float[Tensor, "image channel height width"]:
        """Return each image under its own shift.

        Args:
            images: with their margin.
            shifts: (dy, dx) in pixels or fractions of them.
            border: what fills the border; None for unshifted images.
        """
        centre = self.centre(images)
        if border is None:
            return centre
        if border in ("zero", "circular"):
            return _translated(centre, shifts, border, self.fill)
        if border == "mean":
            return _translated(centre, shifts, "zero", self.fill if self.mean is None else self.mean)
        if border == "crop":
            large = images
        else:
            reach = ceil(float(shifts.abs().max())) + 1
            large = functional.pad(centre, (reach,) * 4, mode=border)
        return self.centre(_translated(large, shifts, "zero", (0.0,)))


def framing_of(
    example: Tensor, size: int | tuple[int, int] | None, fill: float | Sequence[float], mean: float | Sequence[float] | None
) -> Framing:
    """Return how the model's input is cut from images.

    Args:
        example: [1, channel, height, width], one of them.
        size: (height, width) of the model's input, or one length for both; None for that of the images.
        fill: the canvas's colour in [0, 1], one value or one per channel.
        mean: the mean colour, likewise; None if unknown.

    Raises:
        InputError: the size or a colour does not fit the image.
    """
    channels, height, width = example.shape[1:]
    inner = inner_size(size, (height, width))
    margin = ((height - inner[0]) // 2, (width - inner[1]) // 2)
    return Framing(inner, margin, _colour("fill", fill, channels), None if mean is None else _colour("mean", mean, channels))


def _colour(name: str, given: Any, channels: int) -> tuple[float, ...]:
    try:
        found = (float(given),) * channels if isinstance(given, int | float) else tuple(map(float, given))
    except (TypeError, ValueError):
        raise InputError(
            f"`{name}` must be a number, or one for each channel, got {given!r}.", "Give values in [0, 1]."
        ) from None
    if len(found) != channels:
        raise InputError(
            f"`{name}` must be one value for each of {channels} channels, got {len(found)}.", "Give one per channel."
        )
    return found


def _translated(images: Tensor, shifts: Tensor, mode: Mode, fill: Sequence[float]) -> Tensor:
    colour = torch.tensor(fill).to(images).expand(images.shape[1])
    if (shifts == shifts.round()).all():
        return translate(images, shifts.long(), mode=mode, fill=colour)
    return translate_by_parts(images, shifts.to(images), mode=mode, fill=colour)


@dataclass(frozen=True)
class ViewPlan:
    """The distinct views of a block of images that several protocols need together.

    Attributes:
        rows: (border's number, image, dy, dx) of each distinct view.
        reference: the row of each unshifted image.
        views: protocol -> the row of each of its views.
        shifts: protocol -> (dy, dx) of its views, pixels.
        requested: number of views that the protocols need if each runs alone, unshifted images included.
    """

    rows: Float[Tensor, "row 4"]
    reference: Int[Tensor, " image"]
    views: dict[str, Int[Tensor, "image view"]]
    shifts: dict[str, Float[Tensor, "image view 2"]]
    requested: int

    @property
    def images(self) -> Int[Tensor, " row"]:
        """The image of each row."""
        return self.rows[:, 1].long()

    @property
    def steps(self) -> Float[Tensor, "row 2"]:
        """The shift of each row, (dy, dx) in pixels."""
        return self.rows[:, 2:]

    @property
    def whole_pixels(self) -> Tensor:
        """Whether each row shifts by whole pixels, [row]."""
        return (self.steps == self.steps.round()).all(dim=1)


def plan_views(protocols: Sequence[Protocol], framing: Framing, *, indices: Int[Tensor, " image"]) -> ViewPlan:
    """Return the distinct views that protocols need of some images.

    Args:
        protocols: what to measure.
        framing: how the model's input is cut from the images.
        indices: of the images in the data, increasing; their random shifts depend on them.
    """
    count, first = len(indices), int(indices[0])
    span = int(indices[-1]) - first + 1
    shifts = {
        protocol.name: protocol.draw(span, first=first)[indices - first].double() for protocol in protocols if protocol.scores
    }
    requested = [_rows(torch.zeros(count, 1, 2, dtype=torch.float64), 0)]
    for protocol in protocols:
        if protocol.scores:
            requested.append(_rows(shifts[protocol.name], BORDERS.index(framing.border(protocol))))
    rows, places = torch.cat(requested).unique(dim=0, return_inverse=True)
    parts = iter(places.split([len(part) for part in requested]))
    reference = next(parts)
    views = {name: next(parts).reshape(count, -1) for name in shifts}
    total = sum(each.numel() for each in views.values()) + count * len(protocols)
    return ViewPlan(rows, reference, views, shifts, total)


def _rows(shifts: Float[Tensor, "image view 2"], border: int) -> Float[Tensor, "row 4"]:
    count, views = shifts.shape[:2]
    image = torch.arange(count, dtype=torch.float64)[:, None].expand(count, views)
    borders = torch.where((shifts == 0).all(-1), 0.0, float(border)).double()
    # Adding zero turns -0 into 0, so that both are one row.
    return torch.cat([borders[..., None], image[..., None], shifts + 0.0], dim=-1).reshape(-1, 4)


def views_of(
    plan: ViewPlan, rows: Int[Tensor, " some"], images: Float[Tensor, "image channel tall wide"], framing: Framing
) -> Tensor:
    """Return the model's input for some rows of a plan, [some, channel, height, width].

    Views with the same border are formed together, whole and fractional shifts apart.
    """
    groups = plan.rows[rows, 0] * 2 + ~plan.whole_pixels[rows]
    if groups[0] > 1 and bool((groups == groups[0]).all()):  # unshifted images are copied, because a model may change its input
        return framing.view(images[plan.images[rows]], plan.steps[rows], BORDERS[int(groups[0]) // 2])
    batch = images.new_empty(len(rows), images.shape[1], *framing.size)
    for group in groups.unique():
        chosen = (groups == group).nonzero()[:, 0]
        border = BORDERS[int(group) // 2]
        batch[chosen] = framing.view(images[plan.images[rows[chosen]]], plan.steps[rows[chosen]], border)
    return batch
