"""What `audit` does with videos and pans: it reads their options, and measures videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from shiftscope.cli.app import print_first, resumable
from shiftscope.cli.gate import GateOptions, write_verdict
from shiftscope.cli.measuring import IMAGES, print_found, valid_settings
from shiftscope.cli.options import AuditOptions
from shiftscope.cli.progress import reporting
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits.gate import Condition, Verdict
    from shiftscope.videos.film import Film
    from shiftscope.videos.flicker import Flicker

__all__ = ["FramesOptions", "audit_frames", "pan_of"]

#: Steps of a pan by default, and the most.
STEPS, MOST_STEPS = 32, 1000
#: The largest shift of a pan, pixels.
FURTHEST = 2**14


def pan_of(pan: str | None, steps: int | None, *, protocols: tuple[str, ...], max_shift: int | None) -> dict[str, Any]:
    """Return the settings of an audit that a pan needs; none without one.

    Args:
        pan: as the user writes it: ``DOWN,RIGHT``.
        steps: number of steps.
        protocols: that the user chooses.
        max_shift: that the user chooses.

    Raises:
        InputError: it is no step, or is given with what it replaces.
    """
    if pan is None and steps is not None:
        raise InputError("`--steps` is the number of steps of a pan.", "Add --pan, like --pan 0.25,0.")
    if pan is None:
        return {}
    if protocols or max_shift is not None:
        given = "--protocol" if protocols else "--max-shift"
        raise InputError(f"`--pan` says how far images move, `{given}` too.", f"Leave {given} out.")
    step, count = _step(pan), STEPS if steps is None else steps
    if not 1 <= count <= MOST_STEPS:
        raise InputError(f"`--steps` must be 1 to {MOST_STEPS:,}, got {count}.", "Leave it out for 32.")
    furthest = ceil(count * max(map(abs, step)))
    if furthest > FURTHEST:
        raise InputError(f"`--pan` moves images by up to {furthest:,} pixels.", "Give a shorter step or fewer steps.")
    return {"pan": step, "steps": count, "max_shift": furthest}


def _step(text: str) -> tuple[float, float]:
    """Read ``DOWN,RIGHT``."""
    try:
        down, right = map(float, text.split(","))
    except ValueError:
        down = right = 0.0
    if not (isfinite(down) and isfinite(right)) or (down, right) == (0.0, 0.0):
        raise InputError(
            f"`--pan` must be DOWN,RIGHT in pixels, not both 0, got {text!r}.", "Write a quarter of a pixel down as --pan 0.25,0."
        )
    return down, right


@dataclass(frozen=True, kw_only=True)
class FramesOptions:
    """How videos are measured and judged.

    Attributes:
        task: what the outputs are; None to detect it from them.
        batch_size: frames per forward pass.
        out: folder for the result; None to write nothing.
        conditions: what must not be.
        gate: how they are judged, and where the verdict goes.
    """

    task: str | None
    batch_size: int | None
    out: Path | None
    conditions: Sequence[Condition]
    gate: GateOptions


def audit_frames(
    model: str | None, frames: Path, options: AuditOptions, how: FramesOptions, others: Mapping[str, Any]
) -> int | None:
    """Measure the flicker of a model on videos, print it, write it into a folder, and judge it.

    Args:
        model: as the user names it.
        frames: folder of the videos.
        options: of the command.
        how: to measure and judge them.
        others: options that make no sense with videos, by name.

    Returns:
        the exit code of a verdict; None without conditions.

    Raises:
        InputError: such an option is given; there is no such model, or no video that can be read; the folder cannot be written,
            or holds something else; a condition is about another measure.
    """
    own = {"--data": options.data, "--mode": options.mode, "--max-shift": options.max_shift, "--images": options.images}
    given = next((name for name, value in (*others.items(), *own.items()) if value not in (None, (), False)), None)
    if model is None or given is not None:
        what = "needs a model" if model is None else f"takes no `{given}`: frames are compared as they are"
        raise InputError(f"`audit --frames` {what}.", "Give MODEL." if model is None else "Leave it out.")
    if how.batch_size is not None and how.batch_size < 1:
        raise InputError(f"`batch_size` must be 1 or more frames, got {how.batch_size}.", "Leave it out.")
    _check_free(how.out)
    found, film, subject = _measured(model, frames, options, how)
    saved = "" if how.out is None else _write(found, film, how.out)
    verdict = _judged(found, how, subject)
    summary, content = found.summary(commands=_next(model, frames, options, how)), found.to_json()
    if verdict is not None:
        summary = replace(summary, verdict=f"{verdict.words()} {summary.verdict}")
        content |= {"gate": verdict.to_json()}
    print_found(content, found.tables(), options, summary, saved)
    return None if verdict is None else verdict.exit_code


def _next(model: str, frames: Path, options: AuditOptions, how: FramesOptions) -> tuple[str, ...]:
    """Return the command that writes the page."""
    task = f" --task {quote(how.task)}" if how.task else ""
    command = f"shiftscope audit {options.arguments(model)} --frames {quote(str(frames))}{task} --out flicker"
    return () if how.out is not None else (command,)


def _check_free(out: Path | None) -> None:
    """Refuse a folder of something else, whose files would be overwritten."""
    if out is None:
        return
    from shiftscope.runtime.plans import PLAN

    other = next((name for name in (PLAN, "study.json") if (out / name).exists()), None)
    if other is not None:
        kind = "a study" if other == "study.json" else "an audit or a certificate"
        raise InputError(f"{out} holds {kind}, whose files would be overwritten.", "Choose another folder with --out.")


def _judged(found: Flicker, how: FramesOptions, subject: str) -> Verdict | None:
    if not how.conditions:
        return None
    from shiftscope.videos.gate import judge_flicker

    verdict = judge_flicker(found, how.conditions, subject=subject, strict=how.gate.strict)
    write_verdict(verdict, how.gate)
    return verdict


def _measured(model: str, frames: Path, options: AuditOptions, how: FramesOptions) -> tuple[Flicker, Film | None, str]:
    """Return the flicker, frames to show if there is a page to write, and what was measured in a line."""
    from shiftscope.audits.subject import SubjectSpec
    from shiftscope.runtime.executors import keep_freed_memory
    from shiftscope.tasks import find_task
    from shiftscope.videos.flicker import leading_measure
    from shiftscope.videos.gate import check_measures
    from shiftscope.videos.measuring import measure_videos, open_filmed, task_of_frames

    if how.task is not None:
        find_task(how.task)
    with valid_settings():
        spec = SubjectSpec(**options.subject(model, images=IMAGES))
    keep_freed_memory()
    with reporting("loading the model") as report:
        filmed = open_filmed(spec, frames, report, task=how.task)
    print_first(filmed.subject.line, as_json=options.as_json)
    with reporting("measuring frames") as report:
        task = task_of_frames(filmed)
        check_measures(how.conditions, leading_measure(task))
        film = how.out is not None
        return *measure_videos(filmed, task, batch_size=how.batch_size, report=report, film=film), filmed.subject.line


def _write(found: Flicker, film: Film | None, out: Path) -> str:
    """Write the result and its page, and return a sentence on them."""
    from shiftscope.report.write import write_flicker_page

    with resumable(out, "files"):
        found.save(out)
        write_flicker_page(found, film, out)
    return f"Saved in {out}: flicker.json, frames.csv, frames.md, film.json, report.html."
