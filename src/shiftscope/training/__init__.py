"""Train one network: to a target accuracy, or at every shift at once.

- ``loop``: train to a target accuracy, then stop early.
- ``all_shifts``: the expected loss over all shifts, exactly.
- ``checkpoint``: save and resume a training.
- ``pools``: max pooling and ReLU in one compiled pass on the CPU.
"""

from __future__ import annotations

from shiftscope.training.all_shifts import AllShifts, all_shifts_loss

__all__ = ["AllShifts", "all_shifts_loss"]
