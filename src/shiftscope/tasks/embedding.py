"""Embeddings: a vector for each image. Invariant: a shift should change nothing, or at least not which image is nearest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.runtime.text import number_of
from shiftscope.similarity import cosine
from shiftscope.tasks.placing import Placing
from shiftscope.tasks.reading import finite_rows, select_output
from shiftscope.tasks.task import ROUNDING, Pair, Task, View

__all__ = ["Embedding"]

#: Names of an embedding among several outputs.
NAMES = ("image_embeds", "pooler_output", "embeddings", "embedding", "features")
#: Neighbours whose cosines differ by no more than this are equally near.
EQUAL = 1e-6


@dataclass(frozen=True)
class Embedding(Task):
    """Vectors, [image, feature]; neighbours are the unshifted images of the block, of which there are up to 64.

    Attributes:
        kept: least cosine at which a vector counts as kept.
    """

    moves: ClassVar[bool | None] = False
    name: str = "embedding"
    measures: tuple[str, ...] = ("mcs", "retrieval", "neighbour_rank")
    kept: float = 0.9

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Tensor]:
        """Return each image's vector."""
        return list(finite_rows(self._vectors(output, count)).double())

    def _vectors(self, output: Any, count: int) -> Tensor:
        found = select_output(output, None, NAMES)
        found = found[:, :, 0, 0] if found.ndim == 4 and found.shape[2:] == (1, 1) else found
        if found.ndim != 2 or len(found) != count:
            raise InputError(
                f"task 'embedding' needs [image, feature] for {number_of(count, 'image')}, got shape {tuple(found.shape)}.",
                "Choose another --task or `output`.",
            )
        return found

    def place_back(self, output: Any, placing: Placing) -> Tensor:
        """Return the vectors as they are: a shift should change nothing."""
        return self._vectors(output, len(placing.corners))

    def average(self, outputs: Iterable[tuple[Any, Placing]]) -> Tensor:
        """Return the mean vectors, [image, feature]."""
        return torch.stack([self._vectors(raw, len(place.corners)) for raw, place in outputs]).mean(dim=0)

    def no_mean(self) -> str:
        """Return nothing: there is a mean."""
        return ""

    def gather(self, references: Sequence[Tensor]) -> Float[Tensor, "image feature"]:
        """Return all vectors of a block as one tensor."""
        return torch.stack(list(references))

    def compare(self, before: Tensor, after: Tensor, view: View, truth: Any) -> dict[str, float]:
        """Return the cosine, and the rank of the image itself among the block's images by their cosine with the shifted one."""
        own = float(cosine(before, after))
        others = cosine(view.references, after[None].expand_as(view.references))
        others = torch.cat([others[: view.image], others[view.image + 1 :]])
        if not len(others):
            return {"mcs": own, "retrieval": nan, "neighbour_rank": nan}
        own_cosine = float(cosine(view.references[view.image], after))
        nearer = int((others > own_cosine + EQUAL).sum())
        equal = int(((others - own_cosine).abs() <= EQUAL).sum())
        # Ties are broken at random: what is returned is the expectation.
        return {"mcs": own, "retrieval": 0.0 if nearer else 1 / (1 + equal), "neighbour_rank": 1 + nearer + equal / 2}

    def rule(self, reach: int) -> str:
        """Return how alike vectors are."""
        return f"the cosine with the vector without a shift is at least {self.kept:g}, by more than rounding"

    def leads(self, pairs: Sequence[Pair]) -> list[float]:
        """Return by how much cosines exceed their limit."""
        return [float(cosine(each.before, each.after)) - self.kept - ROUNDING for each in pairs]
