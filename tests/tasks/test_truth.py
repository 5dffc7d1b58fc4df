"""Ground truth of objects is read from COCO and YOLO and lies where the image does; bad files are one sentence."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import shiftscope as ss
from shiftscope.audits.ground_truth import truth_checksum
from shiftscope.datasets.photos import Crop
from shiftscope.errors import InputError
from shiftscope.tasks.boxes import Boxes
from shiftscope.tasks.objects import Objects
from shiftscope.tasks.truth import open_objects
from shiftscope.tasks.truth_files import Placement, matched

WHOLE = Placement((64, 64), None)
NAMES = ["a.png", "b.png", "c.png"]
COCO: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 64, "width": 64},
        {"id": 9, "file_name": "b.png", "height": 64, "width": 64},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 11, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 11, "bbox": [10, 20, 30, 12], "area": 200, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 8, 8], "iscrowd": 1},
    ],
}


def written(folder: Path, content: Any) -> Path:
    file = folder / "truth.json"
    file.write_text(json.dumps(content) if isinstance(content, dict) else content)
    return file


def yolo(folder: Path, text: str, size: tuple[int, int] = (64, 64)) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for name in ("a", "b"):
        Image.new("L", size).save(folder / "images" / f"{name}.png")
    (folder / "labels" / "a.txt").write_text(text)
    return folder


def test_coco_file_is_read(tmp_path: Path) -> None:
    one, two, three = open_objects(written(tmp_path, COCO), NAMES, WHOLE)
    assert one is not None and two is not None and three is None
    assert one.boxes.tolist() == [[10, 20, 40, 32], [0, 0, 8, 8]]
    assert (one.labels.tolist(), one.areas.tolist(), one.ignored.tolist()) == ([11, 3], [200, 64], [False, True])
    assert len(two) == 0


def test_labels_number_the_categories_where_asked_for(tmp_path: Path) -> None:
    (one, *_) = Boxes(truth_labels="order").open_truth(written(tmp_path, COCO), NAMES, WHOLE)
    assert one.labels.tolist() == [1, 0]


def test_boxes_are_scaled_and_cropped_like_the_image(tmp_path: Path) -> None:
    content = json.loads(json.dumps(COCO))
    content["images"][0] |= {"height": 128, "width": 256}
    (one, *_) = open_objects(written(tmp_path, content), NAMES, Placement((48, 48), (64, 64)))
    assert one is not None  # scaled to 64x128; the input begins at (8, 40)
    assert one.boxes[0].tolist() == [5 - 40, 10 - 8, 20 - 40, 16 - 8]
    assert one.areas[0] == 50


def test_boxes_lie_on_the_image_in_an_input_that_is_not_square(tmp_path: Path) -> None:
    content = json.loads(json.dumps(COCO))
    content["images"][0] |= {"height": 128, "width": 256}
    crop = Crop((96, 64), (120, 80), 3)
    (one, *_) = open_objects(written(tmp_path, content), NAMES, Placement(crop.size, crop.cover))
    assert one is not None
    photo = np.zeros((128, 256, 3), np.uint8)
    left, top, right, bottom = 100, 40, 180, 90
    photo[top:bottom, left:right] = 255
    seen = crop.apply(Image.fromarray(photo))[0, crop.margin : crop.margin + 96, crop.margin : crop.margin + 64] > 0.5
    rows, columns = (seen.any(axis).nonzero().flatten() for axis in (1, 0))
    tall, wide, above, before = Placement(crop.size, crop.cover).of(128, 256)
    assert (tall, wide) == (120, 240)
    assert int(rows[0]) == pytest.approx(top * tall / 128 - above, abs=1)
    assert int(rows[-1]) + 1 == pytest.approx(bottom * tall / 128 - above, abs=1)
    assert int(columns[0]) == pytest.approx(max(left * wide / 256 - before, 0), abs=1)
    assert one.boxes[0].tolist() == pytest.approx(
        [each * 240 / 256 - start for each, start in zip((10, 20, 40, 32), (before, above, before, above), strict=True)]
    )


@pytest.mark.parametrize("below", ["", "labels"])
def test_folders_of_yolo_are_read(tmp_path: Path, below: str) -> None:
    root = yolo(tmp_path, "2 0.5 0.25 0.5 0.25\n\n0 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2\n", (64, 32))
    one, two, three = open_objects(root / below, NAMES, Placement((32, 32), (32, 32)))
    assert one is not None and two is not None and three is None
    assert one.boxes == pytest.approx(np.array([[0, 4, 32, 12], [6.4 - 16, 3.2, 19.2 - 16, 6.4]]))
    assert (one.labels.tolist(), len(two)) == ([2, 0], 0)


def changed(**changes: Any) -> dict[str, Any]:
    content = json.loads(json.dumps(COCO))
    content["annotations"][0] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is damaged, or is not JSON of COCO"),
        ({"images": []}, "is damaged, or is not JSON of COCO"),
        (changed(bbox=[1, 2, 3]), "annotation 1 has no bbox of four numbers"),
        (changed(bbox=None), "annotation 1 has no bbox of four numbers"),
        (changed(bbox=[1, 2, -3, 4]), "annotation 1 has the bbox"),
        (changed(bbox=[1, 2, float("nan"), 4]), "annotation 1 has the bbox"),
        (changed(category_id=5), "annotation 1 has category 5, which is not listed"),
        (changed(image_id=5), "annotation 1 is of image 5, which is not listed"),
        ({"images": [], "annotations": [], "categories": []}, "lists none of the 3 images. The first one is 'a.png'"),
    ],
)
def test_bad_coco_file_is_one_sentence(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_objects(written(tmp_path, content), NAMES, WHOLE)


@pytest.mark.parametrize(
    "line", ["1 0.5 0.5 0.2", "cat 0.5 0.5 0.2 0.2", "1 0.5 nan 0.2 0.2", "1.5 0.5 0.5 0.2 0.2", "1 30 40 10 10"]
)
def test_bad_line_of_yolo_is_one_sentence(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=f"a.txt, line 2 does not describe an object: '{line}'"):
        open_objects(yolo(tmp_path, f"1 0.5 0.5 0.2 0.2\n{line}"), NAMES, WHOLE)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have the folders `images` and `labels` of YOLO"):
        open_objects(tmp_path, NAMES, WHOLE)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"boxes": [[0, 0, 1, 1]]}, "must be a dict of 'boxes' and 'labels'"),
        ({"boxes": [[0, 0, 1, 1]], "labels": [1, 2]}, "one entry per box"),
        ({"boxes": [[2, 0, 1, 1]], "labels": [1]}, "x1 <= x2"),
        ("cat", "must be a dict of 'boxes' and 'labels'"),
    ],
)
def test_bad_truth_of_an_image_is_one_sentence(truth: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Boxes().read_truth(truth, (64, 64))


def objects(*boxes: tuple[float, float, float, float]) -> Objects:
    table = np.array(boxes, dtype=float).reshape(-1, 4)
    return Objects(table, np.arange(len(table)), np.full(len(table), 9.0), np.zeros(len(table), dtype=bool))


def test_object_that_some_shift_cuts_is_ignored_at_every_shift() -> None:
    known = objects((20, 20, 30, 30), (6, 20, 16, 30))
    for shift in ((0, 0), (0, 8), (8, -8)):
        moved = known.shifted(shift, (64, 64), 8.0, circular=False)
        assert moved.ignored.tolist() == [False, True]
        assert moved.boxes[0].tolist() == [20 + shift[1], 20 + shift[0], 30 + shift[1], 30 + shift[0]]


def test_circular_shift_shows_both_parts_of_a_cut_object() -> None:
    moved = objects((0, 20, 10, 30)).shifted((0, -4), (64, 64), 8.0, circular=True)
    assert sorted(moved.boxes.tolist()) == [[0, 20, 6, 30], [60, 20, 64, 30]]
    assert moved.ignored.all()


def test_checksum_of_a_large_file_is_its_sha256(tmp_path: Path) -> None:
    size = 65 << 20
    with (tmp_path / "truth.json").open("wb") as file:
        file.truncate(size)  # takes no space on the disk
    assert truth_checksum(str(tmp_path / "truth.json")) == sha256(bytes(size)).hexdigest()


def test_image_of_yolo_without_a_text_has_no_objects_of_another_folder(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / "images" / place).mkdir(parents=True)
        (tmp_path / "labels" / place).mkdir(parents=True)
        Image.new("L", (64, 64)).save(tmp_path / "images" / place / "1.png")
    (tmp_path / "labels" / "a" / "1.txt").write_text("0 0.5 0.5 0.2 0.1")
    one, two = open_objects(tmp_path, ["a/1.png", "b/1.png"], WHOLE)
    assert one is not None and two is not None
    assert (len(one), len(two)) == (1, 0)


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["a/1.png", "b/1.png"], ["a/1.png"], ["a/1.png", None]),
        (["b/1.png", "a/2.png"], ["a/1.png", "a/2.png"], [None, "a/2.png"]),  # folders tell images apart
        (["1.png"], ["a/1.png", "b/1.png"], [None]),
        (["1.png", "2.png"], ["train/1.png", "train/2.png"], ["train/1.png", "train/2.png"]),
        (["val/1.png"], ["val2017/1.png"], [None]),
        (["b/1.png"], ["a/1.png"], [None]),  # a/1.png is there, and not selected
        (["b/1.png"], ["coco/b/1.png", "coco/a/1.png"], ["coco/b/1.png"]),
        (["a/1.png", "b/1.png"], ["1.png"], [None, None]),
        (["1.png", "a/1.png"], ["1.png"], ["1.png", None]),
        (["cat/1.png"], ["1.png"], ["1.png"]),
    ],
)
def test_truth_is_of_the_image_with_its_name(names: list[str], known: list[str], expected: list[str | None]) -> None:
    assert matched(names, {name: name for name in known}) == expected


def test_detector_whose_labels_are_numbered_otherwise_is_told() -> None:
    def found(batch: Tensor) -> list[dict[str, Tensor]]:
        one = {"boxes": torch.tensor([[8.0, 8.0, 20.0, 20.0]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([7])}
        return [one] * len(batch)

    truth = [{"boxes": torch.tensor([[8.0, 8.0, 20.0, 20.0]]), "labels": torch.tensor([label])} for label in (90, 90)]
    warned = ss.audit(found, torch.rand(2, 3, 32, 32), task="boxes", truth=truth, max_shift=2).warnings
    assert any("check that its labels are the model's" in each and "truth_labels=order" in each for each in warned)
    truth[0]["labels"] = torch.tensor([7])
    assert ss.audit(found, torch.rand(2, 3, 32, 32), task="boxes", truth=truth, max_shift=2).warnings == ()
