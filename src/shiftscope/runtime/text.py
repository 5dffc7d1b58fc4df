"""Text from outside (file names, class names, exceptions), made safe to print."""

from __future__ import annotations

import re

__all__ = ["printable"]

#: Control characters, line separators, marks that reverse the direction of writing, and halves of surrogate pairs, which stand
#: for bytes of a file name that are no text.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text in one line that can neither move the cursor nor change a terminal's colours: control characters escaped.

    >>> printable("a\x1b[31mred\nnew line")
    'a\\x1b[31mred\\nnew line'
    """
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
