"""The source's worked examples, computed: what a shift does to a signal on its way through convolution and subsampling.

Nothing here is typed in but the two inputs and the kernel of the slides; every number shown comes out of ``signals``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from shiftscope.signals import correlate, homogeneity, respond, subsample, translate

__all__ = ["WorkedTable", "worked_tables"]

SIGNAL = torch.tensor([0, 0, 0, 0, 1, 2, 0, 0, 0, 0])
KERNEL = torch.tensor([1, 0, 1])
HOMOGENEOUS = torch.tensor([0, 0, 0, 0, 0, 2, 2, 3, 3, 1, 1, 2, 2, 0, 0, 0, 0, 0])


@dataclass(frozen=True)
class WorkedTable:
    """One worked example.

    Attributes:
        name: what it is about.
        setting: the input and what is done to it.
        rows: one a shift: ``shift``, ``output``, and what is measured of the output.
        shows: what a reader should see in it, in one sentence.
    """

    name: str
    setting: str
    rows: tuple[dict[str, Any], ...]
    shows: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a row's entries, in order."""
        return tuple(self.rows[0])

    def to_json(self) -> dict[str, Any]:
        """The table as plain data."""
        return {**asdict(self), "columns": list(self.columns)}


def worked_tables() -> tuple[WorkedTable, ...]:
    """Every worked table of the source, sections on equivariance, shiftability, homogeneity and the fully connected layer.

    >>> [table.name for table in worked_tables()]
    ['equivariance', 'broken equivariance', 'shiftability', 'local homogeneity', 'fully connected layer']
    """
    return (
        WorkedTable(
            "equivariance",
            f"{_written(SIGNAL)} correlated with {_written(KERNEL)}, stride 1",
            _rows(SIGNAL, (0, 1, 2), dense),
            "At stride 1 the output only moves, by exactly the shift: dense convolution is equivariant.",
        ),
        WorkedTable(
            "broken equivariance",
            f"{_written(SIGNAL)} correlated with {_written(KERNEL)}, stride 2",
            _rows(SIGNAL, (0, 1, 2), strided),
            "At stride 2 a shift of one gives an output that was not there before: subsampling breaks equivariance. (Its "
            "similarity is 1 all the same, because a cosine does not see that the output has doubled.)",
        ),
        WorkedTable(
            "shiftability",
            f"{_written(SIGNAL)} correlated with {_written(KERNEL)}, stride 2, only shifts that are multiples of 2",
            _rows(SIGNAL, (0, 2), strided),
            "Shifts that are multiples of the stride survive, divided by it: subsampling scales them.",
        ),
        WorkedTable(
            "local homogeneity",
            f"{_written(HOMOGENEOUS)}, every second position",
            _rows(HOMOGENEOUS, (0, 1, 2, 3), lambda signal: subsample(signal, 2)),
            f"Neighbours alike in step with the subsampling (homogeneity {homogeneity(HOMOGENEOUS, 2):g} at factor 2; "
            f"the input above has {homogeneity(SIGNAL, 2):g}): "
            "every shift keeps its similarity, and moves half as far.",
        ),
        WorkedTable(
            "fully connected layer",
            "the stride 1 output above, then one unit with the weights 1 2 3 4 5 6 7 8, or the sum over positions",
            _connected_rows(SIGNAL, (0, 1, 2)),
            "The map is equivariant, yet the shift still reaches the fully connected layer, which weighs positions; only the "
            "sum over positions does not see it. Equivariant is not invariant.",
        ),
    )


def dense(signal: Tensor) -> Tensor:
    """The slides' convolution at stride 1."""
    return correlate(signal, KERNEL)


def strided(signal: Tensor) -> Tensor:
    """The slides' convolution at stride 2."""
    return correlate(signal, KERNEL, stride=2)


def _rows(signal: Tensor, shifts: tuple[int, ...], through: Callable[[Tensor], Tensor]) -> tuple[dict[str, Any], ...]:
    """Outputs under shifts, each measured against the output of the first shift."""
    outputs = [through(translate(signal, shift)) for shift in shifts]
    responses = [respond(outputs[0], output) for output in outputs]
    return tuple(
        {
            "shift": shift,
            "output": output.tolist(),
            "similarity": round(response.similarity, 6),
            "movement": response.movement,
            "cosine in place": round(response.in_place, 6),
        }
        for shift, output, response in zip(shifts, outputs, responses, strict=True)
    )


def _connected_rows(signal: Tensor, shifts: tuple[int, ...]) -> tuple[dict[str, Any], ...]:
    """The dense map under shifts, what a unit that weighs positions makes of it, and what a sum over positions does."""
    maps = [dense(translate(signal, shift)) for shift in shifts]
    weights = torch.arange(1, len(maps[0]) + 1)
    return tuple(
        {
            "shift": shift,
            "output": features.tolist(),
            "fully connected": int((features * weights).sum()),
            "sum": int(features.sum()),
        }
        for shift, features in zip(shifts, maps, strict=True)
    )


def _written(signal: Tensor) -> str:
    return " ".join(str(value) for value in signal.tolist())
