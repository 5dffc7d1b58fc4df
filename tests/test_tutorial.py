"""The tutorial runs from its first cell to its last, says what its text says, and is committed without outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

#: It takes over 20 s on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"


def shown(cells: list[Any]) -> str:
    """Return what cells printed, and the text of the results that they show."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.timeout(600)  # a kernel, fifteen seconds of it computing, beside other tests
def test_tutorial_runs_and_its_fixed_model_is_stable_and_accurate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # Jupyter chooses its own
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = shown(notebook.cells)
    before, after = (int(found) for found in re.findall(r"accuracy on unshifted images: (\d+)%", text))
    assert before > 75 and after > 75
    assert "The main cause: head" in text and "invariant at all? impossible" in text
    assert re.search(r"Of 9 measures of the fixed copy: [89] better", text)
    assert any("text/html" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_committed_tutorial_holds_no_outputs_and_links_to_what_is_there() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) > 4 and all((NOTEBOOK.parent / link).exists() for link in links)
