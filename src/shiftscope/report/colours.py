"""Colour scales that colour-blind readers can tell apart. The page's scripts use the same stops."""

from __future__ import annotations

__all__ = ["DIVERGING", "SEQUENTIAL", "hexadecimal", "interpolate", "text_colour"]

Colour = tuple[int, int, int]

#: Dark to light in even steps of lightness, so that it also works in greyscale.
SEQUENTIAL: tuple[Colour, ...] = (
    (18, 24, 58),
    (33, 59, 112),
    (31, 101, 139),
    (38, 142, 142),
    (86, 180, 131),
    (164, 212, 122),
    (244, 236, 146),
)
#: Blue below the middle, orange above it.
DIVERGING: tuple[Colour, ...] = (
    (5, 76, 134),
    (84, 148, 196),
    (180, 209, 230),
    (246, 244, 238),
    (242, 203, 160),
    (218, 138, 66),
    (158, 77, 10),
)


def interpolate(fraction: float, stops: tuple[Colour, ...]) -> Colour:
    """Return the colour at a fraction of the way along the stops; beyond the ends, the last colour.

    >>> interpolate(0.5, ((0, 0, 0), (100, 200, 50)))
    (50, 100, 25)
    """
    place = min(max(fraction, 0.0), 1.0) * (len(stops) - 1)
    below = min(int(place), len(stops) - 2)
    part = place - below
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(stops[below], stops[below + 1], strict=True))
    return red, green, blue


def hexadecimal(colour: Colour) -> str:
    """Return a colour in CSS notation.

    >>> hexadecimal((18, 24, 58))
    '#12183a'
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)


def text_colour(background: Colour) -> str:
    """Return black or white, whichever contrasts more with a background (relative luminance of WCAG 2).

    >>> text_colour(SEQUENTIAL[0]), text_colour(SEQUENTIAL[-1])
    ('#ffffff', '#111111')
    """
    parts = [part / 255 for part in background]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#ffffff" if luminance < 0.179 else "#111111"
