"""Tests that use the plugin's fixture and marker pass, fail and refuse as their conditions say."""

from __future__ import annotations

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = "pytester"
ROOT = Path(__file__).parent.parent.parent
PLUGIN = "shiftscope.integrations.pytest_plugin"

TESTS = """
import pytest
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10)).eval()

IMAGES = torch.rand(60, 1, 16, 16, generator=torch.Generator().manual_seed(0))

def test_kept(shift_stability):
    found = shift_stability(model(), IMAGES, fail_if="top-1 change > 0.99", protocols=["mouton2020"])
    assert found.cost.images == 60

def test_broken(shift_stability):
    shift_stability(model(), IMAGES, fail_if=["top-1 change > 0.01", "mcs < -0.99"], protocols=["mouton2020"])

@pytest.mark.shift_stability("top-1 change > 0.01", protocols=["mouton2020"], max_shift=4)
def test_marked(shift_stability):
    shift_stability(model(), IMAGES)

@pytest.mark.shift_stability("top-1 change > 0.5", protocols=["mouton2020"])
def test_undecided_passes_and_strict_fails(shift_stability):
    shift_stability(model(), IMAGES[:2], max_shift=1)
    shift_stability(model(), IMAGES[:2], fail_if="mcs > -1", strict=True, max_shift=1)

def test_no_condition(shift_stability):
    shift_stability(model(), IMAGES)
"""


def test_fixture_and_marker_judge_by_their_conditions(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    installed = PLUGIN in {each.value for each in entry_points(group="pytest11")}  # then pytest loads it by itself
    done = pytester.runpytest_subprocess(
        *([] if installed else ["-p", PLUGIN]), "-p", "no:cacheprovider", "--strict-markers", "-q"
    )
    done.assert_outcomes(passed=1, failed=4)
    printed = done.stdout.str()
    assert "Gate fails: 1 of 2 conditions: top-1 change (mouton2020)" in printed
    assert "Gate fails: top-1 change (mouton2020)" in printed
    assert "`shift_stability` has no condition." in printed
    assert "cosine similarity (mouton2020)" in printed


def test_installation_registers_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"shiftscope": PLUGIN}
