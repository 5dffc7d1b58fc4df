"""Splits are fixed and disjoint, and images are placed on the canvas as specified."""

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


def test_digits_have_fixed_disjoint_splits() -> None:
    data, again = load(DataSpec(**DIGITS)), load(DataSpec(**DIGITS))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1288, 150, 359]
    assert torch.equal(data.test.images, again.test.images)
    assert torch.equal(data.validation.labels, again.validation.labels)
    train, validation, test = pictures(data)
    assert not (train & validation or train & test or validation & test)
    assert data.checksum == again.checksum


def test_split_seed_changes_the_held_out_images() -> None:
    data, other = load(DataSpec(**DIGITS)), load(DataSpec(**DIGITS, split_seed=1))
    assert pictures(data)[2] != pictures(other)[2]
    assert data.checksum == other.checksum


def test_subsets_have_the_specified_sizes() -> None:
    data = load(DataSpec(**DIGITS, train_images=100, test_images=50))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [100, 150, 50]


def test_statistics_are_of_the_training_images() -> None:
    data = load(DataSpec(**DIGITS))
    pixels = data.train.images.double() / 255
    assert data.mean.item() == pytest.approx(pixels.mean().item(), abs=1e-6)
    assert data.deviation.item() == pytest.approx(pixels.std(correction=0).item(), abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (2, 3, 5, 4), (0, 1, 4, 4)])
def test_canvas_without_shifts_equals_shifts_of_zero(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    canvas = Canvas(9, torch.linspace(0.1, 0.9, shape[1]))
    assert torch.equal(canvas.place(images), canvas.place(images, torch.zeros(shape[0], 2, dtype=torch.long)))


def test_canvas_surrounds_the_image_by_its_colour() -> None:
    placed = Canvas(8, torch.tensor([0.2, 0.4])).place(torch.full((1, 2, 4, 4), 255, dtype=torch.uint8), torch.tensor([[1, -2]]))
    assert placed.shape == (1, 2, 8, 8)
    assert placed[0, :, 3:7, 0:4].eq(1).all()
    assert placed[0, 0].lt(1).sum() == 48
    assert placed[0, 1, 0, 7].item() == pytest.approx(0.4, abs=1 / 500)


def test_mean_canvas_is_zero_after_normalisation() -> None:
    data = load(DataSpec(**DIGITS, background="mean"))
    corner: Tensor = (data.canvas.place(data.test.images)[0, :, 0, 0] - data.mean) / data.deviation
    assert corner.abs().max() < 0.01
    assert torch.equal(data.canvas.place(data.test.images)[0, :, 0, 0], data.canvas.colour)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"canvas": 16}, "`data.canvas` must be at least as large as the image, got 16 for images of 20x20"),
        ({"train_images": 1500}, "`data.train_images` asks for 1500 images, but only 1288 of 1797 are left"),
        ({"test_images": 2000}, "`data.test_images` asks for 2000 images, but only 1797"),
    ],
)
def test_impossible_data_is_refused(settings: dict[str, int], text: str) -> None:
    with pytest.raises(InputError, match=text):
        load(DataSpec(**{**DIGITS, **settings}))


def test_images_and_labels_are_picked_together() -> None:
    labelled = Labelled(torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1), torch.arange(4))
    picked = labelled[torch.tensor([3, 1])]
    assert picked.images.flatten().tolist() == picked.labels.tolist() == [3, 1]


def test_small_data_hold_out_a_fifth() -> None:
    data = load(DataSpec(image_size=20, validation_images=5000))
    assert len(data.validation) == (len(data.train) + len(data.validation)) // 5
