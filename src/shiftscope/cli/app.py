"""The application: its commands, their exit codes and their output."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, Token, UnusedCliTokensError, convert

from shiftscope.cli.printing import print_text
from shiftscope.errors import LONGEST_LINE, InputError, first_line, shortened
from shiftscope.runtime.crashes import EXIT_CODE, report_crash
from shiftscope.runtime.stopping import exit_code, farewell, keep
from shiftscope.runtime.text import json_text, printable

__all__ = ["MODELS", "STUDIES", "THEORY", "app", "main", "print_first", "print_json", "resumable", "say"]

#: The version of what --json prints, where the content has no version of its own.
JSON_VERSION = 1


def _convert_exactly(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert an option's value; a count of 1.5 is refused, where cyclopts would round it."""
    converted = convert(kind, tokens)
    for token in tokens if kind is int else ():
        if "." in token.value and float(token.value) != converted:
            raise ValueError(f"{token.value} is not a whole number")
    return converted


app = App(
    name="shiftscope",
    default_parameter=Parameter(converter=_convert_exactly),
    suppress_keyboard_interrupt=False,
    help="Measure, explain and fix how a vision model responds to shifted images.",
    help_epilogue="--verbose adds the libraries' own messages to an error. Exit codes: 0 done, 1 failed, 2 invalid input, 70 "
    "internal error, 130 stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP. Tables go to standard output, progress "
    "to standard error.",
)
#: Error numbers of a full disk, an exhausted quota and a file size limit.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Adds the libraries' own messages to an error; every command takes it.
VERBOSE = "--verbose"
#: Most characters of a library's message.
LONGEST_REASON = 2000
MODELS = Group("Any model", sort_key=1)
STUDIES = Group("Studies: train and measure networks", sort_key=2)
THEORY = Group("Learn and check", sort_key=3)
PROGRAM = Group("This program", sort_key=4)
app.register_install_completion_command(group=PROGRAM)
app["--help"].group = app["--version"].group = PROGRAM


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        arguments: the command line without the program's name; by default that of this process.
    """
    warnings.showwarning = _show_warning
    words = sys.argv[1:] if arguments is None else arguments
    verbose = VERBOSE in words
    keep()
    try:
        _check_not_empty(words)
        code = app(
            [word for word in words if word != VERBOSE], exit_on_error=False, print_error=False, result_action="return_value"
        )
        sys.stdout.flush()
    except InputError as error:
        # Lines of our own are indented; other line breaks come from outside and are escaped.
        say(*re.split(r"\n(?=  )", f"shiftscope: {error}"), error=True)
        if verbose:
            say(*_reasons(error), error=True)
        return 2
    except CycloptsError as error:
        say(f"shiftscope: {shortened(_of_words(error), LONGEST_LINE)}", error=True)
        return 2
    except KeyboardInterrupt:
        _say_stopped()
        return exit_code()
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        _give_up_output()
        return 141
    except Exception as error:  # a bug
        if _is_full(error):
            _give_up_output()
            say(f"shiftscope: the disk is full ({error}). Make room and run the same command again.", error=True)
            return 1
        if _needs_memory(error):
            say(f"shiftscope: there is not enough memory ({first_line(error)}). Take smaller or fewer images.", error=True)
            return 1
        if isinstance(error, OSError) and error.filename is not None:  # a path that is too long, or that the user may not read
            place, reason = shortened(str(error.filename), LONGEST_LINE // 2), error.strerror or first_line(error)
            say(f"shiftscope: {place} cannot be used ({reason}). Check the path and the disk.", error=True)
            return 1
        say(f"shiftscope: {report_crash(error, sys.argv[1:] if arguments is None else arguments)}", error=True)
        return EXIT_CODE
    return code if isinstance(code, int) else 0


def _check_not_empty(words: Sequence[str]) -> None:
    """Refuse an empty value, which would stand for the current folder: most likely a shell's variable is not set."""
    for before, word in zip(("", *words), words, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            name = word.removesuffix("=") or (before if before.startswith("-") else "an argument")
            raise InputError(f"{name} has an empty value.", "Give one; if it is a variable of your shell, set it first.")


def _of_words(error: CycloptsError) -> str:
    """Return what is wrong with a command line, and where its help is."""
    command = " ".join(("shiftscope", *(error.command_chain or ())))
    problem = re.sub(r" Available commands: .*", "", " ".join(str(error).split())).replace("?.", "?")
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        word = name.removeprefix("--").upper().replace("-", "_") if error.argument.index is not None else name
        problem = f"`{name}` needs a value." if error.keyword else f"`{command}` needs {word}."
    elif isinstance(error, UnusedCliTokensError):
        problem = f"`{command}` got unexpected arguments: {', '.join(map(repr, error.unused_tokens or ()))}."
    return f"{problem}{'' if problem.endswith(('.', '?')) else '.'} `{command} --help` says more."


def _say_stopped() -> None:
    line = farewell()
    if line:
        say(line, error=True)


def _is_full(error: Exception) -> bool:
    """Return whether an error says that a disk is full, such as the one that standard output goes to."""
    return isinstance(error, OSError) and error.errno in FULL


def _needs_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from shiftscope.engine.direct import ran_out_of_memory

    return ran_out_of_memory(error)


def _give_up_output() -> None:
    """Discard the rest of standard output; otherwise Python complains when it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reasons(error: BaseException) -> list[str]:
    """Return the causes of an error, one per line: the libraries' own messages."""
    lines: list[str] = []
    while (cause := error.__cause__) is not None:
        error = cause
        lines.append(f"  {type(error).__name__}: {shortened(str(error), LONGEST_REASON)}")
    return lines


def say(*lines: str, error: bool = False) -> None:
    """Print lines, with control characters escaped.

    Args:
        lines: what to print.
        error: whether to print on standard error.
    """
    for line in lines:
        print(printable(line), file=sys.stderr if error else sys.stdout)


def print_json(content: dict[str, Any]) -> None:
    """Print JSON on standard output, with its schema's version."""
    print(json_text({"schema_version": JSON_VERSION, **content}), end="")


def print_first(line: str, *, as_json: bool) -> None:
    """Print what a command measures, before it starts: on standard error if JSON goes to standard output."""
    print_text(line, error=as_json)


@contextmanager
def resumable(folder: Path | None, what: str) -> Iterator[None]:
    """Say how to resume when the work is stopped or a file cannot be written.

    It holds until the end of the command; finished work is kept.

    Args:
        folder: where finished work is; None if nothing is written.
        what: the finished work, "runs".
    """
    if folder is not None:
        keep(f"Finished {what} are in {folder}; run the same command again to resume.")
    try:
        yield
    except OSError as error:
        if folder is None:
            raise
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error}). Finished {what} are kept.",
            "Make room or choose another folder with --out, and run the same command again to resume.",
        ) from error


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print a warning as one line; a warning of ours without its category."""
    text = f"shiftscope: {'' if category is UserWarning else category.__name__ + ': '}{message}"
    say(shortened(text, LONGEST_LINE), error=True)
