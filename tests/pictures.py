"""Images and parquet files for tests that read them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(count: int, size: int, colours: int, seed: int = 0) -> np.ndarray:
    """Return random images of 1 or 3 colours."""
    shape = (count, size, size) if colours == 1 else (count, size, size, colours)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    """Return an image as a PNG file."""
    target = io.BytesIO()
    Image.fromarray(array).save(target, "PNG")
    return target.getvalue()


def write_parquet(path: Path, arrays: np.ndarray, labels: list[int], names: tuple[str, ...] = ("cat", "dog")) -> None:
    """Write images and labels in the Hugging Face image schema, with the library that the hub uses."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [{"bytes": png(array), "path": None} for array in arrays], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
