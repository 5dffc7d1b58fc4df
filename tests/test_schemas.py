"""The published JSON schemas are those of the code, and what commands print and write is valid by them; old files are read."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image

import helpers
from cli.conftest import Command, shiftscope
from shiftscope import InputError, audit
from shiftscope.audits.reading import read_audit
from shiftscope.audits.results import AUDIT_VERSION

ROOT = Path(__file__).parent.parent
__all__ = ["shiftscope"]


@pytest.fixture(scope="module")
def schemas() -> ModuleType:
    """Return the script that writes the schemas."""
    spec = importlib.util.spec_from_file_location("docs_schemas", ROOT / "docs" / "schemas.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks names up
    spec.loader.exec_module(module)
    return module


def check(schemas: ModuleType, name: str, content: Any) -> None:
    jsonschema.Draft202012Validator(schemas.schema(name)).validate(content)


KINDS = (
    *("audit", "certify", "check", "compare-audits", "compare-flicker", "compare-study"),
    *("explain", "explain-task", "fix", "flicker", "record", "table"),
)
#: Options of every command on models here.
SMALL = ("--size", "20", "--data", "digits", "--images", "6", "--max-shift", "1")


def printed(shiftscope: Command, *words: str) -> Any:
    done = shiftscope(*words, "--json")
    assert done.out.startswith("{"), done.err
    return json.loads(done.out)


def test_every_schema_is_published(schemas: ModuleType) -> None:
    assert {path.stem for path in (ROOT / "docs" / "schemas").glob("*.json")} == set(schemas.SCHEMAS) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_published_schema_is_that_of_the_code(schemas: ModuleType, name: str) -> None:
    published = ROOT / "docs" / "schemas" / f"{name}.json"
    assert published.read_text(encoding="utf-8") == schemas.text(name), "run `python docs/schemas.py`"
    jsonschema.Draft202012Validator.check_schema(json.loads(published.read_text(encoding="utf-8")))


def test_audit_that_is_printed_and_written_is_valid_and_read(schemas: ModuleType, shiftscope: Command, tmp_path: Path) -> None:
    done = shiftscope("audit", "my_models:small", *SMALL, "--protocol", "tmeasures", "--protocol", "every-shift", "--json")
    content = json.loads(done.out)
    check(schemas, "audit", content)
    assert content["schema_version"] == AUDIT_VERSION
    (tmp_path / "audit.json").write_text(done.out)
    again = read_audit(tmp_path).to_json()
    assert {**again, "maps": content["maps"]} == content
    content["rows"][0]["views"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        check(schemas, "audit", content)


def test_table_that_is_printed_is_valid(schemas: ModuleType, shiftscope: Command) -> None:
    content = json.loads(shiftscope("list", "--json").out)
    check(schemas, "table", content)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("explain", ("explain", "my_models:small", *SMALL)),
        ("explain-task", ("explain", "my_models:small", "--task", "embedding", *SMALL)),
        ("fix", ("fix", "my_models:small", "--with", "blur", *SMALL)),
        ("fix", ("fix", "my_models:small", "--with", "blur", "--plan", *SMALL)),
        ("compare-study", ("compare", str(ROOT / "results" / "digits"))),
    ],
    ids=["explain", "explain-task", "fix", "plan", "study"],
)
def test_what_a_command_prints_is_valid(schemas: ModuleType, shiftscope: Command, name: str, words: tuple[str, ...]) -> None:
    content = printed(shiftscope, *words)
    check(schemas, name, content)
    for field in set(content) - {"provenance"}:
        with pytest.raises(jsonschema.ValidationError):
            check(schemas, name, {key: value for key, value in content.items() if key != field})


def test_certificate_that_is_printed_is_valid(schemas: ModuleType, shiftscope: Command) -> None:
    content = printed(shiftscope, "certify", "my_models:small", *SMALL)
    check(schemas, "certify", content)
    with pytest.raises(jsonschema.ValidationError):
        check(schemas, "certify", {**content, "radius": -1})


def test_checks_and_comparisons_of_audits_are_valid(schemas: ModuleType, shiftscope: Command, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    audited = printed(shiftscope, "audit", "my_models:small", *SMALL, "--protocol", "mouton2020")
    baseline.write_text(json.dumps(audited))
    check(schemas, "check", printed(shiftscope, "check", str(baseline), "my_models:small"))
    compared = printed(shiftscope, "compare", str(baseline), str(baseline))
    check(schemas, "compare-audits", compared)
    compared["measures"][0]["outcome"] = "fine"
    with pytest.raises(jsonschema.ValidationError):
        check(schemas, "compare-audits", compared)


def test_flicker_and_its_comparison_are_valid(schemas: ModuleType, shiftscope: Command, tmp_path: Path) -> None:
    for number, frame in enumerate(torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(frame.numpy()).save(tmp_path / "frames" / f"{number}.png")
    words = ("audit", "my_models:small", "--size", "20", "--frames", "frames", "--fail-if", "top-1 change > 0.99")
    content = printed(shiftscope, *words, "--out", "flicker")
    check(schemas, "flicker", content)
    check(schemas, "flicker", json.loads((tmp_path / "flicker" / "flicker.json").read_text()))
    compared = printed(shiftscope, "compare", "flicker", "flicker")
    check(schemas, "compare-flicker", compared)
    for name, field in (("flicker", "measure"), ("compare-flicker", "change")):
        with pytest.raises(jsonschema.ValidationError):
            check(schemas, name, {**(content if name == "flicker" else compared), field: 1})


def test_committed_records_are_valid(schemas: ModuleType) -> None:
    for record in sorted((ROOT / "results" / "digits" / "runs").glob("*/record.json"))[:3]:
        check(schemas, "record", json.loads(record.read_text()))


def test_file_of_before_versions_is_read(tmp_path: Path) -> None:
    found = audit(helpers.network(), torch.rand(5, 1, 20, 20), protocols=["mouton2020"], max_shift=2)
    content = found.to_json()
    for added in ("schema_version", "settings", "values"):
        del content[added]
    (tmp_path / "audit.json").write_text(json.dumps(content))
    old = read_audit(tmp_path / "audit.json")
    assert old.rows == found.rows
    assert (old.values, old.settings) == ({}, {})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "holds no audit"),
        ("not JSON", "holds no audit"),
        ('{"schema_version": 99, "new": 1}', "was written by a later version"),
        ("[1]", "holds no audit"),
    ],
)
def test_other_file_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "audit.json").write_text(content)
    with pytest.raises(InputError, match=problem):
        read_audit(tmp_path)
