"""``plan.json``: what a folder was created for, written before its first result, so that whoever resumes does the same work.

The file holds a checksum of its content. A plan that was changed by hand or by a damaged disk would give its parts, measured for
another plan, another meaning; so it is not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from shiftscope.errors import InputError
from shiftscope.runtime.files import CHECKSUM, remove_temporary_files, write_first
from shiftscope.runtime.inputs import parse_json, read_bytes, reading
from shiftscope.runtime.settings import Spec

__all__ = ["PLAN", "hold_plan", "read_plan", "write_plan"]

PLAN = "plan.json"
Plan = TypeVar("Plan", bound=Spec)


def hold_plan(folder: Path, plan: Plan, remedy: str, described: Callable[[Plan], str]) -> None:
    """Create a folder for a plan, or check that it holds this very plan.

    Args:
        folder: one to create, an empty one, or one that was created for the plan.
        plan: what the folder is for.
        remedy: what to do if the folder is for something else.
        described: says what another plan is for, after "another".

    Raises:
        InputError: the folder holds other files, or another plan or a damaged one.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder)
    if not (folder / PLAN).exists():
        if any(folder.iterdir()):
            raise InputError(f"{folder} holds other files.", remedy)
        write_plan(folder, plan)
    known = read_plan(folder, type(plan), remedy)
    if known != plan:
        raise InputError(f"{folder} holds another {described(known)}.", remedy)


def write_plan(folder: Path, plan: Spec) -> None:
    """Write a plan into a folder; of several processes that do so at once, the first one's stays.

    Args:
        folder: an existing one.
        plan: what the folder is for.
    """
    content = parse_json(plan.model_dump_json())
    write_first(folder / PLAN, json.dumps({**content, CHECKSUM: _checksum(content)}, indent=1) + "\n")


def read_plan(folder: Path, kind: type[Plan], remedy: str) -> Plan:
    """Return the plan in a folder.

    Args:
        folder: the folder.
        kind: of plan.
        remedy: what to do if it is damaged.

    Raises:
        InputError: there is none, or it is damaged, or of another kind; its cause is the error of reading it.
    """
    file = folder / PLAN
    with reading(file, "a complete plan of this version", remedy):
        content = parse_json(read_bytes(file))
        if content.pop(CHECKSUM) != _checksum(content):
            raise ValueError("its content does not match its checksum")
        return kind.model_validate_json(json.dumps(content))


def _checksum(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
