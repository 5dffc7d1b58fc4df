"""Commands that show and check: the worked examples, networks whose answer is known."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from shiftscope.cli.app import app, print_json

__all__ = ["selfcheck", "theory"]


@app.command
def theory(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Print the worked examples of equivariance, shiftability and local homogeneity, computed.

    Parameters
    ----------
    as_json:
        Print {"tables": [{"name", "columns", "rows", ...}]} instead.
    """
    from shiftscope.theory import worked_tables

    tables = worked_tables()
    if as_json:
        print_json({"tables": [table.to_json() for table in tables]})
        return
    from shiftscope.cli.progress import print_worked

    for table in tables:
        print_worked(table)


@app.command
def selfcheck(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Measure networks whose answer is known, and fail if any measure is wrong.

    Parameters
    ----------
    as_json:
        Print the table as JSON instead.
    """
    from shiftscope.audits.selfcheck import run_checks
    from shiftscope.cli.progress import print_table

    table, passed = run_checks()
    if as_json:
        print_json(table.to_json())
    else:
        print_table(table)
    return 0 if passed else 1
