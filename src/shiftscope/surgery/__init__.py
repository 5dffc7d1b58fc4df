"""Change a copy of a model: the fix goes in, the weights stay, and a plan says what was done to each layer and why.

- :func:`antialias`: a low-pass filter before every subsampling;
- :func:`make_equivariant`: polyphase sampling instead of strides, on circular maps;
- :func:`circular`: circular padding instead of any other;
- :func:`anchor`: patches and windows of a transformer that follow shifts;
- :func:`global_pool`: a head that sees the mean over positions;
- :class:`Canonical` and :class:`Average`: around any model, an input that chooses its own position, and a mean over shifts;
- :func:`operate`: one of these by its short name.

The copy is the model itself with layers swapped: its class, its code, its hooks and the names of its weights stay. Changes that
no layer can express are made in the graph of ``torch.fx``, which is then the copy; the plan says which and why. Filters
and circular padding also work on models that cannot be traced; :func:`anchor` needs no graph.
"""

from __future__ import annotations

from shiftscope.surgery.anchor import anchor
from shiftscope.surgery.antialias import antialias
from shiftscope.surgery.canonical import Canonical
from shiftscope.surgery.equivariance import circular, make_equivariant
from shiftscope.surgery.fixes import FixKind, operate
from shiftscope.surgery.head import global_pool
from shiftscope.surgery.plan import Change, Cost, Surgery, cost
from shiftscope.surgery.wrappers import AROUND, ON_BLACK, WRAPPERS, Average, Wrapping

__all__ = [
    "AROUND",
    "ON_BLACK",
    "WRAPPERS",
    "Average",
    "Canonical",
    "Change",
    "Cost",
    "FixKind",
    "Surgery",
    "Wrapping",
    "anchor",
    "antialias",
    "circular",
    "cost",
    "global_pool",
    "make_equivariant",
    "operate",
]
