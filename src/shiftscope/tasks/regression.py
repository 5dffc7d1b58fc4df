"""Numbers for each image, such as an age, a count or a score. Invariant: a shift should change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from shiftscope.errors import InputError
from shiftscope.runtime.text import number_of
from shiftscope.tasks.placing import Placing
from shiftscope.tasks.reading import finite_rows, select_output
from shiftscope.tasks.task import ROUNDING, Pair, Task, View

__all__ = ["Regression"]


@dataclass(frozen=True)
class Regression(Task):
    """Real numbers for each image, [image] or [image, output].

    Attributes:
        within: largest change of a number at which an answer counts as kept, in its unit; 0 for no certificates.
    """

    moves: ClassVar[bool | None] = False
    name: str = "regression"
    measures: tuple[str, ...] = ("value_change",)
    truth_measures: tuple[str, ...] = ("truth_value_error",)
    within: float = 0.0

    def read(self, output: Any, count: int, size: tuple[int, int]) -> list[Tensor]:
        """Return each image's numbers, [output]."""
        return list(finite_rows(self._values(output, count)).double())

    def _values(self, output: Any, count: int) -> Tensor:
        """Return the tensor of the outputs, [image, output]."""
        found = select_output(output, None)
        found = found[:, None] if found.ndim == 1 else found
        if found.ndim != 2 or len(found) != count or not found.is_floating_point():
            raise InputError(
                f"task 'regression' needs real numbers [image, output] for {number_of(count, 'image')}, got {found.dtype} of "
                f"shape {tuple(found.shape)}.",
                "Choose another --task or `output`.",
            )
        return found

    def place_back(self, output: Any, placing: Placing) -> Tensor:
        """Return the numbers as they are: a shift should change nothing."""
        return self._values(output, len(placing.corners))

    def average(self, outputs: Iterable[tuple[Any, Placing]]) -> Tensor:
        """Return the mean numbers, [image, output]."""
        return torch.stack([self._values(raw, len(place.corners)) for raw, place in outputs]).mean(dim=0)

    def no_mean(self) -> str:
        """Return nothing: there is a mean."""
        return ""

    def compare(
        self, before: Float[Tensor, " output"], after: Float[Tensor, " output"], view: View, truth: Tensor | None
    ) -> dict[str, float]:
        """Return the mean absolute change, and with ground truth the mean absolute error after the shift."""
        found = {"value_change": float((after - before).abs().mean())}
        if truth is not None:
            if truth.numel() != after.numel():
                raise InputError(
                    f"`truth` of task 'regression' must hold {after.numel()} numbers for each image, got {truth.numel()}.",
                    "Give one for each output of the model.",
                )
            found["truth_value_error"] = float((after - truth).abs().mean())
        return found

    def rule(self, reach: int) -> str:
        """Return how far numbers may change; empty without a limit."""
        return f"no number changes by more than {self.within:g}" if self.within > 0 else ""

    def no_rule(self) -> str:
        """Return how to give a limit."""
        return "Give a limit in the unit of the outputs, as in --task regression:within=0.5."

    def leads(self, pairs: Sequence[Pair]) -> list[float]:
        """Return how far the largest change of each pair lies below the limit."""
        return [self.within - ROUNDING - float((each.after - each.before).abs().max()) for each in pairs]

    def read_truth(self, truth: Any, size: tuple[int, int]) -> Tensor:
        """Return the true numbers, [output]."""
        return torch.as_tensor(truth, dtype=torch.float64).reshape(-1)

    def text(self, answer: Tensor) -> str:
        """Return the numbers."""
        return ", ".join(f"{value:.4g}" for value in answer.tolist())

    def words(self, share: str, value: str, moved: str) -> str:
        """Return the mean change in a sentence."""
        return f"The outputs change by {value} when images move {moved}."
