"""Write the page of a study or an audit."""

from __future__ import annotations

from pathlib import Path

import torch

from shiftscope.audits import Audit
from shiftscope.audits.folder import AuditSpec, is_audit, merge_audit
from shiftscope.audits.pictures import pictures_of, read_pictures, write_pictures
from shiftscope.audits.protocols import Protocol
from shiftscope.audits.subject import Subject
from shiftscope.certificates.reading import CERTIFICATE, read_certificate
from shiftscope.figures.study import write_main_figure
from shiftscope.report import Page, render
from shiftscope.report.audit import audit_page
from shiftscope.report.audit_drag import drag_of, read_drag, write_drag
from shiftscope.report.certificate import certificate_page
from shiftscope.report.explanation import explanation_page
from shiftscope.report.frames import flicker_page
from shiftscope.report.study import study_page
from shiftscope.runtime.files import write_bytes, writing
from shiftscope.runtime.progress import Report, silent
from shiftscope.studies.folder import read_folder
from shiftscope.tasks import Task, find_task
from shiftscope.videos import Flicker
from shiftscope.videos.film import Film, film_of_pan, load_film, read_film, write_film
from shiftscope.videos.reading import is_flicker, read_flicker

__all__ = [
    "REPORT",
    "add_pictures",
    "audit_page",
    "certificate_page",
    "explanation_page",
    "flicker_page",
    "study_page",
    "write_audit_page",
    "write_flicker_page",
    "write_page",
    "write_report",
]

#: The page's name in its folder.
REPORT = "report.html"


def write_report(
    folder: Path,
    *,
    out: Path | None = None,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    report: Report = silent,
) -> Path:
    """Write the page of a study, an audit, a certificate or videos.

    Args:
        folder: of a study, which may be unfinished; or of an audit with all its parts; or of a finished certificate; or
            of what ``audit --frames`` measured.
        out: file for the page. None writes ``report.html`` into the folder and, for a study, its main figure beside it.
        data_dir: local folder with the study's data set. By default ``SHIFTSCOPE_DATA`` or what was decoded before; nothing is
            downloaded.
        device: where to compute the predictions of a study's networks.
        report: called with each progress event.

    Returns:
        the page's file.

    Raises:
        InputError: the folder holds none of them, an audit lacks parts, or a file cannot be written.
    """
    if (folder / CERTIFICATE).is_file():
        return write_page(certificate_page(read_certificate(folder)), out or folder / REPORT)
    if is_audit(folder):
        return write_audit_page(merge_audit(folder), folder, out)
    if is_flicker(folder):
        found = read_flicker(folder)
        return write_page(flicker_page(found, load_film(folder, found)), out or folder / REPORT)
    results = read_folder(folder)
    if out is None:
        write_main_figure(results)
    page = study_page(results, data_dir=data_dir, device=device, report=report)
    return write_page(page, out or folder / REPORT)


def write_audit_page(audit: Audit, folder: Path, out: Path | None = None) -> Path:
    """Write the page of an audit, with the pictures that lie in its folder.

    Args:
        audit: the audit.
        folder: its folder.
        out: file for the page. None writes ``report.html`` into the folder.

    Returns:
        the page's file.

    Raises:
        InputError: the file cannot be written.
    """
    page = audit_page(audit, read_pictures(folder), read_drag(folder), read_film(folder))
    return write_page(page, out or folder / REPORT)


def add_pictures(folder: Path, subject: Subject, audit: Audit, report: Report = silent) -> None:
    """Compute the pictures of an audit's page, and write them into its folder.

    Args:
        folder: the audit's.
        subject: its model and images.
        audit: the audit.
        report: called with each progress event.

    Raises:
        InputError: the model fails on a view, or the folder cannot be written.
    """
    task = find_task(audit.task).knowing(subject.loaded.model) if audit.task else None
    write_pictures(folder, pictures_of(subject, audit.changed, report, task=task))
    write_drag(folder, drag_of(subject, audit, report), audit.cost.images)
    write_film(folder, _film_of(subject, audit, task))


def _film_of(subject: Subject, audit: Audit, task: Task | None) -> Film | None:
    """Return the pan of the images that change most, as frames; None of an audit without a pan."""
    spec = subject.spec
    if not isinstance(spec, AuditSpec) or spec.pan is None:
        return None
    wanted = next(each for each in spec.wanted or () if isinstance(each, Protocol))
    images = [each.image for each in audit.changed] or [0]
    return film_of_pan(subject, wanted, images, task=task, measure="top1_change" if task is None else task.measures[0])


def write_flicker_page(found: Flicker, film: Film | None, folder: Path) -> Path:
    """Write the page of videos into a folder, beside its film, and return the page's file.

    Raises:
        InputError: a file cannot be written.
    """
    write_film(folder, film)
    return write_page(flicker_page(found, film), folder / REPORT)


def write_page(page: Page, path: Path) -> Path:
    """Render a page and write it.

    Args:
        page: its content.
        path: the file.

    Returns:
        the file.

    Raises:
        InputError: the file cannot be written.
    """
    with writing(path, "Make room, or choose another file with --out."):
        write_bytes(path, render(page).encode(errors="replace"))  # file names may hold characters that UTF-8 cannot encode
    return path
