"""Imports go one way between packages and never in circles, and importing the command line loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import shiftscope

SOURCES = Path(shiftscope.__file__).parent
#: Files and packages, ground first: each imports only from those before it. docs/architecture.md says what each is.
ORDER = [
    "errors",
    "runtime",
    "shifts",
    "similarity",
    "estimates",
    "measures",
    "tasks",
    "theory",
    "tables",
    "display",
    "layers",
    "graphs",
    "engine",
    "surveys",
    "radii",
    "surgery",
    "datasets",
    "examples",
    "explanations",
    "models",
    "training",
    "audits",
    "videos",
    "certificates",
    "studies",
    "figures",
    "report",
    "integrations",
    "cli",
    "__main__",
]


@cache
def modules() -> dict[str, Path]:
    """Every module below the package by its dotted name, the package itself left out."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    del found[""]
    return found


@cache
def imported(name: str) -> frozenset[str]:
    """Our modules that a module imports, anywhere in its file."""
    mentioned = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            mentioned |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            mentioned |= submodules if submodules & {f"shiftscope.{each}" for each in modules()} else {node.module}
    ours = {each.removeprefix("shiftscope.") for each in mentioned if each.startswith("shiftscope.")}
    return frozenset(each for each in ours if each in modules()) - {name}


def package(name: str) -> str:
    return name.partition(".")[0]


def test_order_names_every_package() -> None:
    assert set(ORDER) == {package(name) for name in modules()}


@pytest.mark.parametrize("name", sorted(modules()))
def test_module_imports_only_earlier_packages(name: str) -> None:
    earlier = set(ORDER[: ORDER.index(package(name)) + 1])
    assert {each for each in imported(name) if package(each) not in earlier} == set()


def test_modules_import_no_circle() -> None:
    graph = {name: {each for each in imported(name) if each != package(name)} for name in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_architecture_page_lists_every_package_in_this_order() -> None:
    page = (SOURCES.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = [name.removesuffix("/").removesuffix(".py") for name in rows]
    assert [name for name in listed if name in ORDER] == [name for name in ORDER if name != "__main__"]


def test_command_line_does_not_import_torch() -> None:
    code = "import sys, shiftscope.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", shiftscope.__all__)
def test_public_name_exists(name: str) -> None:
    assert getattr(shiftscope, name).__name__.rpartition(".")[2] == name


def test_unknown_public_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'shift_output'"):
        _ = shiftscope.shift_output
