"""What the commands on models share: opening what they measure, and printing what they found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from shiftscope.cli.app import print_first, print_json
from shiftscope.cli.options import ModelOptions
from shiftscope.cli.printing import print_summary
from shiftscope.cli.progress import reporting
from shiftscope.errors import InputError

if TYPE_CHECKING:
    from shiftscope.audits.subject import Subject, SubjectSpec
    from shiftscope.tables import Summary, Table

__all__ = ["FEW_IMAGES", "IMAGES", "open_spec", "opened", "print_found", "under_shifts", "valid_settings"]

#: Number of images by default: of a command that measures one model, and of those that measure more than one.
IMAGES, FEW_IMAGES = 256, 64


@contextmanager
def valid_settings() -> Iterator[None]:
    """Turn the first invalid setting into an error of one sentence."""
    from pydantic import ValidationError

    from shiftscope.runtime.settings import validation_messages

    try:
        yield
    except ValidationError as error:
        raise InputError(validation_messages(error)[0]) from error


def opened(model: str, options: ModelOptions) -> Subject:
    """Open a model and a few of its images, and print what they are."""
    from shiftscope.audits.subject import SubjectSpec

    with valid_settings():
        spec = SubjectSpec(**options.subject(model, images=FEW_IMAGES))
    return open_spec(spec, options)


def open_spec(spec: SubjectSpec, options: ModelOptions) -> Subject:
    """Open a model and its images as they are specified, and print what they are."""
    from shiftscope.audits.subject import open_subject
    from shiftscope.runtime.executors import keep_freed_memory

    keep_freed_memory()
    with reporting("loading the model") as report:
        subject = open_subject(spec, report)
    print_first(subject.line, as_json=options.as_json)
    return subject


def under_shifts(subject: Subject, options: ModelOptions) -> dict[str, Any]:
    """Return the arguments by which a model's images are shifted and its outputs measured."""
    return {
        "size": subject.images.size,
        "max_shift": subject.images.default_shift if options.max_shift is None else options.max_shift,
        "mode": options.mode,
        "fill": subject.fill,
        "embedding": subject.embedding,
        "seed": options.seed,
    }


def print_found(
    content: dict[str, Any], tables: Iterable[Table], options: ModelOptions, summary: Summary, saved: str = ""
) -> None:
    """Print what a command found: as JSON, or a summary and tables."""
    if options.as_json:
        print_json(content)
    else:
        print_summary(summary, tables, saved=saved, wide=options.wide)
