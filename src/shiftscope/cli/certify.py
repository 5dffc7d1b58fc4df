"""The command that certifies a model's answers under every shift."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shiftscope.cli.app import MODELS, app, resumable
from shiftscope.cli.measuring import IMAGES, open_spec, print_found, valid_settings
from shiftscope.cli.options import COMPUTE_GROUP, IMAGE_GROUP, MODEL_GROUP, OUTPUT_GROUP, CertifyOptions, ModelName
from shiftscope.cli.progress import reporting
from shiftscope.errors import InputError
from shiftscope.runtime.stopping import keep

if TYPE_CHECKING:
    from shiftscope.certificates import Certificate

__all__ = ["certify"]


@app.command(group=MODELS)
def certify(
    model: ModelName,
    *,
    radius: Annotated[int | None, Parameter(group=IMAGE_GROUP)] = None,
    parts: Annotated[int, Parameter(group=IMAGE_GROUP)] = 1,
    options: CertifyOptions = CertifyOptions(),
    task: Annotated[str | None, Parameter(group=MODEL_GROUP)] = None,
    batch_size: Annotated[int | None, Parameter(group=COMPUTE_GROUP)] = None,
    out: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
) -> None:
    """Certify answers: for every image the largest r such that every shift of up to r pixels keeps the model's answer.

    Every whole-pixel shift up to r is tried, so the radii are exact for these images and this border. An image whose answer
    changed needs no larger shifts. The table has one row per radius: the share of images that keep their answer at every shift up
    to it, and that are answered right there, with an interval.

    Parameters
    ----------
    radius
        Largest radius to try, in pixels; the same as --max-shift. By default 8, or less if the canvas or the photo leaves less
        room around the input.
    parts
        Grid points per pixel along each axis. 1 tries every whole-pixel shift; 2 also tries half pixels, and so on: a grid, no
        proof for the shifts between its points.
    task
        What the model returns, if not classes: boxes, segmentation, depth, flow, embedding, binary, multilabel, regression or
        answers, with settings after a colon, as in boxes:threshold=0.3, segmentation:kept=0.95 or embedding:kept=0.9. By
        default detected from the outputs.
    batch_size
        Number of images per forward pass. By default as many as memory allows.
    out
        Folder for certificate.json, certificate.md, certificate.csv, images.csv and report.html. A stopped run resumes from it.
        By default nothing is written.
    """
    if radius is not None and options.max_shift not in (None, radius):
        raise InputError(
            f"`radius` {radius} and `max_shift` {options.max_shift} mean the same, but differ.", "Leave out --max-shift."
        )
    if radius is not None and radius < 1:
        raise InputError(f"`radius` must be 1 or more pixels, got {radius}.", "Leave it out to take the default.")
    from shiftscope.certificates.job import CertificateSpec, CertificateStopped, run_certificate

    settings = options.subject(model, images=IMAGES)
    settings["max_shift"] = options.max_shift if radius is None else radius
    with valid_settings():
        spec = CertificateSpec(**settings, mode=options.mode, parts=parts, batch_size=batch_size, task=task)
    subject = open_spec(spec, options)
    if out is None:
        keep("Nothing is saved without --out, from which a stopped run resumes.")
    with resumable(out, "blocks"):
        try:
            with reporting("certifying images") as report:
                found = run_certificate(spec, subject, out=out, report=report)
        except CertificateStopped as stopped:
            if stopped.certificate is not None:
                _print(stopped.certificate, options)
            raise
    if out is not None:
        from shiftscope.report.write import write_report

        write_report(out)
    saved = f"Saved in {out}: certificate.json, certificate.md, certificate.csv, images.csv, report.html." if out else ""
    commands = () if found.rule else (f"shiftscope explain {options.arguments(model)}",)
    _print(found, options, saved=saved, commands=commands)


def _print(found: Certificate, options: CertifyOptions, *, saved: str = "", commands: tuple[str, ...] = ()) -> None:
    tables = (found.table(), found.image_table())
    print_found(found.to_json(), tables, options, found.summary(commands=commands), saved)
