"""The command line. Each command is thin; what is heavy is imported inside it, so that ``--help`` is quick.

Exit codes: 0 done, 1 a failure of ours, 2 bad input (one clear sentence, no traceback), 130 stopped by Ctrl-C.
"""

from shiftscope.cli.app import app, main
from shiftscope.cli.models import audit, explain, fix
from shiftscope.cli.studies import compare, figures, open_report, report, study
from shiftscope.cli.teaching import selfcheck, theory

__all__ = [
    "app",
    "audit",
    "compare",
    "explain",
    "figures",
    "fix",
    "main",
    "open_report",
    "report",
    "selfcheck",
    "study",
    "theory",
]
