"""Write the JSON schemas of the files and of what `--json` prints: ``python docs/schemas.py``.

They are made from the classes that read the files, and are committed in docs/schemas/, where programs
find them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from shiftscope.audits.gate import Outcome
from shiftscope.audits.reading import AuditFile, EstimateFile
from shiftscope.certificates.reading import CertificateFile
from shiftscope.runtime.settings import Spec
from shiftscope.studies.records import Record
from shiftscope.studies.spec import Claim
from shiftscope.videos.reading import FlickerFile

FOLDER = Path(__file__).parent / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class TableContent(Spec):
    """A table.

    Attributes:
        title: of the table.
        columns: short names, in order.
        rows: column -> text, number, estimate with its interval, or null.
        notes: what a reader needs to know.
        provenance: how the numbers were made, name -> value.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, EstimateFile | str | int | float | None], ...]
    notes: tuple[str, ...]
    provenance: dict[str, str]


class TableFile(TableContent):
    """What ``study``, ``list`` and ``selfcheck`` print with ``--json``: a table and the version of its schema."""

    schema_version: int


class SubsamplingContent(Spec):
    """An operator that keeps a part of the positions: of how many it keeps one, along height and width."""

    name: str
    title: str
    stride: tuple[int, int]
    polyphase: bool


class GraphContent(Spec):
    """What a model's graph says about invariance; without a graph that could be read only the first three fields.

    Attributes:
        status: whether invariance is possible, in a word.
        sentence: the same in words.
        exact_at: shifts at which it holds.
        factor: subsampling factor, along height and width; null if it is unknown.
        factor_from: where it comes from.
        receptive_field: of a position of the last map, pixels along height and width.
        receptive_field_from: where it comes from.
        head: how positions are taken away.
        borders: layer -> its padding mode.
        subsamplings: in the order of the graph.
    """

    status: str
    sentence: str
    exact_at: int | tuple[int, ...] | str | None
    factor: tuple[int, int] | None = None
    factor_from: str | None = None
    receptive_field: tuple[int, int] | None = None
    receptive_field_from: str | None = None
    head: str | None = None
    borders: dict[str, str] = {}
    subsamplings: tuple[SubsamplingContent, ...] = ()


class ExplanationFile(Spec):
    """What ``explain`` prints with ``--json``.

    Attributes:
        schema_version: version of this schema.
        model: its name.
        verdict: the main result in words.
        main_cause: the cause of the largest part of the loss; empty if shifts lose nothing.
        similarity: mean cosine of the outputs before and after a shift.
        graph: what the model's graph says.
        causes: what each cause costs.
        layers: how each layer responds.
        fixes: what each fix would change.
        notes: what a reader needs to know.
        warnings: reasons why the numbers say little about the model.
        settings: how it was measured, name -> value.
    """

    schema_version: int
    model: str
    verdict: str
    main_cause: str
    similarity: EstimateFile
    graph: GraphContent
    causes: TableContent
    layers: TableContent
    fixes: TableContent
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: dict[str, str]


class TaskExplanationFile(Spec):
    """What ``explain`` prints with ``--json`` of boxes, maps and other tasks.

    Attributes:
        schema_version: version of this schema.
        model: its name.
        task: what its outputs are.
        measure: that is taken apart.
        verdict: the main result in words.
        main_cause: the cause of the largest part of the change; empty if it is unknown, or shifts change nothing.
        value: the task's leading measure under the shifts; null where no image has a value.
        factor: subsampling factor, along height and width; null if it is unknown.
        period: of the change along both axes, pixels; null if it shows none.
        graph: ``traced``, or why the model's graph cannot be traced.
        causes: the change by cause.
        lattice: the change on and off the lattice of the stride.
        layers: how each layer responds.
        fixes: what each fix would change.
        notes: what a reader needs to know.
        warnings: reasons why the numbers say little about the model.
        settings: how it was measured, name -> value.
    """

    schema_version: int
    model: str
    task: str
    measure: str
    verdict: str
    main_cause: str
    value: EstimateFile | None
    factor: tuple[int, int] | None
    period: int | None
    graph: str
    causes: TableContent
    lattice: TableContent
    layers: TableContent
    fixes: TableContent
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    settings: dict[str, str]


class FixFile(Spec):
    """What ``fix`` prints with ``--json``.

    Attributes:
        schema_version: version of this schema.
        tables: what was changed, and, without ``--plan``, the model before and after.
        provenance: of the model and the images, name -> value.
    """

    schema_version: int
    tables: tuple[TableContent, ...]
    provenance: dict[str, str]


class JudgementContent(Spec):
    """A number, what it must not be in words, and whether it is."""

    protocol: str
    measure: str
    estimate: EstimateFile
    beyond: str
    outcome: Outcome


class GateContent(Spec):
    """A verdict: of all numbers together, in a sentence, and of each."""

    outcome: Outcome
    sentence: str
    judgements: tuple[JudgementContent, ...]
    notes: tuple[str, ...]


class MeasureContent(Spec):
    """A measure of two audits, and its change; whether the change was taken in pairs of the same image."""

    protocol: str
    measure: str
    before: EstimateFile
    after: EstimateFile
    change: EstimateFile
    paired: bool
    outcome: Literal["better", "worse", "other", "equal", "undecided"]


class AuditsContent(Spec):
    """Two audits beside each other.

    Attributes:
        summary: in words.
        before: name of the first audit.
        after: name of the second audit.
        measures: those that both hold.
        notes: what a reader needs to know.
    """

    summary: str
    before: str
    after: str
    measures: tuple[MeasureContent, ...]
    notes: tuple[str, ...]


class ComparedAuditsFile(AuditsContent):
    """What ``compare AUDIT AUDIT`` prints with ``--json``."""

    schema_version: int


class ComparedNumbers(Spec):
    """A measure of a cell: ours, the one that the source printed, and ours minus the source's."""

    ours: EstimateFile | float | None
    source: float | None
    difference: EstimateFile | float | None


class CellContent(Spec):
    """A cell of a study beside its source."""

    settings: dict[str, Any]
    networks: int
    measures: dict[str, ComparedNumbers]


class CorrelationContent(Spec):
    """Spearman's rank correlation of a measure with the source's over the cells; null if all cells are equal."""

    measure: str
    source_measure: str
    cells: int
    value: float | None
    low: float | None
    high: float | None


class ClaimContent(Claim):
    """A claim of the source, and what the study says about it.

    Attributes:
        verdict: whether it holds.
        number: that the claim is about; null if cells are missing.
        absent: settings that no cell of the study has, path -> value.
        cells: number of cells that the claim is about.
        cells_missing: how many of them are not measured.
        centred: the same claim about centred outputs.
    """

    verdict: str
    number: EstimateFile | None
    absent: dict[str, Any]
    cells: int
    cells_missing: int
    centred: ClaimContent | None = None


class ClosenessContent(Spec):
    """How far a variant lies from the printed numbers.

    Attributes:
        variant: its name.
        measure: ours.
        distance: root mean square of ours minus printed.
        cells: printed cells that are measured.
        closest: share of the bootstrap draws in which no other is closer.
    """

    variant: str
    measure: str
    distance: EstimateFile
    cells: int
    closest: float


class ComparedStudyFile(Spec):
    """What ``compare STUDY`` prints with ``--json``.

    Attributes:
        schema_version: version of this schema.
        title: of the study.
        source: the publication, and where in it.
        paper: authors, title and number of the publication; empty if the study does not say.
        cells: each cell's numbers beside the source's.
        rank_correlations: over the cells.
        claims: of the source, with their verdicts.
        damaged: a sentence for each record that cannot be read.
        closeness: of a study whose variants are held against the same printed numbers, the closest first.
        tables: the same as they are printed.
    """

    schema_version: int
    title: str
    source: str
    paper: str
    cells: tuple[CellContent, ...]
    rank_correlations: tuple[CorrelationContent, ...]
    claims: tuple[ClaimContent, ...]
    damaged: tuple[str, ...]
    closeness: tuple[ClosenessContent, ...]
    tables: tuple[TableContent, ...]


class CheckFile(Spec):
    """What ``check`` prints with ``--json``.

    Attributes:
        schema_version: version of this schema.
        gate: the verdict.
        comparison: of the baseline with the new audit.
        audit: the new audit.
    """

    schema_version: int
    gate: GateContent
    comparison: AuditsContent
    audit: AuditFile


class ComparedSequence(Spec):
    """A video: its frames, and its mean change by the two models and after minus before; null where one has no value."""

    sequence: str
    frames: int
    before: float | None
    after: float | None
    change: float | None


class NamedEstimate(Spec):
    """What it is of, and the mean over videos of each one's mean change."""

    name: str
    estimate: EstimateFile


class ComparedFlickerFile(Spec):
    """What ``compare FLICKER FLICKER`` prints with ``--json``.

    Attributes:
        schema_version: version of this schema.
        summary: in words.
        before: the first.
        after: the second.
        task: the name of the task that outputs were read as; empty for classes.
        measure: whose change from frame to frame it is.
        change: after minus before, with an interval over videos.
        paired: whether the change was taken in pairs of the same video.
        outcome: where the interval lies; ``better`` if answers change less.
        sequences: the videos; none if they are not the same.
        notes: what a reader needs to know.
    """

    schema_version: int
    summary: str
    before: NamedEstimate
    after: NamedEstimate
    task: str
    measure: str
    change: EstimateFile
    paired: bool
    outcome: Literal["better", "worse", "undecided"]
    sequences: tuple[ComparedSequence, ...]
    notes: tuple[str, ...]


SCHEMAS: dict[str, type[BaseModel]] = {
    "audit": AuditFile,
    "certify": CertificateFile,
    "check": CheckFile,
    "compare-audits": ComparedAuditsFile,
    "compare-flicker": ComparedFlickerFile,
    "compare-study": ComparedStudyFile,
    "explain": ExplanationFile,
    "explain-task": TaskExplanationFile,
    "fix": FixFile,
    "flicker": FlickerFile,
    "record": Record,
    "table": TableFile,
}


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
