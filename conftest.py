"""Set-up for all tests and doctests: check axis names in annotations, and write only into a scratch folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

REAL_DATA = os.environ.get("SHIFTSCOPE_DATA")
SOURCES = Path(__file__).parent / "src"
#: Modules that also run on stand-ins for tensors, when a graph is traced, compiled or exported.
TRACED = ("shiftscope.models.family", "shiftscope.layers.")
#: Modules with tensors in their annotations. mypy checks plain types; checking them at each call took up to 40 % of the time.
ANNOTATED = [path for path in SOURCES.rglob("*.py") if "from jaxtyping import" in path.read_text()]
MODULES = [".".join(path.relative_to(SOURCES).with_suffix("").parts) for path in ANNOTATED]
install_import_hook([module for module in MODULES if not module.startswith(TRACED)], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def scratch_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cache decoded images in a folder of this session, in other processes too."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("SHIFTSCOPE_CACHE")
    os.environ["SHIFTSCOPE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["SHIFTSCOPE_CACHE"]
    else:
        os.environ["SHIFTSCOPE_CACHE"] = before


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the folder of real data from tests that do not ask for it."""
    monkeypatch.delenv("SHIFTSCOPE_DATA", raising=False)


@pytest.fixture
def real_data() -> Path:
    """Return the folder with real MNIST and CIFAR-10, or skip the test."""
    if not REAL_DATA or not (Path(REAL_DATA) / "mnist").is_dir():
        pytest.skip("needs MNIST and CIFAR-10 as parquet: set SHIFTSCOPE_DATA to their folder")
    return Path(REAL_DATA)
