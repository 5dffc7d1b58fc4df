"""Image files are decoded by Pillow itself, in the formats that count as images."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from shiftscope.runtime import pictures
from shiftscope.runtime.pictures import open_picture

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 10 10 rectfill\nshowpage\n%%EOF\n"


def test_eps_in_a_file_named_png_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/harm\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "photo.png").write_bytes(EPS)
    with pytest.raises(PIL.UnidentifiedImageError), open_picture(tmp_path / "photo.png") as opened:
        opened.load()
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "MPO"])
def test_formats_of_photos_are_opened(name: str) -> None:
    target = io.BytesIO()
    PIL.Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(target, name)
    with open_picture(io.BytesIO(target.getvalue())) as opened:
        assert opened.size == (6, 4)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "large.png")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 399)
    with pytest.raises(ValueError, match="it has 20x20 pixels"), open_picture(tmp_path / "large.png"):
        pass
