"""The last resort: an exception that nobody foresaw becomes a file with its traceback and one sentence.

Nothing heavy is imported here, because an import may be what failed.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

__all__ = ["EXIT_CODE", "cache_folder", "report_crash"]

#: "Internal software error" of sysexits.h.
EXIT_CODE = 70
ISSUES = "https://github.com/shiftscope/shiftscope/issues"


def cache_folder() -> Path:
    """Return the folder for what can be made again: ``SHIFTSCOPE_CACHE``, else one in the user's cache or temporary folder."""
    chosen = os.environ.get("SHIFTSCOPE_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shiftscope"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "shiftscope"


def report_crash(error: BaseException, arguments: list[str]) -> str:
    """Write an exception's traceback to a file; return a sentence that names the file and says where to report it.

    Args:
        error: the exception.
        arguments: the command line without the program's name.
    """
    kind = type(error).__name__
    text = f"shiftscope {arguments}\nPython {sys.version}\n{platform.platform()}\n\n{_traceback(error)}"
    written = _write(text)
    where = f"Its traceback is in {written}" if written else "Its traceback could not be written to the cache folder"
    return f"an unexpected error stopped this command ({kind}). {where}: please report it at {ISSUES}."


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as failure:  # an exception whose own text raises
        return f"{type(error).__name__}, whose text cannot be made ({type(failure).__name__})\n"


def _write(text: str) -> Path | None:
    """Write a text to a new file in the cache folder, or else in the temporary folder; return its path."""
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (cache_folder(), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return folder / name
    return None
