"""Which fixes ``shiftscope fix`` applies, as a value that another process can apply again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from shiftscope.audits.subject import Subject
    from shiftscope.engine.framing import Border
    from shiftscope.models import Fix
    from shiftscope.surgery import Surgery, Wrapping

__all__ = ["Fixing", "FixKind"]

#: Short names of fixes, as in :mod:`shiftscope.surgery`, whose import would take long.
FixKind = Literal["blur", "aps", "lps", "gap", "circular", "anchor", "canonical", "average"]


@dataclass(frozen=True)
class Fixing:
    """Fixes, and how the command measures what they do.

    Attributes:
        kinds: in the order in which they are applied.
        filter_size: of ``blur``.
        reach: of ``average`` and ``canonical``, pixels; None for their own.
        mode: what comes in at the border; None for what suits the images.
        task: what the outputs are, as :func:`shiftscope.tasks.find_task` takes it; empty for classes.
    """

    kinds: tuple[FixKind, ...]
    filter_size: int = 3
    reach: int | None = None
    mode: Literal["zero", "crop", "circular"] | None = None
    task: str = ""

    def fixes(self, subject: Subject) -> tuple[tuple[Fix, ...], Wrapping]:
        """Return the fixes as a file keeps them, and how wrappers move images."""
        from shiftscope.models import Fix
        from shiftscope.surgery import Wrapping
        from shiftscope.tasks import find_task

        whole: Border = "circular" if self.mode == "circular" else "zero"
        cut_out = subject.images.crop is not None and subject.images.margin > 0
        border: Border = "crop" if self.mode in (None, "crop") and cut_out else whole
        around: dict[str, Any] = {"fill": subject.images.fill, "reach": self.reach}
        output = subject.output if self.task else None
        around |= {"task": self.task or None, "output": output}
        own = {
            "blur": {"filter_size": self.filter_size},
            "canonical": {**around, "border": border},
            "average": {**around, "border": whole},
        }
        fixes = tuple(Fix(kind=kind, **own.get(kind, {})) for kind in self.kinds)
        task = find_task(self.task) if self.task else None
        return fixes, Wrapping(border, self.reach, subject.images.fill, task, output)

    def apply(self, subject: Subject) -> Surgery:
        """Return a copy of the model with the fixes."""
        from shiftscope.surgery.compare import apply_fixes

        fixes, wrapping = self.fixes(subject)
        return apply_fixes(
            subject.loaded.model,
            [(each.kind, each.filter_size) for each in fixes],
            wrapping=wrapping,
            image=(subject.images.shape[0], *subject.images.size),
        )
