"""The page of an explanation shows every cause, layer and fix with the numbers of its tables."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest
import torch
from torch import nn

from shiftscope.estimates import Estimate
from shiftscope.explanations import Explanation, TaskExplanation, explain
from shiftscope.report import render
from shiftscope.report.explanation import explanation_page


def words_of(page: str) -> str:
    """Return the words of a page, with plain spaces."""
    return " ".join(unescape(re.sub(r"<[^>]*>", "", page)).split())


@pytest.fixture(scope="module")
def found() -> Explanation:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    return explain(model, torch.rand(6, 1, 16, 16), max_shift=2, shifts=2, name="<b>mine</b>")


def test_page_has_verdict_tables_and_command(found: Explanation) -> None:
    page = render(explanation_page(found))
    text = words_of(page)
    assert "<b>mine" not in page
    assert found.summary().verdict in text
    for table in found.tables():
        for row in table.rows:
            for cell in row.values():
                if isinstance(cell, Estimate):
                    assert f"{cell.low:z.3f} to {cell.high:z.3f}" in text
    works = [each for each in found.fixes.ranked if each.works]
    assert (f"Try first: {works[0].command}" in text) == bool(works)


def test_cause_that_changes_nothing_has_no_interval() -> None:
    averaging = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    found = explain(averaging, torch.rand(4, 1, 12, 12), max_shift=2, shifts=2)
    head = next(each for each in found.causes.causes if each.name == "head")
    assert head.part is not None
    assert (head.part.value, head.part.low, head.part.high) == (0, 0, 0)


class Depth(nn.Module):
    """Maps at a quarter of the resolution; layers are read with hooks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, 4, padding=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).abs() + 0.1 if float(images.sum()) > -1 else images


@pytest.fixture(scope="module")
def of_task() -> TaskExplanation:
    found = explain(Depth().eval(), torch.rand(5, 1, 24, 24), max_shift=2, shifts=2, name="<b>mine</b>", task="depth")
    assert isinstance(found, TaskExplanation)
    return found


def test_page_of_a_task_has_its_sentences_numbers_and_reasons(of_task: TaskExplanation) -> None:
    page = render(explanation_page(of_task))
    text = words_of(page)
    assert "<b>mine" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    for sentence in (of_task.headline, of_task.lattice.sentence(), of_task.layer_sentence(), of_task.measure_words()):
        assert sentence
        assert sentence in text
    for table in of_task.tables():
        for cell in (cell for row in table.rows for cell in row.values() if cell is not None):
            shown = f"{cell.low:.3f} to {cell.high:.3f}" if isinstance(cell, Estimate) else str(cell)
            assert isinstance(cell, float) or shown in text
    points = re.findall(r'data-tip="images move (?:down|right)[^"]*pixels -?\d+', page)
    assert len(points) == 2 * len(of_task.lattice.curve.rows)  # drawn for a desktop and for a telephone
    assert len(of_task.lattice.curve.rows) == 4 * of_task.lattice.reach


def test_page_of_a_task_says_what_is_unknown(of_task: TaskExplanation) -> None:
    causes = of_task.causes
    unknown = tuple(replace(each, part=None, share=None, left=None, reason="<i>why</i>") for each in causes.causes[:2])
    found = replace(of_task, causes=replace(causes, causes=(*unknown, causes.causes[2])), layers=None, notes=("<u>note</u>",))
    page = render(explanation_page(found))
    text = words_of(page)
    assert text.count("unknown: <i>why</i>") >= 2
    assert "By cause: unknown, because <i>why</i>." in text
    assert "Their maps cannot be compared" in text
    assert "<i>why" not in page.replace(str(found.causes.table().to_csv()), "")
    assert "<u>note" not in page
    assert "What shifts change, by cause" not in [each.title for each in explanation_page(found).sections]
