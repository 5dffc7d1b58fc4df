"""Train one network: to a target accuracy, after a fix, or at every shift at once.

- ``recipe``: the settings of a training, and its optimizer.
- ``loop``: train to a target accuracy, then stop early.
- ``fine_tuning``: train a changed model on labelled images under shifts.
- ``objectives``: cross-entropy under shifts, and consistency between them.
- ``all_shifts``: the expected loss over all shifts, exactly.
- ``gains``: a trained model beside the original and beside the same training without the fix.
- ``checkpoint``: save and resume a training.
- ``pools``: max pooling and ReLU in one compiled pass on the CPU.
"""

from __future__ import annotations

from shiftscope.training.all_shifts import AllShifts, all_shifts_loss
from shiftscope.training.fine_tuning import FineTuned, FineTuning, fine_tune
from shiftscope.training.objectives import inconsistency

__all__ = ["AllShifts", "FineTuned", "FineTuning", "all_shifts_loss", "fine_tune", "inconsistency"]
