"""Names of files and classes from outside reach neither a terminal nor a written file with control characters or as markup."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.conftest import Command

#: All that can move a cursor, change colours, or turn a text around; lines may end.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
MARKUP = "<script>alert(1)"
NAMES = ("a\x1b[31mred", "b\u202egnp", "c\nline", "d|pipe", f"e{MARKUP}", "f\u2066iso", "g\x85next", "h\u2028line")
WRITTEN = (".csv", ".md", ".json", ".html")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two classes and images, one of them unreadable, all with hostile names."""
    pixels = np.random.default_rng(0)
    for kind in ("cat\x1b[2J", f"dog\u202e{MARKUP}"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for name in NAMES:
            image = Image.fromarray(pixels.integers(0, 256, (20, 20), dtype=np.uint8))
            image.save(tmp_path / "photos" / kind / f"{name}.png")
        (tmp_path / "photos" / kind / "bad\x1b[5m.png").write_bytes(b"nothing")
    return tmp_path / "photos"


@pytest.mark.parametrize("command", ["audit", "explain", "certify"])
def test_written_and_printed_text_is_free_of_control_characters(command: str, photos: Path, shiftscope: Command) -> None:
    radius = ["--radius", "1"] if command == "certify" else ["--max-shift", "2"]
    done = shiftscope(command, "my_models:small", "--data", str(photos), "--size", "20", "--out", "out", *radius)
    assert done.code == 0, done.err
    texts = {path.name: path.read_text(encoding="utf-8") for path in Path("out").iterdir() if path.suffix in WRITTEN}
    assert len(texts) >= 3
    for name, text in {**texts, "printed": done.out, "errors": done.err}.items():
        assert not CONTROL.search(text), name
    assert MARKUP not in texts.get("report.html", "")
    assert "bad\\x1b[5m.png" in done.out
