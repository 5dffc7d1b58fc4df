"""Build the site: ``make docs``, then open ``build/site/index.html``. Its pages load nothing from the network.

The pages are read in the repository too, so they link to files outside docs/. The build copies each linked file to its place, and
the files that it links to as well.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from reference import commands, python
from shiftscope.report import Lesson, Page, render
from shiftscope.report.content import Signal
from shiftscope.theory import HOMOGENEOUS, KERNEL, SIGNAL

ROOT = Path(__file__).parent.parent
#: A link or image in a page: the text before the path, the path, and an anchor in the file.
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
#: A tag that makes a browser load something from the network.
LOADED = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=["']?(https?:)?//[^>]*>""")
#: The theme loads this so that the search works on pages opened from disk; worker.js replaces it.
SHIM = "https://unpkg.com/iframe-worker/shim"
FETCHED = re.compile(r"""(?:url\(|@import )["']?((?:https?:)?//[^)"']*)""")
CANONICAL = re.compile(r'rel="?(?:canonical|next|prev)"?')


def assemble(target: Path) -> None:
    """Copy the pages and every file that they link to into a folder, write the generated pages, and adapt the links."""
    shutil.rmtree(target, ignore_errors=True)
    waiting, known = sorted((ROOT / "docs").glob("*.md")), set()
    while waiting:
        source = waiting.pop()
        if source in known:
            continue
        known.add(source)
        place = target / _place(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(source, place)
            continue
        text = source.read_text()
        waiting += _linked(source, text)
        place.write_text(_with_links(source, text))
    for name in ("style.css", "worker.js"):
        shutil.copyfile(ROOT / "docs" / name, target / name)
    for name, text in {"lesson.html": lesson(), "commands.md": commands(), "python.md": python()}.items():
        (target / name).write_text(text, encoding="utf-8")


def lesson() -> str:
    """Return the page of the lesson: the signals of the paper's talk, for a reader to move."""
    signals = {
        "two values": SIGNAL.tolist(),
        "alike in pairs": HOMOGENEOUS.tolist(),
        "spikes": [0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 0, 0],
    }
    kernels = {"1 0 1": KERNEL.tolist(), "1, none": [1], "1 2 1, low-pass": [1, 2, 1], "1 -1, edges": [1, -1]}
    first, second = (
        tuple(Signal(name, tuple(map(float, values))) for name, values in each.items()) for each in (signals, kernels)
    )
    caption = "A signal on one axis goes through a kernel, pooling and stride. Move it, and see what a shift does to the output."
    answer = "Where neighbours are alike, stride keeps an output's similarity and lessens its movement."
    return render(Page("The lesson", answer, (Lesson("Play with it", caption, first, second),)))


def _linked(page: Path, text: str) -> Iterator[Path]:
    """Yield the files that a page links to."""
    for _, link, _ in LINK.findall(text):
        path = (page.parent / link).resolve()
        if path.is_file():
            yield path


def _place(source: Path) -> Path:
    """Return a file's path among the pages; files of docs/ are at the top."""
    path = source.relative_to(ROOT)
    return path.relative_to("docs") if path.parts[0] == "docs" else path


def _with_links(page: Path, text: str) -> str:
    """Return the page's text with links to files adapted to the assembled pages; other links stay."""

    def moved(found: re.Match[str]) -> str:
        path = (page.parent / found[2]).resolve()
        if not path.is_file():
            return found[0]
        return found[1] + Path(os.path.relpath(_place(path), _place(page).parent)).as_posix() + found[3]

    return LINK.sub(moved, text)


def make_portable(site: Path) -> None:
    """Load worker.js where the theme loads a script from the network, and remove the page that needs a server."""
    (site / "404.html").unlink()
    for page in site.rglob("*.html"):
        ours = Path(os.path.relpath(site / "worker.js", page.parent)).as_posix()
        page.write_text(page.read_text().replace(SHIM, ours))


def loaded_from_elsewhere(site: Path) -> list[str]:
    """List what a browser would load from the network to show the pages; links that a reader may follow do not count."""
    found = []
    for page in sorted(site.rglob("*.html")):
        tags = (match[0] for match in LOADED.finditer(page.read_text()))
        found += [f"{page.relative_to(site)}: {tag}" for tag in tags if not CANONICAL.search(tag)]
    for sheet in sorted(site.rglob("*.css")):
        found += [f"{sheet.relative_to(site)}: {url}" for url in FETCHED.findall(sheet.read_text())]
    return found


def build(folder: Path = ROOT) -> Path:
    """Assemble the pages in a folder that holds zensical.toml, build the site there, and check that it needs no network.

    Raises:
        RuntimeError: a page does not build, a link has no target, or a page would load something from the network.
    """
    site = folder / "build" / "site"
    assemble(folder / "build" / "pages")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the site was not built:\n{done.stdout}{done.stderr}")
    make_portable(site)
    if elsewhere := loaded_from_elsewhere(site):
        raise RuntimeError("\n  ".join(["these would be loaded from the network:", *elsewhere]))
    return site


if __name__ == "__main__":
    print(f"The site is in {build().relative_to(ROOT)}: open index.html.")
