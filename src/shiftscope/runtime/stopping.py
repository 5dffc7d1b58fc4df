"""Stop the program on Ctrl-C, SIGTERM or SIGHUP: one line says what is kept, and the exit code is 128 plus the signal's number.

The first signal raises :class:`Stopped` in the main thread, so that a command ends its workers and prints what it knows. Where
Python would lose that exception or print it (while a module is imported, in a callback of the garbage collector), the program
ends at once, and so it does on a second signal, or if it has not ended after a while. That is safe at any moment: files are
renamed into place when they are complete, workers end with their parent, and the system frees locks.

Nothing heavy is imported here, so that the handlers stand before the libraries load.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

__all__ = ["SIGNALS", "Stopped", "exit_code", "farewell", "handle_signals", "ignore_signals", "keep"]

#: What stops the program; SIGHUP is missing on Windows.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: How long a command may take to stop by itself: ending a Ray cluster takes several.
SECONDS_TO_STOP = 30.0
NOTHING_KEPT = "Nothing new was saved; run the same command again."
#: A frame of Python's import system.
IMPORTING = "<frozen importlib._bootstrap>"


class Stopped(KeyboardInterrupt):
    """A signal asks the program to stop."""


class _State:
    """Which signal came, 0 for none; what is kept, in words; whether the line is out."""

    signal = 0
    kept = NOTHING_KEPT
    said = False


_state = _State()


def handle_signals() -> None:
    """Let signals stop the program as this module describes. A signal that the process was started to ignore stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.unraisablehook = _exit_if_stopped


def ignore_signals() -> None:
    """Ignore the signals from now on: the command is done, and its exit code stands."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def keep(sentence: str = NOTHING_KEPT) -> None:
    """Set what the program says when it is stopped from now on.

    Args:
        sentence: what is kept, and how to go on; by default that nothing is.
    """
    _state.kept = sentence
    _state.said = False


def farewell() -> str:
    """Return the line that a stopped program prints, or an empty text if it is out already."""
    if _state.said:
        return ""
    _state.said = True
    by = f" by {signal.Signals(_state.signal).name}" if _state.signal not in (0, signal.SIGINT) else ""
    return f"Stopped{by}. {_state.kept}"


def exit_code() -> int:
    """Return the exit code of a stopped program: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + (_state.signal or signal.SIGINT)


def _stop(number: int, frame: FrameType | None) -> None:
    """Handle a signal."""
    first = not _state.signal
    _state.signal = _state.signal or number
    if not first or _imports(frame):
        _exit()
    timer = threading.Timer(SECONDS_TO_STOP, _exit)
    timer.daemon = True
    timer.start()
    raise Stopped


def _imports(frame: FrameType | None) -> bool:
    """Return whether a module is being imported: some catch every exception, and others leave half a library behind."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False


def _exit_if_stopped(unraisable: sys.UnraisableHookArgs) -> None:
    """End the program if Python dropped the exception that was to stop it."""
    if isinstance(unraisable.exc_value, Stopped):
        _exit()
    sys.__unraisablehook__(unraisable)


def _exit() -> None:
    """Print the line, with the cursor back on a terminal, and end the process at once."""
    with suppress(OSError):
        on_terminal = os.isatty(2)
        line = farewell().encode("ascii", "backslashreplace")
        os.write(2, (b"\r\x1b[K\x1b[?25h" if on_terminal else b"") + line + b"\n" * bool(line))
    os._exit(exit_code())
