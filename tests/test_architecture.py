"""Imports go one way, down the list in docs/architecture.md, and nothing heavy happens at the command line's import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import shiftscope

PACKAGE = Path(shiftscope.__file__).parent
#: A module imports only from those above it.
ORDER = [
    "graphs",
    "studies",
    "training",
    "datasets",
    "runtime",
    "errors",
    "shifts",
    "similarity",
    "estimates",
    "measures",
    "theory",
    "tables",
    "layers.resampling",
    "layers.blur",
    "layers.polyphase",
    "layers.activations",
    "layers",
    "graphs.tracing",
    "graphs.operators",
    "graphs.sites",
    "graphs.positions",
    "graphs.geometry",
    "engine",
    "engine.checks",
    "engine.sheets",
    "engine.operators",
    "engine.graph",
    "engine.direct",
    "engine.dense",
    "engine.outputs",
    "surveys",
    "audits.scores",
    "audits.protocols",
    "audits.views",
    "audits.model",
    "audits.parts",
    "audits.measuring",
    "audits.results",
    "audits.session",
    "audits",
    "surgery.plan",
    "surgery.editor",
    "surgery.antialias",
    "surgery.head",
    "surgery.equivariance",
    "surgery",
    "explanations.probes",
    "explanations.layers",
    "explanations.trial",
    "explanations.guarantee",
    "explanations.causes",
    "explanations.fixes",
    "explanations.explanation",
    "explanations",
    "figures.cells",
    "figures.style",
    "figures.curves",
    "figures.grids",
    "figures.relations",
    "figures",
    "report.content",
    "report.colours",
    "report.charts",
    "report.packing",
    "report.page",
    "report",
    "runtime.settings",
    "runtime.seeds",
    "runtime.files",
    "runtime.progress",
    "runtime.provenance",
    "runtime.processes",
    "runtime.ray",
    "datasets.sources",
    "datasets.folders",
    "datasets.dataset",
    "models.family",
    "audits.selfcheck",
    "training.pools",
    "training.loop",
    "training.checkpoint",
    "training.stacking",
    "studies.spec",
    "studies.loading",
    "studies.measuring",
    "studies.records",
    "studies.run",
    "studies.tables",
    "studies.runner",
    "studies.folder",
    "studies.claims",
    "studies.comparison",
    "models.weights",
    "models.libraries",
    "models.files",
    "models.loading",
    "models",
    "surgery.compare",
    "datasets.images",
    "audits.folder",
    "audits.job",
    "figures.study",
    "report.gallery",
    "report.study",
    "report.audit",
    "report.write",
    "cli.progress",
    "cli.app",
    "cli.teaching",
    "cli.studies",
    "cli.models",
    "cli",
    "cli.__main__",
]


def names() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    del found[""]  # hands out names from everywhere
    return found


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {module.removeprefix("shiftscope").lstrip(".") for module in modules if module.partition(".")[0] == "shiftscope"}
    return {module for module in ours if module in names()} - {"lab", "engine"}


def test_the_order_names_every_module() -> None:
    assert set(ORDER) == set(names())


def test_the_package_itself_only_hands_out_names() -> None:
    assert not any(isinstance(node, ast.Import) for node in ast.parse((PACKAGE / "__init__.py").read_text()).body)


def test_a_module_imports_only_from_those_above_it() -> None:
    for name, path in names().items():
        above = set(ORDER[: ORDER.index(name)])
        assert imported(path) <= above, f"{name} imports {imported(path) - above} from below"


def test_only_the_command_line_and_what_serves_it_know_the_lab() -> None:
    served = ("cli", "console", "models", "fixes", "gallery", "reports", "illustrations", "auditing")
    outside = [name for name in names() if not name.startswith("lab") and name.partition(".")[0] not in served]
    assert not [name for name in outside if any(module.startswith("lab") for module in imported(names()[name]))]


def test_the_command_line_does_not_import_torch() -> None:
    code = "import sys, shiftscope.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist_and_others_are_refused() -> None:
    assert all(getattr(shiftscope, name).__name__ == name for name in shiftscope.__all__)
    assert set(shiftscope._HOMES) == set(shiftscope.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'shift_output'"):
        _ = shiftscope.shift_output
