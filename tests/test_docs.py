"""The pages agree with the code: commands exist, sessions print what is shown, numbers come from results, links work."""

from __future__ import annotations

import csv
import doctest
import importlib.util
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pytest

import pages
from shiftscope.cli import app, main
from shiftscope.cli.values import read_settings
from shiftscope.studies.loading import load_study
from shiftscope.studies.sections import DERIVED, SECTIONS

#: Together these take over 20 s.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)(?: title=\"([\w.]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: A synopsis instead of a command: options in brackets, choices, dots, a capital for a number, an option without a value.
SYNOPSIS = re.compile(r"\[(--|[A-Z])|\||\.\.\.|\s[A-Z](/[A-Z])?(\s|$)|--[\w-]+$")


def script(name: str) -> ModuleType:
    """Import a script of docs/."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return (language, file name, text) of each block of code."""
    return [(found[1], found[2] or "", found[3]) for found in BLOCK.finditer(page.read_text())]


def command_lines(page: Path) -> list[str]:
    """Return every `shiftscope ...` of a page, from blocks and from its text."""
    lines = [line.removeprefix("$ ") for _, _, text in blocks(page) for line in text.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(shiftscope [^`]+)`", BLOCK.sub("", page.read_text()))
    return [line for line in (*lines, *(" ".join(code.split()) for code in inline)) if line.startswith("shiftscope ")]


def complaint(line: str) -> str | None:
    """Return what is wrong with a command line, or None; of a synopsis only the names are checked."""
    tokens = shlex.split(line, comments=True)[1:]
    name = tokens[0]
    if name.isupper() or name in ("--help", "--version", "--install-completion"):
        return None
    if name not in app.resolved_commands():
        return f"there is no command {name}"
    known = {option for argument in app[name].assemble_argument_collection() for option in (*argument.names, *argument.negatives)}
    options = [token.strip("[]").partition("=")[0] for token in tokens if token.strip("[").startswith("--")]
    if unknown := set(options) - known - {"--help"}:
        return f"{name} has no {', '.join(sorted(unknown))}"
    if len(tokens) == 1 or SYNOPSIS.search(line):
        return None
    try:
        app.parse_args(tokens, exit_on_error=False, print_error=False)
    except Exception as error:
        return str(error)
    return None


def session(text: str) -> list[tuple[str, str]]:
    """Return (command, output) pairs of a `console` block."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_reference_names_every_command_and_public_name() -> None:
    import shiftscope

    reference = script("reference")
    commands, python = reference.commands(), reference.python()
    assert all(f"\n## shiftscope {name}\n" in commands for name in app.resolved_commands() if not name.startswith("-"))
    assert all(f"[`{name}`](#" in python or f"\n### `{name}` " in python for name in shiftscope.__all__)


def test_reference_shows_signature_arguments_and_example_of_a_function() -> None:
    page = script("reference").python()
    section = page.partition("### `survey` {")[2].partition("\n### ")[0]
    assert "\n```python\nsurvey(" in section
    assert "\n*Arguments*\n\n- `blocks`: " in section
    assert "\n```pycon\n>>> " in section


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    assert [f"{line}: {wrong}" for line in command_lines(page) if (wrong := complaint(line))] == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("shiftscope studdy digits", "there is no command studdy"),
        ("shiftscope study digits --sedes 3", "study has no --sedes"),
        ("shiftscope study [NAME] [--sedes N]", "study has no --sedes"),
        ("shiftscope study digits --seeds many", "many"),
        ("shiftscope fix MODEL --with glue", "glue"),
        ("shiftscope compare", None),
        ("shiftscope study digits --seeds 3  # a comment", None),
    ],
)
def test_check_of_commands_finds_mistakes(line: str, wrong: str | None) -> None:
    found = complaint(line)
    assert found is None if wrong is None else found is not None and wrong in found


@pytest.mark.parametrize("page", [page for page in PAGES if "```console" in page.read_text()], ids=lambda page: page.name)
def test_session_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for language, file, text in blocks(page):
        if file:
            (tmp_path / file).write_text(text)
            monkeypatch.delitem(sys.modules, Path(file).stem, raising=False)
        for command, shown in session(text) if language == "console" else []:
            main(shlex.split(command)[1:])
            captured = capsys.readouterr()
            printed = captured.out + "".join(captured.err.partition("shiftscope:")[1:])  # without the progress before an error
            assert doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS), f"{command} prints\n{printed}"


def test_page_of_studies_lists_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+\.\w+)` \| (?:`([^`]*)`|none) \|", (ROOT / "docs" / "studies.md").read_text(), re.MULTILINE)
    listed = {path: tomllib.loads(f"value = {default}")["value"] if default else None for path, default in rows}
    defaults = {
        f"{section}.{name}": list(found.default) if isinstance(found.default, tuple) else found.default
        for section, kind in SECTIONS.items()
        for name, found in kind.model_fields.items()
        if name not in DERIVED
    }
    assert listed == defaults


def test_study_of_the_page_is_valid(tmp_path: Path) -> None:
    text = next(text for _, file, text in blocks(ROOT / "docs" / "studies.md") if file == "mine.toml")
    (tmp_path / "mine.toml").write_text(text)
    assert len(load_study(str(tmp_path / "mine.toml")).cells()) == 4


@pytest.mark.parametrize(("data", "study"), [("MNIST", "mnist"), ("CIFAR-10", "cifar10")])
def test_numbers_of_the_readme_are_those_of_the_table(data: str, study: str) -> None:
    rows = re.findall(rf"^\| {data}, (\d)x\d \|(.*)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    cells = {
        (factor, kernel): cell.strip()
        for kernel, row in rows
        for factor, cell in zip(("1", "2", "4", "8"), row.split("|"), strict=True)
    }
    with (ROOT / "results" / study / "table.csv").open() as file:
        measured = {(row["factor"], row.get("pool_kernel", "2")): _beside(row) for row in csv.DictReader(file) if row["mcs"]}
    assert {key: cell for key, cell in cells.items() if cell} == measured


def _beside(row: Mapping[str, str]) -> str:
    """Return a cell's mean cosine similarity with its interval, and in brackets the paper's if it prints one."""
    mcs, low, high = (f"{float(row[name]):.3f}" for name in ("mcs", "mcs_low", "mcs_high"))
    printed = f" ({float(row['source_mcs']):.3f})" if row["source_mcs"] else ""
    return f"{mcs} [{low}, {high}]{printed}"


def test_commands_of_results_give_the_committed_runs() -> None:
    rows = re.findall(
        r"^\| (\[.*?\)) \| `shiftscope study ([^`]*)` \|", (ROOT / "results" / "README.md").read_text(), re.MULTILINE
    )
    folders = [(folder, shlex.split(command)) for names, command in rows for folder in re.findall(r"\((.*?)/table\.md\)", names)]
    assert len(folders) > 15
    for folder, (name, *words) in folders:
        settings = tuple(word for option, word in pairwise(words) if option == "--set")
        seeds = next((int(word) for option, word in pairwise(words) if option == "--seeds"), None)
        study = load_study(folder if name == "NAME" else name, seeds=seeds, changes=read_settings(settings, "set", ""))
        runs = (ROOT / "results" / folder / "runs").glob("*/record.json")
        finished = {path.parent.name: json.loads(path.read_text())["provenance"]["data_sha256"] for path in runs}
        given = {run.content_id(data) for cell in study.cells() for run in cell.runs for data in {*finished.values()}}
        assert {*finished} - given == set(), folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_holds_no_html(page: Path) -> None:
    prose = re.sub(r"`[^`]*`", "", BLOCK.sub("", page.read_text()))
    assert re.findall(r"<[^\s\d=-][^>\n]*", prose) == [], "write it as code"


def test_navigation_lists_every_page() -> None:
    navigation = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    named = [page for entry in navigation for page in entry.values()]
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(named), "add it to `nav` in zensical.toml"


def test_make_targets_of_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, f"{page.name} names {named - targets}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site."""
    pytest.importorskip("zensical", reason="needs zensical, which the extra `docs` installs")
    folder = tmp_path_factory.mktemp("site")
    shutil.copyfile(ROOT / "zensical.toml", folder / "zensical.toml")
    built = script("build").build(folder)
    assert isinstance(built, Path)
    return built


def test_links_of_the_site_have_targets(site: Path) -> None:
    anchors = {page: set(re.findall(r'\bid="?([^\s">]+)', page.read_text())) for page in site.rglob("*.html")}
    assert {"index.html", "commands.html", "python.html", "concepts.html", "lesson.html"} <= {page.name for page in anchors}
    for page in anchors:
        for link, place in re.findall(r'<(?:a|img)\b[^>]*?(?:href|src)="?(?!\w+:)([^\s">#]*)#?([^\s">]*)', page.read_text()):
            target = (page.parent / link).resolve() if link else page
            assert target.exists(), f"{page.name} links to {link}"
            assert not place or target not in anchors or unquote(place) in anchors[target], f"{page.name} links to {link}#{place}"


def test_failed_build_raises_with_its_output(site: Path, tmp_path: Path) -> None:
    (tmp_path / "zensical.toml").write_text((ROOT / "zensical.toml").read_text().replace("[project]", "[project", 1))
    with pytest.raises(RuntimeError, match="the site was not built:"):
        script("build").build(tmp_path)


def test_check_for_network_resources_finds_them(site: Path, tmp_path: Path) -> None:
    check = script("build").loaded_from_elsewhere
    assert check(site) == []
    (tmp_path / "page.html").write_text('<a href="https://a.example">fine</a><script src="https://b.example/x.js"></script>')
    (tmp_path / "style.css").write_text("@import '//c.example/font.css';")
    assert [found.partition(":")[0] for found in check(tmp_path)] == ["page.html", "style.css"]


def test_site_opens_from_disk_fits_the_screen_and_loads_nothing(site: Path) -> None:
    with pages.browser() as chromium:
        page = chromium.new_context(offline=True).new_page()
        noticed: list[str] = []
        page.on(
            "request", lambda request: noticed.append(request.url) if not request.url.startswith(("file:", "data:")) else None
        )
        page.on("console", lambda message: noticed.append(message.text))
        page.on("pageerror", lambda error: noticed.append(str(error)))
        for path in sorted(site.glob("*.html")):
            page.goto(path.as_uri())
            for width in (1280, 390):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path.name} at {width} pixels"
        page.goto((site / "results" / "index.html").as_uri())
        page.keyboard.press("Control+k")
        page.keyboard.type("homogeneity")
        page.get_by_text("Local homogeneity").first.wait_for(timeout=10_000)
        assert noticed == []
