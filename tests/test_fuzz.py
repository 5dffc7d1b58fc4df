"""Damaged and hostile inputs, drawn by seed, end in one sentence: no traceback, nothing hangs, nothing is written outside."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

#: Cases of each campaign; thousands with other seeds are in results/benchmarks/fuzz.txt.
CASES = {
    "study files": 16,
    "files of a study": 12,
    "model files": 16,
    "command lines": 12,
    "images and parquet": 10,
    "every value": 12,
}
#: Seconds after which a case counts as hanging.
HANG = 30.0

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    """Return the module benchmarks/fuzz.py, its libraries loaded."""
    folder = Path(__file__).parents[1] / "benchmarks"
    sys.path.insert(0, str(folder))  # the module takes it away again
    spec = importlib.util.spec_from_file_location("fuzz", folder / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    module.warm_up()
    return module


@pytest.fixture(scope="module")
def bases(fuzz: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    return fuzz.bases_in(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("campaign", CASES)
def test_hostile_inputs_end_in_a_sentence(campaign: str, fuzz: ModuleType, bases) -> None:
    results = [fuzz.run_case(campaign, seed, bases, hang=HANG) for seed in range(-CASES[campaign], 0)]
    assert {result.seed: result.findings for result in results if result.findings} == {}
    assert any(result.code == 2 for result in results)
