"""Small random classifiers with images and a border, and radii by brute force: one image and one shift at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Leads relative to the output's norm: below the first a class does not lead, above the second it does on every machine.
NO_LEAD, LEAD = 1e-7, 1e-4


@dataclass(frozen=True)
class Case:
    """What to certify.

    Attributes:
        model: images -> classes.
        images: with their margin for crops.
        options: of ``certify``: mode, size, fill, radius.
        size: (height, width) of the model's input.
    """

    model: Callable[[Tensor], Tensor]
    images: Tensor
    options: dict[str, Any]
    size: tuple[int, int]


class Rounded(nn.Module):
    """A classifier whose outputs are whole numbers, so that classes tie."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return (4 * self.model(images)).round()


def random_case(seed: int) -> Case:
    """Return a random classifier, a few images and a border."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    radius, channels = draw.randint(1, 3), draw.choice([1, 3])
    size = (draw.randint(9, 13), draw.randint(9, 13))
    mode = draw.choice(["zero", "circular", "crop"])
    outer = tuple(side + 2 * radius for side in size) if mode == "crop" else size
    images = torch.rand(draw.randint(3, 8), channels, *outer)
    fill = draw.choice([0.0, 0.5])
    if mode == "zero" and draw.random() < 0.5:
        framed = torch.full_like(images, fill)
        framed[:, :, 3:-3, 3:-3] = images[:, :, 3:-3, 3:-3]
        images = framed
    options = {"mode": mode, "radius": radius, "fill": fill, **({"size": size} if mode == "crop" else {})}
    return Case(_model(draw, channels, size), images, options, size)


def _model(draw: random.Random, channels: int, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    padding: Any = draw.choice([{}, {"padding": 1}, {"padding": 1, "padding_mode": "circular"}])
    layers: list[nn.Module] = [nn.Conv2d(channels, 6, 3, stride=draw.choice([1, 1, 2]), **padding), nn.ReLU()]
    layers += draw.choice([[], [nn.MaxPool2d(2)], [nn.MaxPool2d(2, 1)], [nn.AvgPool2d(2)]])
    layers += draw.choice([[], [nn.Conv2d(6, 6, 2), nn.Tanh()]])
    features = nn.Sequential(*layers)
    shape = features(torch.zeros(1, channels, *size)).shape
    pooled = draw.random() < 0.5
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)] if pooled else [nn.Flatten(), nn.Linear(shape.numel(), 4)]
    with torch.no_grad():
        head[-1].weight.mul_(10.0 if pooled else 3.0)
    model = nn.Sequential(*features, *head).eval()
    kind = draw.choice(["module", "module", "rounded", "callable"])
    return Rounded(model).eval() if kind == "rounded" else (lambda images: model(images)) if kind == "callable" else model


def brute_force(case: Case) -> list[tuple[int, int]]:
    """Return each image's radius twice: if an answer must lead clearly, and if any lead will do; mostly both are the same."""
    return [_radii(case, image[None]) for image in case.images]


def _radii(case: Case, image: Tensor) -> tuple[int, int]:
    limit = case.options["radius"]
    leads = torch.full((limit + 1,), float("inf"))
    top = int(_run(case, image, 0, 0).argmax())
    for dy in range(-limit, limit + 1):
        for dx in range(-limit, limit + 1):
            output = _run(case, image, dy, dx)
            others = torch.cat([output[:top], output[top + 1 :]])
            ring = max(abs(dy), abs(dx))
            leads[ring] = min(leads[ring], (output[top] - others.max()) / output.norm().clamp_min(1e-30))
    least, most = (next((ring for ring in range(limit + 1) if leads[ring] <= lead), limit + 1) - 1 for lead in (LEAD, NO_LEAD))
    return least, most


def _run(case: Case, image: Tensor, dy: int, dx: int) -> Tensor:
    with torch.no_grad():
        return case.model(_moved(case, image, dy, dx))[0]


def _moved(case: Case, image: Tensor, dy: int, dx: int) -> Tensor:
    """Return the model's input for a shift: cut from the image with what surrounds it."""
    if case.options["mode"] == "circular":
        return image.roll((dy, dx), (2, 3))
    reach = case.options["radius"]
    large = image if case.options["mode"] == "crop" else functional.pad(image, (reach,) * 4, value=case.options["fill"])
    top, left = ((outer - inner) // 2 for outer, inner in zip(large.shape[2:], case.size, strict=True))
    return large[:, :, top - dy : top - dy + case.size[0], left - dx : left - dx + case.size[1]].clone()
