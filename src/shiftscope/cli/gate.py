"""The gate: options that `audit` and `check` share, the command `check`, and the verdict for a pull request."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from shiftscope.cli.app import MODELS, app, print_first, print_json, say
from shiftscope.cli.options import COMPUTE_GROUP, MODEL_GROUP, AsJson, DeviceOptions, Flag, ModelName, Numbers, Wide
from shiftscope.cli.printing import print_summary
from shiftscope.cli.progress import reporting
from shiftscope.cli.values import check_place
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits import Audit
    from shiftscope.audits.comparison import AuditComparison
    from shiftscope.audits.folder import AuditSpec
    from shiftscope.audits.gate import Condition, Verdict
    from shiftscope.audits.subject import Subject

__all__ = ["GateOptions", "check", "conditions_of", "conditions_of_videos", "judged", "write_verdict"]

GATE_GROUP = Group("Gate", sort_key=5)
#: The file that GitHub shows on a workflow's page.
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
#: Settings of a model that a file of `shiftscope fix` knows by itself, or that belong to the baseline's model only.
OWN = ("size", "mean", "std")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """How a gate judges, and where its verdict goes.

    Parameters
    ----------
    strict
        Judge numbers by their values instead of their intervals, so that none is undecided.
    summary
        File for the verdict in Markdown, for a pull request. On GitHub it is also added to the workflow's summary.
    junit
        File for the verdict as JUnit XML: a test for each condition.
    """

    strict: Annotated[bool, Flag, Parameter(group=GATE_GROUP)] = False
    summary: Annotated[Path | None, Parameter(group=GATE_GROUP)] = None
    junit: Annotated[Path | None, Parameter(group=GATE_GROUP)] = None


@app.command(group=MODELS)
def check(
    baseline: Path,
    model: ModelName | None = None,
    *,
    tolerance: Annotated[float, Parameter(group=GATE_GROUP)] = 0.0,
    gate: GateOptions = GateOptions(),
    weights: Annotated[Path | None, Parameter(group=MODEL_GROUP)] = None,
    mean: Annotated[tuple[float, ...] | None, Numbers, Parameter(group=MODEL_GROUP)] = None,
    std: Annotated[tuple[float, ...] | None, Numbers, Parameter(group=MODEL_GROUP)] = None,
    trust: Annotated[bool, Flag, Parameter(group=MODEL_GROUP)] = False,
    device: DeviceOptions = DeviceOptions(),
    batch_size: Annotated[int | None, Parameter(group=COMPUTE_GROUP)] = None,
    as_json: AsJson = False,
    wide: Wide = False,
) -> int:
    """Check that a model is not worse under shifts than a committed audit; exit with 1 if it is.

    The model is measured on the baseline's images, by its protocols and with its settings. Each measure's change is judged on its
    interval, in pairs of the same image: the check fails if a whole interval is worse. Intervals hold for all measures together.

    Parameters
    ----------
    baseline
        File that `shiftscope audit --json` printed, or audit.json or the folder of `shiftscope audit --out`.
    model
        As for `audit`. By default the baseline's own, as it is now, which needs --trust if code of your own makes it.
    tolerance
        How much worse a measure may be, in its own unit.
    weights
        Weights for a model that code makes, as for `audit`. By default the baseline's, if the model is the baseline's.
    mean
        Mean per channel to subtract from images, as for `audit`. By default what `audit` was given for the baseline, else the
        model's own.
    std
        Standard deviation per channel to divide by; given together with --mean.
    trust
        Run code that the baseline or a model's file names or holds, as for `audit`.
    batch_size
        Number of images per forward pass. By default as many as memory allows.
    """
    from shiftscope.audits.comparison import compare_audits
    from shiftscope.audits.gate import check_tolerance, judge_comparison
    from shiftscope.audits.job import open_audited, run_audit
    from shiftscope.audits.reading import read_audit
    from shiftscope.runtime.executors import keep_freed_memory
    from shiftscope.videos.reading import is_flicker

    if is_flicker(baseline):
        raise InputError(
            f"{baseline} holds the flicker of videos, and `check` takes audits of images.",
            'Judge videos with `audit MODEL --frames FOLDER --fail-if "flicker > 0.05"`, or compare two of them.',
        )
    _check_places(gate)
    check_tolerance(tolerance)
    before = read_audit(baseline)
    changes = {"device": device.torch_device(), "batch_size": batch_size, "trust": trust}
    given = {"weights": None if weights is None else str(weights), "mean": mean, "std": std}
    spec = _spec(baseline, before, model, {**changes, **{name: value for name, value in given.items() if value is not None}})
    keep_freed_memory()
    with reporting("loading the model") as report:
        subject = open_audited(spec, report, classes=before.classes)
    _check_images(baseline, before, subject)
    print_first(subject.line, as_json=as_json)
    known, own = (facts.get("normalisation", "") for facts in (before.provenance, subject.facts))
    if known and known != own:
        say(f"The baseline's images were {known}, and this model's are {own}.", error=True)
    with reporting("measuring images") as report:
        after = run_audit(spec, subject=subject, report=report)
    compared = compare_audits(before, after, names=(str(baseline), spec.model))
    _check_rows(baseline, before, compared)
    verdict = judge_comparison(compared, tolerance=tolerance, subject=subject.line, strict=gate.strict)
    write_verdict(verdict, gate)
    if as_json:
        print_json({"gate": verdict.to_json(), "comparison": compared.to_json(), "audit": after.to_json()})
    else:
        from shiftscope.tables import Summary

        shown = verdict.table()
        print_summary(Summary(verdict.words(), (shown,)), (shown, compared.table()), wide=wide)
    return verdict.exit_code


def _spec(baseline: Path, before: Audit, model: str | None, changes: dict[str, Any]) -> AuditSpec:
    """Return what to audit: the baseline's settings with another model."""
    from pydantic import ValidationError

    from shiftscope.audits.folder import AuditSpec
    from shiftscope.runtime.settings import validation_messages

    if not before.settings:
        raise InputError(
            f"{baseline} does not say how it was measured.", "Audit the baseline again with this version of `shiftscope audit`."
        )
    settings = {
        **before.settings,
        "protocols": list(dict.fromkeys(row.protocol for row in before.rows if row.protocol != "unshifted")),
    }
    if not changes["trust"]:
        _check_trust(baseline, settings, own=model is None)
    if model is not None and model != settings.get("model"):
        settings = {name: value for name, value in settings.items() if name != "weights"}
        if model.endswith(".safetensors"):
            settings = {name: value for name, value in settings.items() if name not in OWN}
        settings["model"] = model
    try:
        return AuditSpec.model_validate({**settings, **changes})
    except ValidationError as error:
        raise InputError(f"{baseline} holds unknown settings: {validation_messages(error)[0]}") from error


def _check_trust(baseline: Path, settings: Mapping[str, Any], *, own: bool) -> None:
    """Refuse a baseline that names code to run, or something on the Hugging Face hub to download.

    Args:
        baseline: its file.
        settings: of the baseline.
        own: whether its model is the one to check.
    """
    from shiftscope.datasets.images import SHORT_NAMES, local_data_dir
    from shiftscope.datasets.sources import find_folder
    from shiftscope.models.trust import on_hub, runs_code

    model, data, folder = (None if settings.get(each) is None else str(settings[each]) for each in ("model", "data", "data_dir"))
    trusting = "or pass --trust if you trust the file."
    if own and model is not None and runs_code(model):
        raise InputError(
            f"{baseline} names {model}, and loading that runs code that whoever wrote the file chose.",
            f"Give the model after {baseline}, {trusting}",
        )
    if own and model is not None and on_hub(model):
        raise InputError(
            f"{baseline} names {model}, and the Hugging Face hub is not contacted for what a file names.",
            f"Give the model after {baseline}, {trusting}",
        )
    if data is None or data in SHORT_NAMES:
        return
    if find_folder(data, local_data_dir(data, None if folder is None else Path(folder))) is not None:
        return
    raise InputError(
        f"{baseline} names the images {data}, and the Hugging Face hub is not contacted for what a file names.",
        "Give a local copy with SHIFTSCOPE_DATA, " + trusting,
    )


def _check_images(baseline: Path, before: Audit, subject: Subject) -> None:
    """Refuse other images than the baseline's."""
    known = before.provenance.get("data_sha256")
    if known is not None and known != subject.images.checksum:
        raise InputError(
            f"the images differ from those that {baseline} was measured on.",
            "Restore them, or audit the baseline's model again on these.",
        )


def _check_rows(baseline: Path, before: Audit, found: AuditComparison) -> None:
    """Refuse a comparison that leaves measures of the baseline out."""
    from shiftscope.audits.gate import Judgement

    compared = {(each.row.protocol, each.row.measure) for each in found.measures}
    missing = [row for row in before.rows if (row.protocol, row.measure) not in compared]
    if not missing:
        return
    named = ", ".join(Judgement(row.protocol, row.measure, row.estimate, "", "passes").name for row in missing[:3])
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    labels = " Labels count only if the model has as many classes as they do." if missing[0].protocol == "unshifted" else ""
    raise InputError(
        f"{len(missing)} of {len(before.rows)} measures of {baseline} cannot be measured on this model: {named}{more}.{labels}",
        "Audit the baseline again, with protocols that suit both models.",
    )


def conditions_of(texts: tuple[str, ...], protocols: tuple[str, ...], gate: GateOptions) -> list[Condition]:
    """Read the conditions of `audit`, before anything is measured.

    Args:
        texts: of --fail-if.
        protocols: of --protocol; empty for those by default.
        gate: how to judge.

    Raises:
        InputError: one is not understood, no protocol of the audit measures it, or there is none although a verdict is asked for.
    """
    _check_asked(texts, gate)
    if not texts:
        return []
    from shiftscope.audits.gate import read_condition
    from shiftscope.audits.protocols import GROUPS, PROTOCOLS
    from shiftscope.audits.session import DEFAULTS, SENSITIVITY_MAP
    from shiftscope.audits.task_measuring import FLICKER
    from shiftscope.tasks import TASKS

    of_tasks = {
        FLICKER,
        *(name for task in TASKS.values() for name in (*task.measures, *task.truth_measures, *task.total_measures)),
    }
    chosen = protocols or (*(name for names in DEFAULTS.values() for name in names), SENSITIVITY_MAP)
    measured = {name for each in chosen for name in GROUPS.get(each, (each,))}
    conditions = [read_condition(text) for text in texts]
    for condition in conditions:
        base = condition.measure.partition(",")[0]
        if base in of_tasks and (condition.protocol in (None, "unshifted") or measured & _group(condition.protocol)):
            continue  # the audit's rows decide
        able = [name for name in PROTOCOLS if base in _measures_of(name)]
        named = GROUPS.get(condition.protocol, (condition.protocol,)) if condition.protocol else able
        if (condition.protocol or base) not in ("unshifted", "accuracy") and not measured & set(named) & set(able):
            options = [name for name in named if name in able] or able
            known = dict.fromkeys(["accuracy", *(each for name in sorted(measured) for each in _measures_of(name))])
            remedy = f"Add --protocol {' or '.join(options)}." if options else f"Choose one of {', '.join(known)}."
            raise InputError(f"`fail_if` {condition.text!r} names a measure that is not part of this audit.", remedy)
    return conditions


def conditions_of_videos(texts: tuple[str, ...], gate: GateOptions) -> list[Condition]:
    """Read the conditions of `audit --frames`, before anything is measured.

    Raises:
        InputError: one is not understood or names a protocol, or there is none although a verdict is asked for.
    """
    _check_asked(texts, gate)
    from shiftscope.audits.gate import read_condition

    return [read_condition(text, of_videos=True) for text in texts]


def _check_asked(texts: tuple[str, ...], gate: GateOptions) -> None:
    if not texts and gate != GateOptions():
        raise InputError("`--strict`, `--summary` and `--junit` need a condition.", "Add --fail-if.")
    _check_places(gate)


def _check_places(gate: GateOptions) -> None:
    """Raise InputError where the verdict could not be written, before anything is measured."""
    check_place(gate.summary, "summary", folder=False)
    check_place(gate.junit, "junit", folder=False)


def _measures_of(protocol: str) -> list[str]:
    from shiftscope.audits.protocols import PROTOCOLS

    made = PROTOCOLS[protocol]()
    return [*made.scores, *(name for name, _ in made.surveyed)]


def _group(protocol: str | None) -> set[str]:
    from shiftscope.audits.protocols import GROUPS

    return set() if protocol is None else set(GROUPS.get(protocol, (protocol,)))


def judged(found: Audit, conditions: list[Condition], gate: GateOptions, subject: str) -> Verdict | None:
    """Return the verdict on an audit, after writing it; None without conditions."""
    if not conditions:
        return None
    from shiftscope.audits.gate import judge_audit

    verdict = judge_audit(found, conditions, subject=subject, strict=gate.strict)
    write_verdict(verdict, gate)
    return verdict


def write_verdict(verdict: Verdict, gate: GateOptions) -> None:
    """Write a verdict as Markdown and JUnit XML, and add it to the summary of a workflow on GitHub."""
    from shiftscope.runtime.files import write_text, writing

    step = os.environ.get(STEP_SUMMARY)
    for name, path, text in (("summary", gate.summary, verdict.to_markdown()), ("junit", gate.junit, verdict.to_junit())):
        if path is not None:
            with writing(f"`{name}` {path}", "Choose another file."):
                write_text(path, text)
    if step:
        with writing(f"`{STEP_SUMMARY}` {step}", "Choose another file."), Path(step).open("a", encoding="utf-8") as target:
            target.write(verdict.to_markdown() + "\n")
