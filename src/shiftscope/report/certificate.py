"""Gather the page of a certificate, and its curve for other pages: images kept, or right, at every shift of up to r pixels."""

from __future__ import annotations

from pathlib import Path

from shiftscope.certificates.reading import CertificateFile
from shiftscope.engine.framing import Border
from shiftscope.radii import RadiusCounts
from shiftscope.radii.curve import BORDERS
from shiftscope.radii.search import NO_ANSWER, NOTHING
from shiftscope.report.content import Chart, Page, Rows
from shiftscope.tables import Cell, Table

__all__ = ["certificate_chart", "certificate_page"]

#: The curves, in words.
CURVES = {"unchanged": "keep their answer", "right": "are answered right"}
#: Radii of images that have none, in words.
SPECIAL = {NO_ANSWER: "no answer without a shift", NOTHING: "nothing to keep"}
#: So many images are listed, those of the smallest radii first; images.csv holds all.
LISTED = 200


def certificate_page(certificate: CertificateFile) -> Page:
    """Return the content of a certificate's page.

    Args:
        certificate: as its file holds it.
    """
    provenance, counts = certificate.provenance, certificate.counts()
    model = Path(provenance.get("model", "the model")).name
    of_grid = certificate.points_a_pixel > 1
    facts = (
        model,
        f"{counts.total:,} images",
        f"shifts of up to {certificate.radius} pixels",
        f"border {BORDERS[certificate.border]}",
        *([f"a grid of {certificate.points_a_pixel} points per pixel, not a proof"] if of_grid else []),
    )
    notes = Table("What it holds for", ("note",), tuple({"note": each} for each in certificate.notes))
    return Page(
        title=f"Up to which shift does {model} keep its answers?",
        answer=certificate.summary,
        sections=(
            certificate_chart(counts, certificate.border, "The share of images, for each r."),
            Rows("What it holds for", "The numbers above hold under these conditions.", notes),
            Rows("Images that fail first", *_listed(certificate)),
        ),
        facts=facts,
        provenance=provenance,
    )


def _listed(certificate: CertificateFile) -> tuple[str, Table]:
    """Return the images of the smallest radii as a table, and its caption."""
    names = [
        name for name in ("name", "answer", "label") if any(getattr(each, name) not in (None, "") for each in certificate.images)
    ]
    columns = ("image", *names, "radius")
    chosen = sorted(certificate.images, key=lambda each: (each.radius, each.image))[:LISTED]
    rows: list[dict[str, Cell]] = [{name: getattr(each, name) for name in columns} for each in chosen]
    which = "All of them" if len(chosen) == len(certificate.images) else f"The first {LISTED} of {len(certificate.images):,}"
    radii = {each.radius for each in chosen}
    special = [f"{radius}: {words}" for radius, words in SPECIAL.items() if radius in radii]
    caption = (
        f"{which}, by radius: the largest r such that every shift of up to r pixels keeps the answer. "
        f"{'; '.join(special)}{'. ' if special else ''}Images are numbered from 0, in the order measured; images.csv holds all."
    )
    return caption, Table("Radius of each image", columns, tuple(rows))


def certificate_chart(counts: RadiusCounts, border: Border, caption: str, *, suffix: str = "") -> Chart:
    """Return the curves over radii as a chart.

    Args:
        counts: how many images have each radius.
        border: what comes in at the border.
        caption: sentences below the title.
        suffix: of the title, where a page has several.
    """
    rows = tuple(
        {"radius": row["radius"], "images": words, "share_of_images": row[column]}
        for column, words in CURVES.items()
        for row in counts.rows()
        if row[column] is not None
    )
    table = Table(f"Every shift of up to r pixels, border {BORDERS[border]}", ("images", "radius", "share_of_images"), rows)
    return Chart(
        f"How far every shift keeps the answer{suffix}",
        f"{caption} With Wilson's 95 % intervals.",
        table,
        "radius",
        "share_of_images",
        ("images",),
    )
