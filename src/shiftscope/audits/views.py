"""Shifted views of images: what comes in at each kind of border, and which views of a block are really different."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from shiftscope.audits.protocols import Border, Protocol
from shiftscope.errors import InputError
from shiftscope.shifts import Mode, translate, translate_by_parts

__all__ = ["BORDERS", "Plan", "Scene", "planned"]

#: Borders by number; an unshifted image is the same for all of them and has number 0.
BORDERS: tuple[Border | None, ...] = (None, "zero", "mean", "circular", "crop", "reflect", "replicate")


@dataclass(frozen=True)
class Scene:
    """What surrounds the images.

    Attributes:
        size: (height, width) of the model's input, cut from the images' centre.
        margin: (rows, columns) of the images left around that on each side, pixels.
        fill: the canvas's colour.
        mean: the mean colour, where it is known.
    """

    size: tuple[int, int]
    margin: tuple[int, int]
    fill: tuple[float, ...]
    mean: tuple[float, ...] | None

    def border(self, protocol: Protocol) -> Border:
        """What a protocol's border means here: crops of images without a margin are cut from the canvas's colour.

        Raises:
            InputError: the crops of a protocol reach further than the margin.
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
                f"{min(self.margin)} around a model input of {self.size[0]}x{self.size[1]}. Lower `max_shift` or give larger "
                "images."
            )
        return border

    def centre(self, images: Float[Tensor, "image channel tall wide"]) -> Float[Tensor, "image channel height width"]:
        """The images as the model sees them unshifted."""
        top, left = ((whole - part) // 2 for whole, part in zip(images.shape[2:], self.size, strict=True))
        return images[:, :, top : top + self.size[0], left : left + self.size[1]]

    def view(
        self,
        images: Float[Tensor, "image channel tall wide"],
        shifts: Float[Tensor, "image 2"],
        border: Border | None,
    ) -> Float[Tensor, "image channel height width"]:
        """Each image under its own shift, (dy, dx) in pixels or parts of them."""
        centre = self.centre(images)
        if border is None:
            return centre
        if border == "circular":
            return _moved(centre, shifts, circular=True, fill=torch.zeros(1))
        if border in ("zero", "mean"):
            colour = self.fill if border == "zero" or self.mean is None else self.mean
            return _moved(centre, shifts, circular=False, fill=torch.tensor(colour).to(images))
        if border == "crop":
            large = images
        else:
            reach = ceil(float(shifts.abs().max())) + 1
            large = functional.pad(centre, (reach,) * 4, mode=border)
        return self.centre(_moved(large, shifts, circular=False, fill=torch.zeros(1)))


def _moved(images: Tensor, shifts: Tensor, *, circular: bool, fill: Tensor) -> Tensor:
    mode: Mode = "circular" if circular else "zero"
    colour = fill.to(images).expand(images.shape[1])
    if (shifts == shifts.round()).all():
        return translate(images, shifts.long(), mode=mode, fill=colour)
    return translate_by_parts(images, shifts.to(images), mode=mode, fill=colour)


@dataclass(frozen=True)
class Plan:
    """The views of a block of images, each once.

    Attributes:
        rows: (border's number, image, dy, dx) of each.
        reference: where among them each unshifted image is.
        views: by protocol, where each of its views is.
        shifts: by protocol, of its views.
        asked: how many views the protocols name, counted one by one, each with its own unshifted images.
    """

    rows: Float[Tensor, "row 4"]
    reference: Int[Tensor, " image"]
    views: dict[str, Int[Tensor, "image view"]]
    shifts: dict[str, Float[Tensor, "image view 2"]]
    asked: int

    @property
    def images(self) -> Int[Tensor, " row"]:
        """The image of each row."""
        return self.rows[:, 1].long()


def planned(protocols: Sequence[Protocol], scene: Scene, *, numbers: Int[Tensor, " image"]) -> Plan:
    """What has to be run for some images.

    Args:
        protocols: what is asked.
        scene: what surrounds the images.
        numbers: of the images among all, rising: what they draw depends on it.
    """
    count, first = len(numbers), int(numbers[0])
    span = int(numbers[-1]) - first + 1
    shifts = {
        protocol.name: protocol.draw(span, first=first)[numbers - first].double() for protocol in protocols if protocol.scores
    }
    asked = [_rows(torch.zeros(count, 1, 2, dtype=torch.float64), 0)]
    for protocol in protocols:
        if protocol.scores:
            asked.append(_rows(shifts[protocol.name], BORDERS.index(scene.border(protocol))))
    rows, places = torch.cat(asked).unique(dim=0, return_inverse=True)
    parts = iter(places.split([len(part) for part in asked]))
    reference = next(parts)
    views = {name: next(parts).reshape(count, -1) for name in shifts}
    named = sum(each.numel() for each in views.values()) + count * len(protocols)
    return Plan(rows, reference, views, shifts, named)


def _rows(shifts: Float[Tensor, "image view 2"], border: int) -> Float[Tensor, "row 4"]:
    count, views = shifts.shape[:2]
    number = torch.arange(count, dtype=torch.float64)[:, None].expand(count, views)
    kind = torch.where((shifts == 0).all(-1), 0.0, float(border)).double()
    # Adding zero makes -0 and 0 one.
    return torch.cat([kind[..., None], number[..., None], shifts + 0.0], dim=-1).reshape(-1, 4)
