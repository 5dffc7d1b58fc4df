"""Open image files that come from outside."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

__all__ = ["MOST_PIXELS", "SUFFIXES", "open_picture"]

#: The endings of files that count as images.
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
#: The formats that are decoded, whatever the ending says. Of others, Pillow hands EPS to another program.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM")
#: The most pixels of an image that is decoded.
MOST_PIXELS = 100_000_000


@contextmanager
def open_picture(source: Path | io.BytesIO) -> Iterator[ImageFile]:
    """Open an image for the duration; its pixels are read when they are used.

    Args:
        source: a file or its bytes.

    Raises:
        ValueError: it has too many pixels.
        Exception: whatever Pillow raises on a damaged image, or one of another format.
    """
    import PIL.Image

    PIL.Image.init()
    known = [name for name in FORMATS if name in PIL.Image.OPEN]  # a Pillow may be built without some
    with PIL.Image.open(source, formats=known) as opened:
        if opened.width * opened.height > MOST_PIXELS:
            raise ValueError(f"it has {opened.width}x{opened.height} pixels")
        yield opened
