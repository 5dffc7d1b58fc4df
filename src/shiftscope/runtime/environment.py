"""Shield a command from its surroundings: the current folder, and variables of the environment that break libraries.

Only the command line does this. A program that imports the package keeps its own import path and environment.
"""

import os
import sys

__all__ = ["leave_out_current_folder", "set_environment"]

#: Widths that a terminal may have; rich computes with any number that COLUMNS and LINES name.
LEAST, MOST = 20, 1000


def leave_out_current_folder() -> None:
    """Take the current folder off the import path, here and in processes that are started from here.

    ``python -m`` puts it there, and so does an empty or relative entry of PYTHONPATH; a ``signal.py`` among the images would run.
    Folders that PYTHONPATH names in full stay, and so does the one that holds this package.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    named = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]
    if named:
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    else:
        os.environ.pop("PYTHONPATH", None)
    try:
        here = os.getcwd()  # pathlib would be imported from the folder
    except OSError:  # it is deleted
        here = ""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if here not in (*named, package):
        sys.path[:] = [entry for entry in sys.path if entry and os.path.abspath(entry) != here]


def set_environment() -> None:
    """Set what would break or change a command, in this process and in those that it starts.

    Figures need no display. Warnings are no errors. Threads are counted in numbers. Widths are possible ones. Standard output
    exists, and writes a question mark for what its encoding lacks.
    """
    os.environ["MPLBACKEND"] = "agg"
    _keep_warnings()
    for name in ("COLUMNS", "LINES"):
        _drop_unless(name, LEAST if name == "COLUMNS" else 1, MOST)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        _drop_unless(name, 1, 4 * (os.cpu_count() or 1))
    _open_streams()


def _drop_unless(name: str, least: int, most: int) -> None:
    """Remove a variable unless it holds a number within bounds."""
    value = os.environ.get(name)
    if value is not None and not (value.isascii() and value.isdecimal() and len(value) < 9 and least <= int(value) <= most):
        del os.environ[name]


def _keep_warnings() -> None:
    """Show warnings as warnings, whatever PYTHONWARNINGS and ``-W`` make of them: libraries warn while they are imported."""
    import warnings

    os.environ.pop("PYTHONWARNINGS", None)
    sys.warnoptions[:] = [option for option in sys.warnoptions if not option.startswith("e")]
    warnings.filters[:] = [each for each in warnings.filters if each[0] != "error"]  # type: ignore[index]  # typed as a sequence of any entries
    warnings._filters_mutated()  # type: ignore[attr-defined]  # what `warnings` itself calls


def _open_streams() -> None:
    """Open standard streams that are closed, and let none fail on a letter."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for the rest of the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")
