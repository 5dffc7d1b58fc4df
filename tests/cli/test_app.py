"""Exit codes, help, JSON and interruptions: what scripts rely on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.conftest import STUDY, Command
from shiftscope.cli import app

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

MODULE = [sys.executable, "-m", "shiftscope"]
COMMANDS = [name for name in app.resolved_commands() if not name.startswith("-")]


def test_theory_json_has_tables_with_columns_and_rows(shiftscope: Command) -> None:
    done = shiftscope("theory", "--json")
    tables = json.loads(done.out)["tables"]
    assert done.code == 0
    assert all({"name", "columns", "rows"} <= set(table) for table in tables)
    row = tables[0]["rows"][1]
    assert (row["shift"], row["output"]) == (1, [0, 0, 0, 1, 2, 1, 2, 0])
    assert [row[name] for name in ("similarity", "movement", "cosine in place")] == pytest.approx([1.0, 1.0, 0.6])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("fix", "`shiftscope fix` needs MODEL. `shiftscope fix --help` says more."),
        ("fix model", "`shiftscope fix` needs --with. `shiftscope fix --help` says more."),
        ("report a b", "`shiftscope report` got unexpected arguments: 'b'. `shiftscope report --help` says more."),
        ("audit m --imges 3", "Unknown option: --imges. Did you mean --images? `shiftscope audit --help` says more."),
        ("audit m --images", "`--images` needs a value. `shiftscope audit --help` says more."),
        (
            "study digits --seeds 1.5",
            "Invalid value for --seeds: 1.5 is not a whole number. `shiftscope study --help` says more.",
        ),
        ("audti", 'Unknown command "audti". Did you mean "audit"? '),
    ],
)
def test_wrong_command_line_is_one_sentence_and_where_its_help_is(shiftscope: Command, words: str, sentence: str) -> None:
    done = shiftscope(*words.split())
    assert done.code == 2
    assert done.err.startswith(f"shiftscope: {sentence}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("words", [("study", "digits", "--out", ""), ("study", "digits", "--out=")])
def test_empty_value_is_refused(shiftscope: Command, words: tuple[str, ...]) -> None:
    done = shiftscope(*words)
    assert done.code == 2
    assert done.err == "shiftscope: --out has an empty value. Give one; if it is a variable of your shell, set it first.\n"


@pytest.mark.parametrize(
    "text",
    ["0 0 0 0 1 2 1 2", "0 0 2 2", "subsampling breaks equivariance", "homogeneity 1 at factor 2", "fully connected layer"],
)
def test_theory_prints_every_table_with_its_sentence(shiftscope: Command, text: str) -> None:
    assert text in " ".join(shiftscope("theory").out.split())  # whatever the width of the terminal


def test_selfcheck_passes_and_prints_a_table(shiftscope: Command) -> None:
    done = shiftscope("selfcheck", "--json")
    rows = json.loads(done.out)["rows"]
    assert done.code == 0
    assert {row["verdict"] for row in rows} == {"passed"}
    assert f"{len(rows)} of {len(rows)} passed." in shiftscope("selfcheck").out


def test_broken_pipe_exits_quietly() -> None:
    with subprocess.Popen([*MODULE, "theory", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (141, b"")


def heed_sigint() -> None:
    """Undo what a shell does to the processes that it starts in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_interrupted_study_exits_with_130_and_says_how_to_resume(tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text(STUDY.replace("max_epochs = 2", "max_epochs = 5000\npatience = 5000"))
    running = subprocess.Popen(
        [*MODULE, "study", "long.toml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_sigint
    )
    begun, deadline = tmp_path / "studies" / "long" / "study.json", time.monotonic() + 150
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert begun.exists()
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Stopped. Finished runs are in studies/long; run the same command again to resume." in errors
    assert "Traceback" not in errors


def test_full_disk_exits_with_2_and_says_how_to_resume(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the network's weights do not fit."""
    (tmp_path / "tiny.toml").write_text(STUDY)
    code = (
        "import resource, signal, sys; from shiftscope.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "sys.exit(main(['study', 'tiny.toml', '--workers', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "studies/tiny cannot be written (File too large). Finished runs are kept" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("studdy",), ("study", "--colour"), ("study", "--seeds", "many")])
def test_unknown_command_option_or_value_exits_with_2(shiftscope: Command, arguments: tuple[str, ...]) -> None:
    done = shiftscope(*arguments)
    assert (done.code, done.out) == (2, "")
    assert arguments[-1] in done.err


def test_help_lists_every_command(shiftscope: Command) -> None:
    printed = shiftscope("--help").out
    assert all(re.search(rf"^│ {name} ", printed, re.MULTILINE) for name in COMMANDS)
    assert "--install-completion" in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option_within_80_columns(
    shiftscope: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shiftscope(command, "--help").out.splitlines()
    assert max(map(len, lines)) <= 80
    collected = app[command].assemble_argument_collection(parse_docstring=True)
    arguments = [argument for argument in collected if argument.name != "*" and argument.parse]
    assert [argument.name for argument in arguments if not (argument.parameter.help or "").strip().endswith(".")] == []
    assert [argument.name for argument in arguments if not any(argument.name in line for line in lines)] == []


@pytest.mark.parametrize("command", ["audit", "explain", "fix"])
def test_commands_on_models_share_their_options(command: str) -> None:
    shared = {
        "--data", "--data-dir", "--images", "--max-shift", "--weights", "--size", "--mean", "--std", "--trust", "--json"
    }  # fmt: skip
    assert shared <= {argument.name for argument in app[command].assemble_argument_collection()}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_can_be_generated(shell: str) -> None:
    assert "explain" in app.generate_completion(shell=shell)


@pytest.mark.parametrize("error", [MemoryError("too large"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_exhausted_memory_is_one_sentence(shiftscope: Command, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("shiftscope.studies.loading.load_study", fail)
    done = shiftscope("list")
    assert done.code == 1
    assert done.err.startswith("shiftscope: there is not enough memory (")
    assert done.err.rstrip().endswith("Take smaller or fewer images.")
    assert done.err.count("\n") == 1
