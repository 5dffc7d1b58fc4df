"""The command line. Commands import what is heavy when they run, so that ``--help`` is quick.

Exit codes: 0 done, 1 failed, 2 invalid input (one sentence, no traceback), 70 internal error (its traceback is in a file), 130
stopped by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (one line on what is kept).
"""

from shiftscope.cli.app import app, main
from shiftscope.cli.audit import audit
from shiftscope.cli.certify import certify
from shiftscope.cli.explain import explain
from shiftscope.cli.fix import fix
from shiftscope.cli.gate import check
from shiftscope.cli.studies import compare, figures, open_report, report, selfcheck, study, theory

__all__ = [
    "app",
    "audit",
    "certify",
    "check",
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
