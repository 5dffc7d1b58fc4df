"""Ground truth of objects in files: the JSON of COCO, and the folders ``images`` and ``labels`` of YOLO.

Boxes are placed as the images are: scaled, with the centre cut out. Areas scale along, so that small and large mean pixels
of the model's input. An object outside the input stays, because a shift may bring it in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shiftscope.errors import InputError
from shiftscope.runtime.inputs import parse_json, read_bytes, reading
from shiftscope.runtime.pictures import SUFFIXES, open_picture
from shiftscope.tasks.objects import Objects
from shiftscope.tasks.truth_files import LARGEST_TRUTH, Placement, matched

__all__ = ["coco_images", "coco_objects", "open_objects", "yolo_objects"]

#: EXIF's tag of an image's orientation, and the orientations that lie on their side.
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
FORM = "It needs `images` (id, file_name, width, height), `annotations` (image_id, category_id, bbox) and `categories` (id)."
LINES = "A line is a class and the box's centre and size as shares of the image: 0 0.5 0.5 0.2 0.1."


def open_objects(path: Path, names: Sequence[str], placement: Placement, *, order: bool = False) -> list[Objects | None]:
    """Return the objects of images from a COCO file or a folder of YOLO; None for an image that it does not know.

    Args:
        path: of the JSON file, of the folder of text files, or of the folder above it, which holds ``images`` and ``labels``.
        names: of the images, in order.
        placement: how images lie in the model's input.
        order: whether labels number COCO's categories from 0, instead of being their ids.

    Raises:
        InputError: it is none of both, something in it is no object, it lists none of the images, or has another shape for one.
    """
    found = yolo_objects(path, names, placement) if path.is_dir() else coco_objects(path, names, placement, order=order)
    if names and all(each is None for each in found):
        raise InputError(f"`truth` {path} lists none of the {len(names)} images.", f"The first one is {names[0]!r}.")
    return found


def coco_objects(path: Path, names: Sequence[str], placement: Placement, *, order: bool = False) -> list[Objects | None]:
    """Return the objects of images from COCO's JSON; arguments and errors as of :func:`open_objects`."""
    with reading(path, "JSON of COCO", FORM):
        content = parse_json(read_bytes(path, limit=LARGEST_TRUTH))
        sizes, numbers = coco_images(content, path, names, placement)
        categories = sorted({int(each["id"]) for each in content["categories"]})
        rows: dict[Any, list[tuple[Any, ...]]] = {number: [] for number in sizes}
        for each in content["annotations"]:
            rows[_known(path, each, rows, categories)].append(_row(path, each))
    labels = {number: place if order else number for place, number in enumerate(categories)}
    return [None if number is None else _placed(rows[number], sizes[number], placement, labels) for number in numbers]


def coco_images(
    content: Mapping[str, Any], path: Path, names: Sequence[str], placement: Placement
) -> tuple[dict[Any, tuple[int, int]], list[Any]]:
    """Return (height, width) of each image of COCO's JSON by its id, and the id of each name; None for one that it does not list.

    Raises:
        InputError: an image has another shape there.
    """
    sizes = {each["id"]: (int(each["height"]), int(each["width"])) for each in content["images"]}
    numbers = matched(names, {str(each["file_name"]): each["id"] for each in content["images"]})
    for name, number in zip(names, numbers, strict=True):
        if number is not None:
            placement.check(name, *sizes[number], path)
    return sizes, numbers


def _known(path: Path, each: Mapping[str, Any], images: Mapping[Any, Any], categories: Sequence[int]) -> Any:
    """Return the image of an annotation, if it and the category are listed."""
    name = each.get("id", "without an id")
    if each["category_id"] not in categories:
        raise InputError(f"{path}: annotation {name} has category {each['category_id']}, which is not listed.", FORM)
    if each["image_id"] not in images:
        raise InputError(f"{path}: annotation {name} is of image {each['image_id']}, which is not listed.", FORM)
    return each["image_id"]


def _row(path: Path, each: Mapping[str, Any]) -> tuple[float, float, float, float, int, float, bool]:
    """Return (x1, y1, x2, y2, category, area, crowd) of an annotation, in pixels of its image."""
    if not isinstance(each.get("bbox"), list) or len(each["bbox"]) != 4:
        raise InputError(f"{path}: annotation {each.get('id', 'without an id')} has no bbox of four numbers.", FORM)
    x, y, width, height = (float(value) for value in each["bbox"])
    area = float(each.get("area", width * height))
    if not np.isfinite([x, y, width, height, area]).all() or min(width, height, area) < 0:
        raise InputError(
            f"{path}: annotation {each.get('id', 'without an id')} has the bbox {each['bbox']}, whose width and height must be "
            "numbers of 0 or more.",
            "Give x, y, width and height in pixels.",
        )
    return x, y, x + width, y + height, int(each["category_id"]), area, bool(each.get("iscrowd", 0))


def _placed(
    rows: Sequence[Sequence[Any]], size: tuple[int, int], placement: Placement, labels: Mapping[int, int] | None = None
) -> Objects:
    """Return objects in pixels of the model's input.

    Args:
        rows: (x1, y1, x2, y2, category, area, crowd) in pixels of the image.
        size: (height, width) of the image, pixels.
        placement: how it lies in the model's input.
        labels: category -> label; None where they are the same.
    """
    tall, wide, top, left = placement.of(*size)
    scale = np.array([wide / size[1], tall / size[0]])
    table = np.array([row[:4] for row in rows], dtype=float).reshape(-1, 4)
    boxes = table * np.tile(scale, 2) - np.array([left, top, left, top])
    return Objects(
        boxes,
        np.array([row[4] if labels is None else labels[row[4]] for row in rows], dtype=np.int64),
        np.array([row[5] for row in rows], dtype=float) * scale.prod(),
        np.array([row[6] for row in rows], dtype=bool),
    )


def yolo_objects(path: Path, names: Sequence[str], placement: Placement) -> list[Objects | None]:
    """Return the objects of images from text files of YOLO, none for an image without one; see :func:`open_objects`."""
    labels = path / "labels" if (path / "labels").is_dir() else path
    pictures = labels.parent / "images"
    if not pictures.is_dir():
        raise InputError(
            f"`truth` {path} must have the folders `images` and `labels` of YOLO, but {pictures} is not a folder.",
            "Check the path.",
        )
    files, texts = _by_name(pictures, SUFFIXES), _by_name(labels, frozenset((".txt",)))
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    found: list[Objects | None] = []
    for picture in matched(stems, {stem: stem for stem in files}):
        if picture is None:
            found.append(None)
            continue
        text, size = texts.get(picture), _size(files[picture])  # without a text there is no object in it
        found.append(_placed([] if text is None else _lines(text, size), size, placement))
    return found


def _by_name(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """Return the files of a folder by their path in it, without the ending."""
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in suffixes]
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def _size(file: Path) -> tuple[int, int]:
    """Return (height, width) of an image, turned upright."""
    with reading(file, "an image", "Replace the file."), open_picture(file) as opened:
        width, height = opened.size
        return (width, height) if opened.getexif().get(ORIENTATION) in SIDEWAYS else (height, width)


def _lines(file: Path, size: tuple[int, int]) -> list[tuple[Any, ...]]:
    """Return (x1, y1, x2, y2, class, area, crowd) of each line, in pixels of the image."""
    with reading(file, "text of YOLO", LINES):
        lines = read_bytes(file).decode().splitlines()
    return [_line(file, number, line, size) for number, line in enumerate(lines, start=1) if line.strip()]


def _line(file: Path, number: int, line: str, size: tuple[int, int]) -> tuple[Any, ...]:
    height, width = size
    try:
        kind, *rest = (float(each) for each in line.split())
        x, y, w, h = _box_of(rest)
    except ValueError:
        raise InputError(f"{file}, line {number} does not describe an object: {line.strip()!r}.", LINES) from None
    if not np.isfinite([kind, x, y, w, h]).all() or kind != int(kind) or kind < 0 or min(w, h) < 0 or max(x, y, w, h) > 1 + 1e-3:
        raise InputError(f"{file}, line {number} does not describe an object: {line.strip()!r}.", LINES)
    box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    return *box, int(kind), w * width * h * height, False


def _box_of(values: Sequence[float]) -> Sequence[float]:
    """Return centre and size, also of a polygon's points."""
    if len(values) == 4:
        return values
    if len(values) < 6 or len(values) % 2:
        raise ValueError
    x, y = values[::2], values[1::2]
    return (min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y)
