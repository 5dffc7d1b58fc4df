"""Every fix by its short name, as commands and model files call it. A new fix is a file of its own here, and a line below."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from shiftscope.errors import InputError
from shiftscope.surgery.antialias import antialias
from shiftscope.surgery.equivariance import circular, make_equivariant
from shiftscope.surgery.head import global_pool
from shiftscope.surgery.plan import Surgery

__all__ = ["Kind", "operate"]

#: Short names of fixes in commands and model files: a filter before each subsampling, adaptive or learned polyphase sampling on
#: circular maps, a head that sees the mean over positions, circular padding.
Kind = Literal["blur", "aps", "lps", "gap", "circular"]


def operate(kind: Kind, model: nn.Module, *, filter_size: int = 1, image: tuple[int, int, int] | None = None) -> Surgery:
    """Return a copy of a model with one fix in it.

    Args:
        kind: short name of the fix.
        model: a model that ``torch.fx`` can trace; it is not changed.
        filter_size: width of the binomial filter of ``blur``, ``aps`` and ``lps``, positions; 1 does not filter.
        image: (channels, height, width), to count costs and to check that the changed model runs.

    Raises:
        UntraceableError: ``torch.fx`` cannot trace the model.
        InputError: there is no such fix, or it does not apply to the model.
    """
    if kind not in get_args(Kind):
        raise InputError(f"`kind` must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    if kind == "blur":
        return antialias(model, filter_size=filter_size, image=image)
    if kind in ("aps", "lps"):
        return make_equivariant(model, method=kind, filter_size=filter_size, image=image)
    return global_pool(model, image=image) if kind == "gap" else circular(model, image=image)
