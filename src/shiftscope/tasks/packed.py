"""Judged detections as bytes, without loss: of each one the number of its verdict among the different ones, and its confidence.

Average precision ranks the detections of all images, so that no fixed number of sums gives it: each has to be kept. Blocks of
views follow one another. A block is a head, its views, its different verdicts, the verdict's number of every detection and
object, and the confidences. A number takes 1, 2 or 4 bytes; a confidence 4, or 8 where single precision would lose some of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer, UInt8

__all__ = ["DETECTION", "MARK", "OBJECT", "PackedViews", "pack_rows", "unpacked"]

#: Kinds of rows; a view's mark says that it was there, whatever was found.
DETECTION, OBJECT, MARK = 0.0, 1.0, 2.0
VIEW = np.dtype([("image", "<i4"), ("down", "<f4"), ("right", "<f4"), ("detections", "<i4"), ("objects", "<i4")])
#: Numbers of views and verdicts, bytes of a verdict's number, and bytes of a confidence.
HEAD = 4


@dataclass(frozen=True)
class PackedViews:
    """The rows of some views, by view.

    Attributes:
        images: [view], the image's index.
        shifts: [view, 2], (dy, dx).
        detections: [view], how many.
        objects: [view], how many.
        labels: [verdict], class.
        bits: [verdict, 2], two columns of bits, of an object the first one.
        found: [detection], number of its verdict.
        scores: [detection], confidence.
        there: [object], number of its verdict.
    """

    images: Int[np.ndarray, " view"]
    shifts: Float[np.ndarray, "view 2"]
    detections: Int[np.ndarray, " view"]
    objects: Int[np.ndarray, " view"]
    labels: Int[np.ndarray, " verdict"]
    bits: Int[np.ndarray, "verdict 2"]
    found: Integer[np.ndarray, " detection"]
    scores: Float[np.ndarray, " detection"]
    there: Integer[np.ndarray, " object"]


def pack_rows(rows: Float[np.ndarray, "row 8"]) -> UInt8[np.ndarray, " byte"]:
    """Return the rows of a block of views as bytes.

    Args:
        rows: image's index, dy, dx, kind, class, confidence and two columns of bits; a view's detections, its objects, its mark.
    """
    kinds = rows[:, 3]
    ends = np.flatnonzero(kinds == MARK)
    counts = [np.diff(np.cumsum(kinds == kind)[ends], prepend=0) for kind in (DETECTION, OBJECT)]
    views = np.empty(len(ends), dtype=VIEW)
    for name, column in zip(VIEW.names or (), (*rows[ends, :3].T, *counts), strict=True):
        views[name] = column
    chosen = np.concatenate([np.flatnonzero(kinds == DETECTION), np.flatnonzero(kinds == OBJECT)])
    verdicts, numbers = np.unique(rows[chosen][:, [4, 6, 7]].astype(np.int64), axis=0, return_inverse=True)
    kind = np.min_scalar_type(max(len(verdicts) - 1, 0)).newbyteorder("<")
    scores = rows[kinds == DETECTION, 5]
    short = scores.astype("<f4")
    kept = short if np.array_equal(short, scores) else scores.astype("<f8")
    head = np.array([len(views), len(verdicts), kind.itemsize, kept.itemsize], dtype="<i8")
    parts = (head, views, verdicts.astype("<i8"), numbers.reshape(-1).astype(kind), kept)
    return np.frombuffer(b"".join(part.tobytes() for part in parts), dtype=np.uint8)


def unpacked(packed: UInt8[np.ndarray, " byte"]) -> PackedViews:
    """Return the rows of all blocks together, in their order.

    Raises:
        ValueError: the bytes are no blocks.
    """
    blocks = list(_blocks(np.ascontiguousarray(packed)))
    starts = np.cumsum([0, *(len(each.labels) for each in blocks[:-1])]).astype(np.int32)

    def together(name: str) -> np.ndarray:
        return np.concatenate([getattr(each, name) for each in blocks])

    def numbers(name: str) -> np.ndarray:
        return np.concatenate([getattr(each, name) + start for each, start in zip(blocks, starts, strict=True)])

    return PackedViews(
        images=together("images"),
        shifts=together("shifts"),
        detections=together("detections"),
        objects=together("objects"),
        labels=together("labels"),
        bits=together("bits"),
        found=numbers("found"),
        scores=together("scores"),
        there=numbers("there"),
    )


def _blocks(data: UInt8[np.ndarray, " byte"]) -> Iterator[PackedViews]:
    place = 0

    def taken(kind: np.dtype | str, count: int) -> np.ndarray:
        nonlocal place
        found = np.frombuffer(data, dtype=kind, count=count, offset=place)
        place += found.nbytes
        return found

    while place < len(data):
        views, verdicts, number, score = taken("<i8", HEAD).tolist()
        view, verdict = taken(VIEW, views), taken("<i8", 3 * verdicts).reshape(-1, 3)
        detections, objects = int(view["detections"].sum()), int(view["objects"].sum())
        numbers = taken(f"<u{number}", detections + objects)
        yield PackedViews(
            images=view["image"],
            shifts=np.stack([view["down"], view["right"]], axis=1),
            detections=view["detections"],
            objects=view["objects"],
            labels=verdict[:, 0],
            bits=verdict[:, 1:],
            found=numbers[:detections],
            scores=taken(f"<f{score}", detections),
            there=numbers[detections:],
        )
