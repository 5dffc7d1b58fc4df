"""Text from outside (file names, class names, exceptions), made safe to print; and JSON that people can read."""

from __future__ import annotations

import json
import re
from math import isfinite

__all__ = ["json_text", "markdown_text", "number_of", "plain_cell", "printable"]

#: Control characters, line separators, marks that reverse the direction of writing, and halves of surrogate pairs, which stand
#: for bytes of a file name that are no text.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

#: What may begin HTML.
TAG = re.compile(r"<(?=[A-Za-z/!?])")


def printable(text: str) -> str:
    r"""Return a text in one line that can neither move the cursor nor change a terminal's colours: control characters escaped.

    >>> printable("a\x1b[31mred\nnew line")
    'a\\x1b[31mred\\nnew line'
    """
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown_text(text: str) -> str:
    r"""Return a text whose HTML, links and images Markdown shows as they are written, in one line.

    >>> markdown_text("<img src=x> ![a](http://b) where r <= 8")
    '&lt;img src=x> ![a]\\(http://b) where r <= 8'
    """
    return TAG.sub("&lt;", printable(text)).replace("](", "]\\(").replace("][", "]\\[")


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural if it is not one.

    >>> number_of(1, "image"), number_of(2000, "image"), number_of(0, "box")
    ('1 image', '2,000 images', '0 boxes')
    """
    return f"{count:,} {noun if count == 1 else noun + ('es' if noun.endswith('x') else 's')}"


def plain_cell(text: str) -> str:
    """Return a text that spreadsheets take as text, not as a formula: one that begins like a formula gets an apostrophe.

    >>> plain_cell("=1+1"), plain_cell("-1 px"), plain_cell("cat")
    ("'=1+1", "'-1 px", 'cat')
    """
    safe = printable(text)
    return f"'{safe}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else safe


def json_text(content: object) -> str:
    """Return JSON with a line for each field and for each list of numbers, which leaves long lists readable in a diff.

    Infinity and what is no number are null: JSON has no words for them.

    >>> print(json_text({"values": [0.5, None, 1.0], "rows": [{"name": "mcs"}]}), end="")
    {
     "values": [0.5, null, 1.0],
     "rows": [
      {
       "name": "mcs"
      }
     ]
    }
    """
    return _json_lines(content, "") + "\n"


def _json_lines(content: object, indent: str) -> str:
    deeper = indent + " "
    if isinstance(content, dict) and content:
        parts = [f"{json.dumps(name)}: {_json_lines(value, deeper)}" for name, value in content.items()]
        opening, closing = "{}"
    elif isinstance(content, list | tuple) and any(isinstance(each, dict | list | tuple) for each in content):
        parts = [_json_lines(each, deeper) for each in content]
        opening, closing = "[]"
    else:
        return json.dumps([*map(_finite, content)] if isinstance(content, list | tuple) else _finite(content), allow_nan=False)
    lines = ",\n".join(deeper + part for part in parts)
    return f"{opening}\n{lines}\n{indent}{closing}"


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not isfinite(value) else value
