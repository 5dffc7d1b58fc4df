"""How measures and settings are called on a page."""

from __future__ import annotations

import re

from shiftscope.tables import Table

__all__ = ["WORDS", "bare"]

#: How measures and settings are called on a page.
WORDS = {
    "mcs": "mean cosine similarity",
    "mcs_centred": "centred similarity",
    "mcs_all_shifts": "similarity, all shifts",
    "top1_change": "top-1 change",
    "worst_case": "right at every shift",
    "test_accuracy": "test accuracy",
    "train_accuracy": "train accuracy",
    "source_mcs": "source: similarity",
    "source_test_accuracy": "source: accuracy",
    "difference_mcs": "difference: similarity",
    "difference_test_accuracy": "difference: accuracy",
    "factor": "subsampling factor",
    "pool_kernel": "pooling kernel",
    "antialias": "filter size",
    "seeds": "networks",
    "max_shift": "largest shift",
    "movement_in_pixels": "movement, pixels",
    "in_place": "similarity in place",
    "homogeneity_pooled": "homogeneity, pooled",
}


def bare(table: Table) -> Table:
    """Without provenance, which the page shows at its end, and with the page's words in its notes."""
    return Table(table.title, table.columns, table.rows, tuple(_worded(note) for note in table.notes))


def _worded(note: str) -> str:
    """A note with the page's words for columns, and without brackets, which the page does not set."""
    text = note.replace("In brackets: ", "").replace("source_...: as printed,", "The source's numbers are as printed,")
    return re.sub(r"\b[a-z1]+(?:_[a-z]+)+\b|\bmcs\b", lambda found: WORDS.get(found[0], found[0]), text)
