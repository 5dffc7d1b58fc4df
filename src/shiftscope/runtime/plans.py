"""``plan.json``: what a folder was begun for, written before its first result, so that whoever goes on does the same work.

The file holds a checksum of its content. A plan that was changed by hand or by a damaged disk would give its parts, measured for
another plan, another meaning; so it is not read.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from shiftscope.runtime.files import CHECKSUM, write_first
from shiftscope.runtime.inputs import parse_json, read_bytes, reading
from shiftscope.runtime.settings import Spec

__all__ = ["PLAN", "read_plan", "write_plan"]

PLAN = "plan.json"
Plan = TypeVar("Plan", bound=Spec)


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
