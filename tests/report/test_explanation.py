"""The page of an explanation shows every cause, layer and fix with the numbers of its tables."""

from __future__ import annotations

import re
from html import unescape

import pytest
import torch
from torch import nn

from shiftscope.estimates import Estimate
from shiftscope.explanations import Explanation, explain
from shiftscope.report import render
from shiftscope.report.explanation import explanation_page


@pytest.fixture(scope="module")
def found() -> Explanation:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    return explain(model, torch.rand(6, 1, 16, 16), max_shift=2, shifts=2, name="<b>mine</b>")


def test_page_has_verdict_tables_and_command(found: Explanation) -> None:
    page = render(explanation_page(found))
    text = unescape(re.sub(r"<[^>]*>", "", page))
    assert "<b>mine" not in page
    assert found.summary().verdict in text
    for table in found.tables():
        for row in table.rows:
            for cell in row.values():
                if isinstance(cell, Estimate):
                    assert f"{cell.low:.3f} to {cell.high:.3f}" in text
    works = [each for each in found.fixes.ranked if each.works]
    assert (f"Try first: {works[0].command}" in text) == bool(works)


def test_cause_that_changes_nothing_has_no_interval() -> None:
    averaging = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    found = explain(averaging, torch.rand(4, 1, 12, 12), max_shift=2, shifts=2)
    head = next(each for each in found.causes.causes if each.name == "head")
    assert head.part is not None
    assert (head.part.value, head.part.low, head.part.high) == (0, 0, 0)
