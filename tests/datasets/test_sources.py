"""Parquet files and image folders are decoded exactly, the result is cached, and damage is reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from loopback_hub import serving
from pictures import pixels, png, write_parquet
from shiftscope.datasets import sources
from shiftscope.datasets.dataset import DataSpec, load
from shiftscope.datasets.sources import Source, read
from shiftscope.errors import InputError

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHIFTSCOPE_CACHE", str(folder))
    return folder


def get(name: str, data_dir: Path | None = None, image_size: int | None = None) -> Source:
    return read(name, image_size=image_size, data_dir=data_dir)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "pets"
    folder.mkdir(parents=True)
    write_parquet(folder / "train.parquet", pixels(5, 6, 3), [0, 1, 0, 1, 1])
    write_parquet(folder / "test.parquet", pixels(3, 6, 3, seed=1), [1, 0, 0])
    return folder.parent


def test_parquet_files_give_exact_pixels_labels_and_class_names(local: Path) -> None:
    source = get("pets", local)
    assert source.classes == ("cat", "dog")
    assert torch.equal(source.splits["train"].images, torch.from_numpy(pixels(5, 6, 3)).permute(0, 3, 1, 2))
    assert source.splits["test"].labels.tolist() == [1, 0, 0]
    assert "train.parquet sha256" in source.origin
    assert str(local) not in source.origin


def test_cache_is_used_until_the_files_change(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = get("pets", local)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "open_splits", lambda _: pytest.fail("decoded again"))
        second = get("pets", local)
    assert second.checksum == first.checksum
    assert torch.equal(second.splits["train"].images, first.splits["train"].images)
    write_parquet(local / "pets" / "train.parquet", pixels(5, 6, 3, seed=7), [0, 1, 0, 1, 1])
    assert get("pets", local).checksum != first.checksum


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_cache_is_reported_and_decoded_again(local: Path, empty_cache: Path, damage: str) -> None:
    first = get("pets", local)
    (kept,) = empty_cache.glob("*.safetensors")
    content = bytearray(kept.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert get("pets", local).checksum == first.checksum


def test_unwritable_cache_is_reported_and_the_images_read(local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SHIFTSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="the decoded images cannot be cached"):
        assert len(get("pets", local).splits["train"]) == 5


def test_image_folder_gives_a_class_for_each_subfolder_and_mixes_grey_and_colour(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for label, colours in (("apple", 1), ("pear", 3)):
            folder = tmp_path / "fruit" / split / label
            folder.mkdir(parents=True)
            for number, array in enumerate(pixels(count, 8, colours, seed=count)):
                (folder / f"{number}.png").write_bytes(png(array))
    source = get(str(tmp_path / "fruit"))
    assert source.classes == ("apple", "pear")
    assert source.splits["train"].images.shape == (8, 3, 8, 8)
    grey = source.splits["test"].images[source.splits["test"].labels == 0]
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert sorted(grey[:, 0].sum((1, 2)).tolist()) == sorted(pixels(2, 8, 1, seed=2).sum((1, 2)).tolist())


LAYOUTS = {
    "classes": {"ant/1.png": "L", "ant/2.png": "RGB", "bee/1.png": "RGB", "bee/.hidden.png": "RGB", "__skipped/1.png": "RGB"},
    "deep": {"photos/ant/1.png": "1", "photos/bee/1.png": "P"},
    "folders of splits": {f"{split}/{name}/1.png": "RGBA" for split in ("train", "test") for name in ("ant", "bee")},
    "other words": {f"{split}/{name}/1.jpg": "RGB" for split in ("training-set", "val 2") for name in ("ant", "bee")},
    "file names": {f"{name}/{split}_1.png": "LA" for split in ("train", "test") for name in ("ant", "bee")},
    "turned": {"ant/1.jpg": "turned", "ant/2.png": "RGB", "bee/1.png": "RGB"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_image_folders_are_decoded_as_by_the_datasets_library(layout: str, tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "pets"
    for number, (name, mode) in enumerate(LAYOUTS[layout].items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels(1, 8, 3, seed=number)[0])
        exif = image.getexif()
        if mode == "turned":
            exif[0x0112] = 6  # by a quarter
        image.convert("RGB" if mode == "turned" else mode).save(folder / name, exif=exif)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), streaming=True)
    ours = get(str(folder), image_size=6)
    held_out = next((name for name in ("test", "validation") if name in theirs), None)
    assert ours.classes == tuple(theirs["train"].features["label"].names)
    assert list(ours.splits) == ["train", *(["test"] if held_out else [])]
    for name, reference in (("train", "train"), ("test", held_out)):
        if reference is None:
            continue
        rows = list(theirs[reference])
        images = [ImageOps.fit(row["image"].convert("L" if row["image"].mode in ("1", "L") else "RGB"), (6, 6)) for row in rows]
        expected = np.stack([np.asarray(image.convert("RGB")) for image in images])
        assert ours.splits[name].labels.tolist() == [row["label"] for row in rows]
        assert np.array_equal(ours.splits[name].images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize(
    "layout",
    [
        ("bus/1.png", "freight-train/1.png", "passenger-train/1.png"),
        ("bus/1.png", "car/1.png", "train/1.png"),
        ("bar/test-000.png", "bar/1.png", "foo/1.png"),
    ],
    ids=["words of a split in names of classes", "a class that is a word of a split", "a file's name"],
)
def test_words_of_splits_in_some_names_leave_no_image_out(layout: tuple[str, ...], tmp_path: Path) -> None:
    for name in layout:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(pixels(1, 6, 3)[0]))
    source = get(str(tmp_path), image_size=6)
    assert source.classes == tuple(sorted({name.partition("/")[0] for name in layout}))
    assert {name: len(split) for name, split in source.splits.items()} == {"train": len(layout)}


def test_folder_beside_those_of_splits_is_refused(tmp_path: Path) -> None:
    for name in ("train_images/a/1.png", "train_images/b/1.png", "holdout/a/1.png", "holdout/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(pixels(1, 6, 3)[0]))
    with pytest.raises(InputError, match="beside one that names none, 'holdout'"):
        get(str(tmp_path))


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "c.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(png(pixels(1, 6, 1)[0]))
    with pytest.raises(InputError, match="must hold two or more subfolders with images, one for each class"):
        get(str(tmp_path / "pets"))


def test_images_of_different_sizes_need_an_image_size(tmp_path: Path) -> None:
    for number, size in enumerate((6, 9)):
        folder = tmp_path / "mixed" / "train" / f"class{number}"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(png(pixels(1, size, 1)[0]))
    with pytest.raises(InputError, match=r"`data.image_size` must be given: the images differ in size"):
        get(str(tmp_path / "mixed"))
    assert get(str(tmp_path / "mixed"), image_size=5).splits["train"].images.shape == (2, 1, 5, 5)


def test_truncated_parquet_file_is_named(local: Path) -> None:
    path = local / "pets" / "test.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"test.parquet is damaged, or is not a complete parquet file .* Copy it again"):
        get("pets", local)


def test_parquet_file_damaged_in_the_middle_is_refused(local: Path) -> None:
    path = local / "pets" / "train.parquet"
    content = bytearray(path.read_bytes())
    content[40:200] = bytes(160)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train.parquet is damaged, or is not a complete parquet file"):
        get("pets", local)


def test_damaged_image_is_named(tmp_path: Path) -> None:
    for label in ("a", "b"):
        folder = tmp_path / "pets" / "train" / label
        folder.mkdir(parents=True)
        content = bytearray(png(pixels(1, 30, 1)[0]))
        content[50:90] = bytes(40)
        (folder / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a/x\.png is damaged, or is not an image"):
        get(str(tmp_path / "pets"))


def test_splits_may_differ_in_channels_but_not_in_size(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    write_parquet(folder / "train.parquet", pixels(2, 6, 3), [0, 1])
    write_parquet(folder / "test.parquet", pixels(2, 6, 1), [0, 1])
    assert get("pets", tmp_path).splits["test"].images.shape == (2, 3, 6, 6)
    write_parquet(folder / "test.parquet", pixels(2, 7, 3), [0, 1])
    with pytest.raises(InputError, match="training and test images differ in size"):
        get("pets", tmp_path)


def test_path_takes_precedence_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: Path) -> None:
    monkeypatch.setenv("SHIFTSCOPE_DATA", str(tmp_path / "elsewhere"))
    spec = DataSpec(name=str(local / "pets"), validation_images=1)
    assert load(spec).classes == ("cat", "dog")


def test_table_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "plain" / "train.parquet")
    with pytest.raises(InputError, match=r"must have an image column and a label column, got \['x'\]"):
        get("plain", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "text"),
    [
        ("nonsense", None, "neither digits, mnist, cifar10, a Hugging Face id"),
        ("mnist", "missing", "`data_dir` must be an existing folder"),
        ("mnist", ".", "holds no folder 'mnist'"),
    ],
)
def test_unknown_name_is_refused(name: str, folder: str | None, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        get(name, tmp_path / folder if folder else None)


def test_unreachable_hub_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("SHIFTSCOPE_DATA", raising=False)
    with pytest.raises(
        InputError, match=r"not cached and the Hugging Face hub cannot be reached. Give a local copy with --data-dir"
    ):
        load(DataSpec(name="mnist"))


def test_hub_data_set_is_downloaded_once_by_the_real_client(local: Path, tmp_path: Path) -> None:
    code = (
        "from shiftscope.datasets.images import open_images\n"
        "from shiftscope.datasets.sources import read\n"
        "source, photos = read('someone/pets'), open_images('someone/pets', count=2)\n"
        "assert photos.choice == '2 of 3 images of the test split of Hugging Face hub someone/pets'\n"
        "assert photos.read_all().images.shape == (2, 3, 6, 6)\n"
        "print(source.origin, source.classes, source.splits['test'].images.sum().item())"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
    environment = {name: value for name, value in environment.items() if name.lower() not in ("https_proxy", "hf_hub_offline")}
    total = pixels(3, 6, 3, seed=1).astype(int).sum()
    expected = f"Hugging Face hub someone/pets ('cat', 'dog') {total}\n"
    with serving(local / "pets", "someone/pets") as address:
        environment["HF_ENDPOINT"] = address
        first = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert first.stdout == expected
    again = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert again.stdout == expected
    environment["SHIFTSCOPE_CACHE"] = str(tmp_path / "another")  # only the hub client's own cache is left
    offline = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert offline.stdout == expected


def test_hub_without_its_extra_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it raises ImportError
    with pytest.raises(InputError, match=r"'ylecun/mnist' is on the Hugging Face hub.*pip install shiftscope\[hub\]"):
        get("mnist")


def test_digits_are_scikit_learns_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    source = get("digits")
    expected = np.round(load_digits().images / 16 * 255).astype(np.uint8)
    assert np.array_equal(source.splits["train"].images[:, 0].numpy(), expected)


def test_real_mnist_has_its_known_statistics(real_data: Path) -> None:
    source = get("mnist", real_data)
    assert {name: tuple(split.images.shape) for name, split in source.splits.items()} == {
        "train": (60_000, 1, 28, 28),
        "test": (10_000, 1, 28, 28),
    }
    assert torch.bincount(source.splits["test"].labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert source.splits["train"].images.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


@pytest.mark.parametrize("name", ["mnist", pytest.param("cifar10")])
def test_real_data_has_the_checksum_and_origin_of_the_committed_records(name: str, real_data: Path) -> None:
    source = get(name, real_data)
    records = [json.loads(path.read_text()) for path in (ROOT / "results" / name / "runs").glob("*/record.json")]
    found = {(record["provenance"]["data_sha256"], record["provenance"]["data"]) for record in records}
    assert found == {(source.checksum, source.origin)}


def test_cached_files_can_be_read_by_others(local: Path, empty_cache: Path) -> None:
    get("pets", local)
    (kept,) = empty_cache.glob("*.safetensors")
    mask = os.umask(0)
    os.umask(mask)
    assert kept.stat().st_mode & 0o777 == 0o666 & ~mask


def test_hidden_test_labels_give_way_to_the_validation_split(local: Path) -> None:
    write_parquet(local / "pets" / "test.parquet", pixels(3, 6, 3, seed=1), [-1, -1, -1])
    assert "test" not in get("pets", local).splits
    write_parquet(local / "pets" / "validation-00000.parquet", pixels(2, 6, 3, seed=2), [1, 0])
    source = get("pets", local)
    assert [(name, len(split)) for name, split in source.splits.items()] == [("train", 5), ("test", 2)]
    assert source.splits["test"].labels.tolist() == [1, 0]


def test_training_images_without_labels_are_refused(local: Path) -> None:
    write_parquet(local / "pets" / "train.parquet", pixels(2, 6, 3), [0, -1])
    with pytest.raises(InputError, match=r"images without a label \(-1\) in its split 'train'"):
        get("pets", local)


def test_16_bit_grey_images_keep_their_brightness(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for label in ("a", "b"):
        folder = tmp_path / "deep" / "train" / label
        folder.mkdir(parents=True)
        Image.fromarray(deep).save(folder / "x.png")
    images = get(str(tmp_path / "deep")).splits["train"].images
    assert images.shape == (2, 1, 8, 8)
    assert (images[0, 0].double() - torch.from_numpy(deep / 257)).abs().max() <= 0.5
