"""A staged audit answers early, says how long it will take, keeps what it has when stopped, and ends with the same numbers."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import pytest
import torch

from shiftscope.audits.folder import AuditSpec
from shiftscope.audits.job import run_audit, run_first
from shiftscope.audits.results import Audit
from shiftscope.audits.staging import FIRST_IMAGES, AuditStopped, FirstAnswer, Forecast, SoFar
from shiftscope.runtime.progress import Event, Stage

MODELS = """
import time
import torch
from torch import nn

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 10))
    def forward(self, images):
        assert images.amin() >= 0  # keeps torch.fx from tracing it, so that every view sleeps
        time.sleep(0.002 * len(images))
        return self.layers(images)

def slow():
    return Slow()

def quick():
    return Slow().layers
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "staged_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def spec(model: str = "quick", **options: object) -> AuditSpec:
    given = {"model": f"staged_models:{model}", "data": "digits", "size": 16, "images": 150, "max_shift": 2}
    return AuditSpec(**(given | {"protocols": ("mouton2020", "azulay2018", "every-shift")} | options))


def same(one: Audit, other: Audit) -> bool:
    ours, theirs = one.maps(), other.maps()
    alike = ours.keys() == theirs.keys() and all(torch.equal(values, theirs[name]) for name, values in ours.items())
    return alike and (one.rows, one.changed, one.notes) == (other.rows, other.changed, other.notes)


def test_staged_audit_ends_with_the_numbers_of_an_unstaged_one(here: Path) -> None:
    plain = run_audit(spec())
    assert same(run_audit(spec(), staged=True), plain)
    assert same(run_audit(spec(), staged=True, out=here / "out"), plain)


def test_stages_are_a_first_answer_a_forecast_and_better_and_better_audits() -> None:
    events: list[Event] = []
    found = run_audit(spec(), staged=True, report=events.append)
    first, forecast, *rest = [event for event in events if not isinstance(event, Stage)]
    assert isinstance(first, FirstAnswer)
    assert {row.protocol for row in first.audit.rows} == {"unshifted", "mouton2020"}
    assert first.audit.cost.images == FIRST_IMAGES
    assert same(first.audit, run_first(spec()))
    assert isinstance(forecast, Forecast)
    assert forecast.images == 150
    assert all(isinstance(event, SoFar) for event in rest)
    last = rest[-1]
    assert isinstance(last, SoFar)
    assert last.audit().rows == found.rows
    narrower = [each.estimate("mcs", "mouton2020").high - each.estimate("mcs", "mouton2020").low for each in (first.audit, found)]
    assert narrower[0] > narrower[1]


def test_little_work_has_no_stages() -> None:
    events: list[Event] = []
    run_audit(spec(images=40, protocols=("mouton2020",)), staged=True, report=events.append)
    assert not [event for event in events if isinstance(event, FirstAnswer | Forecast)]


@pytest.mark.parametrize("protocols", [("mouton2020", "azulay2018"), ("mouton2020", "every-shift")], ids=["views", "grid"])
def test_forecast_is_right_within_a_factor_of_one_and_a_half(protocols: tuple[str, ...]) -> None:
    seconds, forecasted, views = forecast_and_time(spec("slow", protocols=protocols, images=64, max_shift=1))
    assert views[0] == views[1]
    assert seconds / 1.5 < forecasted < seconds * 1.5


def forecast_and_time(audited: AuditSpec) -> tuple[float, float, tuple[int, int]]:
    """Return how long an audit took and should have taken, and its views by the forecast and by the audit."""
    starts: list[float] = []
    forecasts: list[Forecast] = []

    def note(event: Event) -> None:
        if isinstance(event, Forecast):
            forecasts.append(event)
            starts.append(perf_counter())

    found = run_audit(audited, staged=True, report=note)
    return perf_counter() - starts[0], forecasts[0].seconds, (forecasts[0].views, found.cost.distinct)


@pytest.mark.parametrize("kept", [False, True], ids=["memory", "folder"])
def test_stopped_audit_holds_what_was_measured_and_resumes(kept: bool, here: Path) -> None:
    out = here / "out" if kept else None

    def stop(event: Event) -> None:
        if isinstance(event, Stage) and event.done == 128:
            raise KeyboardInterrupt

    with pytest.raises(AuditStopped) as stopped:
        run_audit(spec(), staged=True, out=out, report=stop)
    partial = stopped.value.audit
    assert partial is not None
    assert partial.cost.images == 64
    assert "Stopped after 64 of 150 images." in partial.notes
    if out is not None:
        assert not (out / "audit.json").exists()
        assert same(run_audit(spec(), staged=True, out=out), run_audit(spec()))


def test_audit_stopped_before_its_first_block_holds_the_first_answer() -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Forecast):
            raise KeyboardInterrupt

    with pytest.raises(AuditStopped) as stopped:
        run_audit(spec(), staged=True, report=stop)
    assert stopped.value.audit is not None
    assert stopped.value.audit.cost.images == FIRST_IMAGES
