"""Image folders are read a few files at a time, and damaged files are left out and named."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shiftscope.datasets import folders
from shiftscope.datasets.folders import list_images
from shiftscope.datasets.images import ImageBlocks, from_photos
from shiftscope.datasets.photos import Crop
from shiftscope.datasets.preprocessing import Preprocessing
from shiftscope.errors import InputError


def picture(path: Path, value: int, *, size: tuple[int, int] = (10, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).convert(mode).save(path)


def opened(folder: Path, channels: int | None = None) -> ImageBlocks:
    """Return the images of a folder for a model that says nothing of its input."""
    size = list_images(folder).first().height
    return from_photos(list_images(folder), None, Preprocessing(size=size), channels, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        picture(tmp_path / "pics" / ("cat" if number % 2 else "ant") / f"{number}.png", 10 * number)
    (tmp_path / "pics" / "cat" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "pics" / "notes.txt").write_text("x")
    picture(tmp_path / "pics" / "cover.png", 0)
    return tmp_path / "pics"


def test_subfolders_are_classes_and_other_files_are_left_out(folder: Path) -> None:
    found = list_images(folder)
    assert found.classes == ("ant", "cat")
    assert [Path(name).name for name in found.names] == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png", "bad.jpg"]
    assert found.labels == (0, 0, 0, 1, 1, 1, 1)


def test_of_split_folders_the_held_out_one_is_listed(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("ant", "cat"):
            picture(tmp_path / "pics" / split / name / "0.png", 0)
    found = list_images(tmp_path / "pics")
    assert found.names == ("ant/0.png", "cat/0.png")
    assert (found.classes, found.origin) == (("ant", "cat"), "image folder pics/val")
    picture(tmp_path / "pics" / "test-tubes" / "0.png", 0)
    assert list_images(tmp_path / "pics").classes == ("test-tubes", "train", "val")


def test_without_subfolders_there_are_no_labels(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    assert list_images(tmp_path).labels is None
    assert list_images(tmp_path).classes == ()


def test_damaged_files_are_left_out_and_named(folder: Path) -> None:
    half = (folder / "cat" / "5.png").read_bytes()
    (folder / "cat" / "5.png").write_bytes(half[: len(half) // 2])
    images, places, damaged = list_images(folder).read(2, 99, Crop((10, 10), (10, 10), 3))
    assert places == [2, 3, 4]
    assert damaged == ["cat/5.png", "cat/bad.jpg"]
    assert images.shape == (3, 3, 10, 10)
    assert [round(float(image.mean()) * 255) for image in images] == [40, 10, 30]
    nothing, _, _ = list_images(folder).read(6, 7, Crop((10, 10), (10, 10), 3))
    assert nothing.shape == (0, 3, 10, 10)


def test_shorter_side_is_scaled_and_the_centre_cropped(tmp_path: Path) -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 200  # the centre square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    images, _, _ = list_images(tmp_path).read(0, 1, Crop((10, 10), (10, 10), 3))
    assert float(images[..., 1:9].min()) == pytest.approx(200 / 255, abs=0.01)
    assert list_images(tmp_path).first().size == (40, 20)


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("CMYK", "jpg")])
def test_every_colour_mode_is_converted(mode: str, suffix: str, tmp_path: Path) -> None:
    picture(tmp_path / f"a.{suffix}", 255, mode=mode)
    for channels in (1, 3):
        images, _, damaged = list_images(tmp_path).read(0, 1, Crop((8, 8), (8, 8), channels))
        assert not damaged
        assert images.shape == (1, channels, 8, 8)
        assert float(images.min()) > 0.95
    assert opened(tmp_path).shape[0] == (1 if mode in ("L", "1") else 3)
    left_out = "Photos have an alpha channel, which is left out."
    assert (left_out in opened(tmp_path).notes) == (mode == "RGBA")


@pytest.mark.parametrize(("kind", "suffix"), [(np.uint16, "png"), (np.uint16, "tif"), (np.int32, "tif")])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grey_keeps_every_level(kind: type, suffix: str, channels: int, tmp_path: Path) -> None:
    levels = np.arange(1000, 1036).reshape(6, 6)
    Image.fromarray(levels.astype(kind)).save(tmp_path / f"a.{suffix}")
    photos = opened(tmp_path, channels=channels)
    images = photos.read_all().images
    assert images.shape == (1, channels, 6, 6)
    assert torch.allclose(images, torch.from_numpy(levels / 65535).float().expand(1, channels, 6, 6), rtol=1e-6)
    assert photos.preparation.startswith("grey of 16 bits divided by 65535, shorter side to 6 pixels")


def test_16_bit_grey_is_scaled_like_8_bit_grey(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (30, 40)).astype(np.uint8)
    for depth, values in ((8, small), (16, small.astype(np.uint16) * 257)):
        (tmp_path / str(depth)).mkdir()
        Image.fromarray(values).save(tmp_path / str(depth) / "a.png")
    for interpolation in ("bilinear", "bicubic", "lanczos", "nearest"):
        crop = Crop((12, 12), (16, 16), 1, interpolation)
        rounded, deep = (list_images(tmp_path / each).read(0, 1, crop)[0] for each in ("8", "16"))
        assert (rounded - deep).abs().max() <= 1.01 / 255  # two passes are each rounded to 8 bits
        assert 0 <= float(deep.min()) <= float(deep.max()) <= 1


def test_colour_of_16_bits_is_read_in_8_with_a_note(tmp_path: Path) -> None:
    # Pillow reads such files and writes none: a PNG of one pixel by hand.
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixel = struct.pack(">B3H", 0, 0x80FF, 0, 0xFFFF)
    header = struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixel)), chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    photos = opened(tmp_path)
    assert photos.read_all().images.flatten().mul(255).tolist() == pytest.approx([0x80, 0, 0xFF], abs=1)
    assert photos.notes == ("Colour of 16 bits is read in 8 bits.",)


def test_grey_of_fractional_numbers_from_0_to_1_is_read_exactly(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6)
    Image.fromarray(values).save(tmp_path / "a.tif")
    (image,) = opened(tmp_path).read_all().images
    assert image[0].numpy() == pytest.approx(values, abs=1e-7)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.full((6, 6), 2.0, np.float32), "fractional numbers from 2 to 2, and must lie within 0 to 1"),
        (np.full((6, 6), -935, np.int32), "integers from -935 to -935, and must lie within 0 to 65535"),
        (np.full((6, 6), 70000, np.int32), "integers from 70000 to 70000, and must lie within 0 to 65535"),
        (np.full((6, 6), np.nan, np.float32), "fractional numbers from nan to nan"),
    ],
)
def test_pixels_beyond_the_range_of_their_type_are_refused_by_name(values: np.ndarray, problem: str, tmp_path: Path) -> None:
    Image.fromarray(np.ones((6, 6), np.float32)).save(tmp_path / "a.tif")
    Image.fromarray(values).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match=rf"b\.tif: its pixels are {problem}"):
        opened(tmp_path).read_all()


def test_checksum_is_of_names_and_contents_and_the_same_for_a_copy(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    one = list_images(folder).checksum
    assert list_images(tmp_path / "copy").checksum == one
    file = sorted((tmp_path / "copy").rglob("*.png"))[0]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert list_images(tmp_path / "copy").checksum != one
    file.write_bytes(content)
    file.rename(file.with_name("renamed.png"))
    assert list_images(tmp_path / "copy").checksum != one


def test_checksum_of_large_files_reads_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "MOST_READ", 2 * folders.LEAST_READ)
    files = [tmp_path / "a", tmp_path / "b"]
    size = 3 * folders.LEAST_READ
    files[0].write_bytes(bytes(10))

    def checksum(place: int) -> str:
        content = bytearray(size)
        content[place] = 1
        files[1].write_bytes(content)
        return folders.files_checksum(tmp_path, files)

    ends = {checksum(0), checksum(size - 1)}
    assert len(ends) == 2
    assert checksum(size // 2) not in ends
    assert checksum(size // 2) == checksum(size // 2 + 1)  # not read


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    tall = Image.fromarray(np.zeros((30, 10, 3), np.uint8))
    exif = tall.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    tall.save(tmp_path / "a.jpg", exif=exif)
    assert list_images(tmp_path).first().size == (30, 10)


def test_sample_has_a_fixed_seed_and_keeps_the_order(folder: Path) -> None:
    one, two = list_images(folder, count=4), list_images(folder, count=4)
    assert one.names == two.names
    assert len(one) == 4
    assert list(one.names) == sorted(one.names)
    assert one.found == 7
    assert len(list_images(folder, count=100)) == 7
    assert one.checksum != list_images(folder).checksum


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the image folder .* holds no image"):
        list_images(tmp_path)
    with pytest.raises(InputError, match=r"the image folder .*none does not exist"):
        list_images(tmp_path / "none")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no image that can be read"):
        list_images(tmp_path).first()
