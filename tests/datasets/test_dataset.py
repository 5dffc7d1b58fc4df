"""Splits are fixed and disjoint, the canvas is what it says, and the embedded digits need nothing from outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shiftscope.datasets.dataset import Canvas, Dataset, DataSpec, load
from shiftscope.datasets.sources import Labelled
from shiftscope.errors import InputError

DIGITS = {"name": "digits", "image_size": 20, "validation_images": 150}


def pictures(data: Dataset) -> list[set[bytes]]:
    return [{image.numpy().tobytes() for image in part.images} for part in (data.train, data.validation, data.test)]


def test_the_digits_are_split_once_and_for_all_without_overlap() -> None:
    data, again = load(DataSpec(**DIGITS)), load(DataSpec(**DIGITS))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1288, 150, 359]
    assert torch.equal(data.test.images, again.test.images)
    assert torch.equal(data.validation.labels, again.validation.labels)
    train, validation, test = pictures(data)
    assert not (train & validation or train & test or validation & test)
    assert data.checksum == again.checksum


def test_another_split_seed_holds_out_other_images() -> None:
    data, other = load(DataSpec(**DIGITS)), load(DataSpec(**DIGITS, split_seed=1))
    assert pictures(data)[2] != pictures(other)[2]
    assert data.checksum == other.checksum


def test_subsets_have_the_sizes_asked_for() -> None:
    data = load(DataSpec(**DIGITS, train_images=100, test_images=50))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [100, 150, 50]


def test_statistics_are_those_of_the_training_images() -> None:
    data = load(DataSpec(**DIGITS))
    pixels = data.train.images.double() / 255
    assert data.mean.item() == pytest.approx(pixels.mean().item(), abs=1e-6)
    assert data.deviation.item() == pytest.approx(pixels.std(correction=0).item(), abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (2, 3, 5, 4), (0, 1, 4, 4)])
def test_the_canvas_without_shifts_is_the_canvas_with_shifts_of_zero(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    canvas = Canvas(9, torch.linspace(0.1, 0.9, shape[1]))
    assert torch.equal(canvas.place(images), canvas.place(images, torch.zeros(shape[0], 2, dtype=torch.long)))


def test_the_canvas_surrounds_the_image_by_its_colour() -> None:
    placed = Canvas(8, torch.tensor([0.2, 0.4])).place(torch.full((1, 2, 4, 4), 255, dtype=torch.uint8), torch.tensor([[1, -2]]))
    assert placed.shape == (1, 2, 8, 8)
    assert placed[0, :, 3:7, 0:4].eq(1).all()
    assert placed[0, 0].lt(1).sum() == 48
    assert placed[0, 1, 0, 7].item() == pytest.approx(0.4, abs=1 / 500)


def test_a_mean_coloured_canvas_vanishes_under_normalisation() -> None:
    data = load(DataSpec(**DIGITS, background="mean"))
    corner: Tensor = (data.canvas.place(data.test.images)[0, :, 0, 0] - data.mean) / data.deviation
    assert corner.abs().max() < 0.01
    assert torch.equal(data.canvas.place(data.test.images)[0, :, 0, 0], data.canvas.colour)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"canvas": 16}, "`data.canvas` must be at least as large as the image, got 16 for images of 20x20"),
        ({"train_images": 1500}, "`data.train_images` asks for 1500 images, but only 1288 of 1797 are left"),
        ({"validation_images": 1700}, "`data.train_images` asks for 1 images, but only 0"),
        ({"test_images": 2000}, "`data.test_images` asks for 2000 images, but only 1797"),
    ],
)
def test_impossible_data_is_told_in_a_sentence(settings: dict[str, int], text: str) -> None:
    with pytest.raises(InputError, match=text):
        load(DataSpec(**{**DIGITS, **settings}))


def test_labelled_images_are_picked_together() -> None:
    labelled = Labelled(torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1), torch.arange(4))
    picked = labelled[torch.tensor([3, 1])]
    assert picked.images.flatten().tolist() == picked.labels.tolist() == [3, 1]
