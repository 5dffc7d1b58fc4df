"""Where invariance is lost, and why: by layer, by cause, and what to do about it.

- :mod:`~shiftscope.explanations.guarantee`: what the model's graph promises;
- :mod:`~shiftscope.explanations.causes`: counterfactuals on the same weights, one cause after the other;
- :mod:`~shiftscope.explanations.fixes`: fixes tried without training, ranked;
- :mod:`~shiftscope.explanations.explanation`: all of it, and :mod:`shiftscope.explanations.layers` for the layers.
"""

from shiftscope.explanations.causes import Cause, Causes
from shiftscope.explanations.explanation import Explanation, explain
from shiftscope.explanations.fixes import Remedies, Remedy
from shiftscope.explanations.guarantee import Guarantee, guarantee_of

__all__ = ["Cause", "Causes", "Explanation", "Guarantee", "Remedies", "Remedy", "explain", "guarantee_of"]
