"""Log the numbers of an audit or a table with TensorBoard, Weights & Biases, MLflow, trackio or a logger of Lightning.

What is logged to is an object of that library, so that this module imports none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from shiftscope.audits.results import Audit
from shiftscope.display import Shown
from shiftscope.errors import InputError
from shiftscope.estimates import Estimate
from shiftscope.tables import Cell, Table

__all__ = ["log", "named_numbers"]

#: What stands in a name otherwise; every tracker takes letters, digits and these.
OTHER_CHARACTERS = re.compile(r"[^\w\-./]+", re.ASCII)


def log(found: Audit | Shown | Table, to: Any, *, step: int | None = None, prefix: str = "shift") -> dict[str, float]:
    """Log every number of an audit, another result or a table, and the ends of its interval.

    Args:
        found: an audit, anything else with tables (of which the first is logged), or a table.
        to: a ``SummaryWriter`` of TensorBoard; a run of W&B or trackio, or these modules themselves with a run under way; the
            module ``mlflow``; or a logger of Lightning.
        step: of the training, such as the number of epochs; None for a single measurement.
        prefix: of the names.

    Returns:
        name -> number, as logged: see :func:`named_numbers`.

    Raises:
        InputError: ``to`` is none of these.

    >>> import torch, shiftscope as ss
    >>> class Printer:
    ...     def log(self, numbers, step): print(step, sorted(numbers)[:2])
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3))
    >>> found = ss.audit(model, torch.rand(4, 1, 16, 16), protocols=["mouton2020"])
    >>> _ = log(found, Printer(), step=5)
    5 ['shift/mouton2020/mcs', 'shift/mouton2020/mcs_high']
    """
    numbers = named_numbers(found, prefix)
    if callable(getattr(to, "add_scalar", None)):
        for name, number in numbers.items():
            to.add_scalar(name, number, step)
    elif callable(getattr(to, "log_metrics", None)):
        to.log_metrics(numbers, step=step)
    elif callable(getattr(to, "log", None)):
        to.log(numbers, step=step)
    else:
        raise InputError(
            f"`to` must be a tracker's object, got {type(to).__name__}.",
            "Give a SummaryWriter, a run of W&B or trackio, the module mlflow, or a logger of Lightning.",
        )
    return numbers


def named_numbers(found: Audit | Shown | Table, prefix: str = "shift", *, intervals: bool = True) -> dict[str, float]:
    """Return the numbers of a result by names that every tracker takes, such as ``shift/mouton2020/mcs``.

    The ends of a number's interval are ``NAME_low`` and ``NAME_high``. A table's numbers are ``prefix/ROW/COLUMN``, where ROW is
    what tells the rows apart: their texts, and settings that stand before the first estimate.

    Args:
        found: an audit, another result, or a table.
        prefix: of the names.
        intervals: whether to name their ends, too.

    >>> rows = ({"factor": 2, "mcs": Estimate(0.5, 0.4, 0.6, 100)}, {"factor": 4, "mcs": Estimate(0.7, 0.6, 0.8, 100)})
    >>> named_numbers(Table("A study", ("factor", "mcs"), rows), "study")["study/factor_4/mcs_low"]
    0.6
    """
    cells: dict[str, Estimate | int | float]
    if isinstance(found, Audit):
        cells = {f"{row.protocol}/{row.measure}": row.estimate for row in found.rows}
    else:
        cells = _cells(found if isinstance(found, Table) else found.tables()[0])
    numbers: dict[str, float] = {}
    for place, cell in cells.items():
        name = f"{prefix}/{OTHER_CHARACTERS.sub('_', place)}"
        numbers[name] = cell.value if isinstance(cell, Estimate) else float(cell)
        if isinstance(cell, Estimate) and intervals:
            numbers |= {f"{name}_low": cell.low, f"{name}_high": cell.high}
    return numbers


def _cells(table: Table) -> dict[str, Estimate | int | float]:
    """Return the numbers of a table by row and column."""
    settings = _settings(table)
    labels = [_label(row, settings) for row in table.rows]
    if len(set(labels)) < len(labels):
        labels = [f"{number}_{label}".rstrip("_") for number, label in enumerate(labels, start=1)]
    return {
        f"{label}/{column}" if label else column: cell
        for label, row in zip(labels, table.rows, strict=True)
        for column, cell in row.items()
        if column not in settings and isinstance(cell, Estimate | int | float) and not isinstance(cell, bool)
    }


def _settings(table: Table) -> list[str]:
    """Return the columns that say what a row is about: texts, and differing whole numbers before the first estimate."""
    found, estimates = [], False
    for column in table.columns:
        cells = [row.get(column) for row in table.rows]
        estimates |= any(isinstance(cell, Estimate) for cell in cells)
        texts = any(isinstance(cell, str) for cell in cells)
        if texts or (not estimates and len(set(map(str, cells))) > 1 and all(isinstance(cell, int) for cell in cells)):
            found.append(column)
    return found


def _label(row: Mapping[str, Cell], settings: list[str]) -> str:
    words = [
        cell if isinstance(cell, str) else f"{column}_{cell}" for column in settings if (cell := row.get(column)) is not None
    ]
    return "/".join(word.replace("/", "_") for word in words)
