"""The action's steps and the workflow of the documentation do what they say, with a real model and photos."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import shiftscope
from shiftscope.cli import main

yaml = pytest.importorskip("yaml", reason="needs PyYAML")
ROOT = Path(__file__).parent.parent.parent
MODEL = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go into a folder that holds a model and photos, as a repository that uses the action does."""
    (tmp_path / "mine.py").write_text(MODEL)
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(6):
        Image.fromarray(generator.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def run(command: str, **environment: str) -> int:
    """Run a step as a workflow does, and return its exit code."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours = {"PATH": paths, "PYTHONPATH": str(Path(shiftscope.__file__).parent.parent)}
    return subprocess.run(["bash", "-ec", command], env={**os.environ, **ours, **environment}, check=False).returncode


def gate_step() -> str:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    install, gate = action["runs"]["steps"]
    assert 'constraints.txt" "$GITHUB_ACTION_PATH${EXTRAS:+[$EXTRAS]}"' in install["run"]
    assert all("${{" not in step["run"] for step in (install, gate)), "inputs go through the environment, where nothing runs them"
    command: str = gate["run"]
    return command


def workflow_arguments() -> list[str]:
    """Return the arguments of each step with the action, in the workflow of the documentation."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "audit.md").read_text(), re.MULTILINE | re.DOTALL)
    workflow = yaml.safe_load(block)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [step["with"]["arguments"] for step in steps if "shiftscope" in step.get("uses", "")]


def test_workflow_of_the_documentation_gates_a_model(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit, check = workflow_arguments()
    assert main(["audit", "mine:model", "--data", "photos", "--size", "32", "--protocol", "mouton2020", "--out", "baseline"]) == 0
    for arguments in (audit, check):
        code = run(gate_step(), ARGUMENTS=arguments, JUNIT="gate.xml", GITHUB_STEP_SUMMARY="summary.md")
        assert code == 0
        assert ElementTree.parse("gate.xml").getroot()[0].get("failures") == "0"
    assert Path("summary.md").read_text().count("### Stability under shifts") == 2


def test_step_fails_as_the_command_does(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = 'audit mine:model --data photos --size 32 --protocol mouton2020 --fail-if "mcs < 1" --strict'
    assert run(gate_step(), ARGUMENTS=arguments, JUNIT="gate.xml") == 1
    assert run(gate_step(), ARGUMENTS=f"{arguments} --fail-if mcs", JUNIT="gate.xml") == 2


def test_shell_runs_nothing_that_is_in_the_arguments(repository: Path) -> None:
    assert run(gate_step(), ARGUMENTS="list $(touch harm) `touch harm` ; touch harm", JUNIT="gate.xml") == 2
    assert not Path("harm").exists()


def test_files_of_the_repository_stand_in_for_no_module(repository: Path) -> None:
    harm = "open('harm', 'w').close()"
    for name in ("shlex.py", "torch.py", "pip/__init__.py", "pip/__main__.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(harm)
    assert run(gate_step(), ARGUMENTS="audit mine.py:model --data photos --size 32 --protocol nothing", JUNIT="gate.xml") == 2
    install = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"][0]["run"]
    run(install.partition(" install")[0] + " --version")
    assert not Path("harm").exists()
