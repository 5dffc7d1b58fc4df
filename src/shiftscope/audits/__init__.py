"""How stable any model is: several protocols in one pass, and what they found."""

from __future__ import annotations

from shiftscope.audits.parts import Part, folded
from shiftscope.audits.results import Audit, Changed, Cost, Row
from shiftscope.audits.session import Session, audit, block_size

__all__ = ["Audit", "Changed", "Cost", "Part", "Row", "Session", "audit", "block_size", "folded"]
