"""Tests of plans: read as written, never when changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shiftscope.errors import InputError
from shiftscope.runtime.plans import PLAN, hold_plan, read_plan, write_plan
from shiftscope.runtime.settings import Spec


class Small(Spec):
    """A plan."""

    name: str
    shares: tuple[float, ...]
    inner: dict[str, int] = {}


PLANNED = Small(name="naïve", shares=(0.1, 1e-320, 3.0), inner={"b": 1, "a": 2})


def test_plan_is_read_as_written(tmp_path: Path) -> None:
    write_plan(tmp_path, PLANNED)
    assert read_plan(tmp_path, Small, "") == PLANNED


def test_first_plan_of_a_folder_stays(tmp_path: Path) -> None:
    write_plan(tmp_path, PLANNED)
    write_plan(tmp_path, PLANNED.model_copy(update={"name": "other"}))
    assert read_plan(tmp_path, Small, "") == PLANNED


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"shares": [0.1, 0.0, 3.0]}, {"inner": {"a": 2}}, {"sha256": None}, {"more": 1}, {"inner": 10**30}],
)
def test_changed_plan_is_not_read(tmp_path: Path, change: dict[str, Any]) -> None:
    write_plan(tmp_path, PLANNED)
    file = tmp_path / PLAN
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=r"is damaged, or is not a complete plan of this version\. Start again\."):
        read_plan(tmp_path, Small, "Start again.")


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", '"x"', "[" * 100_000, '{"a": 1, "a": 2}'])
def test_what_is_no_plan_is_not_read(tmp_path: Path, content: str) -> None:
    (tmp_path / PLAN).write_text(content)
    with pytest.raises(InputError, match="is damaged"):
        read_plan(tmp_path, Small, "")


def test_order_and_spaces_of_a_plan_do_not_matter(tmp_path: Path) -> None:
    write_plan(tmp_path, PLANNED)
    file = tmp_path / PLAN
    file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items()))))
    assert read_plan(shutil.copytree(tmp_path, tmp_path.parent / "copy"), Small, "") == PLANNED


def held(folder: Path, plan: Small) -> None:
    hold_plan(folder, plan, "Choose another.", lambda known: f"experiment ({known.name})")


def test_folder_holds_the_plan_it_was_created_for(tmp_path: Path) -> None:
    for _ in range(2):
        held(tmp_path / "new" / "folder", PLANNED)
    assert read_plan(tmp_path / "new" / "folder", Small, "") == PLANNED
    with pytest.raises(InputError, match=r"folder holds another experiment \(naïve\)\. Choose another\."):
        held(tmp_path / "new" / "folder", PLANNED.model_copy(update={"name": "other"}))


def test_folder_of_other_files_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    with pytest.raises(InputError, match=r"holds other files\. Choose another\."):
        held(tmp_path, PLANNED)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_folder_whose_plan_was_killed_half_written_is_begun_again(tmp_path: Path) -> None:
    draft = tmp_path / f".plan.-{2**22 + 1}.tmp.draft.json"  # of a process that no longer lives
    draft.touch()
    held(tmp_path, PLANNED)
    assert [path.name for path in tmp_path.iterdir()] == [PLAN]
