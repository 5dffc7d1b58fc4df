"""A measurement says how far it is within a block, by the images that go through the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shiftscope as ss
from shiftscope.engine import passes
from shiftscope.engine.passes import Pace
from shiftscope.runtime.progress import Event, Stage


@pytest.fixture(autouse=True)
def _every_pass_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "SECONDS_BETWEEN_REPORTS", 0.0)


def test_images_are_done_as_their_views_are() -> None:
    events = list[Event]()
    pace = Pace(events.append, "measuring", views=40, done=(10, 20), total=30)
    for _ in range(5):
        pace.add(10)
    pace.end()
    assert events == [Stage("measuring", done, 30) for done in (12, 15, 17, 19, 19, 20)]


MODEL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3)).eval()


@pytest.mark.parametrize("model", [MODEL, lambda images: MODEL(images)], ids=["module", "function"])
def test_audit_reports_within_a_block(model: object) -> None:
    events = list[Event]()
    ss.audit(model, torch.rand(12, 1, 8, 8), protocols=["rojas2022-circular"], batch_size=5, report=events.append)
    done = [event.done for event in events if isinstance(event, Stage)]
    assert done == sorted(done)
    assert len(done) > 6
    assert done[-1] == 12


def test_fix_reports_within_a_measurement() -> None:
    events = list[Event]()
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 9, 3)).eval()
    ss.fix(lambda images: model(images), torch.rand(6, 1, 8, 8), kinds="average", max_shift=1, report=events.append)
    stages = [event for event in events if isinstance(event, Stage) and "before, zero" in event.sentence]
    assert len(stages) > 8
    assert stages[-1] == Stage("measuring before, zero shifts", 6, 6)
