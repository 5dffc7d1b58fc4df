"""Every fix by its short name, as commands and model files call it. To add a fix, add a file here and a line below."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from torch import nn

from shiftscope.errors import InputError
from shiftscope.graphs.tokens import has_attention
from shiftscope.surgery.anchor import anchor
from shiftscope.surgery.antialias import antialias
from shiftscope.surgery.equivariance import circular, make_equivariant
from shiftscope.surgery.head import global_pool
from shiftscope.surgery.plan import Change, Surgery
from shiftscope.surgery.wrappers import ON_BLACK, WRAPPERS, Wrapping, wrap

__all__ = ["FixKind", "operate"]

#: A transformer's plan with polyphase sampling recommends ``anchor`` from this ratio of multiply-adds on.
ANCHOR_INSTEAD = 1.1

#: Short names of fixes in commands and model files: a filter before each subsampling, adaptive or learned polyphase sampling on
#: circular maps, a head that sees the mean over positions, circular padding, patches and windows that follow shifts; and around
#: the model, an input that chooses its own position, and an average of the answers at several shifts.
FixKind = Literal["blur", "aps", "lps", "gap", "circular", "anchor", "canonical", "average"]


def operate(
    kind: FixKind,
    model: nn.Module,
    *,
    filter_size: int = 1,
    wrapping: Wrapping = ON_BLACK,
    image: tuple[int, int, int] | None = None,
) -> Surgery:
    """Return a copy of a model with one fix in it.

    Args:
        kind: short name of the fix.
        model: a model that ``torch.fx`` can trace; for ``anchor``, ``canonical`` and ``average`` any. It is not changed.
        filter_size: width of the binomial filter of ``blur``, ``aps`` and ``lps``, positions; 1 does not filter.
        wrapping: border, background and reach of ``canonical`` and ``average``.
        image: (channels, height, width), to count costs and to check that the changed model runs.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model.
        InputError: there is no such fix, or it does not apply to the model.
    """
    if kind not in get_args(FixKind):
        raise InputError(f"there is no fix {kind!r}.", f"Choose one of {', '.join(get_args(FixKind))}.")
    if kind in WRAPPERS:
        return wrap(kind, model, wrapping=wrapping, image=image)
    if kind == "anchor":
        return anchor(model, image=image)
    if kind == "blur":
        return antialias(model, filter_size=filter_size, image=image)
    if kind in ("aps", "lps"):
        return _with_advice(make_equivariant(model, method=kind, filter_size=filter_size, image=image), model)
    return global_pool(model, image=image) if kind == "gap" else circular(model, image=image)


def _with_advice(surgery: Surgery, model: nn.Module) -> Surgery:
    """Return the plan with a line on ``anchor``, where polyphase sampling makes a transformer much more expensive."""
    if surgery.before is None or surgery.after is None or not has_attention(model):
        return surgery
    ratio = surgery.after.multiply_adds / max(1, surgery.before.multiply_adds)
    if ratio <= ANCHOR_INSTEAD:
        return surgery
    why = f"this takes {ratio:.1f} times the multiply-adds; `anchor` lets patches follow shifts at no more than before"
    return replace(surgery, changes=(*surgery.changes, Change("-", "transformer", "", why)))
