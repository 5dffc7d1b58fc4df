"""Measure how stable any model is under shifts, by the protocols of the literature, in one pass over the images."""

from __future__ import annotations

from shiftscope.audits.parts import Changed, Cost, Part, merge_parts
from shiftscope.audits.results import Audit, Row
from shiftscope.audits.session import AuditOptions, Session, audit, block_size

__all__ = [
    "Audit",
    "AuditOptions",
    "Changed",
    "Cost",
    "Part",
    "Row",
    "Session",
    "audit",
    "block_size",
    "merge_parts",
]
