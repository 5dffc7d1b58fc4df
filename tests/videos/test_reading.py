"""What ``audit --frames`` writes is read as it was; a file that cannot be its own is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shiftscope import InputError
from shiftscope.videos import frames_flicker
from shiftscope.videos.reading import read_flicker

Change = Callable[[dict[str, Any]], Any]


def classes(batch: Tensor) -> Tensor:
    return torch.nn.functional.one_hot((100 * batch[:, 0, 0, 0]).long() % 2, 2).float()


def depths(batch: Tensor) -> Tensor:
    return 1 + batch[:, :1]


def texts(batch: Tensor) -> list[str]:
    return [str(bool(each > 0.5)) for each in batch[:, 0, 0, 0]]


def boxes(batch: Tensor) -> list[dict[str, Tensor]]:
    """Return a detection in bright frames, and none in dark ones: the survival of none is not defined."""
    counts = (batch[:, 0, 0, 0] > 0.5).long().tolist()
    return [
        {"boxes": torch.tensor([[1.0, 1.0, 4.0, 4.0]])[:n], "scores": torch.ones(n), "labels": torch.zeros(n)} for n in counts
    ]


def videos(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(5 + each, 1, 1, 1, generator=generator).expand(-1, 3, 6, 6).contiguous() for each in range(count)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("model", [classes, depths, texts, boxes])
def test_file_is_read_as_it_was_written(model: Any, count: int, tmp_path: Path) -> None:
    found = frames_flicker(model, videos(count))
    again = read_flicker(found.save(tmp_path))
    assert all(
        torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)) for one, other in zip(found.changes, again.changes, strict=True)
    )
    assert (again.estimate, again.measure, again.task) == (found.estimate, found.measure, found.task)
    assert again.to_json() == {**found.to_json()}
    json.loads((tmp_path / "flicker.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def first(content: dict[str, Any]) -> list[Any]:
    changes: list[Any] = content["sequences"][0]["changes"]
    return changes


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content.update(schema_version=2), "written by a later version of shiftscope .schema 2, known up to 1"),
        (lambda content: content.update(schema_version=2, added=1), "written by a later version"),
        (lambda content: content.update(added=1), "added: is not a known setting"),
        (lambda content: content.pop("measure"), "measure: is missing"),
        (lambda content: content.update(measure="gone"), "there is no measure 'gone'"),
        (lambda content: content.update(sequences=[]), "sequences: "),
        (lambda content: first(content).clear(), "changes: "),
        (lambda content: first(content).__setitem__(0, 1 - first(content)[0]), "the estimate is not that of the changes"),
        (lambda content: first(content).__setitem__(0, 3), "changes lie within 0 and 1"),
        (lambda content: content.update(estimate=None), "the estimate is not that of the changes"),
        (lambda content: content["estimate"].update(low=0.99), "the estimate is not that of the changes"),
        (lambda content: content["estimate"].update(count=2), "the estimate is not that of the changes"),
        (lambda content: content["sequences"][1].update(name="1"), "two videos have one name"),
    ],
)
def test_changed_file_is_refused(change: Change, problem: str, tmp_path: Path) -> None:
    content = frames_flicker(classes, videos(3)).to_json()
    change(content)
    (tmp_path / "flicker.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=problem):
        read_flicker(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_other_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "any.json").write_bytes(content)
    with pytest.raises(InputError, match="does not hold the flicker of videos"):
        read_flicker(tmp_path / "any.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_flicker(tmp_path)
