"""A folder of a study or of an audit as a page: what is on disk, gathered for ``report``."""

from __future__ import annotations

from pathlib import Path

import torch

from shiftscope.audits.folder import is_audit, merge_audit
from shiftscope.errors import InputError
from shiftscope.report import Page, render
from shiftscope.report.audit import audit_page
from shiftscope.report.gallery import Progress
from shiftscope.report.study import study_page
from shiftscope.report.words import WORDS
from shiftscope.runtime.files import write_bytes

__all__ = ["REPORT", "WORDS", "audit_page", "study_page", "write_page", "write_report"]

REPORT = "report.html"


def write_report(
    folder: Path,
    *,
    out: Path | None = None,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda *_: None,
) -> Path:
    """Write the page of a study or of an audit.

    Args:
        folder: of the study, which may be half done; or of an audit whose parts are all there.
        out: the file; ``report.html`` in the folder by default.
        data_dir: a local folder that holds the study's data set; else ``SHIFTSCOPE_DATA``, else what was decoded before.
        device: where to compute the answers of a study's networks.
        progress: told how it goes.

    Returns:
        the file.

    Raises:
        InputError: the folder holds neither, or an audit whose parts are missing; the file cannot be written.
    """
    if is_audit(folder):
        page = audit_page(merge_audit(folder))
    else:
        page = study_page(folder, data_dir=data_dir, device=device, progress=progress)
    return write_page(page, out or folder / REPORT)


def write_page(page: Page, path: Path) -> Path:
    """Write a page.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        write_bytes(path, render(page).encode(errors="replace"))  # names of files may hold what no text can
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}). Make room, or choose another place with --out."
        ) from error
    return path
