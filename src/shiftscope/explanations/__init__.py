"""Where invariance is lost, and why: by layer, by cause, and what to do about it.

- :mod:`~shiftscope.explanations.guarantees`: what the model's graph promises;
- :mod:`~shiftscope.explanations.causes`: counterfactuals on the same weights, one cause after the other;
- :mod:`~shiftscope.explanations.remedies`: fixes tried without training, ranked;
- :mod:`~shiftscope.explanations.whole`: all of it, and :mod:`shiftscope.layerwise` for the layers.
"""

from shiftscope.explanations.causes import Cause, Causes
from shiftscope.explanations.guarantees import Guarantee, guarantee_of
from shiftscope.explanations.remedies import Remedies, Remedy
from shiftscope.explanations.whole import Explanation, explain

__all__ = ["Cause", "Causes", "Explanation", "Guarantee", "Remedies", "Remedy", "explain", "guarantee_of"]
