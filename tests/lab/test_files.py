"""A file is there whole or not at all, and what killed writers left is swept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shiftscope.lab.files import sweep, write_text, write_whole


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "table.csv"
    write_text(target, "old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(target, half)
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["table.csv"]


def test_sweeping_removes_a_dead_writers_file_and_keeps_a_living_ones(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "runs" / "abc"
    folder.mkdir(parents=True)
    left, living = folder / f".record.{dead.pid}.tmp.json", folder / f".record.{os.getpid()}.tmp.json"
    left.touch()
    living.touch()
    (folder / "record.json").touch()
    sweep(tmp_path)
    assert sorted(os.listdir(folder)) == [living.name, "record.json"]


def test_text_is_kept_as_it_is(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "a\r\nü\n")
    assert (tmp_path / "t").read_bytes() == "a\r\nü\n".encode()
