"""Files are written completely or not at all, and temporary files of killed writers are removed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shiftscope.runtime.files import LOCK, locked, remove_temporary_files, write_atomically, write_tensors, write_text


def test_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "table.csv"
    write_text(target, "old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, half)
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["table.csv"]


def test_temporary_files_of_dead_writers_are_removed_and_of_living_ones_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "runs" / "abc"
    folder.mkdir(parents=True)
    left, living = folder / f".record.{dead.pid}.tmp.json", folder / f".record.{os.getpid()}.tmp.json"
    left.touch()
    living.touch()
    (folder / "record.json").touch()
    remove_temporary_files(tmp_path)
    assert sorted(os.listdir(folder)) == [living.name, "record.json"]


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "a\r\nü\n")
    assert (tmp_path / "t").read_bytes() == "a\r\nü\n".encode()


@pytest.mark.parametrize("tensors", [{}, {"a": torch.arange(3)}])
def test_tensors_are_read_as_written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_file_system_without_locks_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
