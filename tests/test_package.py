"""The wheel is complete and runs outside the checkout; modules load lazily; links of pages have targets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: Pages of the site that `make docs` makes from the code.
GENERATED = {"commands.md", "python.md"}


def test_wheel_is_complete_and_runs_outside_the_checkout(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = archive.namelist()
    assert {"shiftscope/studies/paper/digits.toml", "shiftscope/studies/paper/mnist.toml"} <= set(names)
    assert {f"shiftscope/report/{name}" for name in ("page.html", "style.css", "report.js", "drag.js", "lesson.js")} <= set(names)
    assert not [name for name in names if "tests" in name or name.rpartition("/")[2].startswith("test_")]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import shiftscope; from shiftscope.studies.loading import load_study\n"
        "assert 'site' in shiftscope.__file__, shiftscope.__file__\n"
        "print(len(load_study('digits').cells()))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "4\n"


def test_links_of_pages_have_targets() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert link in GENERATED or (page.parent / link).exists(), f"{page.name} links to {link}"


def test_ci_runs_the_documented_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_submodules_load_when_first_used() -> None:
    code = (
        "import sys, shiftscope as ss\n"
        "assert 'torch' not in sys.modules\n"
        "assert {'layers', 'errors', 'audit', 'BlurPool2d'} & set(dir(ss)) == {'layers', 'errors', 'audit'}\n"
        "print(ss.layers.BlurPool2d.__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "True"


def test_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "shiftscope", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)
