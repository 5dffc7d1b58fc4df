"""A signal at any moment ends a command with one line and the signal's exit code, and nothing of the current folder runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import shiftscope
from shiftscope.cli import main

SOURCES = str(Path(shiftscope.__file__).parents[1])
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
#: A program that says when it is ready to be stopped; {} is what it does then.
PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from shiftscope.runtime.stopping import exit_code, farewell, handle_signals, keep
handle_signals()
keep("Kept.")
try:
    {}
except KeyboardInterrupt:
    print(farewell(), file=sys.stderr)
    sys.exit(exit_code())
"""
READY = "print('ready', flush=True); time.sleep(60)"
IN_CALLBACK = "\n    class Last:\n        def __del__(self): {ready}\n    Last()\n    time.sleep(60)"


def stopped(program: str, folder: Path, number: signal.Signals, times: int = 1) -> tuple[int, str]:
    """Stop a program when it says that it is ready; return its exit code and what it wrote on standard error."""
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    command = [sys.executable, "-c", program]
    running = subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    for _ in range(times):
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    return running.returncode, errors


@pytest.mark.parametrize("name", CODES)
def test_signal_at_work_ends_with_one_line_and_its_code(name: str, tmp_path: Path) -> None:
    by = "" if name == "SIGINT" else f" by {name}"
    assert stopped(PROGRAM.format(READY), tmp_path, signal.Signals[name]) == (CODES[name], f"Stopped{by}. Kept.\n")


def test_signal_while_a_library_loads_ends_with_one_line(tmp_path: Path) -> None:
    """The library catches every exception, as some do."""
    (tmp_path / "library.py").write_text(f"import time\ntry:\n    {READY}\nexcept BaseException:\n    print('caught')\n")
    assert stopped(PROGRAM.format("import library"), tmp_path, signal.SIGINT) == (130, "Stopped. Kept.\n")


def test_signal_in_a_callback_that_python_would_print_ends_with_one_line(tmp_path: Path) -> None:
    assert stopped(PROGRAM.format(IN_CALLBACK.format(ready=READY)), tmp_path, signal.SIGINT) == (130, "Stopped. Kept.\n")


def test_second_signal_ends_a_program_that_swallowed_the_first(tmp_path: Path) -> None:
    program = PROGRAM.format(f"\n    try:\n        {READY}\n    except KeyboardInterrupt:\n        {READY}")
    assert stopped(program, tmp_path, signal.SIGINT, times=2) == (130, "Stopped. Kept.\n")


def test_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    program = PROGRAM.format("print('ready', flush=True); time.sleep(0.5)").replace("default_int_handler", "SIG_IGN")
    assert stopped(program, tmp_path, signal.SIGINT) == (0, "")


def test_unexpected_error_writes_its_traceback_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHIFTSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shiftscope.theory.worked_tables", lambda: 1 / 0)
    assert main(["theory"]) == 70
    (file,) = (tmp_path / "cache").iterdir()
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert f"an unexpected error stopped this command (ZeroDivisionError). Its traceback is in {file}: please report" in printed
    assert "ZeroDivisionError: division by zero" in file.read_text()


def test_unexpected_error_without_a_cache_folder_is_reported_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHIFTSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("shiftscope.theory.worked_tables", lambda: 1 / 0)
    assert main(["theory"]) == 70
    assert f"Its traceback is in {next(tmp_path.glob('error-*.txt'))}" in capsys.readouterr().err


def test_full_standard_output_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with suppress(OSError), full.open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["theory", "--json"]) == 1
    assert "the disk is full" in capsys.readouterr().err


#: What `python -m` and Python's start import before anything of ours runs: those modules are not ours to shield.
PYTHONS = {"importlib", "warnings", "contextlib", "collections", "keyword", "operator", "reprlib", "functools", "types"}
LIBRARIES = {"torch", "numpy", "rich", "cyclopts", "pydantic", "signal", "json"}


@pytest.mark.parametrize(
    ("way", "names", "path"),
    [
        ("module", (sys.stdlib_module_names | LIBRARIES) - PYTHONS, [SOURCES]),
        ("script", sys.stdlib_module_names | LIBRARIES, [SOURCES]),
        ("module", LIBRARIES, [SOURCES, "", "."]),
    ],
)
def test_no_module_of_the_current_folder_runs(way: str, names: set[str], path: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"open('ran', 'a').write({name!r})\n")
    script = tmp_path / "bin" / "run"
    script.parent.mkdir()
    script.write_text("from shiftscope.__main__ import start\nstart()\n")
    command = ["-m", "shiftscope"] if way == "module" else [str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run([sys.executable, *command, "--help"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr, (tmp_path / "ran").exists()) == (0, b"", False)


def test_no_module_of_the_current_folder_runs_in_a_worker(tmp_path: Path) -> None:
    (tmp_path / "signal.py").write_text("open('ran', 'w')\n")
    program = (
        "import helpers\nfrom shiftscope.runtime.executors import Processes\n"
        "print(list(Processes(1).run(helpers.square, [3], lambda *_: None)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCES, str(Path(__file__).parents[1])])}
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, (tmp_path / "ran").exists()) == ("[(3, 9)]\n", False)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONWARNINGS": "error", "COLUMNS": "0", "OMP_NUM_THREADS": "nonsense", "TERM": "dumb"},
        {"COLUMNS": "9" * 30, "LINES": "-1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONOPTIMIZE": "2"},
        {"COLUMNS": "banana", "HOME": "", "TZ": "No/Where", "NO_COLOR": "1", "MPLBACKEND": "nonsense"},
    ],
)
def test_environment_does_not_break_a_command(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "shiftscope", "--help"]
    surroundings = {**os.environ, "PYTHONPATH": SOURCES, **environment}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Measure, explain and fix" in done.stdout
