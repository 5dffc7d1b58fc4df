"""Files are written completely or not at all, and temporary files of killed writers are removed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shiftscope.errors import InputError
from shiftscope.runtime.files import (
    LOCK,
    claimed,
    locked,
    remove_temporary_files,
    write_atomically,
    write_checked_tensors,
    write_tensors,
    write_text,
    writing,
)
from shiftscope.runtime.inputs import read_checked_tensors, read_tensors


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

    def write(living: Path) -> None:
        living.touch()
        living.with_name(living.name.replace(str(os.getpid()), str(dead.pid))).touch()
        remove_temporary_files(tmp_path)
        assert os.listdir(tmp_path / "runs") == [living.name]

    write_atomically(tmp_path / "runs" / "record.json", write)
    assert os.listdir(tmp_path / "runs") == ["record.json"]


@pytest.mark.parametrize(("hours", "stays"), [(0, True), (48, False)])
def test_temporary_file_of_another_machine_stays_for_a_day(tmp_path: Path, hours: int, stays: bool) -> None:
    """Whether that process lives cannot be seen from here: on a cluster its number may be free on this machine."""
    path = tmp_path / ".record.anothermachine-999999999.tmp.json"
    path.touch()
    os.utime(path, (time.time() - 3600 * hours,) * 2)
    remove_temporary_files(tmp_path)
    assert path.exists() == stays


CLAIM = """
import os, sys
from pathlib import Path
from shiftscope.runtime.files import claimed
with claimed(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_claim_of_a_living_process_holds_and_that_of_a_killed_one_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "abc"
    command = [sys.executable, "-c", CLAIM, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        with claimed(folder) as mine:
            assert mine is False
        other.kill()
        other.wait()
        assert (folder / LOCK).exists()
    with claimed(folder) as mine:
        assert mine is True
        with claimed(folder) as again:
            assert again is False
    assert os.listdir(folder) == []


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "a\r\nü\n")
    assert (tmp_path / "t").read_bytes() == "a\r\nü\n".encode()


@pytest.mark.parametrize("tensors", [{}, {"a": torch.arange(3)}])
def test_tensors_are_read_as_written(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_checked_tensors_are_read_as_written_and_no_other_ones(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    tensors = {"a": torch.rand(2, 3), "b": torch.tensor(True), "none": torch.zeros(0, dtype=torch.int64)}
    write_checked_tensors(file, tensors)
    found, metadata = read_tensors(file)
    assert all(torch.equal(value, tensors[name]) for name, value in read_checked_tensors(file).items())
    for other in (
        {**found, "a": found["a"].reshape(3, 2)},
        {**found, "a": found["a"].nextafter(torch.ones(()))},
        {**found, "b": torch.tensor(1, dtype=torch.uint8)},
        {**found, "b": torch.tensor(False)},
        {"a": found["a"], "b": found["b"]},
        {**found, "another": torch.zeros(0)},
        {"b": found["a"], "a": found["b"], "none": found["none"]},
    ):
        write_tensors(file, other, metadata=metadata)
        with pytest.raises(ValueError, match="do not match their checksum"):
            read_checked_tensors(file)
    write_tensors(file, found)
    with pytest.raises(ValueError, match="do not match"):
        read_checked_tensors(file)


def test_file_system_without_locks_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
    with claimed(tmp_path) as mine:
        assert mine is None


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(28, "No space left on device"), "No space left on device"), (OSError("gone"), "gone")]
)
def test_error_of_writing_is_one_sentence(error: OSError, reason: str) -> None:
    with pytest.raises(InputError) as found, writing("`out` results", "Make room.", "; finished runs stay there"):
        raise error
    assert found.value.problem == f"`out` results cannot be written ({reason}); finished runs stay there."
    assert found.value.remedy == "Make room."


def test_tied_tensors_are_written_each(tmp_path: Path) -> None:
    weight = torch.rand(3, 4)
    write_tensors(tmp_path / "tied.safetensors", {"a": weight, "b": weight, "part": weight[1:]})
    found = load_file(tmp_path / "tied.safetensors")
    assert torch.equal(found["a"], weight)
    assert torch.equal(found["b"], weight)
    assert torch.equal(found["part"], weight[1:])
