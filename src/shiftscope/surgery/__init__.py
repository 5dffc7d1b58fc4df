"""Change a copy of a model: the fix goes in, the weights stay, and a plan says what was done to each layer and why.

- :func:`antialias`: a low-pass filter before every subsampling;
- :func:`make_equivariant`: polyphase sampling instead of strides, on circular maps;
- :func:`circular`: circular padding instead of any other;
- :func:`global_pool`: a head that sees the mean over positions;
- :func:`operate`: one of these by its short name.

They work on any model that ``torch.fx`` can trace, and on their own results.
"""

from __future__ import annotations

from shiftscope.surgery.antialias import antialias
from shiftscope.surgery.equivariance import circular, make_equivariant
from shiftscope.surgery.fixes import Kind, operate
from shiftscope.surgery.head import global_pool
from shiftscope.surgery.plan import Change, Cost, Surgery, cost

__all__ = [
    "Change",
    "Cost",
    "Kind",
    "Surgery",
    "antialias",
    "circular",
    "cost",
    "global_pool",
    "make_equivariant",
    "operate",
]
