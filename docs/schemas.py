"""Write the JSON schemas of the files and of what `--json` prints: ``python docs/schemas.py``.

They are made from the classes that read the files, and are committed in docs/schemas/, where programs
find them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from shiftscope.audits.reading import AuditFile, EstimateFile
from shiftscope.runtime.settings import Spec
from shiftscope.studies.records import Record

FOLDER = Path(__file__).parent / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class TableFile(Spec):
    """What ``study``, ``list`` and ``selfcheck`` print with ``--json``: a table.

    Attributes:
        schema_version: version of this schema.
        title: of the table.
        columns: short names, in order.
        rows: column -> text, number, estimate with its interval, or null.
        notes: what a reader needs to know.
        provenance: how the numbers were made, name -> value.
    """

    schema_version: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, EstimateFile | str | int | float | None], ...]
    notes: tuple[str, ...]
    provenance: dict[str, str]


SCHEMAS: dict[str, type[BaseModel]] = {"audit": AuditFile, "record": Record, "table": TableFile}


def schema(name: str) -> dict[str, Any]:
    """Return the schema of a kind of file."""
    return {"$schema": DIALECT, **SCHEMAS[name].model_json_schema(mode="validation")}


def text(name: str) -> str:
    """Return the schema as its file holds it."""
    return json.dumps(schema(name), indent=1) + "\n"


def main() -> None:
    """Write all schemas."""
    FOLDER.mkdir(exist_ok=True)
    for name in SCHEMAS:
        (FOLDER / f"{name}.json").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
