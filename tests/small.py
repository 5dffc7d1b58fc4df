"""A small study, and data and networks that train in a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from shiftscope.datasets.dataset import Canvas
from shiftscope.datasets.sources import Labelled
from shiftscope.models.family import Network, NetworkSpec, build
from shiftscope.runtime.progress import Report, silent
from shiftscope.studies.spec import Study
from shiftscope.tables import Table
from shiftscope.training.loop import Training, train
from shiftscope.training.recipe import Recipe

#: Four runs on the digits, of which factor 4 has a source.
SMALL = """
title = "Small"
seeds = 2
[data]
image_size = 10
canvas = 22
validation_images = 100
train_images = 300
test_images = 60
[network]
channels = [4, 8]
[training]
max_epochs = 2
[measure]
max_shift = 6
[grid]
network.factor = [1, 4]
[source]
title = "a table"
[[source.cells]]
network.factor = 4
mcs = 0.5
"""
#: One run on the digits.
TINY = """
title = "Tiny"
seeds = 1
[data]
image_size = 10
canvas = 20
validation_images = 60
train_images = 200
test_images = 40
[network]
channels = [4, 6]
padding = "same"
[training]
max_epochs = 1
[grid]
network.factor = [4]
[measure]
max_shift = 5
"""


@dataclass(frozen=True)
class Finished:
    """A finished study, its folder and its table."""

    study: Study
    out: Path
    table: Table


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as worker processes do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SPEC = NetworkSpec(channels=(4, 8), factor=4, input_size=12, classes=4)
CANVAS = Canvas(12, torch.zeros(1))


def blobs(count: int, seed: int) -> Labelled:
    """Return images of 8x8 pixels of four classes: which quarter is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 150
    return Labelled(images, labels)


def fresh(seed: int = 0) -> Network:
    """Return an untrained network for the blobs."""
    return build(SPEC, generator=torch.Generator().manual_seed(seed))


def fit(model: nn.Module, *, seed: int = 0, report: Report = silent, **settings: object) -> Training:
    """Train a model on the blobs."""
    recipe = Recipe.model_validate({"learning_rate": 0.01, "max_epochs": 30, "patience": 1, **settings})
    return train(model, (blobs(200, 0), blobs(60, 1)), recipe, place=CANVAS.place, seed=seed, report=report)
