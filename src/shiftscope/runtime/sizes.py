"""Heights and widths: of a model's input, as they are given and in words, and of photos after scaling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator

from shiftscope.errors import InputError
from shiftscope.runtime.settings import described

__all__ = ["Size", "SizeSetting", "both", "checked_size", "corner", "covering", "one_or_both", "read_size", "size_words"]

#: One length for both sides, or (height, width), pixels.
Size = int | tuple[int, int]
#: Largest height or width, pixels.
LARGEST = 2**14
RULE = f"must be 1 to {LARGEST:,} pixels, or a height and a width of so many"


def both(size: Size) -> tuple[int, int]:
    """Return (height, width).

    >>> both(224), both((256, 128))
    ((224, 224), (256, 128))
    """
    return (size, size) if isinstance(size, int) else size


def one_or_both(size: Sequence[int]) -> Size:
    """Return one length where height and width are equal, else both.

    >>> one_or_both([224, 224]), one_or_both([256, 128])
    (224, (256, 128))
    """
    height, width = size
    return height if height == width else (height, width)


def size_words(size: Size) -> str:
    """Return height and width in words.

    >>> size_words(224), size_words((256, 128))
    ('224x224', '256x128')
    """
    return "x".join(map(str, both(size)))


def read_size(text: str) -> Size:
    """Return the size that an option gives: ``224``, or ``256x128`` for 256 pixels high and 128 wide.

    Raises:
        InputError: it is neither.
    """
    found = re.fullmatch(r"(-?\d{1,9})(?:x(\d{1,9}))?", text.strip())
    if found is None:
        raise InputError(f"`size` must be a number of pixels, or a height and a width such as 256x128, got {text!r}.")
    height, width = found.groups()
    return int(height) if width is None else one_or_both((int(height), int(width)))


def checked_size(size: Size | None) -> Size | None:
    """Return a size, one length where both sides are equal.

    Raises:
        InputError: it is no size.
    """
    try:
        return _valid(size)
    except ValueError as error:
        raise InputError(f"`size` {error}", "Leave it out to take the model's own.") from error


def _valid(value: object) -> Size | None:
    """Return a size that anyone may have given; raise ValueError with the rule otherwise."""
    if value is None:
        return None
    given = value if isinstance(value, list | tuple) else (value, value)
    whole = [each for each in given if isinstance(each, int) and not isinstance(each, bool) and 1 <= each <= LARGEST]
    if len(given) != 2 or len(whole) != 2:
        raise ValueError(f"{RULE}, got {described(value)}.")
    return one_or_both(whole)


#: A size as a setting.
SizeSetting = Annotated[Size, BeforeValidator(_valid)]


def covering(size: tuple[int, int], cover: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a photo that is scaled so that it just covers a rectangle.

    For a square, this scales the shorter side to its length, and rounds the longer one down, as torchvision does.

    Args:
        size: (height, width) of the photo, pixels.
        cover: (height, width) of the rectangle, pixels.

    >>> covering((480, 640), (256, 256)), covering((480, 640), (256, 128))
    ((256, 341), (256, 341))
    >>> covering((480, 640), (128, 256))
    (192, 256)
    """
    (tall, wide), (height, width) = size, cover
    if height * wide >= width * tall:  # the height is what a smaller photo would lack
        return height, height * wide // tall
    return width * tall // wide, width


def corner(size: tuple[int, int], inner: tuple[int, int]) -> tuple[int, int]:
    """Return (top, left) of a model's input in the centre of an image, as torchvision rounds it; 0 along a shorter side.

    Args:
        size: (height, width) of the image, pixels.
        inner: (height, width) of the input, pixels.

    >>> corner((256, 341), (224, 224))
    (16, 58)
    """
    (tall, wide), (height, width) = size, inner
    return max(0, round((tall - height) / 2)), max(0, round((wide - width) / 2))
