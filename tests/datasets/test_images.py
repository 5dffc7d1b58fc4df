"""Every command reads the same images: photos of any size, small sets and a study's own, each prepared for the model."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import pixels, write_parquet
from shiftscope.datasets.dataset import DataSpec
from shiftscope.datasets.images import open_images
from shiftscope.datasets.photos import Crop, plan_crop
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.errors import InputError
from zoo import torchvision_models

SIZES = [(60, 40), (33, 57), (48, 48), (100, 41), (40, 90)]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos of five sizes in two classes; the working directory is their parent."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHIFTSCOPE_DATA", raising=False)
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES * 2):
        folder = tmp_path / "photos" / ("ant" if number % 2 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize(("size", "shorter"), [(32, 37), (32, 36), (32, 32), (31, 40), (33, 40)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SIZES)
def test_centre_of_a_crop_equals_torchvision(size: int, shorter: int, interpolation: str, shape: tuple[int, int]) -> None:
    torchvision_models()
    from torchvision.transforms import functional

    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (shape[1], shape[0], 3), np.uint8))
    mode = functional.InterpolationMode(interpolation)
    expected = functional.to_tensor(functional.center_crop(functional.resize(image, shorter, mode), size))
    crop = Crop((size, size), (shorter, shorter), 3, interpolation)
    found = crop.apply(image)
    edge = crop.margin
    assert found.shape == (3, size + 2 * edge, size + 2 * edge)
    assert torch.equal(found[:, edge : edge + size, edge : edge + size], expected)


@pytest.mark.parametrize("size", [(48, 24), (24, 48), (31, 32)])
@pytest.mark.parametrize("shape", SIZES)
def test_crop_that_is_not_square_covers_it_and_keeps_the_aspect(size: tuple[int, int], shape: tuple[int, int]) -> None:
    torchvision_models()
    from torchvision.transforms import functional

    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (*shape, 3), np.uint8))
    crop = plan_crop(Preprocessing(size=size), own=(3, *shape), channels=3, max_shift=3)
    scale = max(Fraction(there, here) for there, here in zip(crop.cover, shape, strict=True))
    expected = functional.to_tensor(functional.center_crop(functional.resize(image, [int(side * scale) for side in shape]), size))
    found, edge = crop.apply(image), crop.margin
    assert edge >= 3
    assert found.shape == (3, size[0] + 2 * edge, size[1] + 2 * edge)
    assert torch.equal(found[:, edge : edge + size[0], edge : edge + size[1]], expected)


def test_small_images_lie_in_the_centre_of_an_input_that_is_not_square() -> None:
    images = open_images("digits", count=3, preprocessing=Preprocessing(size=(40, 24)))
    alone = open_images("digits", count=3, preprocessing=Preprocessing(size=24)).read_all().images
    found = images.read_all().images
    assert (images.shape, images.size, images.margin) == ((1, 40, 24), (40, 24), 6)
    assert torch.equal(found[:, :, 8:32], alone)
    assert not found[:, :, :8].any() and not found[:, :, 32:].any()
    assert images.preparation == "images of 12x12 on a canvas of 24x24, in the centre of 40x24"


@pytest.mark.parametrize(
    ("preprocessing", "max_shift", "shape", "preparation"),
    [
        (Preprocessing(size=28), None, 34, "shorter side to 34 pixels (bilinear), centre of 28x28, margin 3"),
        (Preprocessing(size=28), 6, 40, "shorter side to 40 pixels (bilinear), centre of 28x28, margin 6"),
        (
            Preprocessing(size=28, crop=0.7, interpolation="bicubic"),
            None,
            40,
            "to 40 pixels (bicubic), centre of 28x28, margin 6",
        ),
        (Preprocessing(size=28, resize=28), 2, 32, "to 32 pixels (bilinear; the model's 28 leaves too little room for shifts)"),
    ],
)
def test_photos_are_prepared_as_the_model_says(
    preprocessing: Preprocessing, max_shift: int | None, shape: int, preparation: str, photos: Path
) -> None:
    found = open_images(str(photos), count=20, preprocessing=preprocessing, channels=3, max_shift=max_shift)
    assert found.shape == (3, shape, shape)
    assert found.read_all().images.shape == (10, 3, shape, shape)
    assert preparation in found.preparation


def test_photos_of_the_input_size_are_taken_whole_unless_the_model_says_otherwise(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (28, 28, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    found = open_images(str(tmp_path), count=1, preprocessing=Preprocessing(size=28)).read_all()
    assert torch.equal(found.images[0], torch.from_numpy(array).permute(2, 0, 1) / 255)
    assert open_images(str(tmp_path), count=1, preprocessing=Preprocessing(size=28, crop=0.7)).shape == (3, 40, 40)


@pytest.mark.parametrize(("beside", "words"), [(0, ""), (1, "1 image of image folder"), (3, "3 images of image folder")])
def test_images_beside_class_folders_are_left_out_and_counted(tmp_path: Path, beside: int, words: str) -> None:
    for name in ("a/0.png", "b/0.png", *(f"{number}.png" for number in range(beside))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    found = open_images(str(tmp_path), count=2, preprocessing=Preprocessing(size=16))
    assert found.count == 2
    assert [words in note and "beside its class folders" in note for note in found.notes] == [True] * bool(beside)


def test_count_is_the_number_of_images_and_a_smaller_one_picks_among_them(photos: Path) -> None:
    every, some = (open_images("photos", count=count, preprocessing=Preprocessing(size=16)) for count in (99, 4))
    assert (every.count, every.choice) == (10, "all 10 images of image folder photos")
    assert "holds 10 images, fewer than the 99 requested" in every.notes[0]
    assert (some.count, some.choice) == (4, "4 of 10 images of image folder photos")
    assert {some.name(number) for number in range(4)} < {every.name(number) for number in range(10)}


def test_parquet_files_of_any_size_give_the_images_of_the_folder(photos: Path, tmp_path: Path) -> None:
    folder = open_images("photos", count=9, preprocessing=Preprocessing(size=16)).read_all()
    files = [photos / name for name in open_images("photos", count=10, preprocessing=Preprocessing(size=16)).source.names]
    (tmp_path / "table").mkdir()
    arrays = [np.asarray(Image.open(file)) for file in files]
    write_parquet(tmp_path / "table" / "all.parquet", arrays, [int(file.parent.name == "bee") for file in files], ("ant", "bee"))
    table = open_images("table", count=9, preprocessing=Preprocessing(size=16))
    found = table.read_all()
    assert torch.equal(found.images, folder.images)
    assert torch.equal(found.labels, folder.labels)
    assert torch.equal(table.read(3, 5).images, folder.images[3:5])
    assert table.choice == "9 of 10 images of parquet files of table"


def test_parquet_data_set_gives_its_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    write_parquet(tmp_path / "pets" / "train.parquet", pixels(4, 20, 3), [0, 1, 0, 1])
    write_parquet(tmp_path / "pets" / "test.parquet", pixels(3, 20, 3, seed=1), [1, 1, 0])
    found = open_images("pets", count=5, preprocessing=Preprocessing(size=20))
    assert (found.count, found.origin) == (3, "the test split of parquet files of pets")
    assert found.read_all().labels.tolist() == [1, 1, 0]
    assert torch.equal(found.read_all().images, torch.from_numpy(pixels(3, 20, 3, seed=1)).permute(0, 3, 1, 2) / 255)


def test_digits_have_no_hidden_split_unless_a_study_trained_on_them() -> None:
    assert open_images("digits", count=9999).found == 1797
    ours = open_images(None, count=9999, trained_on=DataSpec(image_size=20, validation_images=10))
    assert (ours.found, ours.origin) == (359, "the test split of scikit-learn load_digits")
    assert (ours.margin, ours.default_shift, ours.preparation) == (10, 8, "images of 20x20 on a canvas of 40x40")


def test_small_set_is_scaled_to_the_input_block_by_block(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    for name in ("train", "test"):
        write_parquet(tmp_path / "cifar10" / f"{name}.parquet", pixels(9, 32, 3), [0, 1] * 4 + [0])
    found = open_images("cifar10", count=5, preprocessing=Preprocessing(size=48), channels=3, data_dir=tmp_path)
    assert found.read(1, 4).images.shape == (3, 3, 48, 48)
    assert found.source.images.shape == (5, 3, 32, 32)
    assert found.preparation == "images of 32x32, scaled to 48x48 (bilinear)"
    other = open_images("cifar10", count=50, data_dir=tmp_path)
    assert other.shape == (3, 32, 32)
    assert other.notes == ("The data holds 9 test images, fewer than the 50 requested.",)


@pytest.mark.parametrize(
    ("name", "size", "channels", "message"),
    [
        ("photos", None, 3, r"`size` must be given: .* the images are (60x40|40x60)"),
        ("photos", 16, 4, r"images of 4 channels, and those of a folder have 1 or 3"),
        (None, 16, 4, r"`data` must be given: the model takes images of 4x16x16"),
        ("digits", 16, 4, r"images of 4 channels, but those of digits have 1"),
        ("photos/bee/none", 16, 3, r"`data` must be an existing folder, but photos/bee/none does not exist"),
        ("photos/wasp", 16, 3, r"`data` must be an existing folder, but photos/wasp does not exist"),
        ("./none", 16, 3, r"but ./none does not exist"),
        ("photos/bee/0.png", 16, 3, r"but photos/bee/0.png is a file, not a folder"),
    ],
)
def test_images_that_do_not_suit_the_model_are_refused(
    name: str | None, size: int | None, channels: int, message: str, photos: Path
) -> None:
    with pytest.raises(InputError, match=message):
        open_images(name, count=3, preprocessing=Preprocessing(size=size), channels=channels)


def test_classes_of_a_folder_are_numbered_by_name_and_said_so(photos: Path) -> None:
    found = open_images("photos", count=10, preprocessing=Preprocessing(size=16))
    assert found.class_names == ("ant", "bee")
    assert found.all_notes[-1] == "Classes are numbered in the order of their folders' names: 0 ant, 1 bee."


@pytest.mark.parametrize("names", [("Bee", "cat", "ANT"), ("bee, honey bee", "cat", "_ant "), ("bee", "bee-eater", "ant")])
def test_classes_of_a_folder_take_the_numbers_of_the_same_names(names: tuple[str, ...], photos: Path) -> None:
    found = open_images("photos", count=10, preprocessing=Preprocessing(size=16))
    other = found.numbered_as(names)
    assert other is not None
    assert (other.classes, other.class_names, other.all_notes) == (3, names, found.notes)
    before, after = found.read_all().labels, other.read_all().labels
    assert before is not None and after is not None
    assert after.tolist() == [{0: 2, 1: 0}[label] for label in before.tolist()]


@pytest.mark.parametrize("names", [("bee", "wasp"), ("ant", "bee", "Bee"), ("ant, bee", "cat"), ()])
def test_classes_that_a_list_does_not_name_once_keep_their_numbers(names: tuple[str, ...], photos: Path) -> None:
    assert open_images("photos", count=10, preprocessing=Preprocessing(size=16)).numbered_as(names) is None


def test_first_photos_are_decoded_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(str(photos), count=None, preprocessing=Preprocessing(size=24))
    fresh = open_images(str(photos), count=None, preprocessing=Preprocessing(size=24)).read_all().images
    opened = list[str]()
    decode = Image.open
    monkeypatch.setattr(Image, "open", lambda file, *given, **named: (opened.append(str(file)), decode(file, *given, **named))[1])
    images.example().zero_()
    images.read(2, 5).images.zero_()
    assert torch.equal(images.read_all().images, fresh)
    assert torch.equal(images.read_all().images, fresh)
    assert len(opened) == len(fresh) == 10
