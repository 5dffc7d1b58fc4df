"""What a portion of images gave, as named tensors, and how portions are put together.

A name's first word says how: ``each`` (a value for each image) are joined, ``sum`` are added, ``most`` keep the rows that change
most, ``same`` are alike in all portions. Portions are folded in the order of their images, so that the result is the same to the
last bit whether they were measured in one go or apart.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["KEPT", "Part", "folded", "most_changed"]

Part = dict[str, Tensor]

#: So many of the images that change most are told.
KEPT = 10


def folded(parts: Iterable[Part]) -> Part:
    """Portions of successive images as one; empty without any.

    >>> folded([{"each/x": torch.ones(2), "sum/y": torch.ones(())}, {"each/x": torch.zeros(1), "sum/y": torch.ones(())}])
    {'each/x': tensor([1., 1., 0.]), 'sum/y': tensor(2.)}
    """
    joined: dict[str, list[Tensor]] = {}
    whole: Part = {}
    for part in parts:
        for name, tensor in part.items():
            kind = name.partition("/")[0]
            if kind == "each":
                joined.setdefault(name, []).append(tensor)
                whole.setdefault(name, tensor)
            elif name not in whole or kind == "same":
                whole[name] = tensor
            elif kind == "sum":
                whole[name] = whole[name] + tensor
            else:
                whole[name] = most_changed(torch.cat([whole[name], tensor]))
    return whole | {name: torch.cat(tensors) for name, tensors in joined.items()}


def most_changed(rows: Tensor) -> Tensor:
    """The rows (similarity, image, ...) of least similarity, of equal ones the earlier image."""
    order = rows[:, 1].argsort(stable=True)
    order = order[rows[order, 0].argsort(stable=True)]
    return rows[order[:KEPT]]
