"""Explain why a model's outputs change under shifts: by cause, by layer, and with the fixes that would help.

- :mod:`~shiftscope.explanations.guarantee`: what the model's graph guarantees, before anything is measured;
- :mod:`~shiftscope.explanations.trial`: what shifts cost a model's outputs, on fixed images and shifts;
- :mod:`~shiftscope.explanations.causes`: what they cost without the head, without borders, without aliasing;
- :mod:`~shiftscope.explanations.token_causes`: for transformers also without windows, position embedding and patch grid;
- :mod:`~shiftscope.explanations.layers`: how every layer's feature maps respond to shifts;
- :mod:`~shiftscope.explanations.ranking`: which fix helps most, tried without training;
- :mod:`~shiftscope.explanations.explanation`: all of these together;
- :mod:`~shiftscope.explanations.task_explanation`: the same for boxes, maps and other tasks, with
  :mod:`~shiftscope.explanations.task_causes`, :mod:`~shiftscope.explanations.lattice` and
  :mod:`~shiftscope.explanations.task_ranking`.
"""

from shiftscope.explanations.causes import Cause, Causes
from shiftscope.explanations.explanation import Explanation, explain
from shiftscope.explanations.guarantee import Guarantee, guarantee_of
from shiftscope.explanations.ranking import Fixes, TriedFix
from shiftscope.explanations.task_explanation import TaskExplanation
from shiftscope.explanations.trial import Loss

__all__ = [
    "Cause",
    "Causes",
    "Explanation",
    "Fixes",
    "Guarantee",
    "Loss",
    "TaskExplanation",
    "TriedFix",
    "explain",
    "guarantee_of",
]
