"""Studies and pages for the tests of reports and figures, and a browser to show them in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from shiftscope.engine.outputs import Outputs
from shiftscope.report import Drag, Lesson, Network, Page
from shiftscope.report.content import Signal
from shiftscope.shifts import grid

#: The browser is installed under one of these names.
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def without(folder: Path, name: str, runs: int, target: Path) -> Path:
    """Copy a study so that only so many runs have a file of that name."""
    shutil.copytree(folder, target)
    for run in sorted((target / "runs").iterdir())[runs:]:
        (run / name).unlink()
    return target


def drag(classes: tuple[str, ...], *, images: int = 2, networks: int = 2, reach: int = 2, names: str = "network {}") -> Drag:
    """Return images of noise and networks with random outputs."""
    generator = torch.Generator().manual_seed(0)
    shifts = grid(reach)
    shown = []
    for number in range(networks):
        values = torch.randn(images, len(shifts), len(classes), generator=generator) * 3
        shown.append(Network(names.format(number), 2 * number + 1, Outputs(values, values[:, len(shifts) // 2], shifts)))
    noise = torch.randint(0, 256, (images, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(images) % len(classes)
    return Drag("Drag", "", noise, labels, classes, (8 + 2 * reach, 8 + 2 * reach), (0,), reach, tuple(shown))


def page_of(*sections: Any, title: str = "A page") -> Page:
    return Page(title, "An answer.", sections, provenance={"code": "the tests"})


def lesson() -> Lesson:
    signal = Signal("one", (0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0))
    return Lesson("Lesson", "", (signal,), (Signal("K", (1.0, 0.0, 1.0)), Signal("none", (1.0,))))


@contextmanager
def browser() -> Iterator[Any]:
    """Start headless Chromium, or skip the test and say what is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which the extra `test` installs")
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("needs Chromium: install the system's package `chromium`")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()
