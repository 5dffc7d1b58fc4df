"""What `audit` does with videos and pans: it reads their options, and measures videos."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftscope.cli.app import print_first, resumable
from shiftscope.cli.measuring import IMAGES, print_found, valid_settings
from shiftscope.cli.options import AuditOptions
from shiftscope.cli.progress import reporting
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits.film import Film
    from shiftscope.audits.flicker import Flicker

__all__ = ["audit_frames", "pan_of"]

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


def audit_frames(
    model: str | None,
    frames: Path,
    options: AuditOptions,
    *,
    task: str | None,
    batch_size: int | None,
    out: Path | None,
    others: Mapping[str, Any],
) -> None:
    """Measure the flicker of a model on videos, print it, and write it into a folder.

    Args:
        model: as the user names it.
        frames: folder of the videos.
        options: of the command.
        task: what the outputs are; None to detect it from them.
        batch_size: frames per forward pass.
        out: the folder; None to write nothing.
        others: options that make no sense with videos, by name.

    Raises:
        InputError: such an option is given; there is no such model, or no video that can be read; the folder cannot be written.
    """
    own = {"--data": options.data, "--mode": options.mode, "--max-shift": options.max_shift, "--images": options.images}
    given = next((name for name, value in (*others.items(), *own.items()) if value not in (None, (), False)), None)
    if model is None or given is not None:
        what = "needs a model" if model is None else f"takes no `{given}`: frames are compared as they are"
        raise InputError(f"`audit --frames` {what}.", "Give MODEL." if model is None else "Leave it out.")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"`batch_size` must be 1 or more frames, got {batch_size}.", "Leave it out.")
    found, film = _measured(model, frames, options, task=task, batch_size=batch_size, film=out is not None)
    saved = "" if out is None else _write(found, film, out)
    commands = () if out is not None else (f"shiftscope audit {options.arguments(model)} --frames {frames} --out flicker",)
    print_found(found.to_json(), found.tables(), options, found.summary(commands=commands), saved)


def _measured(
    model: str, frames: Path, options: AuditOptions, *, task: str | None, batch_size: int | None, film: bool
) -> tuple[Flicker, Film | None]:
    from shiftscope.audits.subject import SubjectSpec
    from shiftscope.audits.videos import measure_videos, open_filmed
    from shiftscope.runtime.executors import keep_freed_memory
    from shiftscope.tasks import find_task

    if task is not None:
        find_task(task)
    with valid_settings():
        spec = SubjectSpec(**options.subject(model, images=IMAGES))
    keep_freed_memory()
    with reporting("loading the model") as report:
        filmed = open_filmed(spec, frames, report)
    print_first(filmed.subject.line, as_json=options.as_json)
    with reporting("measuring frames") as report:
        return measure_videos(filmed, task=task, batch_size=batch_size, report=report, film=film)


def _write(found: Flicker, film: Film | None, out: Path) -> str:
    """Write the result and its page, and return a sentence on them."""
    from shiftscope.report.write import write_flicker_page

    with resumable(out, "files"):
        found.save(out)
        write_flicker_page(found, film, out)
    return f"Saved in {out}: flicker.json, frames.csv, frames.md, film.json, report.html."
