"""A small object detector and scenes of handwritten digits with known boxes, to train it on in a minute.

A detector of one map: each cell of a backbone that subsamples by 4 or 8 says which digit has its centre there and where its box
ends. It is as simple as a detector can be, and shows what large ones show: its confidence depends on where an object lies on the
grid of its stride.

    shiftscope audit benchmarks/digit_scenes.py:detector --trust --weights detector.safetensors --data scenes --truth scenes.json
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from shiftscope.layers import MaxBlurPool2d

#: Height and width of a scene, pixels; how often digits of 8x8 pixels are enlarged; their largest number in a scene.
SIDE, SCALES, MOST = 80, (2, 5), 3
#: Least confidence of a box that the detector returns, and the overlap of boxes of a class of which one is dropped.
LEAST, OVERLAP = 0.05, 0.5
CLASSES = 10
#: A pixel of a digit is ink from this value on, of 1.
INK = 0.2


@dataclass(frozen=True)
class Scene:
    """An image [1, side, side] in [0, 1], its boxes (x1, y1, x2, y2) in pixels, and the digit in each."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


@cache
def _digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.images).float() / 16, torch.tensor(data.target)


def draw_scene(generator: torch.Generator, *, held_out: bool, margin: int = 0) -> Scene:
    """Return a scene of 1 to 3 digits that do not touch.

    Args:
        generator: draws it.
        held_out: whether to use the last 400 digits, which no training draws, or the others.
        margin: pixels to keep clear at each border.
    """
    images, targets = _digits()
    image, boxes, labels = torch.zeros(1, SIDE, SIDE), [], []
    for _ in range(int(torch.randint(1, MOST + 1, (), generator=generator))):
        number = int(torch.randint(len(images) - 400, (), generator=generator))
        number = len(images) - 1 - number % 400 if held_out else number
        scale = SCALES[int(torch.randint(len(SCALES), (), generator=generator))]
        digit = images[number].repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        rows, columns = (torch.nonzero((digit > INK).any(dim=axis)).flatten() for axis in (1, 0))
        digit = digit[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        height, width = digit.shape
        room = torch.tensor([SIDE - 2 * margin - height, SIDE - 2 * margin - width])
        y, x = (margin + torch.rand(2, generator=generator) * (room + 1)).long().tolist()
        if image[0, max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2].any():
            continue
        image[0, y : y + height, x : x + width] = digit
        boxes.append([x, y, x + width, y + height])
        labels.append(int(targets[number]))
    return Scene(image, torch.tensor(boxes).float(), torch.tensor(labels))


def draw_scenes(count: int, seed: int, *, held_out: bool = False, margin: int = 0) -> list[Scene]:
    """Return so many scenes, drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return [draw_scene(generator, held_out=held_out, margin=margin) for _ in range(count)]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class DigitDetector(nn.Module):
    """Images [image, 1, height, width] in [0, 1] -> a dict of ``boxes``, ``scores`` and ``labels`` for each.

    Args:
        factor: the backbone's subsampling factor, 4 or 8.
        blur: whether pools are anti-aliased (Zhang 2019).
    """

    def __init__(self, factor: int = 8, *, blur: bool = False) -> None:
        super().__init__()
        channels, layers = (8, 16, 32, 48), list[nn.Module]()
        for place, (inputs, outputs) in enumerate(zip((1, *channels[:-1]), channels, strict=True)):
            layers.append(_block(inputs, outputs))
            if 2 ** (place + 1) <= factor:
                layers.append(MaxBlurPool2d(2) if blur else nn.MaxPool2d(2))
        self.factor = factor
        self.backbone = nn.Sequential(*layers, _block(channels[-1], channels[-1]))
        self.head = nn.Conv2d(channels[-1], CLASSES + 4, 1)
        nn.init.constant_(self.head.bias[:CLASSES], -4.0)  # type: ignore[index]  # most cells are empty

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Return each image's detections, the most confident first."""
        scores, boxes = self.cells(images)
        return [_best(*each) for each in zip(scores.sigmoid(), boxes, strict=True)]

    def cells(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [image, cell, class] and boxes [image, cell, 4] of all cells."""
        maps = self.head(self.backbone(images)).flatten(2).transpose(1, 2)
        centres = self.centres(images.shape[2], images.shape[3]).to(images)
        reach = functional.softplus(maps[..., CLASSES:]) * self.factor
        boxes = torch.cat([centres - reach[..., :2], centres + reach[..., 2:]], dim=-1)
        return maps[..., :CLASSES], boxes

    def centres(self, height: int, width: int) -> Tensor:
        """Return the centre (x, y) of each cell, pixels, row by row."""
        rows, columns = (torch.arange(size // self.factor) * self.factor + self.factor / 2 for size in (height, width))
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1).reshape(-1, 2)


def _best(scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """Return the detections of an image: of boxes of one class that overlap, the most confident."""
    confidence, labels = scores.max(dim=-1)
    order = confidence.argsort(descending=True, stable=True)
    order = order[confidence[order] >= LEAST]
    boxes, confidence, labels = boxes[order], confidence[order], labels[order]
    low, high = torch.maximum(boxes[:, None, :2], boxes[None, :, :2]), torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared, area = (high - low).clamp_min(0).prod(-1), (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    clash = (shared > OVERLAP * (area[:, None] + area - shared)) & (labels[:, None] == labels)
    kept: list[int] = []
    for number, row in enumerate(clash.tolist()):
        if not any(row[other] for other in kept):
            kept.append(number)
    return {"boxes": boxes[kept], "scores": confidence[kept], "labels": labels[kept]}


def loss(model: DigitDetector, scenes: list[Scene]) -> Tensor:
    """Return the focal loss of the cells (Lin et al. 2017) plus the error of the boxes near an object's centre, in cells."""
    logits, boxes = model.cells(torch.stack([scene.image for scene in scenes]))
    centres = model.centres(SIDE, SIDE)
    target, error, objects = torch.zeros_like(logits), torch.zeros(()), 0
    for number, scene in enumerate(scenes):
        for box, label in zip(scene.boxes, scene.labels.tolist(), strict=True):
            apart = (centres - (box[:2] + box[2:]) / 2).abs().amax(dim=1)
            target[number, apart.argmin(), label] = 1
            near = apart <= model.factor
            error = error + (boxes[number, near] - box).abs().mean() / model.factor
            objects += 1
    probability = logits.sigmoid()
    wrong = torch.where(target > 0, 1 - probability, probability)
    found = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * wrong.square()
    return (found.sum() + 0.5 * error) / max(objects, 1)


def train(model: DigitDetector, steps: int, *, seed: int = 0, batch: int = 24) -> DigitDetector:
    """Train on new scenes at every step, by AdamW with one cycle of the learning rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, [draw_scene(generator, held_out=False) for _ in range(batch)]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def detector() -> DigitDetector:
    """Return the detector of factor 8, untrained: the factory for ``shiftscope audit``."""
    return DigitDetector().eval()
