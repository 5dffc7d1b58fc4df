"""Changing a model, never in place: a copy with the fix in it, the weights kept, and a plan that explains itself.

- :func:`antialias`: a filter before every subsampling;
- :func:`make_equivariant`: polyphase sampling instead of stride, on circular maps;
- :func:`circular`: circular padding instead of any other;
- :func:`global_pool`: a head that sees the mean over positions;
- :func:`operate`: one of these by its short name.

Works on any model whose graph ``torch.fx`` can trace. What they return can be changed further.
"""

from shiftscope.surgery.antialias import antialias, fold
from shiftscope.surgery.equivariance import circular, make_equivariant
from shiftscope.surgery.head import global_pool
from shiftscope.surgery.kinds import Kind, operate
from shiftscope.surgery.plan import Change, Cost, Surgery, cost

__all__ = [
    "Change",
    "Cost",
    "Kind",
    "Surgery",
    "antialias",
    "circular",
    "cost",
    "fold",
    "global_pool",
    "make_equivariant",
    "operate",
]
