"""The operations by the names that commands and files know them by."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from shiftscope.errors import InputError
from shiftscope.surgery.antialias import antialias
from shiftscope.surgery.equivariance import circular, make_equivariant
from shiftscope.surgery.head import global_pool
from shiftscope.surgery.plan import Surgery

__all__ = ["Kind", "operate"]

#: A filter before each subsampling, adaptive or learned polyphase sampling on circular maps, a head that sees the mean over
#: positions, circular padding.
Kind = Literal["blur", "aps", "lps", "gap", "circular"]


def operate(kind: Kind, model: nn.Module, *, filter_size: int = 1, image: tuple[int, int, int] | None = None) -> Surgery:
    """A changed copy of a model.

    Args:
        kind: of the operation.
        model: left as it is.
        filter_size: of the binomial filter of ``blur``, ``aps`` and ``lps``; 1 does not filter.
        image: (channels, height, width), for the costs.

    Raises:
        InputError: there is no such operation; what the operation says.
    """
    if kind not in get_args(Kind):
        raise InputError(f"`kind` must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    if kind == "blur":
        return antialias(model, filter_size=filter_size, image=image)
    if kind in ("aps", "lps"):
        return make_equivariant(model, method=kind, filter_size=filter_size, image=image)
    return global_pool(model, image=image) if kind == "gap" else circular(model, image=image)
