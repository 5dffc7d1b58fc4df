"""Every imported package is declared, and heavy optional ones are imported only where they are needed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shiftscope
from small import TINY

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

PACKAGE = Path(shiftscope.__file__).parent
#: Its modules extend classes of other libraries, and are imported when one of their names is used.
INTEGRATIONS = "integrations"
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def declared(*extras: str) -> set[str]:
    """Return the distributions of the base installation and of some extras."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return {re.split(r"[^\w-]", requirement)[0] for requirements in lists for requirement in requirements}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the top-level packages that a file imports, and whether the import runs with the file's own."""
    tree = ast.parse(path.read_text())
    checked = {node for block in ast.walk(tree) if isinstance(block, ast.If) for node in ast.walk(block)}  # TYPE_CHECKING
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else names
        for name in names:
            yield name.partition(".")[0], node in tree.body and node not in checked


def third_party(*, at_import: bool) -> set[str]:
    """Return the distributions that the package imports, anywhere or whenever its modules are imported."""
    files = [path for path in PACKAGE.rglob("*.py") if not at_import or path.parent.name != INTEGRATIONS]
    found = {name for path in files for name, immediate in imports(path) if immediate or not at_import} - set(
        sys.stdlib_module_names
    )
    known = packages_distributions()
    return {known.get(name, [name])[0].lower().replace("_", "-") for name in found - {"shiftscope"}}


def test_imported_packages_are_declared() -> None:
    optional = ("fast", "hub", "lightning", "onnx", "pandas", "ray", "submitit", "torchmetrics", "transformers", "zoo")
    assert third_party(at_import=False) <= declared(*optional) | {"pytest"}  # which loads the plugin


def test_packages_imported_with_a_module_are_in_the_base_installation() -> None:
    assert third_party(at_import=True) <= declared()


def test_extra_all_holds_every_optional_feature() -> None:
    (everything,) = PROJECT["optional-dependencies"]["all"]
    named = set(re.search(r"\[(.*)\]", everything).group(1).split(","))
    assert named == set(PROJECT["optional-dependencies"]) - {"all", "docs", "test"}


@pytest.mark.parametrize("module", ["shiftscope", "shiftscope.cli", "shiftscope.integrations", "shiftscope.audits"])
def test_no_integration_is_imported_before_it_is_used(module: str) -> None:
    libraries = {"torchmetrics", "lightning", "transformers", "pandas", "mlflow", "tensorboard", "wandb", "trackio", "submitit"}
    code = f"import sys, {module}; sys.exit(str({libraries!r} & set(sys.modules)) if {libraries!r} & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["study", "tiny.toml", "--out", "out"],
        ["audit", "helpers:network", "--data", "photos", "--size", "20", "--max-shift", "2"],
    ],
    ids=["study of the digits", "audit of photos"],
)
def test_digits_and_photos_need_neither_datasets_nor_pandas(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    for number in range(3):
        path = tmp_path / "photos" / "cat" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 40), 50 * number, np.uint8)).save(path)
    absent = tmp_path / "absent"
    absent.mkdir()
    for name in ("datasets", "pandas", "huggingface_hub"):  # in worker processes too
        (absent / f"{name}.py").write_text("raise ImportError('absent')")
    paths = [absent, Path(__file__).parent, PACKAGE.parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-m", "shiftscope", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
