"""Hostile archives and model files: each is refused in one sentence, and nothing runs, is written or read outside."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from pathlib import Path

import pytest

from hostile import KINDS
from shiftscope.cli import main

#: Seconds and bytes that a refusal may take.
SECONDS, MEMORY = 10, 1 << 30
FACTORY = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())\n"


def refused(words: list[str], place: Path) -> tuple[int, str, float]:
    """Run a command in a forked process with a limit on memory; return its exit code, errors and seconds of work."""
    process = os.fork()
    if not process:
        sys.stderr, sys.stdout = (place / "stderr").open("w"), Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of this process
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        code = 97
        try:
            code = main(words)
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    started = time.monotonic()
    _, status, usage = os.wait4(process, 0)
    assert time.monotonic() - started < 20 * SECONDS
    return os.waitstatus_to_exitcode(status), (place / "stderr").read_text(), usage.ru_utime + usage.ru_stime


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", KINDS)
def test_hostile_file_is_refused_and_nothing_runs(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    file = KINDS[name](folder)
    (tmp_path / "factory.py").write_text(FACTORY)
    before = {path: path.lstat().st_size for path in tmp_path.rglob("*")}
    itself = file.suffix in (".onnx", ".pt2") or file.stem == "model"
    subject = [str(file)] if itself else [f"{tmp_path / 'factory.py'}:make", "--weights", str(file)]
    code, errors, seconds = refused(["audit", *subject, "--size", "20", "--images", "4", "--quick"], tmp_path)
    assert code == 2, errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()[0]) <= len("shiftscope: ") + 300
    assert seconds < SECONDS
    after = {path: path.lstat().st_size for path in tmp_path.rglob("*") if path.name not in ("stderr", "__pycache__")}
    assert {path for path in after if path.suffix != ".pyc"} == set(before)
    assert not (tmp_path / "ran").exists()


def test_there_are_more_than_forty_kinds() -> None:
    assert len(KINDS) >= 40
