"""Training images are those of the training split, and never the ones that a model is measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shiftscope.datasets.dataset import DataSpec, load
from shiftscope.datasets.images import ImageBlocks, open_images
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.datasets.training import TrainingImages, read_training_images
from shiftscope.errors import InputError

INPUT = Preprocessing(size=16)


def write(folder: Path, seed: int, count: int = 6, classes: tuple[str, ...] = ("ant", "bee")) -> None:
    """Write photos of several classes."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        place = folder / classes[number % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), np.uint8)).save(place / f"{number}.png")


def pixels(found: ImageBlocks | TrainingImages) -> set[bytes]:
    images = found.images if isinstance(found, TrainingImages) else found.read_all().images
    return {image.numpy().tobytes() for image in images}


def test_folder_without_splits_gives_the_images_that_are_not_measured(tmp_path: Path) -> None:
    write(tmp_path / "photos", 0, count=10)
    measured = open_images(str(tmp_path / "photos"), count=4, preprocessing=INPUT, channels=3)
    found = read_training_images(str(tmp_path / "photos"), measured, preprocessing=INPUT, channels=3)
    assert len(found.images) == 6 and not pixels(found) & pixels(measured)
    assert found.classes == 2 and set(found.labels.tolist()) <= {0, 1}
    assert found.notes == ("4 images of the training data are left out, because the model is measured on them.",)
    some = read_training_images(str(tmp_path / "photos"), measured, count=3, preprocessing=INPUT, channels=3)
    assert len(some.images) == 3 and pixels(some) <= pixels(found)
    assert some.checksum != found.checksum


def test_folder_with_splits_gives_its_training_split_without_copies_of_measured_images(tmp_path: Path) -> None:
    write(tmp_path / "photos" / "train", 0)
    write(tmp_path / "photos" / "test", 1)
    copy = next((tmp_path / "photos" / "test" / "bee").iterdir())
    (tmp_path / "photos" / "train" / "bee" / "copy.png").write_bytes(copy.read_bytes())
    measured = open_images(str(tmp_path / "photos"), count=9, preprocessing=INPUT, channels=3)
    found = read_training_images(str(tmp_path / "photos"), measured, preprocessing=INPUT, channels=3)
    assert len(found.images) == 6 and not pixels(found) & pixels(measured)


@pytest.mark.parametrize("trained_on", [DataSpec(image_size=12, canvas=20, train_images=30, validation_images=100), None])
def test_digits_give_all_that_are_not_measured(trained_on: DataSpec | None) -> None:
    preprocessing = Preprocessing(size=20)
    measured = open_images("digits", count=50, preprocessing=preprocessing, channels=1, trained_on=trained_on)
    found = read_training_images("digits", measured, preprocessing=preprocessing, channels=1, trained_on=trained_on)
    assert not pixels(found) & pixels(measured)
    if trained_on is not None:
        data = load(trained_on)
        assert len(found.images) >= 1430 and not pixels(found) & {
            image.numpy().tobytes() for image in data.canvas.place(data.test.images)
        }
    else:
        assert 1700 < len(found.images) <= 1747


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere", "`train` must be an existing folder"),
        (lambda folder: write(folder / "one", 0, classes=("ant",)) or folder / "one", "two or more subfolders"),
        (lambda folder: folder / "photos", "only images that the model is measured on"),
        (lambda folder: "digits", "those of digits have 1. Choose others with --train"),
    ],
)
def test_unusable_training_images_are_refused(make: object, words: str, tmp_path: Path) -> None:
    write(tmp_path / "photos", 0)
    measured = open_images(str(tmp_path / "photos"), count=6, preprocessing=INPUT, channels=3)
    with pytest.raises(InputError, match=words):
        read_training_images(str(make(tmp_path)), measured, preprocessing=INPUT, channels=3)  # type: ignore[operator]  # a function


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "photos", 0)
    measured = open_images("digits", count=6, preprocessing=Preprocessing(size=20), channels=1)
    with pytest.raises(InputError, match="margin included, and the measured ones have 1x20x20"):
        read_training_images(str(tmp_path / "photos"), measured, preprocessing=Preprocessing(size=18), channels=1)


def test_more_images_than_memory_holds_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftscope.datasets.training.free_memory", lambda: 100_000)
    measured = open_images("digits", count=6, preprocessing=Preprocessing(size=20), channels=1)
    with pytest.raises(InputError, match=r"Give --train-images, at most \d+"):
        read_training_images("digits", measured, preprocessing=Preprocessing(size=20), channels=1)


def test_labels_of_training_images_mean_what_those_of_the_measured_ones_mean(tmp_path: Path) -> None:
    write(tmp_path / "photos", 0)
    write(tmp_path / "train", 1, classes=("Bee", "Ant"))
    write(tmp_path / "other", 2, classes=("0", "1"))
    measured = open_images(str(tmp_path / "photos"), count=9, preprocessing=INPUT, channels=3).numbered_as(("cat", "bee", "ant"))
    assert measured is not None
    found = read_training_images(str(tmp_path / "train"), measured, preprocessing=INPUT, channels=3)
    assert found.classes == 3
    assert sorted(found.labels.tolist()) == [1, 1, 1, 2, 2, 2]
    bees = {image.numpy().tobytes() for image, label in zip(found.images, found.labels, strict=True) if label == 1}
    own = open_images(str(tmp_path / "train"), count=9, preprocessing=INPUT, channels=3).read_all()
    assert own.labels is not None
    assert bees == {image.numpy().tobytes() for image, label in zip(own.images, own.labels, strict=True) if label == 1}
    with pytest.raises(InputError, match=r"has other classes \(0 0, 1 1\) than the measured images or the model"):
        read_training_images(str(tmp_path / "other"), measured, preprocessing=INPUT, channels=3)
